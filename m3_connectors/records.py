"""Read JSON records and settings with pydantic; an error names the first wrong key and its value.

Pydantic is imported from here, so that the error where it is not installed names the extra.
"""

from __future__ import annotations

from typing import TypeVar

from m3_connectors.errors import InvalidInput, MissingDependency

try:
    from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
except ImportError:
    raise MissingDependency("pydantic", "eval") from None

__all__ = ["BaseModel", "ConfigDict", "Field", "read_record"]

T = TypeVar("T")


def read_record(kind: type[T], content: bytes, where: object, remedy: str) -> T:
    """Return a JSON record as an instance of a pydantic model, or of a dataclass or a list of them.

    Args:
        kind: The type; nothing is converted, and a key ``format`` is the version of the layout.
        content: The JSON text, UTF-8.
        where: The path of the file, for messages.
        remedy: The next step, a sentence for messages.

    Raises:
        InvalidInput: The content is not JSON, or a key is missing, unknown or has a wrong type. The message names
            the first such key and its value.
    """
    try:
        return TypeAdapter(kind).validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "json_invalid":
            what = f"{where} is not valid JSON: {first['ctx']['error']}"
        elif key == "format":
            what = f"{where} does not have format {first['ctx']['expected']}"
            remedy = "If a later version of m3-connectors wrote it, upgrade m3-connectors."
        elif first["type"] == "missing":
            what = f"{where} lacks the key {key}"
        elif first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            what = f"{where} has an unknown key {key}"
        else:
            what = f"{where}: {key or 'the record'} is {first['input']!r}: {first['msg']}"
        raise InvalidInput(f"{what}.\n  {remedy}") from None
