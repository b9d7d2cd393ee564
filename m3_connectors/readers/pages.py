"""Read text, Markdown and HTML: one document per file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput, MissingDependency
from m3_connectors.readers import encodings, html
from m3_connectors.readers.front_matter import without_front_matter
from m3_connectors.readers.inputs import Input
from m3_connectors.readers.outcomes import Outcome, Skipped, checked
from m3_connectors.readers.settings import ReadSettings
from m3_connectors.readers.xhtml import xhtml_to_text

MAX_FILE_BYTES = 64 * 2**20
"""The limit of a file, because it is held in memory as a whole."""

_XML_DECLARATION = re.compile(rb"""\s*<\?xml\s[^>]*?encoding\s*=\s*["']([\w.:-]{1,40})["']""")


Decode = Callable[[bytes, str | None], str]
"""Returns the text of a page, given its bytes and the codec if it is known."""


def read_html(page: Input, settings: ReadSettings) -> Iterator[Outcome]:
    """Read a page of HTML: its visible text, or only its main content if the settings say so."""
    return read_page(main_content if settings.main_content else html_page, page, settings)


def read_page(decode: Decode, page: Input, settings: ReadSettings) -> Iterator[Outcome]:
    """Read a file as a document, or yield why it is skipped: binary, empty, too large or wrongly encoded.

    Args:
        decode: Returns the text of a page of this format.
        page: The file.
        settings: The codec if the file has no byte order mark.

    Raises:
        OSError: The file cannot be read.
        InvalidInput: The file is skipped; the message contains only the reason.
    """
    with page.open() as file:
        raw = file.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise InvalidInput(
            f"larger than {MAX_FILE_BYTES // 2**20} MiB: split it, or convert it to JSON Lines"
        )
    codec = encodings.marked_encoding(raw) or settings.codec
    if codec is None and b"\0" in raw[:8192]:
        raise InvalidInput("binary (or UTF-16 without a byte order mark: give it with --encoding)")
    yield page_outcome(page, decode(raw, codec))


def page_outcome(page: Input, text: str) -> Outcome:
    """Return the document of a whole file, whose id is its name, or why it is skipped."""
    if not text.strip():
        return Skipped(None, "empty")
    if not _is_unicode(page.name):
        return Skipped(None, "its name is not UTF-8, and a page's name is its id: rename the file")
    return checked(None, Document(page.name, text))


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def plain_text(raw: bytes, codec: str | None) -> str:
    """Return a text."""
    return encodings.decode(raw, codec or "utf-8")


def markdown(raw: bytes, codec: str | None) -> str:
    """Return the text of Markdown, without its front matter except the title."""
    return without_front_matter(plain_text(raw, codec))


def xhtml_page(raw: bytes, codec: str | None) -> str:
    """Return the visible text of a page of XHTML."""
    declared = _XML_DECLARATION.match(raw)
    label = declared[1].decode() if declared else "utf-8"
    return xhtml_to_text(encodings.decode(raw, codec or encodings.encoding_of_label(label) or "utf-8"))


def html_page(raw: bytes, codec: str | None) -> str:
    """Return the visible text of a page of HTML, decoded as in a browser.

    Raises:
        InvalidInput: It cannot be decoded, or its guessed encoding is implausible.
    """
    return html.html_to_text(_markup(raw, codec))


def main_content(raw: bytes, codec: str | None) -> str:
    """Return the title and the main content of a page of HTML as Markdown, without menus, headers and footers.

    A page in which none is found has all its visible text: leaving it out would lose it.

    Raises:
        InvalidInput, MissingDependency: It cannot be decoded, or trafilatura is not installed.
    """
    try:
        import trafilatura
    except ImportError:
        raise MissingDependency("trafilatura", "main-content") from None
    markup = _markup(raw, codec)
    found = trafilatura.extract(markup, output_format="markdown", include_comments=False, include_tables=True)
    if not found or not found.strip():
        return html.html_to_text(markup)
    title = html.title_of(markup)
    return found if title in found[: 2 * len(title) + 10] else f"{title}\n{found}"


def _markup(raw: bytes, codec: str | None) -> str:
    codec = codec or _declared(raw)
    if codec is not None:
        return encodings.decode(raw, codec)
    try:
        return encodings.decode(raw, "utf-8")
    except InvalidInput as not_utf8:
        markup = encodings.decode(raw, "windows-1252")
        if encodings.likely_windows_1252(html.html_to_text(markup)):
            return markup
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
