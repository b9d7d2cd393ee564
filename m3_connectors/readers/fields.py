"""Map the fields of a record to id, text and metadata."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Iterable, Mapping
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
        text: The field of the text. A field ``title`` is put before it, on a separate line. Or several fields, whose
            texts are joined in this order; of these a record may lack some, but not all.
        id: The field of the id, by default ``id`` or ``_id``. A record without either gets an id from its
            position.
        may_be_blank: Whether a record may have a text of whitespace only.
        separator: What is put between the texts of several fields.
        metadata: The metadata to keep: the field of each name. By default all fields but id and text are kept, under
            their own names.
    """

    text: str | tuple[str, ...] = "text"
    id: str | None = None
    may_be_blank: bool = True
    separator: str = "\n"
    metadata: Mapping[str, str] | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The fields that the caller chose for the text."""
        return (self.text,) if isinstance(self.text, str) else self.text

    @property
    def chosen(self) -> dict[str, str]:
        """The fields that the caller named, each with the option that does."""
        named = {} if self.text == "text" else dict.fromkeys(self.texts, "--text")
        named |= {} if self.id is None else {self.id: "--id"}
        return {**dict.fromkeys((self.metadata or {}).values(), "--metadata"), **named}

    def is_text(self, field: str) -> bool:
        """Return whether a field is part of the text."""
        return field in self.texts or (field == _TITLE and isinstance(self.text, str))

    def is_id(self, field: str) -> bool:
        """Return whether a field may be the id."""
        return field == self.id if self.id else field in _ID_FIELDS

    def is_needed(self, field: str) -> bool:
        """Return whether a record without a value for a field is skipped."""
        return self.is_id(field) or field == self.text

    def check(self, names: Collection[str]) -> None:
        """Raise InvalidInput, with a reason of one line, if a table with columns of these names has no documents."""
        if not any(name in names for name in self.texts):
            raise InvalidInput(
                f"no column {' or '.join(map(repr, self.texts))}, only {list(names)}: "
                "choose the text column with --text"
            )
        if self.id is not None and self.id not in names:
            raise InvalidInput(f"no column {self.id!r}, only {list(names)}: choose the id column with --id")

    def unknown(self, names: Collection[str]) -> str | None:
        """Return which field that the caller named is not among the columns of all sources, or None."""
        for field, option in self.chosen.items():
            if field not in names:
                near = nearest(field, names)
                meant = f"; did you mean {near!r}?" if near else "."
                return f"no column {field!r} (named by {option} or --mapping){meant} The columns are {list(names)}"
        return None

    def document(self, record: Mapping[str, Any], default_id: str) -> Document:
        """Convert a record to a document; an object in the field ``metadata`` is merged into the metadata.

        Args:
            record: The values by field.
            default_id: The id if the record has none.

        Raises:
            InvalidInput: The id or the text is missing or has the wrong type.
        """
        id_field = self.id or next((field for field in _ID_FIELDS if field in record), None)
        text = self._text(record)
        nested = record.get(_METADATA)
        metadata = dict(nested) if isinstance(nested, Mapping) else {}
        metadata |= {
            field: value
            for field, value in record.items()
            if field not in (id_field, *self.texts)
            and not (field == _TITLE and isinstance(value, str) and self.is_text(field))
            and not (field == _METADATA and isinstance(value, Mapping))
        }
        if self.metadata is not None:
            known = {**record, **metadata}
            metadata = {name: known[field] for name, field in self.metadata.items() if field in known}
        return Document(default_id if id_field is None else self._id(record, id_field), text, metadata)

    def _text(self, record: Mapping[str, Any]) -> str:
        found = {field: record[field] for field in self.texts if field in record}
        if not isinstance(self.text, str):
            found = {field: value for field, value in found.items() if value is not None}
        if not found:
            fields = " or ".join(map(repr, self.texts))
            raise InvalidInput(f"no field {fields}, only {sorted(record)}: choose the text field with --text")
        for field, value in found.items():
            if not isinstance(value, str):
                raise InvalidInput(f"{field} is {type(value).__name__}, not a string")
        title = record.get(_TITLE) if self.is_text(_TITLE) and _TITLE not in self.texts else None
        parts = [*found.values()]
        if len(self.texts) > 1:
            parts = [part for part in parts if part.strip()]
        if isinstance(title, str) and title.strip():
            parts.insert(0, title)
        text = self.separator.join(parts)
        if not text.strip() and not self.may_be_blank:
            raise InvalidInput(f"{' and '.join(found)} is empty")
        return text

    @staticmethod
    def _id(record: Mapping[str, Any], field: str) -> str:
        if field not in record:
            raise InvalidInput(f"no field {field!r}, only {sorted(record)}: choose the id field with --id")
        id = record[field]
        if isinstance(id, bool) or not isinstance(id, str | int):
            raise InvalidInput(f"{field} is {type(id).__name__}: an id must be a string or an integer")
        return str(id)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like a name, or None if none is like it."""
    by_folded = {one.casefold(): one for one in known}
    found = difflib.get_close_matches(name.casefold(), by_folded, 1)
    return by_folded[found[0]] if found else None
