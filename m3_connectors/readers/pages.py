"""Read text, Markdown and HTML: one document per file."""

from __future__ import annotations

import re

from m3_connectors.documents import Document, check_documents
from m3_connectors.errors import InvalidInput
from m3_connectors.readers import encodings, html
from m3_connectors.readers.front_matter import without_front_matter
from m3_connectors.readers.inputs import Input
from m3_connectors.readers.outcomes import Found, Outcome, Skipped, reason_of
from m3_connectors.readers.xhtml import xhtml_to_text

MAX_FILE_BYTES = 64 * 2**20
"""The limit of a file, because it is held in memory as a whole."""

_XML_DECLARATION = re.compile(rb"""\s*<\?xml\s[^>]*?encoding\s*=\s*["']([\w.:-]{1,40})["']""")


def read_page(page: Input, codec: str | None) -> Outcome:
    """Read a file as a document, or return why it is skipped: binary, empty, too large or wrongly encoded.

    Args:
        page: The file. HTML is reduced to its visible text; Markdown loses its front matter except the title.
        codec: The codec if the file has no byte order mark.

    Raises:
        OSError, EOFError, zlib.error: The file cannot be read.
    """
    with page.open() as file:
        raw = file.read(MAX_FILE_BYTES + 1)
    try:
        if len(raw) > MAX_FILE_BYTES:
            raise InvalidInput(
                f"larger than {MAX_FILE_BYTES // 2**20} MiB: split it, or convert it to JSON Lines"
            )
        document = Document(page.name, _text(page, raw, codec))
        if not document.text.strip():
            raise InvalidInput("empty")
        if not _is_unicode(page.name):
            raise InvalidInput("its name is not UTF-8, and a page's name is its id: rename the file")
        check_documents([document])
    except InvalidInput as error:
        return Skipped(None, reason_of(error))
    return Found(None, document)


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(page: Input, raw: bytes, codec: str | None) -> str:
    codec = encodings.marked_encoding(raw) or codec
    if codec is None and b"\0" in raw[:8192]:
        raise InvalidInput("binary (or UTF-16 without a byte order mark: give it with --encoding)")
    if page.format == "html":
        return _html_text(raw, codec)
    if page.format == "xhtml":
        declared = _XML_DECLARATION.match(raw)
        label = declared[1].decode() if declared else "utf-8"
        return xhtml_to_text(encodings.decode(raw, codec or encodings.encoding_of_label(label) or "utf-8"))
    text = encodings.decode(raw, codec or "utf-8")
    return without_front_matter(text) if page.format == "markdown" else text


def _html_text(raw: bytes, codec: str | None) -> str:
    """Return a page's text, decoded as in a browser; reject a page whose guessed encoding is implausible."""
    codec = codec or _declared(raw)
    if codec is not None:
        return html.html_to_text(encodings.decode(raw, codec))
    try:
        return html.html_to_text(encodings.decode(raw, "utf-8"))
    except InvalidInput as not_utf8:
        text = html.html_to_text(encodings.decode(raw, "windows-1252"))
        if encodings.likely_windows_1252(text):
            return text
        raise not_utf8


def _declared(raw: bytes) -> str | None:
    """Return the codec that a page declares, or None if it declares none or an unknown one."""
    labels: list[str] = []
    if b"charset" in raw.lower():
        labels += html.declared_labels(html.parse(raw.decode("latin-1")))
    declaration = _XML_DECLARATION.match(raw)
    if declaration:
        labels.append(declaration[1].decode())
    return next(filter(None, map(encodings.encoding_of_label, labels)), None)
