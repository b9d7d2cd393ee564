"""Find and open files by URL with fsspec: object stores, web servers, archives, memory."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from io import BufferedReader, RawIOBase
from typing import Any
from urllib.parse import unquote

from m3_connectors.errors import InvalidInput, MissingDependency
from m3_connectors.readers.dead_letters import DeadLetter
from m3_connectors.readers.formats import ReadOptions, ending_of, known_ending, named_ending
from m3_connectors.readers.inputs import Input
from m3_connectors.readers.urls import Url

_WEB = ("http", "https")
_ARCHIVES = frozenset({"zip", "tar", "libarchive"})
_STATES = (
    "size",
    "mtime",
    "modified",
    "LastModified",
    "last_modified",
    "ETag",
    "etag",
    "md5",
    "generation",
    "created",
)
"""What file systems call that of which one is different after a file has changed."""

_MEDIA_TYPES = {
    "text/html": ".html",
    "application/xhtml+xml": ".xhtml",
    "text/markdown": ".md",
    "application/pdf": ".pdf",
    "application/json": ".json",
    "text/csv": ".csv",
}

_PACKAGE = re.compile(r"""[Ii]nstall (?:the )?['"]?([\w-]+)|requires "([\w-]+)\"""")
"""Where fsspec names the package that opens a scheme."""

Excluded = Callable[[str, str], bool]


@dataclasses.dataclass(frozen=True)
class RemoteFile(Input):
    """A file of an fsspec file system.

    Attributes:
        system: The file system.
        inside: The path of the file in it.
    """

    system: Any = None
    inside: str = ""

    @property
    def expands(self) -> bool:
        """Whether the file is compressed, or in an archive."""
        return super().expands or not _ARCHIVES.isdisjoint(_protocols(self.system))

    @contextlib.contextmanager
    def _stored(self) -> Iterator[BufferedReader]:
        before = self._state()
        # Web servers may not serve parts of a file, so it is requested once and as a whole.
        options = {"block_size": 0} if isinstance(self.path, Url) and self.path.scheme in _WEB else {}
        with contextlib.ExitStack() as stack:
            with _as_os_error():
                file = stack.enter_context(self.system.open(self.inside, "rb", **options))
            yield BufferedReader(_Raw(file))
        if before != self._state():
            raise InvalidInput("changed while it was read, so parts may be missing or mixed: read it again")

    def _state(self) -> dict[str, Any]:
        with _as_os_error():
            self.system.invalidate_cache()
            info = self.system.info(self.inside)
        return {name: info[name] for name in _STATES if name in info} | self._modified()

    def _modified(self) -> dict[str, Any]:
        # Few file systems have a time of change; those that have none raise all kinds of errors.
        with contextlib.suppress(Exception):
            return {"modified": self.system.modified(self.inside)}
        return {}


class _Raw(RawIOBase):
    """Reads a file of fsspec in order; other errors of its client become OSErrors."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _as_os_error():
            part = self._file.read(len(buffer))
        buffer[: len(part)] = part
        return len(part)


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 (each client has errors of its own)
        raise OSError(f"{type(error).__name__}: {error}") from None


def open_files(url: Url, options: ReadOptions, excluded: Excluded) -> Iterator[Input | DeadLetter]:
    """Yield the files of a URL, which is a file, a folder, or a pattern with ``*``; or why some are skipped.

    On web servers, a URL that ends in a slash is a folder, whose files are those to which its page has links.

    Raises:
        MissingDependency: The package that opens such URLs is not installed.
        InvalidInput: The URL cannot be opened, or nothing is there.
    """
    system, inside = _opened(url)
    base = url.text.partition("::")[0].partition("?")[0]
    if any(mark in inside for mark in "*["):
        folder = inside[: min(inside.find(mark) for mark in "*[" if mark in inside)].rpartition("/")[0]
        base = base[: min(base.find(mark) for mark in "*[" if mark in base)].rpartition("/")[0] + "/"
        with _errors(url):
            found = sorted(system.glob(inside, detail=True).items())
        files = [path for path, info in found if info["type"] == "file"]
        if not files:
            yield DeadLetter(str(url), None, "no file matches this pattern")
        for path in files:
            yield from _Walk(url, options, excluded, system, folder, base).file(path)
    elif url.text.partition("::")[0].endswith("/") or (
        url.scheme not in _WEB and _is_folder(url, system, inside)
    ):
        yield from _Walk(url, options, excluded, system, inside.rstrip("/"), base).folder(inside, ())
    else:
        with _errors(url):
            info = system.info(inside)
        ending = named_ending(url, options)
        if not url.suffix and options.format is None:
            ending = _declared_ending(info) or ending
        if ending is None:
            raise InvalidInput(
                f"{url} has an unsupported format ({ending_of(url)}).\n  Set it with --format."
            )
        yield RemoteFile(url, url, url.name, ending, limits=options.limits, system=system, inside=inside)


@dataclasses.dataclass(frozen=True)
class _Walk:
    """Finds the files below a folder, in the order of their paths, as in folders of this machine."""

    url: Url
    options: ReadOptions
    excluded: Excluded
    system: Any
    root: str
    base: str

    def folder(self, inside: str, parents: tuple[str, ...]) -> Iterator[Input | DeadLetter]:
        try:
            with _errors(self.url):
                found = {info["name"]: info["type"] for info in self.system.ls(inside, detail=True)}
        except InvalidInput as error:
            yield self._skipped(inside, str(error).splitlines()[0])
            return
        here = inside.rstrip("/")
        # The page of a web server may have links to other folders, also to ones whose names begin alike.
        start = f"{here}/" if here else ""
        below = [name for name in sorted(found) if name.rstrip("/") != here and name.startswith(start)]
        if not below and self.url.scheme in _WEB:  # an empty folder, or the page of a login
            yield self._skipped(inside, "its page has no links to files below it")
        for name in below:
            if found[name] == "file":
                yield from self.file(name)
            elif found[name] != "directory":
                yield self._skipped(name, "not a regular file")
        for name in below:
            path = self._below(name)
            if found[name] != "directory" or self.excluded(path.rpartition("/")[2], path):
                continue
            if path.rpartition("/")[2].startswith("."):
                yield self._skipped(name, "a hidden folder")
            elif name.rstrip("/") not in parents and ".." not in path.split("/"):
                yield from self.folder(name, (*parents, name.rstrip("/")))

    def file(self, inside: str) -> Iterator[Input | DeadLetter]:
        path = self._below(inside)
        name = path.rpartition("/")[2]
        if not name or self.excluded(name, path):
            return
        url = self.url.below(self.base, path)
        ending = known_ending(url)
        if not url.suffix:
            with contextlib.suppress(Exception):  # the reader reports it
                ending = _declared_ending(self.system.info(inside)) or ending
        if ".." in path.split("/"):
            yield self._skipped(inside, "its path leads out of the folder")
        elif name.startswith("."):
            yield self._skipped(inside, "a hidden file")
        elif ending is None:
            yield self._skipped(inside, f"unsupported format ({ending_of(url)})")
        else:
            limits = self.options.limits
            yield RemoteFile(self.url, url, path, ending, limits=limits, system=self.system, inside=inside)

    def _below(self, inside: str) -> str:
        path = inside.removeprefix(self.root).strip("/")
        return unquote(path.partition("?")[0]) if self.url.scheme in _WEB else path

    def _skipped(self, inside: str, reason: str) -> DeadLetter:
        return DeadLetter(str(self.url.below(self.base, self._below(inside))), None, reason)


def _declared_ending(info: dict[str, Any]) -> str | None:
    """Return the ending of the media type that a web server declares; of names without one, it is what tells."""
    return _MEDIA_TYPES.get(str(info.get("mimetype", "")).partition(";")[0].strip().lower())


def _opened(url: Url) -> tuple[Any, str]:
    import fsspec

    try:
        with _errors(url):
            system, inside = fsspec.url_to_fs(url.text)
    except ImportError as error:
        named = _PACKAGE.search(str(error))
        package = (named[1] or named[2]) if named else f"the package that opens {url.scheme}:"
        raise MissingDependency(package, "remote" if url.scheme in _WEB else None) from None
    return system, inside


def _is_folder(url: Url, system: Any, inside: str) -> bool:
    with _errors(url):
        return bool(system.info(inside)["type"] == "directory")


@contextlib.contextmanager
def _errors(url: Url) -> Iterator[None]:
    """Translate what a file system raises; its messages may contain credentials."""
    try:
        yield
    except (ImportError, InvalidInput):
        raise
    except FileNotFoundError:
        raise InvalidInput(
            f"{url} does not exist.\n  Check the URL, and the credentials if it needs some."
        ) from None
    except Exception as error:  # noqa: BLE001 (each client has errors of its own)
        reason = url.without_secrets((str(error) or type(error).__name__).splitlines()[0])
        raise InvalidInput(
            f"{url} cannot be opened: {type(error).__name__}: {reason}\n  Check the URL, and the credentials."
        ) from None


def _protocols(system: Any) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)
