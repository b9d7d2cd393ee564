"""URLs as they may be shown."""

from __future__ import annotations

import re

_DIRECTORIES = ("memory", "qdrant", "milvus")
"""Schemes of stores whose URL may name a path."""


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
