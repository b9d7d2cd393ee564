"""A TCP proxy that simulates faults of networks and servers, for tests of anything that has a client.

::

    with FaultProxy(9200) as proxy:
        index = connect(f"elasticsearch+http://127.0.0.1:{proxy.port}", "notes", encoder=encoder)
        proxy.fault = Cut(after_bytes=100, times=1)   # the next response is cut in the middle
        index.add(documents)                          # must be retried, and succeed
        assert proxy.faults == 1

It runs on its own event loop in its own thread, so that blocking and asynchronous clients are tested in the
same way and a blocked client cannot stop it. It listens only on 127.0.0.1. All random choices depend only on
``seed``.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import socket
import ssl
import struct
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault of a network or a server.

    Attributes:
        times: How often it happens before it ends; None to continue until it is removed.
        probability: The probability that it happens for a chunk of a response; otherwise the chunk passes.
    """

    times: int | None = dataclasses.field(default=None, kw_only=True)
    probability: float = dataclasses.field(default=1.0, kw_only=True)


@dataclasses.dataclass(frozen=True)
class Refuse(Fault):
    """A server that is down: new connections are refused, and open ones are reset."""


@dataclasses.dataclass(frozen=True)
class Hang(Fault):
    """A server that hangs: it accepts connections and requests, but sends no response."""


@dataclasses.dataclass(frozen=True)
class Delay(Fault):
    """Every chunk of a response is delayed.

    Attributes:
        seconds: The minimum delay.
        jitter_seconds: The maximum random delay in addition.
    """

    seconds: float
    jitter_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Cut(Fault):
    """A response is cut in the middle, and the connection is closed.

    Attributes:
        after_bytes: The number of response bytes that still pass, counted from when the fault was set.
    """

    after_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Reset(Cut):
    """A response is cut in the middle, and the connection is reset."""


