"""Writes settings as TOML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def to_toml(settings: Mapping[str, Any]) -> str:
    """Return settings as TOML: single values first, then one table for each mapping; None is left out.

    Args:
        settings: Strings, numbers, bools, lists of them or of mappings, and mappings of those.
    """
    lines = [
        f"{name} = {_value(value)}"
        for name, value in settings.items()
        if value is not None and not isinstance(value, Mapping)
    ]
    for table, content in settings.items():
        if isinstance(content, Mapping):
            lines += ["", f"[{_key(table)}]"]
            lines += [
                f"{_key(name)} = {_value(value)}" for name, value in content.items() if value is not None
            ]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if bare else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(name)} = {_value(each)}" for name, each in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str):
        # TOML's strings are JSON's, which leave DEL as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
