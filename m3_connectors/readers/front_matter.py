"""Markdown front matter: a YAML block of fields before the text (Jekyll, Hugo, Obsidian)."""

from __future__ import annotations

import re

import yaml

_BLOCK = re.compile(
    r"---[ \t]*\r?\n(?P<fields>.*?)^(?:---|\.\.\.)[ \t]*\r?(?:\n|\Z)",
    re.DOTALL | re.MULTILINE,
)
_HEADING = re.compile(r"^[ \t]*\r?\n#", re.MULTILINE)
"""A YAML comment after a blank line, which is a Markdown heading."""

_NAME = re.compile(r"[^\W\d][\w .\-/]{0,63}")
"""A field name; a sentence with a colon has other punctuation, or is longer."""


def without_front_matter(text: str) -> str:
    """Remove the front matter of Markdown; its title becomes the first line.

    A block between two rules that contains anything other than fields is kept as text.
    """
    block = _BLOCK.match(text)
    fields = None if block is None else _fields(block["fields"])
    if block is None or not fields:
        return text
    title = next((value for name, value in fields.items() if name.lower() == "title"), None)
    first = [" ".join(title.split())] if isinstance(title, str) and title.strip() else []
    return "\n".join([*first, text[block.end() :].lstrip("\r\n")])


def _fields(block: str) -> dict[str, object] | None:
    """Return the fields of a block, or None if it contains anything else."""
    if _HEADING.search(block):
        return None
    try:
        # BaseLoader returns all values as strings: dates cannot be invalid, and merge keys cannot expand.
        fields = yaml.load(block, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return None
    if not isinstance(fields, dict):
        return None
    return fields if all(isinstance(name, str) and _NAME.fullmatch(name) for name in fields) else None
