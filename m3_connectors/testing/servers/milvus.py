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

_START_SECONDS = 30.0
_STOP_SECONDS = 10.0


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
        self.port = _free_port()
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
        """Start the process and wait until it answers.

        Raises:
            CannotStart: It ended, or did not answer within half a minute.
        """
        # By default it would listen on every address of the machine, without authentication.
        arguments = ["server", "--host", "127.0.0.1", "--port", str(self.port)]
        arguments += ["--data-dir", str(self._directory / "data")]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "milvus_lite", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop(kill=True)
                raise CannotStart(
                    f"milvus-lite did not come up:\n{self.log.read_text(errors='replace')[-2000:]}"
                )
            time.sleep(0.05)

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

    def remove(self) -> None:
        """End the process and delete its data."""
        self.stop(kill=True)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _answers(self) -> bool:
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
