"""What the servers that run as processes share: they end with whoever started them, however that ends."""

from __future__ import annotations

import subprocess
from pathlib import Path

_END = 'read -r _ || { kill -KILL "-$0"; sleep 1; rm -rf -- "$1"; }'
"""A line that comes is the order to go home; the pipe's end without one means that nobody is left to give it.

The server is killed and not asked, since its data go too; the second is for the last of its writes.
"""


class Watch:
    """Ends a server's session and deletes its directory, should this process die, by SIGKILL too."""

    def __init__(self, pid: int, directory: Path) -> None:
        """Watch over a server that runs.

        Args:
            pid: Of the leader of its session.
            directory: Of its data.
        """
        # Our end of the pipe is closed by the system when we die. A session of its own: Ctrl-C must not reach it.
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _END, str(pid), str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def end(self) -> None:
        """Watch no longer: the server has ended."""
        self._process.communicate(b"\n")


def tail(log: Path) -> str:
    """The end of a server's log, for the message that says why it did not come up."""
    try:
        text = log.read_text(errors="replace").strip()
    except OSError:
        text = ""
    return text[-2000:] or "it printed nothing."
