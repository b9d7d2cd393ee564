"""Map the fields of a record to id, text and metadata."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput

_ID_FIELDS = ("id", "_id")
_TITLE = "title"
_METADATA = "metadata"


@dataclasses.dataclass(frozen=True)
class Fields:
    """Settings for converting a record to a document.

    Attributes:
        text: The field of the text. A field ``title`` is put before it, on a separate line.
        id: The field of the id, by default ``id`` or ``_id``. A record without either gets an id from its
            position.
        may_be_blank: Whether a record may have a text of whitespace only.
    """

    text: str = "text"
    id: str | None = None
    may_be_blank: bool = True

    def is_text(self, field: str) -> bool:
        """Return whether a field is part of the text."""
        return field in (self.text, _TITLE)

    def is_id(self, field: str) -> bool:
        """Return whether a field may be the id."""
        return field == self.id if self.id else field in _ID_FIELDS

    def document(self, record: Mapping[str, Any], default_id: str) -> Document:
        """Convert a record to a document; an object in the field ``metadata`` is merged into the metadata.

        Args:
            record: The values by field.
            default_id: The id if the record has none.

        Raises:
            InvalidInput: The id or the text is missing or has the wrong type.
        """
        id_field = self.id or next((field for field in _ID_FIELDS if field in record), None)
        if self.text not in record:
            raise InvalidInput(
                f"no field {self.text!r}, only {sorted(record)}: choose the text field with --text"
            )
        text, title = record[self.text], record.get(_TITLE) if self.text != _TITLE else None
        if not isinstance(text, str):
            raise InvalidInput(f"{self.text} is {type(text).__name__}, not a string")
        if isinstance(title, str) and title.strip():
            text = f"{title}\n{text}"
        if not text.strip() and not self.may_be_blank:
            raise InvalidInput(f"{self.text} is empty")
        nested = record.get(_METADATA)
        metadata = dict(nested) if isinstance(nested, Mapping) else {}
        metadata |= {
            field: value
            for field, value in record.items()
            if field not in (id_field, self.text)
            and not (field == _TITLE and isinstance(value, str))
            and not (field == _METADATA and isinstance(value, Mapping))
        }
        return Document(default_id if id_field is None else self._id(record, id_field), text, metadata)

    @staticmethod
    def _id(record: Mapping[str, Any], field: str) -> str:
        if field not in record:
            raise InvalidInput(f"no field {field!r}, only {sorted(record)}: choose the id field with --id")
        id = record[field]
        if isinstance(id, bool) or not isinstance(id, str | int):
            raise InvalidInput(f"{field} is {type(id).__name__}: an id must be a string or an integer")
        return str(id)
