"""The table of file extensions and their readers."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from m3_connectors.errors import InvalidInput
from m3_connectors.readers.columnar import read_arrow, read_parquet
from m3_connectors.readers.compression import is_compressed
from m3_connectors.readers.docx import read_docx
from m3_connectors.readers.encodings import known_encoding
from m3_connectors.readers.inputs import Source, is_stream
from m3_connectors.readers.json_file import read_json
from m3_connectors.readers.jsonl import read_json_lines
from m3_connectors.readers.limits import DEFAULT_LIMITS, Limits
from m3_connectors.readers.pages import markdown, plain_text, read_html, read_page, xhtml_page
from m3_connectors.readers.pdf import read_pdf
from m3_connectors.readers.settings import Reader
from m3_connectors.readers.tables import read_csv, read_tsv

_TEXT = functools.partial(read_page, plain_text)
_MARKDOWN = functools.partial(read_page, markdown)
_XHTML = functools.partial(read_page, xhtml_page)

FORMATS: dict[str, Reader] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".feather": read_arrow,
    ".txt": _TEXT,
    ".rst": _TEXT,
    ".md": _MARKDOWN,
    ".markdown": _MARKDOWN,
    ".html": read_html,
    ".htm": read_html,
    ".xhtml": _XHTML,
    ".pdf": read_pdf,
    ".docx": read_docx,
}
"""The reader of each file extension, which is in lower case; in names it may be followed by ``.gz`` or ``.zst``.

Your own format is one line: ``FORMATS[".eml"] = read_mail``.
"""

_PAGES = (_TEXT, _MARKDOWN, read_html, _XHTML)
_NAMES = {".txt": "text", ".md": "markdown"}
"""Extensions whose format has another name."""


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """Options for reading files that do not declare their encoding, delimiter or format.

    Attributes:
        encoding: The encoding of files without a byte order mark; overrides the declaration of a page. The
            default is UTF-8, or the encoding that a page declares.
        delimiter: The delimiter of CSV and TSV cells, one character; cells may then be quoted. By default,
            CSV uses the delimiter with which the header has a text column, and TSV uses tabs without quoting.
        format: The format of standard input, pipes and files without a known extension: ``"text"``,
            ``"markdown"``, or an extension without its dot. The default is JSON Lines for streams, and text
            for files without any extension.
        exclude: Shell patterns of files and folders to skip. A pattern matches the name or, if it contains a
            slash, the path below the source.
        limits: How far compressed files may expand.
        main_content: Whether only the main content of HTML is read, without menus and the like.

    Raises:
        InvalidInput: An option is not valid.
    """

    encoding: str | None = None
    delimiter: str | None = None
    format: str | None = None
    exclude: tuple[str, ...] = ()
    limits: Limits = DEFAULT_LIMITS
    main_content: bool = False

    def __post_init__(self) -> None:
        if self.encoding is not None:
            known_encoding(self.encoding)
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise InvalidInput(
                f"the delimiter {self.delimiter!r} is not a single character that can separate cells.\n"
                "  Use one such as ';' or '|', or the word tab."
            )
        if self.format is not None and _ending_named(self.format) is None:
            known = ", ".join(format_names())
            raise InvalidInput(f"{self.format!r} is not a supported format.\n  Choose one of {known}.")

    @property
    def codec(self) -> str | None:
        """The Python codec of ``encoding``."""
        return None if self.encoding is None else known_encoding(self.encoding)


def format_names() -> list[str]:
    """Return the names of all formats, one for each reader."""
    names: dict[Reader, str] = {}
    for ending, reader in FORMATS.items():
        names.setdefault(reader, _NAMES.get(ending, ending[1:]))
    return list(names.values())


def is_records(path: Source, ending: str | None = None) -> bool:
    """Return whether a file contains documents (records, rows, pages of a PDF), and is not a plain text itself.

    Args:
        path: The file.
        ending: The extension as which it is read; by default its own.
    """
    ending = ending or known_ending(path)
    return ending is not None and FORMATS[ending] not in _PAGES


def ending_of(path: Source) -> str:
    """Return the extension of a name in lower case, without that of a compression."""
    name = Path(path.name.lower())
    return Path(name.stem).suffix if is_compressed(path) else name.suffix


def known_ending(path: Source) -> str | None:
    """Return the extension of a file if it has a reader; a name without an extension is a text."""
    ending = ending_of(path) or ".txt"
    return ending if ending in FORMATS else None


def named_ending(path: Source, options: ReadOptions) -> str | None:
    """Return the extension as which to read a file given as a source: its own, or that of the options' format."""
    if ending_of(path) in FORMATS:
        return ending_of(path)
    if options.format is not None:
        return _ending_named(options.format)
    return ".jsonl" if is_stream(path) else known_ending(path)


def _ending_named(format: str) -> str | None:
    endings = {name: ending for ending, name in _NAMES.items()}
    ending = endings.get(format, f".{format}")
    return ending if ending in FORMATS else None
