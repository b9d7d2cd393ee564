"""The embedded engine: milvus-lite in this process, with one server object per data directory.

milvus-lite locks its directory and serves it over loopback gRPC. pymilvus can start such a server itself, but
never stops it: after its client is closed, the lock remains until the process ends. This module counts the
users of a server and closes it with the last one.
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
"""milvus-lite 3.0 to 3.2.1 score a sparse inner product as BM25: wrong lists and wrong scores (measured on
3.1.1 and 3.2.1). 2.x cannot store what this package needs (a None kills its process)."""


@dataclasses.dataclass
class Embedded:
    """One running engine.

    Attributes:
        path: The data directory.
        uri: Its address on loopback.
    """

    path: Path
    uri: str
    _server: Any
    _database: Any
    _users: int = 1


_running: dict[Path, Embedded] = {}
_lock = threading.Lock()


def acquire(directory: Path) -> Embedded:
    """Return the engine for a directory, started if necessary; call ``release`` when it is no longer needed.

    Raises:
        MissingDependency: milvus-lite is not installed.
        Unsupported: milvus-lite is older than 3.2.2, or the path is a file of milvus-lite 2.x.
        Rejected: The path is another file, or a directory with other content; it is not changed.
        Busy: Another process has the directory open.
        Corrupt: The data cannot be read.
        StorageFull: The disk is full.
        Unavailable: The directory cannot be opened.
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
    """End one use of an engine; the last one stops the engine and unlocks its directory."""
    with _lock:
        engine._users -= 1
        if engine._users == 0:
            del _running[engine.path]
            engine._server.stop(grace=2).wait()
            engine._database.close()


def check_version(version: str) -> None:
    """Raise Unsupported for a milvus-lite older than 3.2.2.

    Args:
        version: ``"3.2.1"``, or in the form that servers report: ``"milvus_lite-3.2.1"``.
    """
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if numbers < OLDEST:
        raise Unsupported(
            f"milvus-lite {'.'.join(map(str, numbers))} scores sparse vectors incorrectly (as BM25, or not "
            "at all).\n"
            '  Update it: pip install "milvus-lite>=3.2.2"'
        )


def installed() -> str:
    """Return the installed version of milvus-lite; raise MissingDependency if it is not installed."""
    try:
        return importlib.metadata.version("milvus-lite")
    except importlib.metadata.PackageNotFoundError:
        raise MissingDependency("milvus-lite", "milvus") from None


_ENTRIES = frozenset({"LOCK", "collections", "databases"})
"""The names that milvus-lite 3 creates in its directory."""

_SQLITE = b"SQLite format 3\0"
"""The first bytes of a file of milvus-lite 2.x."""


def check_path(path: Path) -> None:
    """Refuse a path that is not a database of milvus-lite 3 and cannot become one without changing data.

    Raises:
        Unsupported: The path is a file of milvus-lite 2.x.
        Rejected: The path or one of its parents is another file, or the path is a directory with other
        content.
    """
    where = {"backend": BACKEND, "operation": "open"}
    other = "Use another path: a new one, or the directory of a database"
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(len(_SQLITE))
        if start == _SQLITE:
            raise Unsupported(
                f"{path} is a SQLite file, as milvus-lite 2.x writes; milvus-lite 3 uses a directory and "
                "cannot read it.\n  Index the documents again into another path."
            )
        what = "a file, but not a database of milvus-lite" if start else "an empty file"
        raise Rejected(f"{path} is {what}; a database is a directory.\n  {other}.", **where)
    if path.is_dir():
        # Hidden files and the entries of file systems themselves are not data of another program.
        entries = {entry.name for entry in path.iterdir() if not entry.name.startswith((".", "lost+found"))}
        if entries and not entries & _ENTRIES:
            raise Rejected(
                f"the directory {path} is not a database of milvus-lite: it contains "
                f"{', '.join(sorted(entries)[:3])}"
                f"{', …' if len(entries) > 3 else ''}.\n  {other}, such as {path / 'm3.db'}.",
                **where,
            )
        return
    above = next((parent for parent in path.parents if parent.is_file()), None)
    if above is not None:
        raise Rejected(f"{path} cannot be created because {above} is a file.\n  {other}.", **where)


def _start(path: Path) -> Embedded:
    from milvus_lite.adapter.grpc.server import start_server_in_thread
    from milvus_lite.exceptions import DataDirLockedError, MilvusLiteError

    try:
        check_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        server, database, port = start_server_in_thread(str(path), host="127.0.0.1", port=0)
    except DataDirLockedError as error:
        raise Busy(
            f"another process has opened {path}.\n"
            "  Close it there, or share it with a server: milvus-lite server --host 127.0.0.1",
            backend=BACKEND,
            operation="open",
        ) from error
    except MilvusLiteError as error:
        raise Corrupt(
            f"milvus-lite cannot read {path}: {error}\n  Restore it from a backup, or index into another "
            "path.",
            backend=BACKEND,
            operation="open",
        ) from error
    except OSError as error:
        kind = StorageFull if error.errno == errno.ENOSPC else Unavailable
        raise kind(
            f"milvus-lite cannot open {path}: {error}\n  Check the free space and the permissions of that "
            "path.",
            backend=BACKEND,
            operation="open",
        ) from error
    return Embedded(path, f"http://127.0.0.1:{port}", server, database)
