"""The front matter of Markdown: a YAML block of fields before the text (Jekyll, Hugo, Obsidian)."""

from __future__ import annotations

import re

import yaml

_BLOCK = re.compile(
    r"---[ \t]*\r?\n(?P<fields>.*?)^(?:---|\.\.\.)[ \t]*\r?(?:\n|\Z)",
    re.DOTALL | re.MULTILINE,
)
_HEADING = re.compile(r"^[ \t]*\r?\n#", re.MULTILINE)
"""A comment of YAML after a blank line, which is a heading of Markdown."""

_NAME = re.compile(r"[^\W\d][\w .\-/]{0,63}")
"""A field's name; a sentence with a colon in it has other marks, or is longer."""


def without_front_matter(text: str) -> str:
    """Markdown without the front matter before it, whose title stands first in its place.

    What stands between two rules and is anything but fields, from the first line to the last, is text.
    """
    block = _BLOCK.match(text)
    fields = None if block is None else _fields(block["fields"])
    if block is None or not fields:
        return text
    title = next((value for name, value in fields.items() if name.lower() == "title"), None)
    first = [" ".join(title.split())] if isinstance(title, str) and title.strip() else []
    return "\n".join([*first, text[block.end() :].lstrip("\r\n")])


def _fields(block: str) -> dict[str, object] | None:
    """The fields of a block; None if it is anything else than fields."""
    if _HEADING.search(block):
        return None
    try:
        # BaseLoader makes strings of all values: no date can be wrong, no merge key can multiply.
        fields = yaml.load(block, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return None
    if not isinstance(fields, dict):
        return None
    return fields if all(isinstance(name, str) and _NAME.fullmatch(name) for name in fields) else None
