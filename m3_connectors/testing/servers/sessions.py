"""Shared by servers that run as processes: they end together with the process that started them."""

from __future__ import annotations

import subprocess
from pathlib import Path

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


def tail(log: Path) -> str:
    """Return the end of a server's log, for the message that says why it did not start."""
    try:
        text = log.read_text(errors="replace").strip()
    except OSError:
        text = ""
    return text[-2000:] or "It printed nothing."
