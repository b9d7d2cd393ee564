"""What a Qdrant point holds of a document beside its vectors, whichever engine keeps it.

Our own keys are at the top, so that they and the caller's never meet. The metadata are there as JSON text, which is
what is given back (the engine changes the last bit of one float in eight), and as trees to filter on, which hold what
``fields_of`` reaches: ``metadata`` every field and its values, ``flags``, ``dates`` and ``large`` what the engine
cannot tell apart in that tree: Edge 0.9 takes a match on True for one on 1, Qdrant takes ``2024-1-1`` and the 61st
second of a minute for dates, and its ranges are of doubles (``large_numbers``).
"""

from __future__ import annotations

import datetime
import json
import re
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from m3_connectors.backends.large_numbers import double, is_large, terms_of
from m3_connectors.dates import parse_date
from m3_connectors.documents import Document, metadata_json
from m3_connectors.fields import MAX_PARTS, Scalar, fields_of

ID = "id"
TEXT = "text"
JSON = "json"
METADATA = "metadata"
FLAGS = "flags"
DATES = "dates"
LARGE = "large"

_KEY = re.compile(r'"([^"]*)"|([^."]+)')
_MINUTE = datetime.timedelta(minutes=1)
_NAMESPACE = uuid.UUID("6ffd1b52-7d3c-5c58-9a46-0d1f2a8f6c3e")


def point_id(id: str) -> uuid.UUID:
    """The id that Qdrant knows a document by (it takes 64-bit integers and UUIDs only)."""
    return uuid.uuid5(_NAMESPACE, id)


def payload_of(document: Document) -> dict[str, Any]:
    """The payload of a document's point, which ``document_of`` reads."""
    fields = fields_of(document.metadata)
    payload: dict[str, Any] = {ID: document.id, TEXT: document.text, JSON: metadata_json(document.metadata)}
    # A field without values is there all the same, and an empty object is not empty to Qdrant.
    payload[METADATA] = _tree(
        {field: _plain(map(_value, items)) if items else {} for field, items in fields.items()}
    )
    for name, forms in ((FLAGS, _flags), (DATES, _dates), (LARGE, _large)):
        found = {field: values for field, items in fields.items() if (values := forms(items))}
        payload |= {name: _tree({field: _plain(values) for field, values in found.items()})} if found else {}
    return payload


def document_of(payload: Mapping[str, Any]) -> Document:
    """The document that a point's payload holds; KeyError or ValueError if it holds none."""
    return Document(payload[ID], payload[TEXT], json.loads(payload[JSON]))


def paths_of(tree: str, field: str) -> list[str]:
    """The payload paths of a metadata field in one of the trees, of which a document has one (see ``_tree``).

    Quoted, so that spaces, dashes and any script are taken as they are; ``filters`` forbids quotes in fields.
    """
    names = field.split(".")
    whole = f'{tree}."{field}"'
    nested = ".".join([tree, *(f'"{name}"' for name in names)])
    return [nested, whole] if 1 < len(names) <= MAX_PARTS else [whole]


def keys_of(path: str) -> list[str]:
    """The keys of a payload path: the server reports ours without the quotes that a key does not need."""
    return [quoted or bare for quoted, bare in _KEY.findall(path)]


def flag_form(value: bool) -> str:
    """How ``flags`` spell a truth value."""
    return "true" if value else "false"


def date_form(date: datetime.datetime) -> str:
    """How ``dates`` and conditions on them spell an instant: RFC 3339, in UTC where its year has four digits there."""
    try:
        date = date.astimezone(datetime.UTC)
    except OverflowError:
        # Qdrant takes no seconds in an offset; a larger offset leads back into the years 1 to 9999.
        ahead = date.utcoffset() or datetime.timedelta()
        minutes = -(-abs(ahead) // _MINUTE) * (1 if ahead > datetime.timedelta() else -1)
        local = date.replace(tzinfo=None) + (minutes * _MINUTE - ahead)
        date = local.replace(tzinfo=datetime.timezone(minutes * _MINUTE))
    return date.isoformat(timespec="microseconds")


def _tree(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields as nested objects; where a shorter field has values in the way, under their whole name.

    Nested, because documents of earlier versions are: their objects were stored as they came.
    """
    tree: dict[str, Any] = {}
    for field in sorted(fields, key=lambda name: name.count(".")):
        *outer, last = field.split(".")
        node: Any = tree if len(outer) < MAX_PARTS else None
        for name in outer:
            node = node.setdefault(name, {}) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node[last] = fields[field]
        else:
            tree[field] = fields[field]
    return tree


def _plain(values: Iterable[Any]) -> Any:
    """One value as itself, several as a list."""
    found = list(values)
    return found[0] if len(found) == 1 else found


def _value(item: Scalar) -> Scalar:
    # As a whole number, because the engine does not read every decimal of 16 digits exactly.
    return item if isinstance(item, bool | str) or not is_large(item) else int(double(item))


def _flags(items: Iterable[Scalar]) -> list[str]:
    return [flag_form(item) for item in items if isinstance(item, bool)]


def _dates(items: Iterable[Scalar]) -> list[str]:
    return [date_form(date) for item in items if (date := parse_date(item)) is not None]


def _large(items: Iterable[Scalar]) -> list[str]:
    return [
        term
        for item in items
        if isinstance(item, int | float) and not isinstance(item, bool) and is_large(item)
        for term in terms_of(item)
    ]
