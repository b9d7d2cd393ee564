"""A dataset over an index: the corpus stored once, the methods run, the runs measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from m3_connectors.blocking import Index
from m3_connectors.documents import Document
from m3_connectors.embeddings import COMPONENTS, Component, M3Embeddings, ModelInfo
from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.datasets.dataset import Corpus, Dataset
from m3_connectors.evaluation.bm25 import BM25
from m3_connectors.methods import Method

if TYPE_CHECKING:
    from m3_connectors.encoder.encoder import M3Encoder

DEPTH = 100
"""Answers of a run: what Recall@100 needs."""

_BATCH = 256


class PassageEncoder:
    """An encoder that cuts the corpus at a length of its own; queries go to the encoder itself.

    Args:
        encoder: What encodes.
        max_length: Most tokens of a document; the encoder's own maximum by default.
    """

    def __init__(self, encoder: M3Encoder, max_length: int | None) -> None:
        self._encoder = encoder
        self._max_length = max_length

    @property
    def info(self) -> ModelInfo:
        """Who the model is."""
        return self._encoder.info

    @property
    def recommended_weights(self) -> Mapping[str, tuple[float, float, float]]:
        """Weights by method name that the model ships with."""
        return self._encoder.recommended_weights

    def encode(self, texts: Sequence[str], *, components: Sequence[Component] = COMPONENTS) -> M3Embeddings:
        """One row for each text, cut."""
        return self._encoder.encode(texts, components=components, max_length=self._max_length)

    def token_strings(self, text: str) -> list[str]:
        """The token of each multi-vector row of the text, uncut."""
        return self._encoder.token_strings(text)

    def id_to_token(self, id: int) -> str | None:
        """The token of an id."""
        return self._encoder.id_to_token(id)


def store_corpus(index: Index, documents: Corpus, progress: Callable[[int], None]) -> int:
    """Bring a collection to hold exactly this corpus; documents that are there with the same text stay.

    Args:
        index: The collection.
        documents: The corpus.
        progress: Called with the number of documents stored so far in this call.

    Returns:
        How many were already there.

    Raises:
        InvalidInput: The collection holds other documents, which would be found among the corpus's.
    """
    missing: list[Document] = []
    known = 0
    for batch in documents.batches(_BATCH):
        for document, stored in zip(batch, index.get([document.id for document in batch]), strict=True):
            known += stored is not None
            if stored is None or stored.text != document.text:
                missing.append(document)
    others = index.count() - known
    if others:
        raise InvalidInput(
            f"the collection holds {others:,} documents that are not of this corpus: the measures would be wrong.\n"
            "  Name another one with --collection."
        )
    index.add(missing, progress=progress)
    return len(documents) - len(missing)


def run_method(
    index: Index, dataset: Dataset, queries: M3Embeddings, method: Method, *, exact: bool = True
) -> dict[str, list[str]]:
    """The answers of one method.

    Args:
        index: A collection that holds the corpus.
        dataset: The queries and judgements. A document whose id equals the query's stays (paper, version 4).
        queries: Their embeddings, row i for query i.
        method: How to rank.
        exact: No approximate list in the store.

    Returns:
        Query id to the ids of the best 100 documents, best first.
    """
    needed = _only(queries, method)
    answers = index.search_many(list(needed), method=method, k=DEPTH, exact=exact)
    return {
        query: [hit.document.id for hit in hits] for query, hits in zip(dataset.queries, answers, strict=True)
    }


def _only(queries: M3Embeddings, method: Method) -> M3Embeddings:
    """The components that a method needs: no others are then scored for the hits, where nobody reads them."""
    return M3Embeddings(
        dense=queries.dense if "dense" in method.components else None,
        sparse=queries.sparse if "sparse" in method.components else None,
        multivectors=queries.multivectors if "multivector" in method.components else None,
        model=queries.model,
    )


def run_bm25(dataset: Dataset) -> dict[str, list[str]]:
    """BM25's answers, as ``run_method``'s."""
    bm25 = BM25(list(dataset.documents))
    return {id: bm25.search(text, DEPTH) for id, text in dataset.queries.items()}
