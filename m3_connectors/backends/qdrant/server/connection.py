"""The connection to a Qdrant server: its clients, the choice of the protocol, timeouts and retries."""

from __future__ import annotations

import functools
import logging
import math
import re
import ssl
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import anyio
import grpc
import httpx
from qdrant_client import AsyncQdrantClient, models
from qdrant_client import grpc as pb
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from m3_connectors.backends.chunks import halving
from m3_connectors.backends.endpoint import Endpoint, check_ca_certs
from m3_connectors.backends.qdrant.server.errors import BACKEND, TooLarge, translated
from m3_connectors.backends.qdrant.server.grpc import OPTIONS, GrpcWire, unary
from m3_connectors.backends.qdrant.server.wire import RestWire, Wire
from m3_connectors.backends.retry import retrying
from m3_connectors.backends.speaking import check_spoken
from m3_connectors.backends.together import SingleFlight
from m3_connectors.errors import Rejected, Unavailable, Unsupported

T = TypeVar("T")
R = TypeVar("R")
Transport = Literal["auto", "grpc", "rest"]

OLDEST = (1, 16)
"""The first server version whose collections can hold metadata."""

_PROBE_SECONDS = 3.0
"""How long the gRPC health check may take before REST is used."""

_log = logging.getLogger(__name__)


