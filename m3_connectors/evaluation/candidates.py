"""The component scores of a query's candidates, from which methods, rank fusion and tuning are computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from m3_connectors.backends.base import QUERIES_AT_ONCE, Backend, Ranking
from m3_connectors.backends.together import together
from m3_connectors.embeddings import Component, Float32, M3Embeddings
from m3_connectors.evaluation.quantised import SCALE

Int32 = npt.NDArray[np.int32]


@dataclasses.dataclass(frozen=True)
class CandidateScores:
    """The component scores of one query's candidates, ordered by document id.

    Attributes:
        ids: Document ids, ``[n]``, ascending.
        dense: float32 ``[n]``, of every candidate.
        sparse: float32 ``[n]``, of every candidate.
        multivector: float32 ``[n]``, NaN beyond the multi-vector depth.
        dense_rank: int32 ``[n]``, from 1; 0 for a document that is not in the dense list.
        sparse_rank: int32 ``[n]``, from 1; 0 for a document that is not in the sparse list.
        sparse_list: float32 ``[n]``, the score by which a list of quantised weights ranks, NaN for a document
            that is not in it; None where the sparse list is ranked by ``sparse``.
    """

    ids: Sequence[str]
    dense: Float32
    sparse: Float32
    multivector: Float32
    dense_rank: Int32
    sparse_rank: Int32
    sparse_list: Float32 | None = None


async def component_scores(
    backend: Backend,
    queries: M3Embeddings,
    depths: Mapping[Component, int],
    *,
    exact: bool = True,
    quantised: tuple[Backend, M3Embeddings] | None = None,
) -> list[CandidateScores]:
    """Both lists of each query, and the exact score of every cell of their union.

    Documents of equal score are ranked by id, which decides who is among the ``depths["multivector"]`` best
    dense candidates. At the end of a list the store decides (clause B16).

    Args:
        backend: The collection.
        queries: Texts with all three components.
        depths: Length of the dense and of the sparse list; how many of the dense list get a multi-vector
            score.
        exact: No approximate list in the store.
        quantised: Another collection of the same documents and the queries for it, whose sparse lists stand
            in for this one's.

    Raises:
        BackendError: The store failed.
        ModelMismatch: The queries are another model's.
    """
    sparse_backend, sparse_queries = quantised or (backend, queries)

    async def both_lists(query: M3Embeddings, sparse_query: M3Embeddings) -> CandidateScores:
        found = await together(
            [
                partial(backend.candidates, "dense", query, depths["dense"], exact=exact),
                partial(sparse_backend.candidates, "sparse", sparse_query, depths["sparse"], exact=exact),
            ]
        )
        dense, sparse = (dict(_ordered(ranking)) for ranking in found)
        ids = sorted(dense.keys() | sparse.keys())
        known_sparse: Mapping[str, np.float32] = {} if quantised else sparse
        # A list that is shorter than asked for holds every document that shares a token (B18): the others
        # score 0.
        if not quantised and len(sparse) < depths["sparse"]:
            known_sparse = dict.fromkeys(ids, np.float32(0)) | sparse
        columns = await together(
            [
                partial(_completed, backend, "dense", query, ids, dense),
                partial(_completed, backend, "sparse", query, ids, known_sparse),
            ]
        )
        position = {id: i for i, id in enumerate(ids)}
        listed = None
        if quantised:
            listed = np.array([sparse.get(id, np.nan) for id in ids], dtype=np.float32) / np.float32(SCALE)
        return CandidateScores(
            ids=ids,
            dense=columns[0],
            sparse=columns[1],
            multivector=np.full(len(ids), np.nan, dtype=np.float32),
            dense_rank=_ranks(dense, position),
            sparse_rank=_ranks(sparse, position),
            sparse_list=listed,
        )

    calls = [partial(both_lists, *each) for each in zip(queries, sparse_queries, strict=True)]
    found = await together(calls, at_once=QUERIES_AT_ONCE)
    reranked = [(one.dense_rank > 0) & (one.dense_rank <= depths["multivector"]) for one in found]
    ids = [
        [id for id, chosen in zip(one.ids, rows, strict=True) if chosen]
        for one, rows in zip(found, reranked, strict=True)
    ]
    # All queries together, because a document is a candidate of many of them.
    scores = await backend.score_many("multivector", queries, ids)
    for one, rows, column in zip(found, reranked, scores, strict=True):
        one.multivector[rows] = column
    return found


def _ordered(ranking: Ranking) -> list[tuple[str, np.float32]]:
    return sorted(zip(ranking.ids, ranking.scores, strict=True), key=lambda pair: (-pair[1], pair[0]))


async def _completed(
    backend: Backend,
    component: Component,
    query: M3Embeddings,
    ids: Sequence[str],
    known: Mapping[str, np.float32],
) -> Float32:
    """The score of every id: the known ones, and the store's own exact score of the others."""
    missing = [id for id in ids if id not in known]
    scores = dict(zip(missing, await backend.score(component, query, missing), strict=True))
    return np.array([known[id] if id in known else scores[id] for id in ids], dtype=np.float32)


def _ranks(listed: Mapping[str, object], position: Mapping[str, int]) -> Int32:
    ranks = np.zeros(len(position), dtype=np.int32)
    ranks[[position[id] for id in listed]] = np.arange(1, len(listed) + 1)
    return ranks
