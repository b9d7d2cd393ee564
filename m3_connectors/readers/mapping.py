"""Mapping files: which columns become id, text and metadata."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from m3_connectors.errors import InvalidInput
from m3_connectors.readers.fields import Fields
from m3_connectors.records import read_toml

_REMEDY = (
    "A mapping has the keys text (a column, or a list of columns), separator, id and metadata (a list of columns, or a "
    'table NAME = "COLUMN").'
)


class _Mapping(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    text: str | list[str] = "text"
    separator: str = "\n"
    id: str | None = None
    metadata: list[str] | dict[str, str] | None = Field(default=None)


def read_mapping(path: Path) -> Fields:
    """Read a mapping file in TOML.

    ``text`` is a column, or a list of columns whose texts are joined by ``separator`` (a line feed by default); ``id``
    is a column; ``metadata`` is a list of the columns to keep, or a table of names and columns. Without ``metadata``,
    all columns are kept.

    Raises:
        InvalidInput: The file does not exist or is not TOML, or a key is unknown or has a wrong type.
    """
    mapping = read_toml(_Mapping, path, _REMEDY)
    texts = mapping.text if isinstance(mapping.text, str) else tuple(mapping.text)
    if not texts or (len(set(texts)) < len(texts) and not isinstance(texts, str)):
        raise InvalidInput(
            f"{path}: text is {mapping.text!r}: it needs one column or more, each once.\n  {_REMEDY}"
        )
    metadata = mapping.metadata
    if isinstance(metadata, list):
        metadata = {column: column for column in metadata}
    return Fields(texts, mapping.id, separator=mapping.separator, metadata=metadata)
