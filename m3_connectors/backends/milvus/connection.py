"""One connection: pymilvus' blocking client in worker threads, with timeouts, typed errors and retries.

pymilvus also has an asyncio client, which is marked experimental. It decodes responses on the event loop (35
MB of packed vectors would block it for a tenth of a second), and a cancelled call may leave its shared
channel closed. The blocking client, with one thread per call, has neither problem: an abandoned call ends at
its own timeout without effects on others, and a call that was not sent yet is never sent.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import grpc
from pymilvus import MilvusClient
from pymilvus.exceptions import MilvusException

from m3_connectors.backends.endpoint import Endpoint, check_ca_certs
from m3_connectors.backends.milvus import lite
from m3_connectors.backends.milvus.errors import BACKEND, NotLoaded, translated
from m3_connectors.backends.milvus.exclusion import Exclusion, exclusion_of
from m3_connectors.backends.retry import RetryPolicy, retrying
from m3_connectors.backends.speaking import check_spoken
from m3_connectors.backends.together import Turn
from m3_connectors.errors import TimedOut, Unavailable

T = TypeVar("T")

_THREADS = 16
"""The number of concurrent reads of one connection, and of concurrent writes."""

_GRPC_OPTIONS = {
    # A restarted server is found within a second; gRPC's own pause grows to minutes, for all channels
    # together.
    "grpc.initial_reconnect_backoff_ms": 200,
    "grpc.max_reconnect_backoff_ms": 1_000,
    "grpc.use_local_subchannel_pool": 1,
    # A connection that broke silently is detected after 40 s. milvus-lite mistakes pymilvus' ping every 10 s,
    # also between calls, for an attack, and closes the connection (GOAWAY, too_many_pings).
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.keepalive_permit_without_calls": 0,
}


class Connection:
    """A connection to a server, or to the engine embedded in this process.

    Attributes:
        where: The address or path for errors, without secrets.
        patience: Timeouts and retries.
        version: The version that the server reports, such as ``"2.6.4"`` or ``"milvus_lite-3.2.2"``.
    """

    def __init__(
        self,
        client: MilvusClient,
        where: str,
        patience: RetryPolicy,
        engine: lite.Embedded | None,
    ) -> None:
        self.where = where
        self.version = ""
        self._client: MilvusClient | None = client
        self.patience = patience
        self._engine = engine
        self._exclusion: Exclusion | None = None
        # Separate, so that writes that wait for a slow one leave the threads of searches free.
        self._readers = anyio.CapacityLimiter(_THREADS)
        self._writers = anyio.CapacityLimiter(_THREADS)
        # Waiting for a slot does not occupy a thread.
        self._reading = anyio.Semaphore(_THREADS)
        self._writing = anyio.Semaphore(_THREADS)

    @property
    def is_lite(self) -> bool:
        """Whether the server is milvus-lite, embedded or as a server."""
        return "lite" in self.version

    @property
    def rounds_sparse(self) -> bool:
        """Whether sparse searches may score with rounded weights.

        Servers from 3.0 may store them as 16-bit floats (SINDI), in the interim index of a segment regardless
        of the collection's own index (the review of milvus #52361); older ones and milvus-lite are exact to
        float32.
        """
        return not self.is_lite and release(self.version) >= (3,)

    @classmethod
    async def embedded(cls, path: Any, patience: RetryPolicy) -> Connection:
        """Open a data directory with the engine in this process.

        Raises:
            Busy: Another process has the directory open.
            Unsupported: milvus-lite is older than 3.2.2.
        """
        engine = await anyio.to_thread.run_sync(lite.acquire, path)
        try:
            return await cls._connected(str(engine.path), patience, {"uri": engine.uri}, engine)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(lite.release, engine)
            raise

    @classmethod
    async def to(cls, endpoint: Endpoint) -> Connection:
        """Connect to a server.

        Raises:
            Unavailable: The server cannot be reached.
            Unauthorised: The server does not accept the credentials.
            Unsupported: The server is a milvus-lite older than 3.2.2.
        """
        options: dict[str, Any] = {"uri": f"{endpoint.scheme}://{endpoint.host}:{endpoint.port}"}
        if endpoint.api_key is not None:
            options["token"] = endpoint.api_key.get_secret_value()
        if endpoint.username is not None and endpoint.password is not None:
            options |= {"user": endpoint.username, "password": endpoint.password.get_secret_value()}
        if endpoint.path:
            options["db_name"] = endpoint.path.strip("/")
        if endpoint.ca_certs:
            check_ca_certs(endpoint.ca_certs)
            options["server_pem_path"] = endpoint.ca_certs
        try:
            return await cls._connected(endpoint.url, endpoint.patience, options, None)
        except Unavailable:
            remedy = "Use the gRPC port of Milvus, 19530 by default."
            await check_spoken(endpoint, BACKEND, "connect", wanted="HTTP/2", remedy=remedy)
            raise

    @classmethod
    async def _connected(
        cls, where: str, patience: RetryPolicy, options: dict[str, Any], engine: lite.Embedded | None
    ) -> Connection:
        # Not shared: pymilvus shares connections by address and token alone, whatever the other options are.
        connect = functools.partial(
            MilvusClient,
            **options,
            timeout=patience.timeout_seconds,
            dedicated=True,
            grpc_options=_GRPC_OPTIONS,
        )

        async def once() -> MilvusClient:
            return await _in_thread(connect, "connect", where)

        self = cls(await retrying(patience, once), where, patience, engine)
        try:
            self.version = await self.call("connect", "get_server_version")
            if self.is_lite:
                lite.check_version(self.version)
                self._exclusion = exclusion_of(options["uri"])
                self._writing = anyio.Semaphore(1)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._client_close)
            raise
        return self

    async def call(
        self,
        operation: str,
        method: str,
        *args: Any,
        write: bool = False,
        then: Callable[[Any], Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call ``MilvusClient.method(*args, **kwargs)`` with a timeout, and with retries where they can help.

        Args:
            operation: The operation for errors, such as ``"upsert"``.
            method: The name of a method that takes ``timeout``.
            *args: Its positional arguments.
            write: Whether it changes the collection; it must be safe to repeat.
            then: Applied to the response in the same thread, because pymilvus decodes rows when they are
            read.
            **kwargs: Its keyword arguments.

        Raises:
            BackendError: The failure, as the most specific class.
        """

        async def once() -> Any:
            # A write that was abandoned while it waited must not be applied after later writes were
            # acknowledged.
            given_up = threading.Event()
            deadline = time.monotonic() + self.patience.timeout_seconds
            collection = kwargs.get("collection_name") or (args[0] if args else "")

            def invoke() -> Any:
                with self._turn(operation, collection, write, deadline):
                    if given_up.is_set():
                        return None
                    answer = getattr(self._open_client(operation), method)(
                        *args, timeout=self.patience.timeout_seconds, **kwargs
                    )
                return answer if then is None else then(answer)

            turns, threads = (self._writing, self._writers) if write else (self._reading, self._readers)
            try:
                async with Turn(turns, self.patience.timeout_seconds, lambda: self._too_late(operation)):
                    return await _in_thread(invoke, operation, self.where, threads)
            finally:
                given_up.set()

        try:
            return await retrying(self.patience, once)
        except NotLoaded:
            # After a restart of milvus-lite its collections are on disk only.
            collection = kwargs.get("collection_name") or args[0]
            await self.call(operation, "load_collection", collection)
            return await retrying(self.patience, once)

    def _turn(
        self, operation: str, collection: str, is_write: bool, deadline: float
    ) -> contextlib.AbstractContextManager[None]:
        """Return the turn of a call to milvus-lite among all connections of this process; servers need none."""
        if self._exclusion is None:
            return contextlib.nullcontext()
        seconds = deadline - time.monotonic()
        return self._exclusion.turn(collection, is_write, seconds, lambda: self._too_late(operation))

    def _too_late(self, operation: str) -> TimedOut:
        return TimedOut(
            f"{self.where} was busy with earlier calls of this process for "
            f"{self.patience.timeout_seconds:g} s; this call was not sent.\n"
            "  Send fewer requests at the same time, or raise timeout_seconds.",
            backend=BACKEND,
            operation=operation,
        )

    async def close(self) -> None:
        """Close the connection; the embedded engine stops with its last connection."""
        await anyio.to_thread.run_sync(self._client_close)
        if self._engine is not None:
            engine, self._engine = self._engine, None
            await anyio.to_thread.run_sync(lite.release, engine)

    def _open_client(self, operation: str) -> MilvusClient:
        if self._client is None:
            raise Unavailable(
                f"the connection to {self.where} is closed.\n  Open the index again with connect().",
                backend=BACKEND,
                operation=operation,
            )
        return self._client

    def _client_close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            client.close()


def release(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version, such as ``"v2.6.4"``."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


async def _in_thread(
    function: Callable[[], T], operation: str, where: str, limiter: anyio.CapacityLimiter | None = None
) -> T:
    def run() -> T:
        with _quiet():
            return function()

    try:
        return await anyio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=limiter)
    except (MilvusException, grpc.RpcError, grpc.FutureTimeoutError) as error:
        raise translated(error, operation, where) from error
    except ValueError as error:
        if "closed channel" not in str(error):
            raise
        raise translated(error, operation, where) from error


_calling = contextvars.ContextVar("m3_milvus_calling", default=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep pymilvus from logging a traceback for each failed call, which raises an error anyway."""
    token = _calling.set(True)
    try:
        yield
    finally:
        _calling.reset(token)


for _name in ("pymilvus.decorators", "pymilvus.client.connection_manager", "pymilvus.client.grpc_handler"):
    logging.getLogger(_name).addFilter(lambda record: not _calling.get())
