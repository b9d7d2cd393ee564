"""One evaluation, from a dataset to its folder: corpus stored, candidates scored, runs computed, runs measured.

Each step looks at what the folder has and adds what is missing, so the same call goes on wherever one was cut off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import anyio
import anyio.to_thread

from m3_connectors.backends.base import Backend
from m3_connectors.backends.capabilities import Capability
from m3_connectors.backends.registry import backend_for
from m3_connectors.backends.schema import Schema
from m3_connectors.backends.together import together
from m3_connectors.embeddings import Component, M3Embeddings
from m3_connectors.environment import environment
from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.baselines.baseline import Baseline
from m3_connectors.evaluation.candidates import CandidateScores, component_scores
from m3_connectors.evaluation.corpus import open_or_create, store_corpus
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
"""``watch(step, done, total)``: how far a step is, such as ``("encoding documents", 256, 1400)``."""

_QUERIES_AT_ONCE = 8

_DOCUMENTS_AT_ONCE = 1024

_CUT_NAMED = 5
"""Of the texts that were cut, so many are named in a warning; documents.parquet has the length of each document."""

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
    *("bm25s", "qdrant-edge-py", "qdrant-client", "pymilvus", "milvus-lite", "elasticsearch"),
    *("sentence-transformers", "transformers", "regex", "ir_datasets"),
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to do with a dataset.

    Attributes:
        url: The store.
        collection: Its collection; under paper fusion a second one, ``COLLECTION-hundredths``, beside it.
        methods: By the name of their run.
        baselines: Run in this order after the methods.
        fusion: See ``record.Protocol``.
        query_max_length: Most tokens of a query; the model's own maximum by default.
        passage_max_length: Most tokens of a document; the model's own maximum by default.
        limit_queries: Ask only the first so many queries; all by default.
        exact_lists: No approximate list in the store.
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
    """Evaluate, or go on with an evaluation that was interrupted.

    Args:
        dataset: What is asked, and of which documents.
        encoder: Encodes both.
        plan: Store, methods and protocol.
        out: The folder to write; it may hold the beginning of the same evaluation.
        watch: Called as the work goes on.
        settings: What else to note in environment.json, such as the command.

    Returns:
        The complete folder.

    Raises:
        InvalidInput: The folder holds another evaluation, or the collection other documents; two runs of one name, or
            a baseline that needs a run which does not come before its own.
        ModelMismatch: The collection was written by another model.
        BackendError: The store failed; everything done so far is kept.
    """
    if plan.limit_queries is not None and plan.limit_queries < len(dataset.queries):
        dataset = dataset.select(list(dataset.queries)[: plan.limit_queries])
    else:
        plan = dataclasses.replace(plan, limit_queries=None)
    names = [*plan.methods, *(baseline.name for baseline in plan.baselines)]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidInput(f"two methods are named {repeated[0]!r}: each run needs a name of its own.")
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
    """Refuse a baseline that needs a run which is not there by its turn, now and not after hours of encoding.

    Raises:
        InvalidInput: There is one.
    """
    before = list(plan.methods)
    for baseline in plan.baselines:
        if missing := [run for run in baseline.requires if run not in before]:
            raise InvalidInput(
                f"{baseline.name} needs the run {missing[0]!r}, which is not before it: there is {', '.join(before)}.\n"
                "  Name one of these, or put the baseline that makes the run before it."
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
        await open_or_create(store, Schema(info))
        if lists is not None:
            await open_or_create(lists, Schema(quantised_model(info), ("dense", "sparse")))
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
            # Encoded as the part they are: the same batch gives the same bits, wherever an interruption fell.
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
    """Open the collections anew, where they last, so that what was stored is on disk before any score is kept.

    Qdrant numbers tokens in the order in which its documents come, sums sparse scores in float32 in the order of
    these numbers, and replays what was not flushed in another order after it was killed: the last bit would differ.
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
    """Write judgements and documents; what does not fit together, counted."""
    warnings = list(dataset.warnings)
    if plan.limit_queries is not None:
        warnings.append(f"only the first {len(dataset.queries):,} queries are asked")
    answered: dict[str, set[str]] = {query: set() for query in dataset.queries}
    for method in folder.record.methods:
        run = folder.run(method.name)
        for query, answer in run.items():
            answered[query].update(document for document, _ in answer)
        if empty := sum(not answer for answer in run.values()):
            warnings.append(f"{empty:,} queries without an answer of {method.name}: they count 0")
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
    """One warning if texts were cut: how many, how much of them is lost, and the longest by name.

    Args:
        counts: Tokens of each whole text, by id.
        most: Tokens that were read of each.
        what: What the texts are.
    """
    cut = {id: count for id, count in counts.items() if count > most}
    if cut:
        whole, lost = sum(cut.values()), sum(count - most for count in cut.values())
        longest = sorted(cut, key=lambda id: (-cut[id], id))[:_CUT_NAMED]
        names = [f"{id} ({cut[id]:,})" for id in longest] + ["…"] * (len(cut) > len(longest))
        yield (
            f"{len(cut):,} of {len(counts):,} {what} are longer than {most:,} tokens and were cut: {lost:,} of their "
            f"{whole:,} tokens are lost ({lost / whole:.0%}); the longest: {', '.join(names)}"
        )


def _document_rows(dataset: Dataset, encoder: M3Encoder, wanted: Collection[str]) -> Iterator[DocumentRow]:
    """The lengths of some documents, whose texts are never held together."""
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
        store=StoreRecord(
            without_secrets(plan.url), plan.collection, urlsplit(plan.url).scheme.partition("+")[0]
        ),
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


def without_secrets(url: str) -> str:
    """A store's URL without user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else url
