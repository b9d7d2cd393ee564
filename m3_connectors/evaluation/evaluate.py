"""Runs an evaluation: store the corpus, score the candidates, compute the runs and measure them.

Each step checks what the folder contains and adds what is missing, so the same call resumes after an
interruption.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread

from m3_connectors.backends.base import Backend
from m3_connectors.backends.capabilities import Capability
from m3_connectors.backends.registry import STORES, backend_for
from m3_connectors.backends.schema import Schema, Storage
from m3_connectors.backends.together import together
from m3_connectors.backends.urls import redacted
from m3_connectors.embeddings import Component, M3Embeddings
from m3_connectors.environment import environment
from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.baselines.baseline import Baseline
from m3_connectors.evaluation.candidates import CandidateScores, component_scores
from m3_connectors.evaluation.corpus import open_for_corpus, store_corpus
from m3_connectors.evaluation.datasets.dataset import Dataset
from m3_connectors.evaluation.folder import EvaluationFolder
from m3_connectors.evaluation.quantised import quantised, quantised_model
from m3_connectors.evaluation.record import (
    DEPTHS,
    DatasetRecord,
    EvaluationRecord,
    Fusion,
    MethodRecord,
    Protocol,
    StoreRecord,
)
from m3_connectors.evaluation.runs import method_run
from m3_connectors.evaluation.writer import DocumentRow, FolderWriter
from m3_connectors.methods import METHODS, Method

if TYPE_CHECKING:
    from pathlib import Path

    from m3_connectors.encoder.encoder import M3Encoder

Watch = Callable[[str, int, int], object]
"""``watch(step, done, total)``: the progress of a step, such as ``("encoding documents", 256, 1400)``."""

_QUERIES_AT_ONCE = 8

_DOCUMENTS_AT_ONCE = 1024

_CUT_NAMED = 5
"""The number of truncated texts that a warning names; documents.parquet has the length of each document."""

_PACKAGES = (
    *(
        "m3-connectors",
        "torch",
        "tokenizers",
        "numpy",
        "scipy",
        "pyarrow",
        "ir_measures",
        "pytrec_eval-terrier",
    ),
    *("bm25s", *(package for store in STORES for package in store.packages.values())),
    *("sentence-transformers", "transformers", "regex", "ir_datasets"),
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The settings of an evaluation.

    Attributes:
        url: The URL of the store.
        collection: The collection; with paper fusion, there is a second one, ``COLLECTION-hundredths``.
        methods: The methods, by the name of their run.
        baselines: The baselines, which are run in this order after the methods.
        fusion: See ``record.Protocol``.
        query_max_length: The maximum number of tokens of a query; by default the model's maximum.
        passage_max_length: The maximum number of tokens of a document; by default the model's maximum.
        limit_queries: Use only this number of queries, from the first; by default all.
        exact_lists: Whether the store must search exactly, without its approximate index.
    """

    url: str = "memory:"
    collection: str = "documents"
    methods: Mapping[str, Method] = dataclasses.field(default_factory=lambda: dict(METHODS))
    baselines: Sequence[Baseline] = ()
    fusion: Fusion = "exact"
    query_max_length: int | None = None
    passage_max_length: int | None = None
    limit_queries: int | None = None
    exact_lists: bool = True


def evaluate(
    dataset: Dataset,
    encoder: M3Encoder,
    plan: Plan,
    out: Path,
    *,
    watch: Watch = lambda step, done, total: None,
    settings: Mapping[str, Any] | None = None,
) -> EvaluationFolder:
    """Run an evaluation, or resume one that was interrupted.

    Args:
        dataset: The queries and the documents.
        encoder: The encoder of the queries and documents.
        plan: The store, methods and protocol.
        out: The folder to write; it may contain a part of the same evaluation.
        watch: Called with the progress.
        settings: Additional entries for environment.json, such as the command.

    Returns:
        The complete folder.

    Raises:
        InvalidInput: The folder contains another evaluation, the collection contains other documents, two
            runs have the same name, or a baseline needs a run that does not precede it.
        ModelMismatch: The collection was written by a different model.
        BackendError: The store failed; everything done so far is kept.
    """
    if plan.limit_queries is not None and plan.limit_queries < len(dataset.queries):
        dataset = dataset.select(list(dataset.queries)[: plan.limit_queries])
    else:
        plan = dataclasses.replace(plan, limit_queries=None)
    names = [*plan.methods, *(baseline.name for baseline in plan.baselines)]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidInput(
            f"two methods have the name {repeated[0]!r}; names must be unique.\n  Rename one of them."
        )
    _check_order(plan)
    languages = dict.fromkeys(dataset.queries, dataset.query_language) if dataset.query_language else {}
    writer = FolderWriter(out, _record(dataset, encoder, plan), dataset.queries, languages)
    if writer.complete:
        return EvaluationFolder(out)
    about = {"model": str(encoder.info), "device": encoder.device}
    writer.add_environment(environment(*_PACKAGES, **about, **(settings or {})))
    if writer.missing_parts():
        anyio.run(_score, dataset, encoder, plan, writer, watch)
    folder = writer.so_far()
    for name, method in plan.methods.items():
        if not writer.has_run(name):
            writer.add_run(name, method_run(folder, method))
    for baseline in plan.baselines:
        watch(f"running {baseline.name}", 0, 0)
        if not writer.has_run(baseline.name):
            writer.add_run(baseline.name, baseline.run(dataset, folder, encoder))
    watch("measuring", 0, 0)
    return writer.finish(_conclude(dataset, encoder, plan, folder, writer))


