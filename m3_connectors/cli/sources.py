"""The options of commands that read files and folders into a collection."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from m3_connectors.backends.precision import PRECISIONS
from m3_connectors.backends.schema import LONG_DOCUMENTS, Storage
from m3_connectors.cli.collection_source import CollectionSource
from m3_connectors.cli.options import at_least, components_of, one_of
from m3_connectors.errors import InvalidInput
from m3_connectors.readers import (
    Fields,
    Limits,
    ReadOptions,
    Source,
    Url,
    format_names,
    is_database,
    read_mapping,
    source_of,
)


def _source(value: str) -> Source | CollectionSource:
    if not value:  # Path("") is the current directory
        raise typer.BadParameter("a SOURCE is empty; is a shell variable not set?")
    try:
        return CollectionSource.parse(value) or source_of(value)
    except InvalidInput as error:
        raise typer.BadParameter(str(error)) from None


def _check_option(options: Callable[[str], ReadOptions]) -> Callable[[str | None], str | None]:
    """Return a check for a reading option: its value is valid if ReadOptions accepts it."""

    def check(value: str | None) -> str | None:
        try:
            if value is not None:
                options(value)
        except InvalidInput as error:
            raise typer.BadParameter(str(error)) from None
        return value

    return check


def _delimiter(value: str) -> str:
    return "\t" if value in ("tab", "\\t") else value


Sources = Annotated[
    list[Any],  # of Source: typer allows no union here
    typer.Argument(
        metavar="SOURCE",
        parser=_source,
        help="A file (JSON Lines, JSON, CSV, Parquet, Arrow, text, Markdown, HTML, PDF, DOCX; also .gz and .zst), "
        "a folder, - for stdin, or a URL: s3://, https://, zip://, hf://datasets/, a database and others.",
    ),
]
Query = Annotated[
    str | None,
    typer.Option("--query", metavar="SQL", help="Query whose rows are read, if SOURCE is a database."),
]
MetadataFields = Annotated[
    list[str] | None,
    typer.Option(
        "--metadata",
        metavar="[NAME=]FIELD",
        help="Field or column to keep as metadata, under another name if one is given. Repeatable.",
        show_default="all",
    ),
]
Mapping = Annotated[
    Path | None,
    typer.Option(
        "--mapping",
        metavar="FILE",
        help="TOML file with text (a column or several), separator, id and metadata; instead of the options.",
    ),
]
MainContent = Annotated[
    bool,
    typer.Option("--main-content", help="Read only the main content of HTML, without menus and footers."),
]
MaxExpansion = Annotated[
    int,
    typer.Option(
        "--max-expansion",
        metavar="N",
        parser=at_least(1),
        help="Skip a compressed file that expands to more than N times its size (and 64 MiB).",
    ),
]
MaxExpandedGib = Annotated[
    int,
    typer.Option(
        "--max-expanded-gib",
        metavar="N",
        parser=at_least(1),
        help="Skip a compressed file that must be held as a whole and expands to more.",
    ),
]
TextField = Annotated[
    str, typer.Option("--text", metavar="FIELD", help="Field or column that contains the text.")
]
IdField = Annotated[
    str | None,
    typer.Option(
        "--id", metavar="FIELD", help="Field or column that contains the id.", show_default="id or _id"
    ),
]
Encoding = Annotated[
    str | None,
    typer.Option(
        "--encoding",
        metavar="NAME",
        callback=_check_option(lambda value: ReadOptions(encoding=value)),
        help="Encoding of files without a byte order mark.",
        show_default="UTF-8, or the encoding that a page declares",
    ),
]
Delimiter = Annotated[
    str | None,
    typer.Option(
        "--delimiter",
        metavar="CHARACTER",
        callback=_check_option(lambda value: ReadOptions(delimiter=_delimiter(value))),
        help="Delimiter of CSV and TSV files; 'tab' means a tab character.",
        show_default="detected from the header",
    ),
]
FormatName = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        callback=_check_option(lambda value: ReadOptions(format=value)),
        help=f"Format of - and of files without a known extension: {', '.join(format_names())}.",
        show_default="jsonl for -",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="GLOB",
        help="Skip files and folders with this name or, if it contains a slash, with this path below "
        "SOURCE. Repeatable.",
    ),
]
LongDocuments = Annotated[
    str | None,
    typer.Option(
        "--long-documents",
        metavar="HOW",
        callback=one_of(LONG_DOCUMENTS),
        help=f"How a new collection stores long documents: {', '.join(LONG_DOCUMENTS)}. "
        "[dim]default: split, which is exact[/dim]",
    ),
]
PoolFactor = Annotated[
    int | None,
    typer.Option(
        "--pool-factor",
        metavar="N",
        parser=at_least(2),
        help="With --long-documents pool: the average number of rows that become one. "
        f"[dim]default: {Storage.pool_factor}[/dim]",
    ),
]
PoolFromRows = Annotated[
    int | None,
    typer.Option(
        "--pool-from-rows",
        metavar="N",
        parser=at_least(1),
        help="With --long-documents pool: pool documents with at least this number of rows; 1 pools all. "
        f"[dim]default: {Storage.pool_from_rows:,}[/dim]",
    ),
]
MultivectorDtype = Annotated[
    str | None,
    typer.Option(
        "--multivector-dtype",
        metavar="DTYPE",
        callback=one_of(PRECISIONS),
        help=f"Precision of the multi-vectors of a new collection: {', '.join(PRECISIONS)}. "
        f"[dim]default: {Storage.multivector_dtype}[/dim]",
    ),
]


def read_options(
    encoding: str | None,
    delimiter: str | None,
    format: str | None,
    exclude: list[str] | None,
    *,
    main_content: bool = False,
    max_expansion: int = Limits.expansion,
    max_expanded_gib: int = Limits.expanded_bytes // 2**30,
) -> ReadOptions:
    """Return the reading options of a command."""
    return ReadOptions(
        encoding,
        None if delimiter is None else _delimiter(delimiter),
        format,
        tuple(exclude or ()),
        Limits(max_expansion, max_expanded_gib * 2**30),
        main_content,
    )


def with_query(sources: list[Source], query: str | None) -> list[Source]:
    """Return the sources of a command; each database among them has the query.

    Raises:
        typer.BadParameter: There is a query, but no database.
    """
    if query is None:
        return sources
    if not any(map(is_database, sources)):
        raise typer.BadParameter(
            f"{query!r:.60} has no effect without a database. Give its URL as SOURCE, such as sqlite:///FILE.",
            param_hint="--query",
        )
    return [Url(one.text, query) if isinstance(one, Url) and is_database(one) else one for one in sources]


def fields_of(text: str, id: str | None, metadata: list[str] | None, mapping: Path | None) -> Fields:
    """Return the fields that a command reads. A document without a word would still be a hit of many questions.

    Raises:
        typer.BadParameter: There are both a mapping file and options for columns, or a name is given twice.
        InvalidInput: The mapping file is not valid.
    """
    if mapping is None:
        pairs = [(name, field or name) for name, _, field in (one.partition("=") for one in metadata or ())]
        names = [name for name, _ in pairs]
        for name in names:
            if not name or names.count(name) > 1:
                raise typer.BadParameter(
                    f"the name {name!r} is empty or given twice. Give NAME=FIELD with another name.",
                    param_hint="--metadata",
                )
        return Fields(text, id, may_be_blank=False, metadata=dict(pairs) if metadata else None)
    for option, given in (("--text", text != "text"), ("--id", id), ("--metadata", metadata)):
        if given:
            raise typer.BadParameter(
                f"the mapping {mapping} says which columns are read. Put the column of {option} into it.",
                param_hint=option,
            )
    return dataclasses.replace(read_mapping(mapping), may_be_blank=False)


def storage_of(
    components: str | None,
    multivector_dtype: str | None,
    long_documents: str | None,
    pool_factor: int | None,
    pool_from_rows: int | None,
) -> Storage | None:
    """Return the storage that a command asks for; None keeps that of an existing collection.

    Raises:
        typer.BadParameter: An option has no effect on this storage.
    """
    if long_documents != "pool":
        for option, value in (("--pool-factor", pool_factor), ("--pool-from-rows", pool_from_rows)):
            if value is not None:
                raise typer.BadParameter(
                    f"{value} has no effect without --long-documents pool; add that option, or omit this one.",
                    param_hint=option,
                )
    chosen: dict[str, Any] = {
        "components": components_of(components),
        "multivector_dtype": multivector_dtype,
        "long_documents": long_documents,
        "pool_factor": pool_factor,
        "pool_from_rows": pool_from_rows,
    }
    # A value must equal the one with which the collection was created.
    given = {name: value for name, value in chosen.items() if value is not None}
    return Storage(**given) if given else None


def store_folder(url: str) -> Path | None:
    """Return the folder of an embedded store, which may be inside a source folder and must not be read."""
    path = url.partition(":")[2]  # not parsed as a URL: a folder's name may contain "#" and "?"
    return Path(path).expanduser() if path and not path.startswith("//") else None
