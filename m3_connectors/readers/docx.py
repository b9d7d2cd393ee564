"""Read DOCX: one document per file."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from m3_connectors.errors import InvalidInput, MissingDependency
from m3_connectors.readers.inputs import Input
from m3_connectors.readers.limits import Limits
from m3_connectors.readers.outcomes import Outcome
from m3_connectors.readers.pages import MAX_FILE_BYTES, page_outcome
from m3_connectors.readers.settings import ReadSettings

_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
"""The first bytes of an encrypted DOCX, and of a file of Word before 2007."""

_DAMAGES = (
    *(zipfile.BadZipFile, zlib.error, EOFError, SyntaxError),  # the last is wrong XML
    # python-docx takes the parts of a package as it finds them, and fails in many ways if one is missing or wrong.
    *(LookupError, AttributeError, TypeError, ValueError, RuntimeError),
)


def read_docx(file: Input, settings: ReadSettings) -> Iterator[Outcome]:
    """Yield the text of a file: its title, then headings, paragraphs and tables in their order, then footnotes.

    Raises:
        InvalidInput: The file is encrypted, damaged or too large.
    """
    try:
        import docx  # noqa: F401
    except ImportError:
        raise MissingDependency("python-docx", "docx") from None
    with file.open_seekable() as content:
        text = _text(content, file.limits)
    yield page_outcome(file, text)


def _text(content: BinaryIO, limits: Limits) -> str:
    import docx

    from m3_connectors.readers.docx_text import text_of

    if content.read(len(_OLE)) == _OLE:
        raise InvalidInput("encrypted, or a .doc of Word before 2007: save it as .docx without a password")
    try:
        _check_sizes(content, limits)
        document = docx.Document(content)
        return text_of(document)
    except InvalidInput:
        raise
    except _DAMAGES as error:
        raise InvalidInput(f"damaged, or not a Word document: {_line(error)}") from None


def _check_sizes(content: BinaryIO, limits: Limits) -> None:
    stored = content.seek(0, 2)
    content.seek(0)
    with zipfile.ZipFile(content) as package:
        sizes = {part.filename: part.file_size for part in package.infolist()}
    content.seek(0)
    # zipfile reads no more of a part than its declared size, and python-docx holds all parts in memory.
    limits.check_size(sum(sizes.values()))
    limits.check_expansion(stored, sum(sizes.values()))
    text = {name: size for name, size in sizes.items() if name.endswith((".xml", ".rels"))}
    if sum(text.values()) > MAX_FILE_BYTES:
        raise InvalidInput(f"its text expands to more than {MAX_FILE_BYTES // 2**20} MiB")


def _line(error: Any) -> str:
    text = str(error) or type(error).__name__
    return f"{type(error).__name__}: {text.splitlines()[0]}"
