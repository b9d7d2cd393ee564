"""Read JSON records and TOML settings with pydantic; an error names the first wrong key and its value."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from m3_connectors.errors import InvalidInput

T = TypeVar("T")
Key = tuple[int | str, ...]

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
"""The errors of unknown keys."""


def read_record(kind: type[T], content: bytes, where: object, remedy: str | Callable[[Key], str]) -> T:
    """Return a JSON record as an instance of a pydantic model, or of a dataclass or a list of them.

    Args:
        kind: The type; nothing is converted, and a key ``format`` is the version of the layout.
        content: The JSON text, UTF-8.
        where: The path of the file, for messages.
        remedy: The next step, a sentence for messages; or a function that returns it for the wrong key.

    Raises:
        InvalidInput: The content is not JSON, or a key is missing, unknown or has a wrong type. The message names
            the first such key and its value.
    """
    try:
        return TypeAdapter(kind).validate_json(content, strict=True)
    except ValidationError as error:
        errors = error.errors(include_url=False)
    # In a file of another format, any other key may be wrong too.
    first = next((one for one in errors if one["loc"] == ("format",)), errors[0])
    if (
        first["type"] == "missing"
    ):  # a misspelt key is missing and unknown: the unknown one is what is in the file
        table = first["loc"][:-1]
        first = next((one for one in errors if one["type"] in _UNKNOWN and one["loc"][:-1] == table), first)
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    what = first["msg"].removeprefix("Value error, ").rstrip(".")
    step = remedy if isinstance(remedy, str) else remedy(first["loc"])
    match first["type"]:
        case "json_invalid":
            what = f"{where} is not valid JSON: {first['ctx']['error']}"
        case "literal_error" if key == "format":
            what = f"{where} has format {first['input']!r}, not {first['ctx']['expected']}"
            step = "If a later version of m3-connectors wrote it, upgrade m3-connectors."
        case "missing":
            what = f"{where} lacks the key {key}"
        case kind_of_error if kind_of_error in _UNKNOWN:
            what = f"{where} has an unknown key {key}"
        case "tuple_type" if isinstance(first["input"], dict):
            what = f"{where}: [{key}] is a single table, but {key} is a list of tables"
            step = f"Write [[{key}]] with two brackets."
        case _:
            value = "" if isinstance(first["input"], dict) else f" is {first['input']!r}"
            what = f"{where}: {key}{value}: {what}" if key else f"{where}{value}: {what}"
    # A check of several keys has its own next step.
    raise InvalidInput(f"{what}." if "\n" in what else f"{what}.\n  {step}")


def read_toml(kind: type[T], path: Path, remedy: str | Callable[[Key], str]) -> T:
    """Return a TOML file as an instance of a type; arguments and errors are those of ``read_record``.

    Raises:
        InvalidInput: Also if the file does not exist or is not TOML.
    """
    return read_settings(kind, read_raw_toml(path), path, remedy)


def read_raw_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises:
        InvalidInput: The file does not exist or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InvalidInput(f"{path} does not exist.\n  Check the path of the TOML file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} is not valid TOML: {error}\n  Fix the file.") from None


def read_settings(kind: type[T], raw: object, where: object, remedy: str | Callable[[Key], str]) -> T:
    """Return settings parsed from TOML as an instance of a type, as ``read_toml``; a date counts as a string."""
    return read_record(kind, json.dumps(raw, default=str).encode(), where, remedy)
