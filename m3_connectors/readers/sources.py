"""Read sources (files, folders, streams) as one stream of documents."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput, MissingDependency
from m3_connectors.readers.compression import Damaged
from m3_connectors.readers.dead_letters import DeadLetter
from m3_connectors.readers.fields import Fields
from m3_connectors.readers.folders import Walk
from m3_connectors.readers.formats import FORMATS, ReadOptions, ending_of, named_ending
from m3_connectors.readers.inputs import Input, Source, is_stream, shown
from m3_connectors.readers.known_columns import KnownColumns
from m3_connectors.readers.outcomes import Found, Outcome, Skipped, reason_of
from m3_connectors.readers.repeats import Repeats
from m3_connectors.readers.schemes import opener_of
from m3_connectors.readers.settings import ReadSettings
from m3_connectors.readers.tables import look_at_columns
from m3_connectors.readers.urls import Url

_DEFAULT_FIELDS = Fields()
_DEFAULT_OPTIONS = ReadOptions()

OnDeadLetter = Callable[[Source, DeadLetter], None]


def read_documents(
    sources: Iterable[Source],
    *,
    fields: Fields = _DEFAULT_FIELDS,
    options: ReadOptions = _DEFAULT_OPTIONS,
    on_dead_letter: OnDeadLetter,
    on_replaced: OnDeadLetter | None = None,
    on_source: Callable[[Source], None] = lambda _: None,
    on_file: Callable[[Source, Source], None] = lambda source, path: None,
    on_mixed_column: Callable[[str, str], None] = lambda *_: None,
    on_notice: Callable[[str], None] = lambda _: None,
    without: Path | None = None,
) -> Iterator[Document]:
    """Yield the documents of files, folders and URLs, one after another; each is valid for storing.

    Each record of JSON Lines, JSON, CSV, Parquet or Arrow is a document, and so is each page of a PDF, and each
    file of text, Markdown, HTML or DOCX, whose id is its path below the source folder, or its name. With several
    source folders, ids are prefixed with the folder's name; with several source files of the same name, their
    paths are the ids. Folders are read in the order of their paths; links to folders are not followed.
    ``Path("-")`` is standard input.

    CSV files are read twice, because the type of a column is the same in all files of the call.

    Args:
        sources: Files, folders and URLs; ``SCHEMES`` has what opens the URLs.
        fields: The fields of text and id.
        options: Options for files that do not declare their encoding, delimiter or format.
        on_dead_letter: Called with the source and each record or file that was skipped.
        on_replaced: Called in the same way for each document that a later one with the same id replaces when
            it is stored. With None, ids are not compared.
        on_source: Called with each source before it is read.
        on_file: Called with the source and each of its files before the file is read.
        on_mixed_column: Called before the first document with each CSV column that contains numbers but is
            text, and with its first cell that is not a number.
        on_notice: Called before the first document with each fact that makes the reading less certain: a compressed
            file without a checksum, a field that the first records lack.
        without: A folder to skip, such as the data folder of the store.

    Raises:
        InvalidInput: A source has an unsupported format, a URL cannot be opened, or no table has one of the columns
            that ``fields`` names; raised before the first document.
        FileNotFoundError: A source does not exist.
        MissingDependency: A package that reads a source is not installed. A file in a folder is skipped instead.
    """
    sources = list(sources)
    check_sources(sources, options)
    sources = list(dict.fromkeys(sources))
    walk = Walk(sources, options, without)
    with contextlib.ExitStack() as stack:
        copies = _copies(sources, walk, stack)
        reader = _Reader(fields, options)
        inputs = (input for source in sources for input in walk.inputs(source, lambda *_: None))
        reader.look((copies.get(input.path, input) for input in inputs), on_mixed_column, on_notice)
        repeats = stack.enter_context(Repeats()) if on_replaced else None
        for source in sources:
            on_source(source)
            for input in _found(walk, source, on_dead_letter):
                on_file(source, input.path)
                for outcome in reader.outcomes(copies.get(input.path, input)):
                    if isinstance(outcome, Skipped):
                        on_dead_letter(source, letter_of(input.path, outcome))
                        continue
                    if repeats and on_replaced:
                        _compare(repeats, input, outcome, on_replaced)
                    yield outcome.document


def letter_of(path: Source, skipped: Skipped) -> DeadLetter:
    """Return the dead letter of a record of a file; it contains no credentials of a URL."""
    reason = path.without_secrets(skipped.reason) if isinstance(path, Url) else skipped.reason
    return DeadLetter(shown(path), skipped.line, reason, "column" if skipped.is_column else "read")


def files_to_read(
    sources: Iterable[Source],
    *,
    fields: Fields = _DEFAULT_FIELDS,
    options: ReadOptions = _DEFAULT_OPTIONS,
    on_dead_letter: OnDeadLetter,
    on_mixed_column: Callable[[str, str], None] = lambda *_: None,
    on_notice: Callable[[str], None] = lambda _: None,
    without: Path | None = None,
) -> tuple[list[Input], Callable[[Input], Iterator[Outcome]]]:
    """Return the files of sources, and a function that reads one of them, so that several processes can read them.

    Together, in their order, they have the documents of ``read_documents``. The arguments are those of that function.

    Raises:
        InvalidInput: A source is a stream or has an unsupported format, or no table has one of the columns that
            ``fields`` names.
        FileNotFoundError: A source does not exist.
    """
    sources = list(dict.fromkeys(sources))
    check_sources(sources, options)
    if streams := [shown(source) for source in sources if is_stream(source)]:
        raise InvalidInput(
            f"{streams[0]} is a stream, which only one process can read.\n  Give files or folders instead."
        )
    walk = Walk(sources, options, without)
    reader = _Reader(fields, options)
    inputs = [input for source in sources for input in walk.inputs(source, on_dead_letter)]
    reader.look(inputs, on_mixed_column, on_notice)
    return inputs, reader.outcomes


def check_sources(sources: Iterable[Source], options: ReadOptions = _DEFAULT_OPTIONS) -> None:
    """Raise InvalidInput or FileNotFoundError if a source cannot be read, before any source is read."""
    seen: set[Source] = set()
    names: dict[str, Source] = {}
    for source in sources:
        if isinstance(source, Url):
            opener_of(source)
            if names.setdefault(str(source), source) != source:
                raise InvalidInput(
                    f"{source} is given twice, with other parameters that do not belong to its name.\n"
                    "  Read one after the other, each into a collection of its own."
                )
        elif is_stream(source):
            if source in seen:
                raise InvalidInput(
                    f"{shown(source)} is given twice, but can be read only once.\n  Give it once."
                )
            seen.add(source)
        elif not source.exists():
            raise FileNotFoundError(f"{source} does not exist.\n  Give files or folders to read.")
        elif not source.is_dir() and named_ending(source, options) is None:
            raise InvalidInput(
                f"{source} has an unsupported format ({ending_of(source)}).\n"
                f"  Give a folder or one of {', '.join(FORMATS)}, or set its format with --format."
            )


def files_of(sources: Iterable[Source], options: ReadOptions, without: Path | None) -> Iterator[Source]:
    """Yield the files that ``read_documents`` reads for these sources."""
    sources = list(dict.fromkeys(sources))
    walk = Walk(sources, options, without)
    for source in sources:
        yield from (input.path for input in walk.inputs(source, lambda *_: None))


def _found(walk: Walk, source: Source, on_dead_letter: OnDeadLetter) -> Iterator[Input]:
    """Yield the files of a source; a URL that can no longer be opened becomes a dead letter."""
    try:
        yield from walk.inputs(source, on_dead_letter)
    except InvalidInput as error:
        on_dead_letter(source, letter_of(source, Skipped(None, reason_of(error))))


def _copies(sources: list[Source], walk: Walk, stack: contextlib.ExitStack) -> dict[Source, Input]:
    """Copy streams that must be read twice to a temporary folder, and return the copies by path."""
    copies: dict[Source, Input] = {}
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
        self.settings = ReadSettings(
            fields, options.codec, options.delimiter, main_content=options.main_content
        )

    def look(
        self,
        inputs: Iterable[Input],
        on_mixed_column: Callable[[str, str], None],
        on_notice: Callable[[str], None],
    ) -> None:
        """Infer the types of the columns of tables, and say what is uncertain, before anything is read.

        Read errors are left to ``outcomes``, which reports them.

        Raises:
            InvalidInput: No table has one of the columns that the caller named.
        """
        known = KnownColumns(self.settings)
        for input in inputs:
            if input.is_table:
                with contextlib.suppress(OSError, InvalidInput, MissingDependency):
                    look_at_columns(input, self.settings)
            known.look(input)
            if input.lacks_checksum():
                on_notice(
                    f"{shown(input.path)} has no checksum: damage of its bytes may go unnoticed "
                    "(zstd --check writes one)"
                )
        for notice in known.check():
            on_notice(notice)
        for column, cell in self.settings.columns.mixed.items():
            on_mixed_column(column, cell)

    def outcomes(self, input: Input) -> Iterator[Outcome]:
        """Yield the outcomes of an input; if reading fails, the last outcome reports it.

        Raises:
            MissingDependency: The input is a source itself, and a package that reads it is not installed.
        """
        last: int | None = None
        try:
            read = input.reader or FORMATS[input.ending]
            for outcome in read(input, self.settings):
                last = outcome.line
                yield outcome
        except Damaged as error:
            yield Skipped(last, f"the compressed file is damaged{_after(last)}: {error}")
        except OSError as error:
            yield Skipped(last, f"cannot be read{_after(last)}: {error.strerror or error}")
        except MissingDependency as error:
            if input.path == input.source:
                raise
            # The other files of a folder can be read; this one is like a file of an unsupported format.
            yield Skipped(None, " ".join(str(error).split()))
        except InvalidInput as error:
            yield Skipped(last, reason_of(error))
        except MemoryError:
            raise
        # One file must not stop the reading of the others, whatever a library raises for it.
        except Exception as error:  # noqa: BLE001
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            yield Skipped(last, f"cannot be read{_after(last)} because of a bug in its reader: {what}")


def _after(line: int | None) -> str:
    return "" if line is None else " after this line"
