"""A Milvus server on this machine without containers: milvus-lite's own server, in a process on loopback.

It speaks the servers' protocol, is up in about a second, and keeps its data over a restart::

    with milvus_server() as server:
        index = connect(f"milvus+{server.url}", "notes", encoder=encoder)
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from m3_connectors.testing.servers import CannotStart
from m3_connectors.testing.servers.sessions import Watch, tail

_START_SECONDS = 120.0
_STOP_SECONDS = 10.0
_PORTS_TRIED = 3


class MilvusServer:
    """A milvus-lite server with a data directory of its own; ends with ``stop``, forgets with ``remove``.

    Attributes:
        port: Where it listens on 127.0.0.1; kept over a restart.
        log: What it printed, for looking at what went wrong.
    """

    def __init__(self) -> None:
        """A server that is not yet started.

        Raises:
            CannotStart: milvus-lite is not installed.
        """
        if importlib.util.find_spec("milvus_lite") is None:
            raise CannotStart('milvus-lite is not installed: pip install "m3-connectors[milvus]"')
        self._directory = Path(tempfile.mkdtemp(prefix="m3-milvus-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: Watch | None = None
        self.port = 0
        self.log = self._directory / "server.log"

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of the running process, and of its session."""
        assert self._process is not None
        return self._process.pid

    @property
    def directory(self) -> Path:
        """Where its data (``data``) and its log lie."""
        return self._directory

    def start(self) -> None:
        """Start the process and wait until it answers; the port stays what it was.

        Raises:
            CannotStart: It ended, or did not answer within two minutes.
        """
        kept = self.port
        for _ in range(_PORTS_TRIED):
            # Between our look at a free port and the server's own, another program may take it.
            self.port = kept or _free_port()
            if self._comes_up():
                return
            self.stop(kill=True)
            if kept or "bind" not in tail(self.log):
                break
        raise CannotStart(f"milvus-lite did not come up:\n{tail(self.log)}")

    def _comes_up(self) -> bool:
        # By default it would listen on every address of the machine, without authentication.
        arguments = ["server", "--host", "127.0.0.1", "--port", str(self.port)]
        arguments += ["--data-dir", str(self._directory / "data")]
        with self.log.open("ab") as log:
            begin = log.tell()
            # Unbuffered, so that what it says is in the log when it is so.
            self._process = subprocess.Popen(
                [sys.executable, "-u", "-m", "milvus_lite", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._watch = Watch(self._process.pid, self._directory)
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._listens(begin):
                return True
            time.sleep(0.05)
        return False

    def stop(self, *, kill: bool = False) -> None:
        """End the process, at once with ``kill``; nothing if it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        if not kill:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
        process.kill()
        process.wait()
        if self._watch is not None:
            self._watch.end()
            self._watch = None

    def remove(self) -> None:
        """End the process and delete its data."""
        self.stop(kill=True)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _listens(self, begin: int) -> bool:
        """Whether the process itself says, behind this place of its log, that it listens, and it can be reached.

        That something listens on the port is not enough: it may be another program.
        """
        said = self.log.read_bytes()[begin:]
        if f"listening on 127.0.0.1:{self.port}".encode() not in said:
            return False
        with socket.socket() as probe:
            probe.settimeout(1.0)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@contextlib.contextmanager
def milvus_server() -> Iterator[MilvusServer]:
    """A running server, ended and deleted at the end of the block.

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
