"""One client of one server: each request with its timeout and its retries, and with this package's errors."""

from __future__ import annotations

import base64
import io
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import anyio
import cbor2
import elastic_transport
import elastic_transport.client_utils
import elasticsearch

from m3_connectors.backends.elasticsearch.errors import TooMuch, from_status, translated
from m3_connectors.backends.elasticsearch.layout import BACKEND, MULTIVECTOR, MULTIVECTOR_BLOB
from m3_connectors.backends.elasticsearch.rows import encoded
from m3_connectors.backends.endpoint import Endpoint
from m3_connectors.backends.retry import retrying
from m3_connectors.backends.speaking import check_spoken
from m3_connectors.backends.together import Turn
from m3_connectors.errors import InvalidInput, TimedOut

T = TypeVar("T")

_CONNECTIONS = 16
_JSON = "application/vnd.elasticsearch+json; compatible-with=8"
"""Servers of versions 8.19 and 9.x accept it; the default of a version 9 client is accepted by 9.x only."""

_CBOR = "application/vnd.elasticsearch+cbor; compatible-with=8"
"""For answers with large values: binary ones come as they are, and text needs no search for escapes."""

_LINES = "application/vnd.elasticsearch+x-ndjson; compatible-with=8"

_FAILURES = (elastic_transport.TransportError, elasticsearch.ApiError, elasticsearch.UnsupportedProductError)


class _Cbor(elastic_transport.Serializer):
    mimetype = "application/vnd.elasticsearch+cbor"

    def loads(self, data: bytes) -> Any:
        """Return the values of an answer."""
        try:
            return cbor2.loads(data)
        except cbor2.CBORDecodeError as error:
            raise elastic_transport.SerializationError(f"an answer is not CBOR: {error}") from error


class _Body(io.BytesIO):
    """The body of a request, sent in pieces and logged by its size."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._size = len(content)

    def decode(self, *_: str) -> str:
        """Return what the client logs in place of the body."""
        return f"({self._size} bytes)"


class _Node(elastic_transport.AiohttpHttpNode):
    """The client's transport, changed for bodies of many megabytes, which would block the event loop."""

    async def perform_request(  # type: ignore[override]
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: elastic_transport.HttpHeaders | None = None,
        request_timeout: Any = elastic_transport.client_utils.DEFAULT,
    ) -> Any:
        stream: Any = _Body(body) if body else None
        return await super().perform_request(method, target, stream, headers, request_timeout)


