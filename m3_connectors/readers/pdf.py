"""Read PDF: one document per page."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput, MissingDependency
from m3_connectors.passages import FIELD
from m3_connectors.readers.inputs import Input
from m3_connectors.readers.outcomes import Outcome, Skipped, checked
from m3_connectors.readers.settings import ReadSettings

if TYPE_CHECKING:
    import pypdfium2

_ONE_AT_A_TIME = threading.Lock()
"""PDFium must not be called by two threads, whatever files they read."""

_END_MARK = b"%%EOF"
_END_BYTES = 1024
"""The last bytes of a file, among which its end mark must be."""

_LINE_HYPHEN = re.compile("[\ufffe\x02](?:\r?\n)?")
"""A hyphen at the end of a line as PDFium marks it, where a word goes on."""


def read_pdf(file: Input, settings: ReadSettings) -> Iterator[Outcome]:
    """Yield each page as a document, with the keys ``file``, ``page``, ``pages`` and ``title`` in its metadata.
    Its parent is the file.

    The id of a page is ``name#page=3``. A page without text is skipped, and so is a page that is damaged.

    Raises:
        InvalidInput: The file is encrypted or damaged, or none of its pages has text.
    """
    try:
        import pypdfium2
    except ImportError:
        raise MissingDependency("pypdfium2", "pdf") from None
    with file.open_seekable() as content:
        is_cut = _is_cut(content)
        with _ONE_AT_A_TIME:
            document = _opened(content)
        try:
            without_text: list[Skipped] = []
            count, title = _about(document)
            for number in range(1, count + 1):
                try:
                    text = _text_of(document, number)
                except pypdfium2.PdfiumError as error:
                    yield Skipped(number, f"page {number} is damaged: {error}")
                    continue
                if text.strip():
                    metadata = {"file": file.name, "page": number, "pages": count, **title}
                    metadata[FIELD] = {"parent": file.name}
                    yield checked(number, Document(f"{file.name}#page={number}", text, metadata))
                else:
                    without_text.append(Skipped(number, f"page {number} {_NO_TEXT}"))
        finally:
            with _ONE_AT_A_TIME:
                document.close()
        if is_cut:
            yield Skipped(None, "its end is missing: the file may be cut, and pages or parts of them be lost")
        if len(without_text) == count:
            raise InvalidInput(
                f"no text on any of its pages ({count:,}): recognise scanned pages first (OCR)"
            )
        yield from without_text


_NO_TEXT = "has no text: it is blank, damaged, or an image whose text must be recognised first (OCR)"


def _opened(content: BinaryIO) -> pypdfium2.PdfDocument:
    import pypdfium2
    from pypdfium2.raw import FPDF_ERR_PASSWORD

    try:
        return pypdfium2.PdfDocument(content)
    except pypdfium2.PdfiumError as error:
        if error.err_code == FPDF_ERR_PASSWORD:
            raise InvalidInput("encrypted: save it without its password") from None
        raise InvalidInput(f"not a PDF, or damaged: {error}") from None


def _about(document: pypdfium2.PdfDocument) -> tuple[int, dict[str, Any]]:
    """Return the number of pages, and the title of the document as metadata."""
    with _ONE_AT_A_TIME:
        title = " ".join(document.get_metadata_value("Title").split())
        return len(document), {"title": title} if title else {}


def _text_of(document: pypdfium2.PdfDocument, number: int) -> str:
    with _ONE_AT_A_TIME:
        page = document[number - 1]
        try:
            content = page.get_textpage()
            try:
                text = content.get_text_range()
            finally:
                content.close()
        finally:
            page.close()
    return _LINE_HYPHEN.sub("", text).replace("\r\n", "\n").replace("\0", "")


def _is_cut(content: BinaryIO) -> bool:
    """Return whether the end mark is missing; PDFium reads what it finds of such a file, without an error."""
    content.seek(max(0, content.seek(0, 2) - _END_BYTES))
    _, mark, after = content.read().rpartition(_END_MARK)
    content.seek(0)
    # A cut file may still have the end mark of an earlier version of itself, after which the changes follow.
    return not mark or b" obj" in after
