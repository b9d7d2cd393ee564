"""Store URLs as users write them: what they name, what is wrong with them, and how they may be shown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from m3_connectors.errors import InvalidInput

_DIRECTORIES = ("memory", "qdrant", "milvus")
"""Schemes of stores whose URL may name a path."""

_WEB = ("http", "https")
_CALLS = ("grpc", "grpcs", "tcp")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,}(.*)", re.DOTALL)
"""``http://HOST``, also with one slash. Two letters at least: one is a drive (``C:/data``)."""

_HOST_AND_PORT = re.compile(
    r"(?:[^@/\\]+@)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_-][A-Za-z0-9._-]+):[0-9]{1,5}(/.*)?", re.DOTALL
)
"""Of two letters at least, as above."""


def split_url(url: object, schemes: Sequence[str]) -> tuple[str, str]:
    """The scheme of a store's URL, in lower case, and the URL with it.

    An address where a directory should be would become a directory of that name: it is refused before anything is made.

    Args:
        url: As a user gave it.
        schemes: The known ones.

    Raises:
        InvalidInput: It names no store; or a server in the spelling of a directory.
    """
    text = url if isinstance(url, str) else ""
    scheme, colon, rest = text.partition(":")
    scheme = scheme.lower()
    if scheme in _WEB and colon:
        raise InvalidInput(
            f"{shown(text)} does not say which store it is.\n  Use {_any_of(_servers(shown(rest), scheme, schemes))}."
        )
    if not colon or scheme not in schemes:
        raise InvalidInput(_unknown(url, schemes))
    if scheme in _DIRECTORIES and scheme != "memory":
        _check_directory(text, scheme, rest, schemes)
    return scheme, f"{scheme}:{rest}"


def _check_directory(url: str, scheme: str, rest: str, schemes: Sequence[str]) -> None:
    """Raise InvalidInput if what should be a directory is an address, or the root of everything."""
    server = _server_of(scheme, rest, schemes)
    if rest.startswith("//"):  # with or without an address behind it
        raise InvalidInput(
            f"{shown(url)!r} names no directory: give {scheme}:DIRECTORY, such as {scheme}:./data.\n"
            f"  A server is {server or f'{scheme}+http://HOST'}."
        )
    is_folder = Path(rest).exists()
    if server is not None and not (_HOST_AND_PORT.fullmatch(rest) and is_folder):
        # One that a URL made is still there: versions before this one made a directory of every address.
        also = f" A directory of that name is {scheme}:./{rest}."
        also = "" if "@" in rest or not (is_folder or _HOST_AND_PORT.fullmatch(rest)) else also
        raise InvalidInput(
            f"{shown(url)} has an address where {scheme}: takes a directory.\n  The server is {server}.{also}"
        )
    if address := _ADDRESS.fullmatch(rest):
        raise InvalidInput(
            f"{shown(url)} has an address ({address[1]}:) where {scheme}: takes a directory.\n"
            f"  Give a path on this machine, such as {scheme}:./data."
        )
    if re.fullmatch(r"[/\\]+", rest):
        raise InvalidInput(
            f"{url!r} is the root of the file system.\n  Give a directory of its own, such as {scheme}:./data."
        )


def _server_of(store: str, rest: str, schemes: Sequence[str]) -> str | None:
    """The URL of the server that was meant by what follows ``STORE:``; None if that is no server's address."""
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
    return f"{store}+{shown(f'{web}://{bare}')}"


def _unknown(url: object, schemes: Sequence[str]) -> str:
    """The message for a URL whose scheme is none of ours."""
    text = url if isinstance(url, str) else ""
    named = f"{(shown(text) if text else url)!r} names no store"
    store = re.match(r"[A-Za-z]*", text)[0].lower()  # type: ignore[index]
    rest = text[len(store) :].lstrip("+:")
    if f"{store}+http" in schemes:
        server = _server_of(store, rest, schemes) or f"{store}+http://HOST"
        directory = f", a directory {store}:./data" if store in _DIRECTORIES else ""
        return f"{named}.\n  A server is {server}{directory}."
    address = _ADDRESS.fullmatch(text)
    if (address and address[1].lower() in _CALLS) or _HOST_AND_PORT.fullmatch(text):
        web = "https" if address and address[1].lower() == "grpcs" else "http"
        bare = address[2] if address else text
        return f"{named}.\n  Use {_any_of(_servers(shown(f'//{bare}'), web, schemes))}."
    return f"{named}: use one of {', '.join(f'{name}:' for name in schemes)}, such as qdrant:./data."


def _servers(rest: str, web: str, schemes: Sequence[str]) -> list[str]:
    return [f"{scheme}:{rest}" for scheme in schemes if scheme.endswith(f"+{web}")]


def _any_of(forms: Sequence[str]) -> str:
    return f"{', '.join(forms[:-1])} or {forms[-1]}"


def shown(url: str) -> str:
    """A store's URL without user, password, query and fragment, whatever characters they hold; a path as it is."""
    scheme, slashes, rest = url.partition("//")
    if not slashes:
        scheme, slashes, rest = url.partition(":")
        # A directory may have an @ in its name; behind another colon it is an address that lacks its slashes.
        if scheme in _DIRECTORIES and not re.match("[^@]*:[^@]*@", rest):
            return url
    # Up to the last @, since people forget to escape a / or ? in a password.
    return scheme + slashes + re.split("[?#]", rest.rpartition("@")[2])[0]