class Connection:
    """The connection to one collection on one server; nothing is sent before ``connect``.

    Attributes:
        url: The server's URL, without secrets.
        version: The server's version, such as ``"1.18.3"``; empty before ``connect``.
        no_grpc: Why gRPC is not used although it is allowed; empty if it is used.
    """

    def __init__(self, endpoint: Endpoint, collection: str, transport: Transport, grpc_port: int) -> None:
        self.url = endpoint.url
        self.version = ""
        self.no_grpc = ""
        self._endpoint = endpoint
        self._collection = collection
        self._transport = transport
        self._grpc_port = grpc_port
        self._client: AsyncQdrantClient | None = None
        self._wire: Wire | None = None
        self._greeting: SingleFlight[None] = SingleFlight()

    @property
    def client(self) -> AsyncQdrantClient:
        """The REST client, for everything but vectors."""
        assert self._client is not None
        return self._client

    @property
    def wire(self) -> Wire:
        """The protocol for requests that carry vectors."""
        assert self._wire is not None
        return self._wire

    @property
    def transport(self) -> str:
        """The protocol and whether it is encrypted."""
        endpoint = self._endpoint
        if not endpoint.tls:
            return f"{self.wire.name}, not encrypted"
        return f"{self.wire.name}, TLS" + ("" if endpoint.verify else ", certificate not verified")

    async def connect(self) -> None:
        """Contact the server once and choose the protocol; a second call does nothing.

        Raises:
            Unavailable: The server does not answer, or gRPC was required and does not answer.
            Unsupported: The server is older than 1.16.
        """
        if self._wire is None:
            await self._greeting.of(self._greet)

    async def _greet(self) -> None:
        if self._client is None:
            self._client = self._make_client()
        info = await self.call("connect", self._information)
        self.version = info.version
        _check_version(info.version, self.url)
        self._wire = await self._grpc_wire(info.version) or RestWire(self._client, self._collection)

    async def _information(self) -> models.VersionInfo:
        """Return the server's version information, or raise an error that says what answers instead."""
        try:
            return await self.client.info()
        except (ResponseHandlingException, UnexpectedResponse):
            remedy = "Use Qdrant's REST port, 6333 by default, and pass the gRPC port as grpc_port=…."
            await check_spoken(self._endpoint, BACKEND, "connect", wanted="HTTP/1", remedy=remedy)
            raise

    async def call(self, operation: str, call: Callable[[], Awaitable[T]]) -> T:
        """Return the result of one request, with retries and a timeout for each try.

        Args:
            operation: The operation, for errors.
            call: Sends the request; it must be safe to repeat.

        Raises:
            BackendError: The last failure.
        """
        patience = self._endpoint.patience

        async def once() -> T:
            with translated(operation, self.url):
                with anyio.fail_after(patience.timeout_seconds):
                    return await call()

        return await retrying(patience, once)

    async def halving(
        self, operation: str, items: Sequence[T], send: Callable[[Sequence[T]], Awaitable[R]]
    ) -> list[R]:
        """Return the results of ``call`` for all items together, or in parts if that is too large.

        Raises:
            TooLarge: Even a request for one item is too large.
            BackendError: Another failure; the requests for the items before may have been carried out.
        """
        return await halving(
            items, lambda some: self.call(operation, functools.partial(send, some)), TooLarge
        )

    async def close(self) -> None:
        """Close both clients; a later ``connect`` creates new ones."""
        wire, self._wire = self._wire, None
        client, self._client = self._client, None
        if wire is not None:
            await wire.close()
        if client is not None:
            await client.close()

    def _make_client(self) -> AsyncQdrantClient:
        endpoint = self._endpoint
        # The key is passed as a header: as ``api_key``, the client would warn about an http URL that the user
        # allowed.
        key = endpoint.api_key
        trusted = endpoint.ca_certs
        if trusted:
            check_ca_certs(trusted)
        return AsyncQdrantClient(
            url=f"{endpoint.scheme}://{_bracketed(endpoint.host)}:{endpoint.port}",
            prefix=endpoint.path or None,
            headers={"api-key": key.get_secret_value()} if key else None,
            timeout=math.ceil(endpoint.patience.timeout_seconds),
            # The client's check would make a blocking request here.
            check_compatibility=False,
            # For localhost the client's default is a new connection for each request.
            limits=httpx.Limits(max_connections=100, max_keepalive_connections=20),
            verify=ssl.create_default_context(cafile=trusted) if trusted else endpoint.verify,
        )

    async def _grpc_wire(self, version: str) -> GrpcWire | None:
        if self._transport == "rest":
            return None
        endpoint = self._endpoint
        reason = ""
        if endpoint.path:
            reason = "gRPC does not support a path prefix"
        elif endpoint.tls and not endpoint.verify:
            reason = "gRPC cannot disable certificate verification"
        else:
            channel = self._channel()
            try:
                health = pb.QdrantStub(channel).HealthCheck  # type: ignore[no-untyped-call]
                reply = await unary(health, pb.HealthCheckRequest(), timeout_seconds=_PROBE_SECONDS)
                if reply.version == version:
                    key = endpoint.api_key.get_secret_value() if endpoint.api_key else None
                    seconds = endpoint.patience.timeout_seconds
                    return GrpcWire(channel, self._collection, api_key=key, timeout_seconds=seconds)
                reason = f"another Qdrant server (version {reply.version}) answers there"
            except grpc.RpcError as error:
                reason = f"{error.code().name} {error.details()}"
            except BaseException:
                channel.close()
                raise
            channel.close()
        message = f"gRPC is not available at port {self._grpc_port} of {endpoint.host} ({reason})"
        if self._transport == "grpc":
            raise Unavailable(
                f'{message}.\n  Open the port, set grpc_port=…, or use transport="rest".',
                backend=BACKEND,
                operation="connect",
            )
        self.no_grpc = message
        _log.warning("qdrant: %s; using REST, which is slower and limited to 32 MB for a document.", message)
        return None

    def _channel(self) -> grpc.Channel:
        target = f"{_bracketed(self._endpoint.host)}:{self._grpc_port}"
        if not self._endpoint.tls:
            return grpc.insecure_channel(target, options=OPTIONS)
        path = self._endpoint.ca_certs
        roots = Path(path).read_bytes() if path else None
        return grpc.secure_channel(target, grpc.ssl_channel_credentials(roots), options=OPTIONS)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _check_version(version: str, url: str) -> None:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None:
        message = (
            f"{url} reports {version!r} as its version, which is not a version of Qdrant.\n"
            "  Check host and port; Qdrant's REST interface listens on 6333 by default."
        )
        raise Rejected(message, backend=BACKEND, operation="connect")
    if tuple(map(int, numbers.groups())) < OLDEST:
        raise Unsupported(
            f"{url} is Qdrant {version}; m3-connectors needs {OLDEST[0]}.{OLDEST[1]} or later, because an "
            "older server cannot record which model wrote a collection.\n"
            "  Update the server, or use the engine in this process: qdrant:./data."
        )
