"""A Milvus server on this machine without containers: the server of milvus-lite, in a process on loopback.

It uses the protocol of Milvus servers, starts in about a second, and keeps its data over a restart::

    with milvus_server() as server:
        index = connect(f"milvus+{server.url}", "notes", encoder=encoder)
"""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import sys
import time
from collections.abc import Iterator

from m3_connectors.testing.servers import CannotStart
from m3_connectors.testing.servers.sessions import ServerProcess, tail

_START_SECONDS = 120.0
_PORTS_TRIED = 3


class MilvusServer(ServerProcess):
    """A milvus-lite server."""

    _name = "milvus"
    _stop_seconds = 10.0

    def __init__(self) -> None:
        """Prepare a server without starting it.

        Raises:
            CannotStart: milvus-lite is not installed.
        """
        if importlib.util.find_spec("milvus_lite") is None:
            raise CannotStart('milvus-lite is not installed.\n  pip install "m3-connectors[milvus]"')
        super().__init__("server.log")

    def start(self) -> None:
        """Start the process and wait until it answers; a restart uses the same port.

        Raises:
            CannotStart: It ended, or did not answer within two minutes.
        """
        kept = self.port
        for _ in range(_PORTS_TRIED):
            # Another program may take the port between our check and the server's start.
            self.port = kept or _free_port()
            if self._comes_up():
                return
            self.stop(kill=True)
            if kept or "bind" not in tail(self.log):
                break
        raise CannotStart(f"milvus-lite did not start. The end of its log:\n{tail(self.log)}")

    def _comes_up(self) -> bool:
        # By default it would listen on all addresses of the machine, without authentication.
        arguments = ["server", "--host", "127.0.0.1", "--port", str(self.port)]
        arguments += ["--data-dir", str(self._directory / "data")]
        begin = self.log.stat().st_size if self.log.exists() else 0
        # Unbuffered, so that its output is in the log immediately.
        process = self._launch([sys.executable, "-u", "-m", "milvus_lite", *arguments])
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            if self._listens(begin):
                return True
            time.sleep(0.05)
        return False

    def remove(self) -> None:
        """Kill the process and delete its data."""
        self.stop(kill=True)
        super().remove()

    def _listens(self, begin: int) -> bool:
        """Whether the process has reported, after this position of its log, that it listens, and does listen.

        It is not enough that something listens on the port, because it may be another program.
        """
        said = self.log.read_bytes()[begin:]
        if f"listening on 127.0.0.1:{self.port}".encode() not in said:
            return False
        with socket.socket() as probe:
            probe.settimeout(1.0)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@contextlib.contextmanager
def milvus_server() -> Iterator[MilvusServer]:
    """Run a server in the ``with`` block; afterwards it is stopped and its data are deleted.

    Raises:
        CannotStart: It cannot run here.
    """
    server = MilvusServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
