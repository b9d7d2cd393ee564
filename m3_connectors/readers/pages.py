"""Text, Markdown and HTML: one document a file."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Literal

from m3_connectors.documents import Document, check_documents
from m3_connectors.errors import InvalidInput
from m3_connectors.readers.html import html_to_text

MAX_FILE_BYTES = 64 * 2**20
"""A file is held in memory as a whole; a larger one is no page."""

_DECLARED = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?([\w-]{1,40})", re.IGNORECASE)
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


_FRONT_MATTER = re.compile(
    r"---[ \t]*\r?\n(?P<fields>[A-Za-z_][\w-]*[ \t]*:.*?)^(?:---|\.\.\.)[ \t]*\r?(?:\n|\Z)",
    re.DOTALL | re.MULTILINE,
)
_TITLE = re.compile(r"^title[ \t]*:[ \t]*(.+?)[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)


def read_page(path: Path, id: str, markup: Literal["html", "markdown"] | None = None) -> Document:
    """A file as a document.

    Args:
        path: The file.
        id: The document's id.
        markup: HTML gives the text that is seen; Markdown loses its front matter, but for the title.

    Raises:
        InvalidInput: It is binary, empty, too large or of another encoding; the message is the reason alone.
        OSError: The file cannot be read.
    """
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InvalidInput(f"larger than {MAX_FILE_BYTES // 2**20} MiB: split it, or make it JSON Lines")
    text = _decode(path.read_bytes(), html=markup == "html")
    if markup == "html":
        text = html_to_text(text)
    elif markup == "markdown":
        text = _without_front_matter(text)
    document = Document(id, text)
    if not document.text.strip():
        raise InvalidInput("empty")
    check_documents([document])
    return document


def _without_front_matter(text: str) -> str:
    """Markdown without the block of fields before it (``---``, as of Jekyll and Obsidian); its title stands first."""
    block = _FRONT_MATTER.match(text)
    if block is None:
        return text
    title = _TITLE.search(block["fields"])
    first = [title[1].strip("\"'")] if title else []
    return "\n".join([*first, text[block.end() :].lstrip("\r\n")])


def _decode(raw: bytes, *, html: bool) -> str:
    encoding = next((encoding for mark, encoding in _MARKS.items() if raw.startswith(mark)), None)
    if encoding is None and b"\0" in raw[:8192]:
        raise InvalidInput("binary")
    if encoding is None:
        declared = _DECLARED.search(raw[:2048]) if html else None
        encoding = declared[1].decode() if declared else "utf-8"
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"not {encoding} at byte {error.start}") from None
    except LookupError:
        raise InvalidInput(f"of the unknown encoding {encoding!r}") from None
