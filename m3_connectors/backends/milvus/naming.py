"""Names and literals: what a user's collection name, document id or field becomes inside Milvus.

Nothing that a user wrote ever stands in an expression. Ids are percent-encoded into a plain alphabet, which can be
undone, so the primary key is the id itself, readable where the id is plain; fields and values of filters are digests.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from urllib.parse import quote, unquote

_SAFE = "/:@+=,;"
"""Besides letters, digits and ``_.-~``: no quote, no backslash, nothing that ends a literal."""

MAX_KEY_BYTES = 3 * 512
"""An id of 512 bytes, each percent-encoded."""


PARTS = "__m3_parts"
"""What follows a collection's name in the name of the collection of its parts."""

_MADE_HERE = re.compile(rf"{PARTS}$|^m3_.*_[0-9a-f]{{12}}$")


def key_of(id: str) -> str:
    """The primary key of a document id: ASCII, without quotes, backslashes, control characters or blanks."""
    return quote(id, safe=_SAFE)


def id_of(key: str) -> str:
    """The document id of a primary key."""
    return unquote(key, errors="strict")


def keys_in(keys: Iterable[str], field: str = "key") -> str:
    """The expression ``field in [...]`` for keys of ``key_of`` or digests; both need no escape."""
    return f"{field} in [" + ",".join(f'"{key}"' for key in keys) + "]"


def digest(*parts: str) -> str:
    """32 hexadecimal digits for a tuple of texts: equal for equal tuples only (128 bits)."""
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode()
        hashed.update(len(encoded).to_bytes(4, "big") + encoded)
    return hashed.hexdigest()


def stored_name(collection: str) -> str:
    """The collection's name in Milvus, which knows letters, digits and ``_`` only, not starting with a digit.

    A name that Milvus takes stays as it is, unless it looks like one that is made here; any other gets a digest, so
    that two names never meet.
    """
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", collection) and not _MADE_HERE.search(collection):
        return collection
    return f"m3_{re.sub(r'[^A-Za-z0-9_]', '_', collection)}_{digest(collection)[:12]}"
