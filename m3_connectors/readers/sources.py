"""Read sources (files, folders, streams) as one stream of documents."""

from __future__ import annotations

import contextlib
import gzip
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput
from m3_connectors.readers.columns import Columns
from m3_connectors.readers.dead_letters import DeadLetter
from m3_connectors.readers.encodings import written
from m3_connectors.readers.fields import Fields
from m3_connectors.readers.folders import Walk
from m3_connectors.readers.inputs import (
    FORMATS,
    Input,
    ReadOptions,
    ending_of,
    is_stream,
    named_format,
    shown,
)
from m3_connectors.readers.json_file import read_json
from m3_connectors.readers.jsonl import read_jsonl
from m3_connectors.readers.lines import text_lines
from m3_connectors.readers.outcomes import Found, Outcome, Skipped
from m3_connectors.readers.pages import read_page
from m3_connectors.readers.repeats import Repeats
from m3_connectors.readers.tables import Table

_DEFAULT_FIELDS = Fields()
_DEFAULT_OPTIONS = ReadOptions()

OnDeadLetter = Callable[[Path, DeadLetter], None]


def read_documents(
    sources: Iterable[Path],
    *,
    fields: Fields = _DEFAULT_FIELDS,
    options: ReadOptions = _DEFAULT_OPTIONS,
    on_dead_letter: OnDeadLetter,
    on_replaced: OnDeadLetter | None = None,
    on_source: Callable[[Path], None] = lambda _: None,
    on_file: Callable[[Path, Path], None] = lambda source, path: None,
    on_mixed_column: Callable[[str, str], None] = lambda *_: None,
    without: Path | None = None,
) -> Iterator[Document]:
    """Yield the documents of files and folders, one after another; each is valid for storing.

    Each record of JSON Lines, JSON or CSV is a document; so is each file of text, Markdown or HTML, whose id
    is its path below the source folder, or its name. With several source folders, ids are prefixed with the
    folder's name; with several source files of the same name, their paths are the ids. Folders are read in
    the order of their paths; links to folders are not followed. ``Path("-")`` is standard input.

    CSV files are read twice, because the type of a column is the same in all files of the call.

    Args:
        sources: Files and folders.
        fields: The fields of text and id.
        options: Options for files that do not declare their encoding, delimiter or format.
        on_dead_letter: Called with the source and each record or file that was skipped.
        on_replaced: Called in the same way for each document that a later one with the same id replaces when
            it is stored. With None, ids are not compared.
        on_source: Called with each source before it is read.
        on_file: Called with the source and each of its files before the file is read.
        on_mixed_column: Called before the first document with each CSV column that contains numbers but is
            text, and with its first cell that is not a number.
        without: A folder to skip, such as the data folder of the store.

    Raises:
        InvalidInput: A source has an unsupported format.
        FileNotFoundError: A source does not exist.
    """
    sources = list(sources)
    check_sources(sources, options)
    sources = list(dict.fromkeys(sources))
    walk = Walk(sources, options, without)
    with contextlib.ExitStack() as stack:
        copies = _copies(sources, walk, stack)
        reader = _Reader(fields, options)
        for source in sources:
            for input in walk.inputs(source, lambda *_: None):
                reader.look(copies.get(input.path, input))
        for column, cell in reader.columns.mixed.items():
            on_mixed_column(column, cell)
        repeats = stack.enter_context(Repeats()) if on_replaced else None
        for source in sources:
            on_source(source)
            for input in walk.inputs(source, on_dead_letter):
                on_file(source, input.path)
                for outcome in reader.outcomes(copies.get(input.path, input)):
                    if isinstance(outcome, Skipped):
                        on_dead_letter(source, DeadLetter(shown(input.path), outcome.line, outcome.reason))
                        continue
                    if repeats and on_replaced:
                        _compare(repeats, input, outcome, on_replaced)
                    yield outcome.document