def _check_order(plan: Plan) -> None:
    """Check, before hours of encoding, that every run that a baseline needs precedes the baseline.

    Raises:
        InvalidInput: A run that a baseline needs does not precede it.
    """
    before = list(plan.methods)
    for baseline in plan.baselines:
        if missing := [run for run in baseline.requires if run not in before]:
            raise InvalidInput(
                f"{baseline.name} needs the run {missing[0]!r}, but only {', '.join(before)} precede it.\n"
                "  Use one of these, or put the baseline that makes the run before it."
            )
        before.append(baseline.name)


async def _score(
    dataset: Dataset, encoder: M3Encoder, plan: Plan, writer: FolderWriter, watch: Watch
) -> None:
    """Store the corpus, then score the candidates of the queries that the folder lacks, part by part."""
    info = encoder.info
    store = backend_for(plan.url, plan.collection)
    lists = backend_for(plan.url, f"{plan.collection}-hundredths") if plan.fusion == "paper" else None
    collections: dict[Backend, Callable[[M3Embeddings], M3Embeddings]] = {
        store: lambda embeddings: embeddings
    }
    if lists is not None:
        collections[lists] = quantised
    try:
        await open_for_corpus(store, Schema(info))
        if lists is not None:
            await open_for_corpus(
                lists, Schema(quantised_model(info), Storage(components=("dense", "sparse")))
            )
        total = len(dataset.documents)
        step = "encoding documents"
        kept = await store_corpus(
            collections,
            encoder,
            dataset.documents,
            plan.passage_max_length,
            lambda stored: watch(step, stored, total),
        )
        if kept:
            watch("kept documents", kept, total)
        if kept < total:
            await _settle(collections)
        missing = writer.missing_parts()
        done = len(dataset.queries) - sum(len(writer.part_queries(number)) for number in missing)
        for number in missing:
            watch("scoring queries", done, len(dataset.queries))
            asked = writer.part_queries(number)
            texts = [dataset.queries[query] for query in asked]
            # A part is always encoded as one batch, so that its bits do not depend on interruptions.
            encode = partial(encoder.encode, texts, max_length=plan.query_max_length)
            queries = await anyio.to_thread.run_sync(encode)
            calls = [partial(_one, store, lists, query, plan.exact_lists) for query in queries]
            writer.add_scores(number, await together(calls, at_once=_QUERIES_AT_ONCE))
            done += len(asked)
        watch("scoring queries", done, len(dataset.queries))
    finally:
        with anyio.CancelScope(shield=True):
            for backend in collections:
                await backend.close()


async def _settle(collections: Iterable[Backend]) -> None:
    """Reopen the persistent collections, so that the stored documents are on disk before any score is kept.

    Qdrant numbers tokens in the order of its documents and sums sparse scores in float32 in the order of
    these numbers. After a kill, it replays unflushed documents in another order, so the last bit would
    differ.
    """
    for backend in collections:
        if Capability.PERSISTENT in backend.capabilities:
            await backend.close()
            await backend.open()


async def _one(store: Backend, lists: Backend | None, query: M3Embeddings, exact: bool) -> CandidateScores:
    other = None if lists is None else (lists, quantised(query))
    return await component_scores(store, query, DEPTHS, exact=exact, quantised=other)


