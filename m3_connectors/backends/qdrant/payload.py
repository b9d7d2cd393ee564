"""What a Qdrant point holds of a document beside its vectors, whichever engine keeps it.

Our own keys are at the top, so that they and the caller's never meet. The metadata are there twice: as JSON text,
which is what is given back (the engine changes the last bit of one float in eight), and as a tree to filter on.
``flags`` and ``dates`` repeat, in the same nesting, what the engine cannot tell apart in that tree: Edge 0.9 takes a
match on True for one on 1, and Qdrant takes ``2024-1-1`` and the 61st second of a minute for dates.
"""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from m3_connectors.documents import Document, metadata_json
from m3_connectors.filters import parse_date

ID = "id"
TEXT = "text"
JSON = "json"
METADATA = "metadata"
FLAGS = "flags"
DATES = "dates"

_NAMESPACE = uuid.UUID("6ffd1b52-7d3c-5c58-9a46-0d1f2a8f6c3e")


def point_id(id: str) -> uuid.UUID:
    """The id that Qdrant knows a document by (it takes 64-bit integers and UUIDs only)."""
    return uuid.uuid5(_NAMESPACE, id)


def payload_of(document: Document) -> dict[str, Any]:
    """The payload of a document's point, which ``document_of`` reads."""
    text = metadata_json(document.metadata)
    metadata = json.loads(text)
    payload = {ID: document.id, TEXT: document.text, JSON: text, METADATA: metadata}
    payload |= {FLAGS: tree} if (tree := _select(metadata, _flag)) else {}
    payload |= {DATES: tree} if (tree := _select(metadata, _date)) else {}
    return payload


def document_of(payload: Mapping[str, Any]) -> Document:
    """The document that a point's payload holds; KeyError or ValueError if it holds none."""
    return Document(payload[ID], payload[TEXT], json.loads(payload[JSON]))


def flag_form(value: bool) -> str:
    """How ``flags`` spell a truth value."""
    return "true" if value else "false"


def date_form(date: datetime.datetime) -> str:
    """How ``dates`` and conditions on them spell an instant: RFC 3339 with its offset."""
    return date.isoformat(timespec="microseconds")


def _flag(value: object) -> str | None:
    return flag_form(value) if isinstance(value, bool) else None


def _date(value: object) -> str | None:
    date = parse_date(value)
    return None if date is None else date_form(date)


def _select(tree: Mapping[str, Any], select: Callable[[Any], str | None]) -> dict[str, Any]:
    """The same nesting, only of the leaves (and elements of lists) that ``select`` gives a form for."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            chosen: Any = _select(value, select)
        elif isinstance(value, list):
            chosen = [form for item in value if (form := select(item)) is not None]
        else:
            chosen = select(value)
        if chosen not in (None, {}, []):
            result[key] = chosen
    return result
