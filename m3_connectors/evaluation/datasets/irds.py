"""Any dataset of ir_datasets, by its id: ``irds:beir/scifact/test``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from m3_connectors.documents import Document, check_documents
from m3_connectors.errors import InvalidInput, MissingDependency
from m3_connectors.evaluation.datasets.dataset import Corpus, Dataset, Qrels
from m3_connectors.evaluation.datasets.hub import Agree
from m3_connectors.evaluation.datasets.irds_fetching import fetching_what_is_agreed
from m3_connectors.evaluation.datasets.judged import add_judgement, add_query, join

PREFIX = "irds:"
"""The prefix of an id of ir_datasets."""


def load_irds(id: str, agree: Agree | None = None) -> Dataset:
    """Read a dataset, which ir_datasets fetches on first use and keeps in its own folder (``IR_DATASETS_HOME``).

    Args:
        id: Its id there; a split is part of it.
        agree: Asked before a file is fetched that is not on this machine, with all such files of the dataset.

    Raises:
        InvalidInput: There is no such dataset, it lacks documents, queries or judgements, nobody agreed, or a
            file of it must be got by hand.
        Unavailable: A file cannot be fetched.
        MissingDependency: ir_datasets is not installed.
    """
    try:
        import ir_datasets
    except ImportError:
        raise MissingDependency("ir_datasets", "ir-datasets") from None
    try:
        source = ir_datasets.load(id)
    except KeyError:
        raise InvalidInput(
            f"ir_datasets has no dataset {id!r}.\n  Use an id of its catalogue, such as beir/scifact/test."
        ) from None
    for part, has in (
        ("documents", source.has_docs()),
        ("queries", source.has_queries()),
        ("judgements", source.has_qrels()),
    ):
        if not has:
            raise InvalidInput(
                f"{PREFIX}{id} has no {part}.\n  Add a split at the end if it is missing, such as {id}/test."
            )
    with fetching_what_is_agreed(PREFIX + id, source, agree):
        return _read(id, source)


def _read(id: str, source: Any) -> Dataset:
    qrels: Qrels = {}
    for line in source.qrels_iter():
        add_judgement(qrels, line.query_id, line.doc_id, line.relevance, PREFIX + id)
    queries: dict[str, str] = {}
    for query in source.queries_iter():
        add_query(queries, query.query_id, query.default_text(), PREFIX + id)

    def documents() -> Iterator[Document]:
        for document in source.docs_iter():
            yield check_documents([Document(document.doc_id, document.default_text())])[0]

    family, _, split = id.rpartition("/")
    corpus, asked, judged, warnings = join(
        PREFIX + id, split, queries, qrels, lambda notice: Corpus(documents, PREFIX + id, notice)
    )
    return Dataset(
        name=PREFIX + id,
        split=split,
        documents=corpus,
        queries=asked,
        qrels=judged,
        family=PREFIX + (family or id),
        source=f"ir_datasets {id}",
        query_language=_language(source.queries_lang()),
        passage_language=_language(source.docs_lang()),
        warnings=warnings,
    )


def _language(code: Any) -> str | None:
    return str(code) if code else None
