"""Read lines of bounded length from a text stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

MAX_LINE_CHARACTERS = 64 * 2**20
TOO_LONG = f"a line of more than {MAX_LINE_CHARACTERS // 2**20} Mi characters"


def text_lines(stream: TextIO) -> Iterator[str | None]:
    """Yield the lines with their line ends; None stands for a line that is too long to hold in memory."""
    while line := stream.readline(MAX_LINE_CHARACTERS):
        if len(line) < MAX_LINE_CHARACTERS or line.endswith(("\n", "\r")):
            yield line
            continue
        while line and not line.endswith(("\n", "\r")):
            line = stream.readline(MAX_LINE_CHARACTERS)
        yield None
