"""Lines of a text stream, of bounded length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

MAX_LINE_CHARACTERS = 64 * 2**20
TOO_LONG = f"a line of more than {MAX_LINE_CHARACTERS // 2**20} Mi characters"


def text_lines(stream: TextIO) -> Iterator[str | None]:
    """The lines with their ends; None stands for one that is too long to be held in memory."""
    while line := stream.readline(MAX_LINE_CHARACTERS):
        if len(line) < MAX_LINE_CHARACTERS or line.endswith(("\n", "\r")):
            yield line
            continue
        while line and not line.endswith(("\n", "\r")):
            line = stream.readline(MAX_LINE_CHARACTERS)
        yield None
