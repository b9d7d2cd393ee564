"""Store URLs as users write them: parse them, explain what is wrong with them, and redact them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from m3_connectors.backends.stores import takes_path
from m3_connectors.errors import InvalidInput

_WEB = ("http", "https")
_CALLS = ("grpc", "grpcs", "tcp")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,}(.*)", re.DOTALL)
"""``http://HOST``, also with one slash. At least two letters: one letter is a drive (``C:/data``)."""

_HOST_AND_PORT = re.compile(
    r"(?:[^@/\\]+@)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_-][A-Za-z0-9._-]+):[0-9]{1,5}(/.*)?", re.DOTALL
)
"""The host has at least two characters, for the same reason."""

_MISTYPED = re.compile(rf"[^@]*:[^@]*@|{_HOST_AND_PORT.pattern}\Z", re.DOTALL)
"""With an @: an address without its slashes, ``HOST:…@`` or ``KEY@HOST:PORT``."""


def split_url(url: object, schemes: Sequence[str], paths: Sequence[str]) -> tuple[str, str]:
    """Return the scheme of a store's URL in lower case, and the URL with that scheme.

    An address in place of a directory would become a directory of that name, so it is refused before anything
    is created.

    Args:
        url: The URL as the user gave it.
        schemes: The known schemes.
        paths: The schemes among them that take a path.

    Raises:
        InvalidInput: The URL does not name a store, or names a server where it should name a directory.
    """
    text = url if isinstance(url, str) else ""
    scheme, colon, rest = text.partition(":")
    scheme = scheme.lower()
    if scheme in _WEB and colon:
        raise InvalidInput(
            f"{redacted(text)} does not say which store it is.\n  Use "
            f"{_any_of(_servers(redacted(rest), scheme, schemes))}."
        )
    if not colon or scheme not in schemes:
        raise InvalidInput(_unknown(url, schemes, paths))
    if scheme in paths:
        _check_directory(text, scheme, rest, schemes)
    return scheme, f"{scheme}:{rest}"


def _check_directory(url: str, scheme: str, rest: str, schemes: Sequence[str]) -> None:
    """Raise InvalidInput if what should be a directory is an address or the root of the file system."""
    server = _server_of(scheme, rest, schemes)
    if rest.startswith("//"):  # with or without an address behind it
        raise InvalidInput(
            f"{redacted(url)!r} does not name a directory.\n  Use {scheme}:DIRECTORY, such as {scheme}:./data.\n"
            f"  A server is {server or f'{scheme}+http://HOST'}."
        )
    is_folder = Path(rest).exists()
    if server is not None and not (_HOST_AND_PORT.fullmatch(rest) and is_folder):
        # Earlier versions created a directory for every address, and such a directory may still exist.
        also = f" A directory of that name is {scheme}:./{rest}."
        also = "" if "@" in rest or not (is_folder or _HOST_AND_PORT.fullmatch(rest)) else also
        raise InvalidInput(
            f"{redacted(url)} has an address where {scheme}: takes a directory.\n  The server is {server}.{also}"
        )
    if address := _ADDRESS.fullmatch(rest):
        raise InvalidInput(
            f"{redacted(url)} has an address ({address[1]}:) where {scheme}: takes a directory.\n"
            f"  Give a path on this machine, such as {scheme}:./data."
        )
    if re.fullmatch(r"[/\\]+", rest):
        raise InvalidInput(
            f"{url!r} is the root of the file system.\n  Use a separate directory, such as {scheme}:./data."
        )


def _server_of(store: str, rest: str, schemes: Sequence[str]) -> str | None:
    """Return the URL of the server that the text after ``STORE:`` means, or None if it means none."""
    web, bare = "http", rest.lstrip("/")
    if address := _ADDRESS.fullmatch(rest):
        web, bare = address[1].lower(), address[2].lstrip("/")
        if web not in (*_WEB, *_CALLS):
            return None
        web = "https" if web in ("https", "grpcs") else "http"
    elif not rest.startswith("//") and not _HOST_AND_PORT.fullmatch(rest):
        return None
    if not bare or f"{store}+{web}" not in schemes:
        return None
    return f"{store}+{redacted(f'{web}://{bare}')}"


def _unknown(url: object, schemes: Sequence[str], paths: Sequence[str]) -> str:
    """Return the message for a URL with an unknown scheme."""
    text = url if isinstance(url, str) else ""
    named = f"{(redacted(text) if text else url)!r} does not name a store"
    store = re.match(r"[A-Za-z]*", text)[0].lower()  # type: ignore[index]
    rest = text[len(store) :].lstrip("+:")
    if f"{store}+http" in schemes:
        server = _server_of(store, rest, schemes) or f"{store}+http://HOST"
        directory = f", for a directory {store}:./data" if store in paths else ""
        return f"{named}.\n  For a server use {server}{directory}."
    address = _ADDRESS.fullmatch(text)
    if (address and address[1].lower() in _CALLS) or _HOST_AND_PORT.fullmatch(text):
        web = "https" if address and address[1].lower() == "grpcs" else "http"
        bare = address[2] if address else text
        return f"{named}.\n  Use {_any_of(_servers(redacted(f'//{bare}'), web, schemes))}."
    return f"{named}.\n  Use one of {', '.join(f'{name}:' for name in schemes)}, such as {paths[0]}:./data."


def _servers(rest: str, web: str, schemes: Sequence[str]) -> list[str]:
    return [f"{scheme}:{rest}" for scheme in schemes if scheme.endswith(f"+{web}")]


def _any_of(forms: Sequence[str]) -> str:
    return f"{', '.join(forms[:-1])} or {forms[-1]}"


def redacted(url: str) -> str:
    """Return a store's URL without user, password, query and fragment; a path is returned unchanged."""
    scheme, slashes, rest = url.partition("//")
    if not slashes:
        scheme, slashes, rest = url.partition(":")
        # A directory name may contain each of them.
        if not re.search("[@?#]", rest) or (
            takes_path(scheme) and not ("@" in rest and _MISTYPED.match(rest))
        ):
            return url
    # Up to the last @, because people forget to escape a / or ? in a password.
    return scheme + slashes + re.split("[?#]", rest.rpartition("@")[2])[0]