class Connection:
    """Requests to one server; the constructor does not use the network."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.url = endpoint.url
        self._client = _client(endpoint)
        self.version_checked = False
        self.closed = False
        """No connection is open: a request now would open a session that nothing closes."""
        self._answered = False  # a port that has answered once is the right one
        # The wait for a free connection would otherwise count as time of the server.
        self._connections = anyio.CapacityLimiter(_CONNECTIONS)

    async def request(
        self,
        operation: str,
        method: str,
        path: str,
        body: Mapping[str, Any] | bytes | None = None,
        *,
        divisible: bool = False,
        accept: str = _JSON,
        **params: str,
    ) -> Any:
        """Send one request and return the response, with retries; bytes are sent unchanged, as JSON lines.

        Raises:
            TooMuch: The server lacks memory for the request; not retried if the caller can split it
            (``divisible``).
            BackendError: The request failed with an error that is not retryable, or after all retries.
        """
        return await self._retried(
            lambda: self.once(operation, method, path, body, accept=accept, **params), divisible
        )

    async def _retried(self, call: Callable[[], Awaitable[T]], divisible: bool) -> T:
        self.closed = False

        async def attempt() -> T:
            try:
                return await call()
            except TooMuch as error:
                error.retryable = not divisible
                raise

        return await retrying(self.endpoint.patience, attempt)

    async def once(
        self,
        operation: str,
        method: str,
        path: str,
        body: Mapping[str, Any] | bytes | None = None,
        *,
        accept: str = _JSON,
        **params: str,
    ) -> Any:
        """Send one request without retries, otherwise like ``request``."""
        content = encoded(body) if isinstance(body, Mapping) else body
        headers = {"accept": accept, "content-type": _LINES if isinstance(body, bytes) else _JSON}
        try:
            async with self.turn(operation, self._connections, self.endpoint.patience.timeout_seconds):
                answer = await self._client.perform_request(
                    method, path, params=params, headers=headers, body=content
                )
        except _FAILURES as error:
            if not self._answered and isinstance(error, elastic_transport.ConnectionError):
                remedy = "Use the HTTP port of Elasticsearch, 9200 by default."
                await check_spoken(self.endpoint, BACKEND, operation, wanted="HTTP/1", remedy=remedy)
            raise translated(error, operation, self.url) from error
        self._answered = True
        return answer.body

    def turn(self, operation: str, turns: anyio.CapacityLimiter, seconds: float) -> Turn:
        """Return one slot of ``turns``; it raises TimedOut if none is free within this number of seconds."""

        def late() -> TimedOut:
            return TimedOut(
                f"{self.url} was busy with earlier calls of this process for {seconds:g} s; this call was "
                "not sent.\n"
                "  Send fewer requests at the same time, or raise timeout_seconds and total_seconds.",
                backend=BACKEND,
                operation=operation,
            )

        return Turn(turns, seconds, late)

    async def search(
        self, operation: str, alias: str, body: Mapping[str, Any], *, divisible: bool = False
    ) -> list[Any]:
        """Return the hits of a search over all shards; if a shard fails, the search fails."""
        # Multi-vectors arrive faster in CBOR, but everything else is parsed faster from JSON (a list of 1,000 with its
        # sparse vectors takes 8 ms more in CBOR).
        wanted = {*body.get("docvalue_fields", ()), *body.get("stored_fields", ())}
        answer = await self.request(
            operation,
            "POST",
            f"/{segment(alias)}/_search",
            body,
            divisible=divisible,
            accept=_CBOR if wanted & {MULTIVECTOR, MULTIVECTOR_BLOB} else _JSON,
            allow_partial_search_results="false",
        )
        hits: list[Any] = answer["hits"]["hits"]
        return hits

    async def stored(
        self, operation: str, alias: str, ids: Sequence[str], fields: str, *, divisible: bool = False
    ) -> list[Any]:
        """Return those of these documents that are stored, as last written, even before a refresh.

        If the server could not read one, the call fails: that does not mean that the document is not stored.
        """

        async def read() -> list[Any]:
            path = f"/{segment(alias)}/_mget"
            answer = await self.once(operation, "POST", path, {"ids": ids}, _source_includes=fields)
            for one in answer["docs"]:
                if "error" in one:
                    raise from_status(503, one["error"], operation, self.url)
            return [one for one in answer["docs"] if one.get("found")]

        return await self._retried(read, divisible)

    async def close(self) -> None:
        """Close all connections; safe to call twice. A later request opens them again."""
        self.closed = True
        await self._client.close()


def segment(name: str) -> str:
    """Return a name quoted as one segment of a path."""
    return quote(name, safe="")


def _client(endpoint: Endpoint) -> elasticsearch.AsyncElasticsearch:
    options: dict[str, Any] = {}
    if endpoint.tls:
        options = {"verify_certs": endpoint.verify, "ssl_show_warn": False}
        if endpoint.ca_certs:
            options["ca_certs"] = endpoint.ca_certs
        if endpoint.fingerprint:
            # The client accepts it only instead of a CA certificate.
            options |= {"ssl_assert_fingerprint": endpoint.fingerprint}
    if endpoint.api_key is not None:
        options["api_key"] = endpoint.api_key.get_secret_value()
    if endpoint.username is not None and endpoint.password is not None:
        # Encoded here because the client accepts only ASCII.
        credentials = f"{endpoint.username}:{endpoint.password.get_secret_value()}"
        options["basic_auth"] = base64.b64encode(credentials.encode()).decode("ascii")
    try:
        return elasticsearch.AsyncElasticsearch(
            endpoint.url,
            node_class=_Node,
            serializers={"application/json": elasticsearch.OrjsonSerializer(), _Cbor.mimetype: _Cbor()},
            request_timeout=endpoint.patience.timeout_seconds,
            connections_per_node=_CONNECTIONS,
            max_retries=0,
            **options,
        )
    except (ValueError, OSError) as error:
        raise InvalidInput(
            f"the client cannot connect to {endpoint.url} with these options: {error}\n"
            "  Check ca_certs, fingerprint, verify, username and password."
        ) from error
