"""API keys: several, from a file or the environment, some of which only read."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from m3_connectors.errors import InvalidInput

Access = Literal["read", "write"]
"""What a key permits; ``write`` includes reading."""

KEYS_VARIABLE, READ_KEYS_VARIABLE = "M3_SERVE_API_KEYS", "M3_SERVE_READ_KEYS"
"""The environment variables of keys, separated by commas."""

_LEAST_CHARACTERS = 16


class Keys:
    """The keys that a service accepts; without any, it accepts every request.

    Args:
        keys: What each key permits.

    Raises:
        InvalidInput: A key is shorter than 16 characters, or has characters that no header can have.
    """

    def __init__(self, keys: Mapping[str, Access]) -> None:
        for place, key in enumerate(keys, 1):
            if len(key) < _LEAST_CHARACTERS or not key.isascii() or not key.isprintable() or " " in key:
                raise InvalidInput(
                    f"key {place} has {len(key)} characters; a key has at least {_LEAST_CHARACTERS} letters, digits or "
                    "signs of ASCII.\n  Make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
                )
        # Digests have one length, so that a comparison takes the same time for keys of any length.
        self._digests = [(_digest(key), access) for key, access in keys.items()]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def __repr__(self) -> str:
        return f"<Keys: {len(self._digests)}>"

    def access_of(self, key: str | None) -> Access | None:
        """Return what a key permits, or None for one that is unknown or missing; without keys, everything."""
        return self._permitted(key or "") if self._digests else "write"

    def knows(self, text: str) -> bool:
        """Return whether a text is one of the keys."""
        return self._permitted(text) is not None

    def _permitted(self, key: str) -> Access | None:
        digest, found = _digest(key), None
        for known, access in self._digests:  # all of them, wherever the key stands
            if hmac.compare_digest(digest, known):
                found = access
        return found

    @classmethod
    def load(cls, file: Path | None, environment: Mapping[str, str] = os.environ) -> Keys:
        """Return the keys of a file and of the environment.

        Args:
            file: One key a line, with `` read`` behind those that only read; ``#`` begins a comment.
            environment: Where the variables are.

        Raises:
            InvalidInput: The file has no keys, or a line that is none.
            OSError: The file cannot be read.
        """
        keys: dict[str, Access] = {}
        if file is not None:
            keys |= _of_lines(file, file.read_text(encoding="utf-8").splitlines())
        for variable, access in ((READ_KEYS_VARIABLE, "read"), (KEYS_VARIABLE, "write")):
            for key in environment.get(variable, "").split(","):
                if key.strip():
                    keys[key.strip()] = access  # type: ignore[assignment]
        return cls(keys)


def _of_lines(file: Path, lines: Iterable[str]) -> dict[str, Access]:
    keys: dict[str, Access] = {}
    for number, line in enumerate(lines, 1):
        key, *rest = line.partition("#")[0].split() or [""]
        if not key:
            continue
        if rest not in ([], ["read"], ["write"]):
            raise InvalidInput(
                f"{file}, line {number}: {len(rest)} words follow the key.\n"
                '  Write the key alone, or the key and "read" for one that only reads.'
            )
        keys[key] = "read" if rest == ["read"] else "write"
    if not keys:
        raise InvalidInput(f"{file} has no API keys.\n  Write one key a line.")
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
