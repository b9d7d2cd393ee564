"""How a Qdrant server is reached: its clients, which protocol it speaks to us, deadlines and tries."""

from __future__ import annotations

import logging
import math
import re
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal, TypeVar

import anyio
import grpc
import httpx
from qdrant_client import AsyncQdrantClient, models
from qdrant_client import grpc as pb
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from m3_connectors.backends.endpoint import Endpoint
from m3_connectors.backends.qdrant.server_errors import BACKEND, translated
from m3_connectors.backends.qdrant.server_grpc import OPTIONS, GrpcWire, unary
from m3_connectors.backends.qdrant.server_wire import RestWire, Wire
from m3_connectors.backends.retry import retrying
from m3_connectors.backends.speaking import check_spoken
from m3_connectors.backends.together import Shared
from m3_connectors.errors import InvalidInput, Rejected, Unavailable, Unsupported

T = TypeVar("T")
Transport = Literal["auto", "grpc", "rest"]

OLDEST = (1, 16)
"""The first server whose collections can hold a description of themselves."""

_PROBE_SECONDS = 3.0
"""How long gRPC may take to greet us before REST is used."""

_log = logging.getLogger(__name__)


class Connection:
    """The way to one collection on one server; nothing is sent before ``connect``.

    Attributes:
        url: The server, without secrets.
        version: Of the server, such as ``"1.18.3"``; empty before ``connect``.
        no_grpc: Why gRPC is not used although it may be; empty if it is.
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
        self._greeting: Shared[None] = Shared()

    @property
    def client(self) -> AsyncQdrantClient:
        """The REST client, for everything but vectors."""
        assert self._client is not None
        return self._client

    @property
    def wire(self) -> Wire:
        """What vectors go over."""
        assert self._wire is not None
        return self._wire

    @property
    def transport(self) -> str:
        """How we talk: protocol and encryption."""
        endpoint = self._endpoint
        if not endpoint.tls:
            return f"{self.wire.name}, not encrypted"
        return f"{self.wire.name}, TLS" + ("" if endpoint.verify else ", certificate not checked")

    async def connect(self) -> None:
        """Greet the server once and settle the protocol; a second call does nothing.

        Raises:
            Unavailable: Nobody answers there, or gRPC was demanded and does not answer.
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
        """The server's greeting, or what answers there instead."""
        try:
            return await self.client.info()
        except (ResponseHandlingException, UnexpectedResponse):
            remedy = (
                "Give the port of Qdrant's REST interface, 6333 by default, and the gRPC port as grpc_port=…."
            )
            await check_spoken(self._endpoint, BACKEND, "connect", wanted="HTTP/1", remedy=remedy)
            raise

    async def call(self, operation: str, call: Callable[[], Awaitable[T]]) -> T:
        """The answer of one request, each try with its deadline.

        Args:
            operation: What is being done, for errors.
            call: Makes the request; it must be safe to repeat.

        Raises:
            BackendError: The last failure.
        """
        patience = self._endpoint.patience

        async def once() -> T:
            with translated(operation, self.url):
                with anyio.fail_after(patience.timeout_seconds):
                    return await call()

        return await retrying(patience, once)

    async def close(self) -> None:
        """Close both clients; a later ``connect`` makes new ones."""
        wire, self._wire = self._wire, None
        client, self._client = self._client, None
        if wire is not None:
            await wire.close()
        if client is not None:
            await client.close()

    def _make_client(self) -> AsyncQdrantClient:
        endpoint = self._endpoint
        # As a header: given as ``api_key``, the client would warn of an http URL that was allowed on purpose.
        key = endpoint.api_key
        return AsyncQdrantClient(
            url=f"{endpoint.scheme}://{_bracketed(endpoint.host)}:{endpoint.port}",
            prefix=endpoint.path or None,
            headers={"api-key": key.get_secret_value()} if key else None,
            timeout=math.ceil(endpoint.patience.timeout_seconds),
            # Its check would make a blocking request here and now.
            check_compatibility=False,
            # Its own default for localhost is a new connection for each request.
            limits=httpx.Limits(max_connections=100, max_keepalive_connections=20),
            verify=self._trust(),
        )

    def _trust(self) -> ssl.SSLContext | bool:
        if self._endpoint.ca_certs is None:
            return self._endpoint.verify
        try:
            return ssl.create_default_context(cafile=self._endpoint.ca_certs)
        except (OSError, ssl.SSLError) as error:
            raise InvalidInput(
                f"ca_certs {self._endpoint.ca_certs!r} is no readable PEM file: {error}"
            ) from error

    async def _grpc_wire(self, version: str) -> GrpcWire | None:
        if self._transport == "rest":
            return None
        endpoint = self._endpoint
        reason = ""
        if endpoint.path:
            reason = "gRPC has no path prefix"
        elif endpoint.tls and not endpoint.verify:
            reason = "gRPC cannot leave certificates unchecked"
        else:
            channel = self._channel()
            try:
                health = pb.QdrantStub(channel).HealthCheck  # type: ignore[no-untyped-call]
                reply = await unary(health, pb.HealthCheckRequest(), timeout_seconds=_PROBE_SECONDS)
                if reply.version == version:
                    key = endpoint.api_key.get_secret_value() if endpoint.api_key else None
                    seconds = endpoint.patience.timeout_seconds
                    return GrpcWire(channel, self._collection, api_key=key, timeout_seconds=seconds)
                reason = f"another Qdrant ({reply.version}) answers there"
            except grpc.RpcError as error:
                reason = f"{error.code().name} {error.details()}"
            except BaseException:
                channel.close()
                raise
            channel.close()
        message = f"no gRPC at port {self._grpc_port} of {endpoint.host} ({reason})"
        if self._transport == "grpc":
            raise Unavailable(
                f'{message}.\n  Open the port, give grpc_port=…, or use transport="rest".',
                backend=BACKEND,
                operation="connect",
            )
        self.no_grpc = message
        _log.warning("qdrant: %s; using REST, which is slower and takes at most 32 MB a document.", message)
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
        message = f"{url} gives its version as {version!r}: is it a Qdrant server?"
        raise Rejected(message, backend=BACKEND, operation="connect")
    if tuple(map(int, numbers.groups())) < OLDEST:
        raise Unsupported(
            f"{url} is Qdrant {version}; collections describe themselves since {OLDEST[0]}.{OLDEST[1]}, and an "
            "older server cannot tell whose vectors it holds.\n"
            "  Update it, or use the engine in this process: qdrant:./data."
        )
