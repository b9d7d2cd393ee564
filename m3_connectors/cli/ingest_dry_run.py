"""``m3 ingest --dry-run``: the first documents as they would be stored. No store is opened, and nothing is written."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m3_connectors.cli.console import err, one_line, out, plural, print_json, warn
from m3_connectors.cli.opening import DEFAULT_MODEL, connect_encoder, is_address
from m3_connectors.cli.options import at_least
from m3_connectors.curation import Curation, Curator, Dropped
from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput
from m3_connectors.readers import DeadLetter, Fields, ReadOptions, Source, read_documents
from m3_connectors.readers.inputs import shown

if TYPE_CHECKING:
    from m3_connectors.ingestion import Chunking
    from m3_connectors.ingestion.chunking import TokenSpans

_SHOWN_CHARACTERS = 200

DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Show the first documents as they would be stored, and store nothing."),
]
Show = Annotated[
    int,
    typer.Option("--show", metavar="N", parser=at_least(1), help="How many documents --dry-run shows."),
]


def show_first(
    sources: list[Source],
    fields: Fields,
    options: ReadOptions,
    chunk: str,
    *,
    curation: Curation,
    model: str | None,
    shard: str | None,
    without: Path | None,
    count: int,
    json: bool,
) -> None:
    """Print the first documents of sources, and what was skipped or dropped before them.

    Only the tokenizer of the model is loaded, and only if documents are cut.
    """
    from m3_connectors.ingestion import Chunking, Shard

    chunking = Chunking.parse(chunk)
    part = Shard.parse(shard or "1/1")
    skipped: list[DeadLetter] = []
    place: list[str] = [""]
    documents = read_documents(
        sources,
        fields=fields,
        options=options,
        on_file=lambda _, file: place.__setitem__(0, shown(file)),
        on_dead_letter=lambda _, letter: skipped.append(letter),
        on_notice=warn,
        without=without,
    )
    spans = None if chunking.kind == "none" else _token_spans(model or DEFAULT_MODEL)
    dropped: list[Dropped] = []
    with Curator(curation.stages(), dropped.append) as curator:
        curated = (document for document in curator.curated(documents) if part.has(document.id))
        # Where a document comes from is known only when it is read, so each is described before the next is read.
        first = [
            _described(document, place[0], chunking, spans) for document in itertools.islice(curated, count)
        ]
        has_more = next(curated, None) is not None
    if json:
        letters = [dataclasses.asdict(letter) for letter in skipped]
        drops = [{"id": drop.document.id, "stage": drop.stage, "reason": drop.reason} for drop in dropped]
        print_json({"documents": first, "has_more": has_more, "skipped": letters, "dropped": drops})
        return
    for letter in skipped:
        err.print(f"skipped  {letter}", markup=False, soft_wrap=True)
    for drop in dropped:
        err.print(f"dropped  {drop.document.id!r} {drop.reason}", markup=False, soft_wrap=True)
    for one in first:
        _print(one)
    more = f"the first {plural(len(first), 'document')}" if has_more else plural(len(first), "document")
    left_out = f", {len(skipped):,} skipped" if skipped else ""
    left_out += f", {len(dropped):,} dropped" if dropped else ""
    out.print(f"  {more}{left_out}; nothing was stored", markup=False, soft_wrap=True)


def _described(document: Document, file: str, chunking: Chunking, spans: TokenSpans | None) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": document.id,
        "file": file,
        "text": document.text[:_SHOWN_CHARACTERS],
        "characters": len(document.text),
        "metadata": dict(document.metadata),
    }
    try:
        shown["chunks"] = len(chunking.chunks(document, spans))
    except InvalidInput as error:
        shown["refused"] = str(error).splitlines()[0]
    return shown


def _print(one: dict[str, Any]) -> None:
    size = f"{one['characters']:,} characters"
    parts = plural(one["chunks"], "chunk") if "chunks" in one else f"refused: {one['refused']}"
    out.print(f"{one['id']}  ({one['file']}; {size}; {parts})", markup=False, soft_wrap=True, style="bold")
    dots = "…" if one["characters"] > _SHOWN_CHARACTERS else ""
    out.print(f"  text      {one_line(one['text'])}{dots}", markup=False, soft_wrap=True)
    for name, value in one["metadata"].items():
        out.print(f"  metadata  {name} = {one_line(repr(value))}", markup=False, soft_wrap=True)


def _token_spans(model: str) -> TokenSpans:
    if is_address(model):
        return connect_encoder(model).token_spans
    from m3_connectors.encoder.loading import load_tokenizer
    from m3_connectors.encoder.tokens import TextTokeniser

    return TextTokeniser(load_tokenizer(model)).token_spans