@dataclasses.dataclass(frozen=True)
class DropRequest(Fault):
    """A request is cut in the middle: the server receives a part of it, and the client a closed connection.

    Attributes:
        after_bytes: The number of request bytes that still pass, counted from when the fault was set.
    """

    after_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Reply(Fault):
    """An HTTP/1.1 request gets this response and does not reach the server.

    Attributes:
        status: The status of the response.
        body: The body of the response.
        headers: The headers of the response, in addition to those for its length and end.
        to: Only requests whose first line, such as ``POST /notes/_bulk HTTP/1.1``, contains this text are
        affected.
    """

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    to: str = ""

    def message(self) -> bytes:
        """Return the response as bytes."""
        headers = {**self.headers, "Content-Length": len(self.body), "Connection": "close"}
        lines = [f"HTTP/1.1 {self.status} -", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


class FaultProxy:
    """A proxy between clients and one server.

    Args:
        port: The port of the server.
        host: The host of the server.
        listen: The port to listen on; any free port by default.
        seed: The seed of all random choices.
        tls: Accept connections with this server-side TLS context, and forward them without encryption.

    Attributes:
        port: The port on 127.0.0.1 where it listens.
        faults: How many times a fault has happened.
        connections: How many connections were opened.
    """

    def __init__(
        self,
        port: int,
        host: str = "127.0.0.1",
        *,
        listen: int = 0,
        seed: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.port = listen
        self.faults = 0
        self.connections = 0
        self._target = (host, port)
        self._tls = tls
        self._random = random.Random(seed)
        self._fault: Fault | None = None
        self._changed = asyncio.Event()
        self._passed_bytes = 0
        self._left = 0
        self._server: asyncio.Server | None = None
        self._open: set[_Connection] = set()
        self._writers: weakref.WeakSet[asyncio.StreamWriter] = weakref.WeakSet()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)

    @property
    def fault(self) -> Fault | None:
        """The current fault, or None. A new value takes effect before the assignment returns."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault | None) -> None:
        self._run(self._set(fault))

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

    async def _set(self, fault: Fault | None) -> None:
        self._fault = fault
        self._passed_bytes = 0
        self._left = -1 if fault is None or fault.times is None else fault.times
        self._changed.set()
        self._changed = asyncio.Event()
        if isinstance(fault, Refuse):
            self.faults += 1
            await self._close_server()
            self._reset_all()
        elif self._server is None:
            await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close_server(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _stop(self) -> None:
        await self._close_server()
        self._reset_all()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # A closed connection whose peer does not read would stay open beyond the end of the loop.
        writers = list(self._writers)
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)

    def _reset_all(self) -> None:
        for connection in list(self._open):
            connection.end(reset=True)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(to_client)
        # Ignored at shutdown, because asyncio would log a cancelled task of a server as an error.
        with contextlib.suppress(asyncio.CancelledError):
            try:
                server, to_server = await asyncio.open_connection(*self._target)
            except OSError:
                to_client.transport.abort()
                return
            self._writers.add(to_server)
            connection = _Connection(to_client, to_server)
            self._open.add(connection)
            try:
                await asyncio.gather(
                    self._pump(client, to_server, connection, self._on_request),
                    self._pump(server, to_client, connection, self._on_answer),
                )
            except OSError:
                # One side broke the connection: close the other side now.
                connection.end(reset=True)
            finally:
                connection.end(reset=False)
                self._open.discard(connection)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        connection: _Connection,
        treat: Callable[[bytes, _Connection], Coroutine[Any, Any, bytes]],
    ) -> None:
        while chunk := await source.read(65_536):
            chunk = await treat(chunk, connection)
            if connection.ended:
                return
            target.write(chunk)
            await target.drain()
        if not _end_of(target):
            connection.end(reset=False)

    async def _on_request(self, chunk: bytes, connection: _Connection) -> bytes:
        fault = self._fault
        if connection.answered:
            return b""
        if isinstance(fault, Reply):
            if fault.to.encode() in chunk.partition(b"\r\n")[0] and self._happens(fault):
                connection.answered = True
                connection.to_client.write(fault.message())
                _end_of(connection.to_client)
                return b""
        elif isinstance(fault, DropRequest):
            passed, self._passed_bytes = self._passed_bytes, self._passed_bytes + len(chunk)
            if self._passed_bytes > fault.after_bytes and self._happens(fault):
                connection.to_server.write(chunk[: max(0, fault.after_bytes - passed)])
                connection.end(reset=False)
        return chunk

    async def _on_answer(self, chunk: bytes, connection: _Connection) -> bytes:
        fault = self._fault
        if isinstance(fault, Hang) and self._happens(fault):
            changed = self._changed
            await changed.wait()
        elif isinstance(fault, Delay) and self._happens(fault):
            await asyncio.sleep(fault.seconds + self._random.random() * fault.jitter_seconds)
        elif isinstance(fault, Cut):
            passed, self._passed_bytes = self._passed_bytes, self._passed_bytes + len(chunk)
            if self._passed_bytes > fault.after_bytes and self._happens(fault):
                connection.to_client.write(chunk[: max(0, fault.after_bytes - passed)])
                with contextlib.suppress(OSError):
                    await connection.to_client.drain()
                connection.end(reset=isinstance(fault, Reset))
        return chunk

    def _happens(self, fault: Fault) -> bool:
        if self._left == 0 or self._random.random() >= fault.probability:
            return False
        self._left -= 1
        self.faults += 1
        self._passed_bytes = 0
        return True


def _end_of(writer: asyncio.StreamWriter) -> bool:
    """Close one direction of a connection; return False if that is not possible, as with TLS."""
    if possible := writer.can_write_eof():
        writer.write_eof()
    return possible


class _Connection:
    """A client's connection and the proxy's connection to the server, which are closed together, once."""

    def __init__(self, to_client: asyncio.StreamWriter, to_server: asyncio.StreamWriter) -> None:
        self.to_client, self.to_server = to_client, to_server
        self.answered = self.ended = False
        # Read now, because a TLS connection does not return its socket after it is closed.
        self._sockets = [writer.get_extra_info("socket") for writer in (to_client, to_server)]

    def end(self, *, reset: bool) -> None:
        if self.ended:
            return
        self.ended = True
        for writer, endpoint in zip((self.to_client, self.to_server), self._sockets, strict=True):
            with contextlib.suppress(OSError):
                if not reset:
                    writer.close()
                    continue
                if endpoint.fileno() >= 0:
                    # Closing with a linger time of zero sends a reset.
                    endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
