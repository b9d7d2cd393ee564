"""URLs as they may be shown."""

from __future__ import annotations

import re


def shown(url: str) -> str:
    """A store's URL without user, password, query and fragment, whatever characters they hold; a path as it is."""
    scheme, slashes, rest = url.partition("//")
    # Up to the last @, since people forget to escape a / or ? in a password.
    return scheme + slashes + re.split("[?#]", rest.rpartition("@")[2])[0] if slashes else url
