"""The fault-injecting proxy: each fault is what its name says, as a plain socket sees it."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import trustme

from m3_connectors.testing.faults import Cut, Delay, DropRequest, FaultProxy, Hang, Refuse, Reply, Reset

ANSWER = b"x" * 1000


@pytest.fixture
def server() -> Iterator[tuple[int, list[bytes]]]:
    """A server that answers every message with a thousand bytes, and what it got."""
    got: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                while message := connection.recv(65_536):
                    got.append(message)
                    connection.sendall(ANSWER)
            except OSError:
                return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1], got
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever happens to connections, asyncio has nothing to complain about."""
    yield
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def ask(port: int, message: bytes = b"hello", timeout: float = 30.0) -> bytes:
    """All that is answered until a thousand bytes, the connection's end or the timeout."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as client:
        client.sendall(message)
        while len(answer) < len(ANSWER) and (chunk := client.recv(65_536)):
            answer += chunk
    return answer


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def read_all(client: socket.socket) -> None:
    while client.recv(65_536):
        pass


def test_without_a_fault_everything_passes(server: tuple[int, list[bytes]]) -> None:
    with FaultProxy(server[0]) as proxy:
        assert ask(proxy.port) == ANSWER
        assert (proxy.connections, proxy.faults) == (1, 0)


def test_a_refused_connection_and_the_same_port_again(server: tuple[int, list[bytes]]) -> None:
    with FaultProxy(server[0]) as proxy:
        proxy.fault = Refuse()
        with pytest.raises(ConnectionRefusedError):
            ask(proxy.port)
        proxy.fault = None
        assert ask(proxy.port) == ANSWER


def test_open_connections_end_when_the_server_goes_down(server: tuple[int, list[bytes]]) -> None:
    with FaultProxy(server[0]) as proxy, socket.create_connection(("127.0.0.1", proxy.port)) as client:
        client.sendall(b"hello")
        client.recv(10)
        proxy.fault = Refuse()
        with pytest.raises(ConnectionResetError):
            read_all(client)


def test_a_hang_lasts_until_it_is_taken_away(server: tuple[int, list[bytes]]) -> None:
    with FaultProxy(server[0]) as proxy:
        proxy.fault = Hang()
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=0.2) as client:
            client.sendall(b"hello")
            wait_until(lambda: server[1] == [b"hello"])
            with pytest.raises(TimeoutError):
                client.recv(1)
            proxy.fault = None
            client.settimeout(30.0)
            assert client.recv(1) == b"x"


def test_a_cut_answer_is_as_long_as_said_and_happens_as_often_as_said(
    server: tuple[int, list[bytes]],
) -> None:
    with FaultProxy(server[0]) as proxy:
        proxy.fault = Cut(300, times=2)
        assert [len(ask(proxy.port)) for _ in range(3)] == [300, 300, 1000]
        assert proxy.faults == 2


def test_a_reset_is_no_orderly_end(server: tuple[int, list[bytes]]) -> None:
    with FaultProxy(server[0]) as proxy:
        proxy.fault = Reset(0, times=1)
        with pytest.raises(ConnectionResetError):
            ask(proxy.port)
        assert ask(proxy.port) == ANSWER


def test_a_dropped_request_reaches_the_server_in_part(server: tuple[int, list[bytes]]) -> None:
    with FaultProxy(server[0]) as proxy:
        proxy.fault = DropRequest(3, times=1)
        assert ask(proxy.port) == b""
        wait_until(lambda: server[1] == [b"hel"])


def test_a_delay_is_at_least_what_was_asked(server: tuple[int, list[bytes]]) -> None:
    with FaultProxy(server[0]) as proxy:
        proxy.fault = Delay(0.1)
        started = time.monotonic()
        assert ask(proxy.port, timeout=30.0) == ANSWER
        assert time.monotonic() - started >= 0.1


def test_a_reply_stands_for_the_servers_and_only_where_it_was_asked_for(
    server: tuple[int, list[bytes]],
) -> None:
    with FaultProxy(server[0]) as proxy:
        proxy.fault = Reply(401, b"{}", {"X-Why": "expired"}, to="/_bulk", times=1)
        assert ask(proxy.port, b"GET /notes HTTP/1.1\r\n\r\n/_bulk") == ANSWER
        long = b"POST /notes/_bulk HTTP/1.1\r\n\r\n" + b"y" * 1_000_000
        assert ask(proxy.port, long, timeout=30.0) == (
            b"HTTP/1.1 401 -\r\nX-Why: expired\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
        )
        assert proxy.faults == 1
        assert ask(proxy.port, b"POST /notes/_bulk HTTP/1.1\r\n\r\n") == ANSWER
    assert len(server[1]) == 2


@pytest.mark.parametrize("end", ["client", "server", "proxy", "nobody"])
def test_an_encrypted_connection_may_end_on_any_side(server: tuple[int, list[bytes]], end: str) -> None:
    authority = trustme.CA()
    ours, theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(ours)
    authority.configure_trust(theirs)
    with FaultProxy(server[0], tls=ours) as proxy:
        raw = socket.create_connection(("127.0.0.1", proxy.port), timeout=30.0)
        with theirs.wrap_socket(raw, server_hostname="127.0.0.1") as client:
            client.sendall(b"hello")
            assert client.recv(1) == b"x"
            if end == "client":
                client.close()
                wait_until(lambda: not proxy._open)
            elif end != "nobody":
                proxy.fault = Cut(0) if end == "server" else Refuse()
                with contextlib.suppress(OSError):
                    client.sendall(b"and on" * 100_000)
                    read_all(client)


def test_a_server_that_dies_is_noticed_at_once() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        FaultProxy(listener.getsockname()[1]) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), timeout=30.0) as client,
    ):
        died, _ = listener.accept()
        client.sendall(b"hello")
        assert died.recv(5) == b"hello"
        died.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        died.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_chance_follows_the_seed(server: tuple[int, list[bytes]]) -> None:
    def lengths(seed: int) -> list[int]:
        with FaultProxy(server[0], seed=seed) as proxy:
            proxy.fault = Cut(0, probability=0.5)
            return [len(ask(proxy.port)) for _ in range(12)]

    first = lengths(3)
    assert set(first) == {0, 1000}
    assert lengths(3) == first != lengths(4)
