"""Sources given by URL: their names without credentials, which messages and the ledger use."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urlsplit

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(//|:)")
"""``SCHEME://…``, or ``SCHEME::…`` before another URL; of two letters or more, as one is a drive (``C:/data``)."""

_FILE = "file"
_OF_THIS_MACHINE = (_FILE, "local")
_IN_FILES = ("sqlite", "duckdb")
"""Databases whose URL contains a path on this machine."""

_WITHOUT_USER = frozenset(
    [
        "abfs",
        "abfss",
        "adl",
        "az",
        "dir",
        "file",
        "git",
        "github",
        "hdfs",
        "hf",
        "local",
        "memory",
        "oci",
        "sqlite",
        "duckdb",
        "tar",
        "zip",
    ]
)
"""Schemes whose URL has no user and password, but may have an @ elsewhere, as in ``github://OWNER:NAME@REF/docs``."""

_WITH_PATH = frozenset(
    [
        "http",
        "https",
        "ftp",
        "sftp",
        "ssh",
        "smb",
        "webdav",
        "webdavs",
        "gcs",
        "gs",
        "oss",
        "s3",
        "s3a",
    ]
)
"""Schemes whose path may have an @ too. Of object stores, keys before the bucket are a mistake, but secret too."""

_QUERY_MARK = "#query="
_NAMED_QUERY = re.compile(rf"{_QUERY_MARK}[0-9a-f]{{12}}\Z")
"""The end of the name of a database with a query: a name that is read again, as from the ledger, stays the same."""

_HIDDEN = "***"
_SHORTEST_SECRET = 4


@dataclasses.dataclass(frozen=True)
class Url:
    """A source that is not a path of this machine.

    ``str()`` gives its name without user, password and parameters: the same in each run, also with other credentials.

    Attributes:
        text: The URL as it was given, perhaps with credentials.
        query: The SQL query, if it is a database.
    """

    text: str = dataclasses.field(repr=False)
    query: str | None = dataclasses.field(default=None, repr=False)

    @property
    def scheme(self) -> str:
        """The text before the first colon, in lower case."""
        return self.text.partition(":")[0].lower()

    @property
    def name(self) -> str:
        """The last part of the path, or the host if there is no path."""
        return PurePosixPath(_redacted(_parts(self.text)[0]).rstrip("/")).name

    @property
    def suffix(self) -> str:
        """The file extension of the name."""
        return PurePosixPath(self.name).suffix

    def as_posix(self) -> str:
        """The same as ``str()``, as of a path."""
        return str(self)

    def below(self, base: str, path: str) -> Url:
        """Return the URL of a file.

        Args:
            base: The first URL of ``text`` up to a folder.
            path: The path below that folder.
        """
        _, chained, rest = self.text.partition("::")
        # In the name of a file, these characters would begin parameters, and hide its extension.
        path = path.replace("?", "%3F").replace("#", "%23")
        return Url(f"{base.rstrip('/')}/{path}{chained}{rest}")

    def without_secrets(self, message: str) -> str:
        """Return a message of a library in which no credentials and parameters of this URL are left."""
        for secret in sorted(self._secrets(), key=len, reverse=True):
            message = message.replace(secret, _HIDDEN)
        return message

    def __str__(self) -> str:
        *outer, last = _parts(self.text)
        is_path = bool(outer) and "://" not in last
        name = "::".join(map(_redacted, [*outer, _absolute(last) if is_path else last]))
        if self.query is None:
            named = _NAMED_QUERY.search(self.text)
            return name + (named[0] if named else "")
        # The text of a query may be long, and contain what is not for messages.
        digest = hashlib.sha256(" ".join(self.query.split()).encode()).hexdigest()
        return f"{name}{_QUERY_MARK}{digest[:12]}"

    def _secrets(self) -> set[str]:
        found: set[str] = set()
        for part in _parts(self.text):
            scheme, _, address = part.partition("://")
            user = address.removesuffix(_without_user(scheme, address)).rstrip("@")
            parameters = "" if scheme == "hf" else address.partition("?")[2]
            values = (pair.partition("=")[2] for pair in parameters.split("&"))
            whole = address if user or parameters else ""
            found |= {whole, user, user.partition(":")[2], parameters, *values}
        found |= {unquote(secret) for secret in found}
        # Clients escape in their messages what the user did not.
        found |= {quote(secret, safe) for secret in found for safe in ("/", "")}
        return {secret for secret in found if len(secret) >= _SHORTEST_SECRET}


def source_of(text: str) -> Path | Url:
    """Return the source that a text names: a URL, or a path; ``-`` is standard input, and ``file://`` is a path."""
    if not _URL.match(text):
        return Path(text)
    scheme, _, rest = text.partition("://")
    if scheme.lower() != _FILE or "::" in text or any(mark in rest for mark in "*["):
        return Url(text)
    path = Path(urlsplit(text).path if "?" not in text and "#" not in text else rest)
    return path if path.exists() else Path(unquote(str(path)))


def _parts(text: str) -> list[str]:
    """Return the URLs of a chain. A ``::`` in a password, before an @, does not separate two of them."""
    parts: list[str] = []
    for part in text.split("::"):
        scheme = parts[-1].partition("://")[0].lower() if parts else ""
        if parts and "@" in part.partition("://")[0] and "://" in parts[-1] and scheme not in _WITHOUT_USER:
            parts[-1] += f"::{part}"
        else:
            parts.append(part)
    return parts


def _redacted(part: str) -> str:
    """Return one URL without user, password and parameters; the parameters of a dataset say which split it is."""
    scheme, slashes, rest = part.partition("://")
    scheme = scheme.lower()
    if not slashes or scheme == "hf":
        return part
    if scheme in _OF_THIS_MACHINE:
        return f"{scheme}://{_absolute(rest)}"
    clean = re.split("[?#]", _without_user(scheme, rest))[0]
    if scheme.partition("+")[0] in _IN_FILES and clean.startswith("/") and clean != "/:memory:":
        clean = f"/{Path(clean[1:]).expanduser().resolve()}"
    return f"{scheme}://{clean}"


def _absolute(path: str) -> str:
    """Return a path of this machine: the same from whatever folder it is given, so that it names one source."""
    return str(Path(path).expanduser().absolute())


def _without_user(scheme: str, address: str) -> str:
    """Return the text after ``://`` without user and password."""
    scheme = scheme.lower().partition("+")[0]
    if scheme in _WITHOUT_USER:
        return address
    host = re.split("[/?#]", address)[0]
    if scheme in _WITH_PATH and ("@" in host or not re.search(r":(?![0-9]*\Z)", host)):
        return address[host.rfind("@") + 1 :]
    # Up to the last @, because people forget to escape a / or ? in a password.
    return address.rpartition("@")[2]
