"""Shared by servers that run as processes: they end together with the process that started them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

_END = 'read -r _ || { kill -KILL "-$0"; sleep 1; rm -rf -- "$1"; }'
"""A line on the pipe ends this script; the end of the pipe without a line means that its owner is gone.

The server is then killed without a shutdown, because its data are deleted too; the pause is for its last
writes.
"""


class Watch:
    """Ends a server's session and deletes its directory if this process dies, even by SIGKILL."""

    def __init__(self, pid: int, directory: Path) -> None:
        """Watch over a running server.

        Args:
            pid: The process id of the leader of its session.
            directory: The directory of its data.
        """
        # The system closes our end of the pipe when we die. In a session of its own, so that Ctrl-C does not
        # reach it.
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _END, str(pid), str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def end(self) -> None:
        """Stop watching, because the server has ended."""
        self._process.communicate(b"\n")


class ServerProcess:
    """A server in its own session and directory; ``stop`` ends it, and ``remove`` also deletes its data.

    Attributes:
        port: The port on 127.0.0.1 where it listens; a restart does not change it.
        log: The file with its output, to find out what went wrong.
    """

    _name: ClassVar[str]
    _stop_seconds: ClassVar[float]

    def __init__(self, log: str) -> None:
        """Prepare a directory; ``log`` is the path of the log in it."""
        self._directory = Path(tempfile.mkdtemp(prefix=f"m3-{self._name}-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: Watch | None = None
        self.port = 0
        self.log = self._directory / log

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the running process, which is also the session of all that it started."""
        assert self._process is not None
        return self._process.pid

    @property
    def directory(self) -> Path:
        """The directory of its data (``data``) and its logs."""
        return self._directory

    def _launch(self, command: Sequence[str | Path], **options: Any) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **options,
            )
        self._watch = Watch(process.pid, self._directory)
        return process

    def stop(self, *, kill: bool = False) -> None:
        """Stop the process, immediately with ``kill``; do nothing if it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        if not kill:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self._stop_seconds)
        # Its session contains only the process and those that it started.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if self._watch is not None:
            self._watch.end()
            self._watch = None

    def remove(self) -> None:
        """Stop the process and delete its directory."""
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)


def tail(log: Path) -> str:
    """Return the end of a server's log, for the message that says why it did not start."""
    try:
        text = log.read_text(errors="replace").strip()
    except OSError:
        text = ""
    return text[-2000:] or "It printed nothing."
