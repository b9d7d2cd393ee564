"""``m3 ingest``: store files and folders in a collection, and only what is new or changed; compare both."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from m3_connectors.backends.registry import DEFAULT_COLLECTION
from m3_connectors.cli.console import plural
from m3_connectors.cli.ingest_collection import copy, only_collection
from m3_connectors.cli.ingest_curation import (
    Characters,
    Curating,
    DropDuplicates,
    Languages,
    MaxBroken,
    MaxRepeated,
    MinLetters,
    TagLanguages,
    Words,
    curation_of,
)
from m3_connectors.cli.ingest_dry_run import DryRun, Show, show_first
from m3_connectors.cli.ingest_embeddings import SaveEmbeddings, saved_folders
from m3_connectors.cli.ingest_ray import RayAddress, RayWorkers, RayWriters, cluster_of, store_on_ray
from m3_connectors.cli.ingest_report import names
from m3_connectors.cli.ingest_retry import WAIT_SECONDS, Wait, retry
from m3_connectors.cli.ingest_run import Target, store
from m3_connectors.cli.ingest_shard import ShardText, report_suffix, sharing
from m3_connectors.cli.ingest_verify import To, verify
from m3_connectors.cli.options import (
    Collection,
    Components,
    Debug,
    Json,
    Model,
    RunByDefault,
    at_least,
    check_store,
)
from m3_connectors.cli.reading import Reading
from m3_connectors.cli.sources import (
    Delimiter,
    Encoding,
    Exclude,
    FormatName,
    IdField,
    LongDocuments,
    MainContent,
    Mapping,
    MaxExpandedGib,
    MaxExpansion,
    MetadataFields,
    MultivectorDtype,
    PoolFactor,
    PoolFromRows,
    Query,
    Sources,
    TextField,
    fields_of,
    read_options,
    storage_of,
    store_folder,
    with_query,
)
from m3_connectors.errors import InvalidInput
from m3_connectors.readers import (
    CUT_SUFFIX,
    DROPPED_SUFFIX,
    FORMATS,
    SUFFIX,
    DeadLetterFiles,
    Limits,
    ReportFiles,
    Source,
    check_sources,
    files_of,
    origin_name,
)
from m3_connectors.readers.inputs import is_folder, is_stream, shown

ingest = typer.Typer(
    cls=RunByDefault,
    no_args_is_help=True,
    help="Store what is new or changed with m3 ingest SOURCE… --to URL, compare with m3 ingest verify --to URL, "
    "or store again what was refused with m3 ingest retry FILE --to URL.",
)

ingest.command()(verify)
ingest.command()(retry)


def _check_chunking(value: str) -> str:
    from m3_connectors.ingestion import Chunking

    try:
        Chunking.parse(value)
    except InvalidInput as error:
        raise typer.BadParameter(str(error)) from None
    return value


@ingest.command()
def run(
    context: typer.Context,
    sources: Sources,
    to: To,
    collection: Collection = DEFAULT_COLLECTION,
    model: Model = None,
    chunk: Annotated[
        str,
        typer.Option(
            "--chunk",
            metavar="HOW",
            callback=_check_chunking,
            help="none, tokens:512:64 (tokens of the model and overlap) or headings:512 (Markdown sections).",
        ),
    ] = "none",
    sync: Annotated[
        bool, typer.Option("--sync", help="Remove the documents that SOURCE no longer has.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Compare store and ledger first, as m3 ingest verify does.")
    ] = False,
    shard: ShardText = None,
    ray: RayAddress = None,
    ray_workers: RayWorkers = None,
    ray_writers: RayWriters = None,
    max_errors: Annotated[
        int | None,
        typer.Option(
            "--max-errors",
            metavar="N",
            parser=at_least(0),
            help="Stop when more than N records cannot be read or stored.",
            show_default="no limit",
        ),
    ] = None,
    wait: Wait = WAIT_SECONDS,
    save_embeddings: SaveEmbeddings = None,
    text: TextField = "text",
    id: IdField = None,
    metadata: MetadataFields = None,
    mapping: Mapping = None,
    query: Query = None,
    main_content: MainContent = False,
    max_expansion: MaxExpansion = Limits.expansion,
    max_expanded_gib: MaxExpandedGib = Limits.expanded_bytes // 2**30,
    dry_run: DryRun = False,
    show: Show = 10,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    format: FormatName = None,
    exclude: Exclude = None,
    languages: Languages = None,
    tag_languages: TagLanguages = False,
    drop_duplicates: DropDuplicates = None,
    characters: Characters = None,
    words: Words = None,
    min_letters: MinLetters = None,
    max_broken: MaxBroken = None,
    max_repeated: MaxRepeated = None,
    long_documents: LongDocuments = None,
    pool_factor: PoolFactor = None,
    pool_from_rows: PoolFromRows = None,
    components: Components = None,
    multivector_dtype: MultivectorDtype = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Store the documents of files and folders. Run it again to continue, or to update what has changed.

    A ledger on this machine records what the store has acknowledged: what is unchanged is not encoded again. Records
    that cannot be read or stored are skipped and written to SOURCE.dead.jsonl with the reason; m3 ingest retry stores
    documents from there. Documents that curation drops are written to SOURCE.dropped.jsonl.
    """
    given = dict(locals())
    check_store(to, collection)
    if (stored := only_collection(context, sources)) is not None:
        storage = storage_of(components, multivector_dtype, long_documents, pool_factor, pool_from_rows)
        copy(stored, to, collection, storage, sync=sync, check=check, wait_seconds=wait, json=json)
        return
    options = read_options(
        encoding,
        delimiter,
        format,
        exclude,
        main_content=main_content,
        max_expansion=max_expansion,
        max_expanded_gib=max_expanded_gib,
    )
    sources = with_query(sources, query)
    fields = fields_of(text, id, metadata, mapping)
    check_sources(sources, options)
    embedded = saved_folders(sources, given, inspect.signature(run))
    curation = curation_of(
        languages, tag_languages, drop_duplicates, characters, words, min_letters, max_broken, max_repeated
    )
    if dry_run:
        show_first(
            sources,
            fields,
            options,
            chunk,
            curation=curation,
            model=model,
            shard=shard,
            without=store_folder(to),
            count=show,
            json=json,
        )
        return
    if sync and any(map(is_stream, sources)):
        raise typer.BadParameter(
            "--sync removes what a source no longer has, which a stream cannot say. Give files or folders.",
            param_hint="--sync",
        )
    storage = storage_of(components, multivector_dtype, long_documents, pool_factor, pool_from_rows)
    left_out = store_folder(to)
    saved = embedded[0] if embedded else None
    target = Target(to, collection, model, storage, chunk, saved, save_embeddings, shard)
    one_process = {
        "curation": bool(curation),
        "saved embeddings": bool(embedded),
        "--save-embeddings": save_embeddings is not None,
    }
    unfit = [what for what, given in one_process.items() if given]
    cluster = cluster_of(ray, ray_workers, ray_writers, to, sources, unfit)
    with (
        DeadLetterFiles(Path.cwd(), report_suffix(shard, SUFFIX)) as dead,
        ReportFiles(Path.cwd(), report_suffix(shard, CUT_SUFFIX)) as cut,
        Curating(curation, sources, report_suffix(shard, DROPPED_SUFFIX), to, collection) as curating,
        sharing(shard),
    ):
        nothing = partial(_nothing_indexed, sources, dead, curating, excludes=bool(exclude))
        how: dict[str, Any] = {
            "json": json,
            "sync": [origin_name(source) for source in sources] if sync else [],
            "check": check,
            "wait_seconds": wait,
        }
        if cluster is not None:
            reading = Reading(dead, cut, max_errors, chunk, ())
            store_on_ray(cluster, target, reading, sources, fields, options, left_out, nothing, **how)
            return
        reading = Reading(
            dead, cut, max_errors, chunk, [] if embedded else files_of(sources, options, left_out)
        )
        documents = reading.documents(sources, fields, options, left_out)
        store(
            target,
            reading,
            reading.parts(embedded) if embedded else curating.curated(documents, reading.place),
            nothing,
            curating=curating,
            **how,
        )


def _nothing_indexed(
    sources: list[Source], dead: DeadLetterFiles, curating: Curating, *, excludes: bool
) -> InvalidInput:
    if dropped := curating.nothing_kept():
        return dropped
    if dead.first:
        return InvalidInput(
            f"nothing was indexed: {plural(dead.count, 'record')} skipped, the first is {dead.first}\n"
            f"  Fix the records, which are listed with their reasons in {names(dead.paths)}"
        )
    what = "files of a supported format" if any(map(is_folder, sources)) else "records"
    verb = "contains" if len(sources) == 1 else "contain"
    left_out = " that --exclude does not leave out" if excludes else ""
    return InvalidInput(
        f"{', '.join(map(shown, sources))} {verb} no {what}{left_out}.\n"
        f"  Supported formats: {', '.join(FORMATS)}.\n"
        "  Nothing was stored or removed. To remove everything, drop the collection."
    )
