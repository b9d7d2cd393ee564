"""How readers mark the headings of formats that have some: as in Markdown, so that chunks can have titles."""

from __future__ import annotations

import re

_LOOKS_MARKED = re.compile(r" {0,3}(?:#{1,6}[ \t]|```|~~~|(?:={3,}|-{3,})[ \t]*$)")


def heading(level: int, title: str) -> str:
    """Return the line of a heading; its title is not empty."""
    return f"{'#' * level} {title}"


def paragraph(line: str) -> str:
    r"""Return a line of other text. One that looks like a heading or code in Markdown is escaped: ``\# no heading``."""
    return f"\\{line}" if _LOOKS_MARKED.match(line) else line