def check_sources(sources: Iterable[Path], options: ReadOptions = _DEFAULT_OPTIONS) -> None:
    """Raise InvalidInput or FileNotFoundError if a source cannot be read, before any source is read."""
    seen = set()
    for source in sources:
        if is_stream(source):
            if source in seen:
                raise InvalidInput(
                    f"{shown(source)} is given twice, but can be read only once.\n  Give it once."
                )
            seen.add(source)
        elif not source.exists():
            raise FileNotFoundError(f"{source} does not exist.\n  Give files or folders to read.")
        elif not source.is_dir() and named_format(source, options) is None:
            raise InvalidInput(
                f"{source} has an unsupported format ({ending_of(source)}).\n"
                f"  Give a folder or one of {', '.join(FORMATS)}, or set its format with --format."
            )


def files_of(sources: Iterable[Path], options: ReadOptions, without: Path | None) -> Iterator[Path]:
    """Yield the files that ``read_documents`` reads for these sources."""
    sources = list(dict.fromkeys(sources))
    walk = Walk(sources, options, without)
    for source in sources:
        yield from (input.path for input in walk.inputs(source, lambda *_: None))


def _copies(sources: list[Path], walk: Walk, stack: contextlib.ExitStack) -> dict[Path, Input]:
    """Copy streams that must be read twice to a temporary folder, and return the copies by path."""
    copies: dict[Path, Input] = {}
    for source in filter(is_stream, sources):
        for input in walk.inputs(source, lambda *_: None):
            if input.is_table:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="m3-")))
                copies[input.path] = input.copied(folder)
    return copies


def _compare(repeats: Repeats, input: Input, found: Found, on_replaced: OnDeadLetter) -> None:
    before = repeats.replaced(input, found)
    if before is not None:
        source, file, line = before
        place = f"{shown(input.path)}:{found.line}" if found.line else shown(input.path)
        reason = f"replaced: {place} has the same id {found.document.id!r} (to keep both, use different ids)"
        on_replaced(source, DeadLetter(shown(file), line, reason))


class _Reader:
    """Reads inputs of all formats."""

    def __init__(self, fields: Fields, options: ReadOptions) -> None:
        self._fields = fields
        self._options = options
        self.columns = Columns()

    def look(self, input: Input) -> None:
        """Infer the types of a table's columns; read errors are left to ``outcomes``, which reports them."""
        if input.is_table:
            unreadable = contextlib.suppress(OSError, EOFError, zlib.error)
            with unreadable, input.open_text(self._options.codec) as text:
                self._table(input).look(text, self.columns)

    def outcomes(self, input: Input) -> Iterator[Outcome]:
        """Yield the outcomes of an input; if reading fails, the last outcome reports it."""
        last: int | None = None
        try:
            for outcome in self._read(input):
                last = outcome.line
                yield outcome
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            yield Skipped(last, f"the compressed file is damaged{_after(last)}: {error}")
        except OSError as error:
            yield Skipped(last, f"cannot be read{_after(last)}: {error.strerror or error}")
        except MemoryError:
            raise
        # One file must not stop the reading of the others, whatever a library raises for it.
        except Exception as error:  # noqa: BLE001
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            yield Skipped(last, f"cannot be read{_after(last)} because of a bug in m3: {what}")

    def _read(self, input: Input) -> Iterator[Outcome]:
        codec = self._options.codec
        if input.format in ("text", "markdown", "html", "xhtml"):
            yield read_page(input, codec)
            return
        with input.open_text(codec) as text:
            if input.is_table:
                yield from self._table(input).read(text, input.name, self.columns)
            elif input.format == "json":
                yield from read_json(text, input.name, self._fields)
            else:
                yield from read_jsonl(text_lines(text), input.name, self._fields, written(text.encoding))

    def _table(self, input: Input) -> Table:
        options = self._options
        return Table(self._fields, options.delimiter, is_tsv=input.format == "tsv")


def _after(line: int | None) -> str:
    return "" if line is None else " after this line"
