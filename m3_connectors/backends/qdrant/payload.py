"""The payload of a document's point, for both engines.

The keys of this package are at the top level, so that they never collide with the caller's. Metadata are
stored as JSON text, which is what reads return (the engine changes the last bit of one float in eight), and
as trees for filters, with what ``fields_of`` finds. ``metadata`` has every field with its values. ``flags``,
``dates`` and ``large`` have what the engine cannot distinguish in that tree: Edge 0.9 confuses a match on
True with one on 1, Qdrant accepts ``2024-1-1`` and the 61st second of a minute as dates, and its ranges use
doubles (``large_numbers``).
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
    """Return the id of a document's point (Qdrant accepts only 64-bit integers and UUIDs)."""
    return uuid.uuid5(_NAMESPACE, id)


def payload_of(document: Document) -> dict[str, Any]:
    """Return the payload of a document's point, which ``document_of`` reads."""
    fields = fields_of(document.metadata)
    payload: dict[str, Any] = {ID: document.id, TEXT: document.text, JSON: metadata_json(document.metadata)}
    # A field without values still exists; Qdrant does not treat an empty object as empty.
    payload[METADATA] = _tree(
        {field: _plain(map(_value, items)) if items else {} for field, items in fields.items()}
    )
    for name, forms in ((FLAGS, _flags), (DATES, _dates), (LARGE, _large)):
        found = {field: values for field, items in fields.items() if (values := forms(items))}
        payload |= {name: _tree({field: _plain(values) for field, values in found.items()})} if found else {}
    return payload


def document_of(payload: Mapping[str, Any]) -> Document:
    """Return the document of a point's payload; raise KeyError or ValueError if the payload has none."""
    return Document(payload[ID], payload[TEXT], json.loads(payload[JSON]))


def paths_of(tree: str, field: str) -> list[str]:
    """Return the payload paths of a metadata field in a tree; a document uses one of them (see ``_tree``).

    The paths are quoted, so that spaces, dashes and any script are literal; ``filters`` forbids quotes in
    fields.
    """
    names = field.split(".")
    whole = f'{tree}."{field}"'
    nested = ".".join([tree, *(f'"{name}"' for name in names)])
    return [nested, whole] if 1 < len(names) <= MAX_PARTS else [whole]


def keys_of(path: str) -> list[str]:
    """Return the keys of a payload path: the server reports paths without unnecessary quotes."""
    return [quoted or bare for quoted, bare in _KEY.findall(path)]


def flag_form(value: bool) -> str:
    """Return the form of a truth value in ``flags``."""
    return "true" if value else "false"


def date_form(date: datetime.datetime) -> str:
    """Return the form of an instant in ``dates`` and conditions: RFC 3339, in UTC for 4-digit years."""
    try:
        date = date.astimezone(datetime.UTC)
    except OverflowError:
        # Qdrant does not accept seconds in an offset; a larger offset leads back into the years 1 to 9999.
        ahead = date.utcoffset() or datetime.timedelta()
        minutes = -(-abs(ahead) // _MINUTE) * (1 if ahead > datetime.timedelta() else -1)
        local = date.replace(tzinfo=None) + (minutes * _MINUTE - ahead)
        date = local.replace(tzinfo=datetime.timezone(minutes * _MINUTE))
    return date.isoformat(timespec="microseconds")


def _tree(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields as nested objects; a field has its whole name if a shorter field is on its path.

    They are nested because those of earlier versions are: their objects were stored unchanged.
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
    """Return a single value itself, and several values as a list."""
    found = list(values)
    return found[0] if len(found) == 1 else found


def _value(item: Scalar) -> Scalar:
    # As an integer, because the engine does not read every decimal of 16 digits exactly.
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
