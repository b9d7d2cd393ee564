"""Names and literals: how a collection name, a document id or a field is represented in Milvus.

No text of a user ever appears in an expression. Ids are percent-encoded into a plain alphabet, which is
reversible, so the primary key is the id itself, readable if the id is plain. Fields and values of filters
become digests.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from urllib.parse import quote, unquote

_SAFE = "/:@+=,;"
"""Allowed besides letters, digits and ``_.-~``: no quotes and no backslash, so nothing can end a literal."""

MAX_KEY_BYTES = 3 * 512
"""The size of an id of 512 bytes if each byte is percent-encoded."""


PARTS = "__m3_parts"
"""The suffix of a collection's name in the name of the collection of its parts."""

_MADE_HERE = re.compile(rf"{PARTS}$|^m3_.*_[0-9a-f]{{12}}$")


def key_of(id: str) -> str:
    """Return the primary key of a document id: ASCII, no quotes, backslashes, control characters, spaces."""
    return quote(id, safe=_SAFE)


def id_of(key: str) -> str:
    """Return the document id of a primary key."""
    return unquote(key, errors="strict")


def keys_in(keys: Iterable[str], field: str = "key") -> str:
    """Return the expression ``field in [...]`` for keys of ``key_of`` or digests, which need no escaping."""
    return f"{field} in [" + ",".join(f'"{key}"' for key in keys) + "]"


def digest(*parts: str) -> str:
    """Return 32 hexadecimal digits for a tuple of texts: equal for equal tuples only (128 bits)."""
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode()
        hashed.update(len(encoded).to_bytes(4, "big") + encoded)
    return hashed.hexdigest()


def stored_name(collection: str) -> str:
    """Return the collection's name in Milvus, which allows letters, digits and ``_``, and no digit first.

    A name that Milvus allows is unchanged, unless it looks like one of the names made here. Any other name
    gets a digest, so that two names never collide.
    """
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", collection) and not _MADE_HERE.search(collection):
        return collection
    return f"m3_{re.sub(r'[^A-Za-z0-9_]', '_', collection)}_{digest(collection)[:12]}"