def _conclude(
    dataset: Dataset, encoder: M3Encoder, plan: Plan, folder: EvaluationFolder, writer: FolderWriter
) -> list[str]:
    """Write the judgements and documents, and return warnings with counts of inconsistencies."""
    warnings = list(dataset.warnings)
    if plan.limit_queries is not None:
        warnings.append(f"only the first {len(dataset.queries):,} queries are used")
    answered: dict[str, set[str]] = {query: set() for query in dataset.queries}
    for method in folder.record.methods:
        run = folder.run(method.name)
        for query, answer in run.items():
            answered[query].update(document for document, _ in answer)
        if empty := sum(not answer for answer in run.values()):
            warnings.append(f"{empty:,} queries have no result of {method.name} and count as 0")
    wanted = set().union(*answered.values(), *dataset.qrels.values())
    qrels: Mapping[str, Mapping[str, int]] = dataset.qrels
    if dataset.relevance == "answers":
        from m3_connectors.evaluation.answers import judge

        qrels = judge(dataset, answered)
    writer.add_qrels(qrels)
    documents = list(_document_rows(dataset, encoder, wanted))
    writer.add_documents(documents)
    tokens = {document.id: document.tokens or 0 for document in documents}
    lengths = _lengths(encoder, list(dataset.queries.values()))
    queries = dict(zip(dataset.queries, lengths, strict=True))
    for counts, limit, what in (
        (queries, plan.query_max_length, "queries"),
        (tokens, plan.passage_max_length, "judged or answered documents"),
    ):
        warnings += _cut_warnings(counts, limit or encoder.max_length, what)
    return warnings


def _cut_warnings(counts: Mapping[str, int], most: int, what: str) -> Iterator[str]:
    """Yield one warning if texts were truncated: how many, how much was lost, and the ids of the longest.

    Args:
        counts: The number of tokens of each whole text, by id.
        most: The maximum number of tokens that were read.
        what: The kind of texts, for the message.
    """
    cut = {id: count for id, count in counts.items() if count > most}
    if cut:
        whole, lost = sum(cut.values()), sum(count - most for count in cut.values())
        longest = sorted(cut, key=lambda id: (-cut[id], id))[:_CUT_NAMED]
        names = [f"{id} ({cut[id]:,})" for id in longest] + ["…"] * (len(cut) > len(longest))
        yield (
            f"{len(cut):,} of {len(counts):,} {what} are longer than {most:,} tokens and were cut: {lost:,} "
            f"of their {whole:,} tokens are lost ({lost / whole:.0%}); the longest are {', '.join(names)}"
        )


def _document_rows(dataset: Dataset, encoder: M3Encoder, wanted: Collection[str]) -> Iterator[DocumentRow]:
    """Yield the lengths of the wanted documents, without keeping all texts in memory."""
    for batch in dataset.documents.batches(_DOCUMENTS_AT_ONCE):
        documents = [document for document in batch if document.id in wanted]
        counts = encoder.count_tokens([document.text for document in documents])
        for document, tokens in zip(documents, counts, strict=True):
            yield DocumentRow(document.id, len(document.text), tokens, dataset.passage_language)


def _lengths(encoder: M3Encoder, texts: Sequence[str]) -> list[int]:
    return [
        count
        for start in range(0, len(texts), 1024)
        for count in encoder.count_tokens(texts[start : start + 1024])
    ]


def _record(dataset: Dataset, encoder: M3Encoder, plan: Plan) -> EvaluationRecord:
    return EvaluationRecord(
        dataset=DatasetRecord(
            name=dataset.name,
            family=dataset.family or dataset.name,
            split=dataset.split,
            source=dataset.source,
            revision=dataset.revision,
            licence=dataset.licence,
            documents=len(dataset.documents),
            queries=len(dataset.queries),
            query_language=dataset.query_language,
            passage_language=dataset.passage_language,
            fingerprint=dataset.fingerprint,
        ),
        model=encoder.info,
        store=StoreRecord(redacted(plan.url), plan.collection, urlsplit(plan.url).scheme.partition("+")[0]),
        protocol=Protocol(
            fusion=plan.fusion,
            depths=dict(DEPTHS),
            query_max_length=plan.query_max_length,
            passage_max_length=plan.passage_max_length,
            precision=encoder.precision,
            limit_queries=plan.limit_queries,
            exact_lists=plan.exact_lists,
            measures=dataset.paper.measures,
            relevance=dataset.relevance,
        ),
        methods=(
            *(_method_record(name, method) for name, method in plan.methods.items()),
            *(
                MethodRecord(baseline.name, "baseline", description=baseline.description)
                for baseline in plan.baselines
            ),
        ),
        warnings=dataset.warnings,
    )


def _method_record(name: str, method: Method) -> MethodRecord:
    dense, sparse, multivector = method.weights
    candidates: dict[Component, int] = dict(method.candidates)
    return MethodRecord(name, "m3", (dense, sparse, multivector), candidates)
