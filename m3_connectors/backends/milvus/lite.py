"""The embedded engine: milvus-lite in this process, one server object for each data directory.

milvus-lite owns its directory by a lock and serves it over loopback gRPC. pymilvus starts such a server by itself, but
never gives it back: closing its client leaves the lock taken until the process ends. Here it is counted, and closed
with its last user.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib.metadata
import re
import threading
from pathlib import Path
from typing import Any

from m3_connectors.backends.milvus.errors import BACKEND
from m3_connectors.errors import (
    Busy,
    Corrupt,
    MissingDependency,
    Rejected,
    StorageFull,
    Unavailable,
    Unsupported,
)

OLDEST = (3, 2, 2)
"""milvus-lite 3.0 to 3.2.1 score a sparse inner product as BM25: wrong lists and wrong scores (measured on 3.1.1 and
3.2.1); 2.x cannot hold what this package stores (a None kills its process)."""


@dataclasses.dataclass
class Embedded:
    """One running engine.

    Attributes:
        path: Its data directory.
        uri: Where it listens on loopback.
    """

    path: Path
    uri: str
    _server: Any
    _database: Any
    _users: int = 1


_running: dict[Path, Embedded] = {}
_lock = threading.Lock()


def acquire(directory: Path) -> Embedded:
    """The engine on a directory, started if this process does not run it yet; give it back with ``release``.

    Raises:
        MissingDependency: milvus-lite is not installed.
        Unsupported: It is older than 3.2.2; or the path is a file of milvus-lite 2.x.
        Rejected: The path is another file, or a directory of something else, which is left as it is.
        Busy: Another process has the directory open.
        Corrupt: What lies there cannot be read.
        StorageFull: The disk is full.
        Unavailable: It cannot be opened.
    """
    check_version(installed())
    path = directory.expanduser().resolve()
    with _lock:
        if path in _running:
            _running[path]._users += 1
        else:
            _running[path] = _start(path)
        return _running[path]


def release(engine: Embedded) -> None:
    """Give one use back; the last one stops the engine and frees its directory."""
    with _lock:
        engine._users -= 1
        if engine._users == 0:
            del _running[engine.path]
            engine._server.stop(grace=2).wait()
            engine._database.close()


def check_version(version: str) -> None:
    """Raise Unsupported for a milvus-lite older than 3.2.2.

    Args:
        version: ``"3.2.1"``, or as servers say it: ``"milvus_lite-3.2.1"``.
    """
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if numbers < OLDEST:
        raise Unsupported(
            f"milvus-lite {'.'.join(map(str, numbers))} scores sparse vectors wrongly (as BM25, or not at all).\n"
            '  pip install "milvus-lite>=3.2.2"'
        )


def installed() -> str:
    """The version of milvus-lite here; MissingDependency without it."""
    try:
        return importlib.metadata.version("milvus-lite")
    except importlib.metadata.PackageNotFoundError:
        raise MissingDependency("milvus-lite", "milvus") from None


_ENTRIES = frozenset({"LOCK", "collections", "databases"})
"""What milvus-lite 3 makes in its directory."""

_SQLITE = b"SQLite format 3\0"
"""The beginning of a file of milvus-lite 2.x."""


def check_path(path: Path) -> None:
    """Refuse a path where milvus-lite 3 has no database and cannot make one without touching what is there.

    Raises:
        Unsupported: It is a file of milvus-lite 2.x.
        Rejected: It, or what should be its directory, is another file; or it is a directory of something else.
    """
    where = {"backend": BACKEND, "operation": "open"}
    other = "Give another path: a new one, or the directory of a database"
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(len(_SQLITE))
        if start == _SQLITE:
            raise Unsupported(
                f"{path} is a SQLite file, such as milvus-lite 2.x wrote; milvus-lite 3 keeps a directory and cannot "
                "read it.\n  Index the documents again, into another path."
            )
        what = "a file, but not a database of milvus-lite" if start else "an empty file"
        raise Rejected(f"{path} is {what}: a database is a directory.\n  {other}.", **where)
    if path.is_dir():
        # Hidden files, and what file systems keep for themselves, are nobody's documents.
        entries = {entry.name for entry in path.iterdir() if not entry.name.startswith((".", "lost+found"))}
        if entries and not entries & _ENTRIES:
            raise Rejected(
                f"the directory {path} is not a database of milvus-lite: it holds {', '.join(sorted(entries)[:3])}"
                f"{', …' if len(entries) > 3 else ''}.\n  {other}, such as {path / 'm3.db'}.",
                **where,
            )
        return
    above = next((parent for parent in path.parents if parent.is_file()), None)
    if above is not None:
        raise Rejected(f"{path} cannot be made: {above} is a file.\n  {other}.", **where)


def _start(path: Path) -> Embedded:
    from milvus_lite.adapter.grpc.server import start_server_in_thread
    from milvus_lite.exceptions import DataDirLockedError, MilvusLiteError

    try:
        check_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        server, database, port = start_server_in_thread(str(path), host="127.0.0.1", port=0)
    except DataDirLockedError as error:
        raise Busy(
            f"{path} is open in another process.\n  Close it there, or serve it: milvus-lite server --host 127.0.0.1",
            backend=BACKEND,
            operation="open",
        ) from error
    except MilvusLiteError as error:
        raise Corrupt(f"{path}: {error}", backend=BACKEND, operation="open") from error
    except OSError as error:
        kind = StorageFull if error.errno == errno.ENOSPC else Unavailable
        raise kind(f"{path}: {error}", backend=BACKEND, operation="open") from error
    return Embedded(path, f"http://127.0.0.1:{port}", server, database)
