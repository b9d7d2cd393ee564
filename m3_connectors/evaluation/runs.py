"""Runs of the methods, computed from the component scores of the candidates."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from m3_connectors.embeddings import COMPONENTS, Component, Float32, Int64
from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.folder import EvaluationFolder, Run
from m3_connectors.evaluation.record import Fusion
from m3_connectors.methods import Method, fuse

if TYPE_CHECKING:
    import pyarrow as pa


def method_run(folder: EvaluationFolder, method: Method) -> Run:
    """The answers of a method, from the folder's scores; what ``index.search(exact=True)`` answers.

    Args:
        folder: Scores of every query.
        method: Candidates within the depths of the scores, and weights.

    Raises:
        InvalidInput: The method looks deeper than the scores do, or a part of them is missing.
    """
    depths, k = folder.record.protocol.depths, folder.record.protocol.run_depth
    for component, depth in method.deep_enough(k).candidates.items():
        if depth > depths[component]:
            raise InvalidInput(
                f"method {method.name!r} needs {depth} {component} candidates; {folder.path} has "
                f"{depths[component]}.\n  Use fewer candidates, or evaluate again with deeper lists."
            )
    run: Run = {query: [] for query in folder.asked}
    for query, table in queries_of(folder):
        positions, scores = candidates_of(table, method, folder.record.protocol.fusion)
        if len(positions):
            fused = fuse(scores, method.weights)
            # Ids ascend in the table, so a stable sort breaks ties by id, as methods.rank does.
            best = np.argsort(-fused, kind="stable")[:k]
            ids = table["document_id"].take(positions[best]).to_pylist()
            run[query] = list(zip(ids, fused[best].tolist(), strict=True))
    return run


def queries_of(folder: EvaluationFolder) -> Iterator[tuple[str, pa.Table]]:
    """The scores of each query that has candidates, in evaluation order."""
    for part in folder.score_parts():
        queries = part["query_id"].to_numpy(zero_copy_only=False)
        bounds = np.flatnonzero(queries[1:] != queries[:-1]) + 1
        edges = [0, *bounds.tolist(), len(queries)] if len(queries) else []
        for start, stop in pairwise(edges):
            yield str(queries[start]), part.slice(start, stop - start)


def candidates_of(table: pa.Table, method: Method, fusion: Fusion) -> tuple[Int64, dict[Component, Float32]]:
    """The candidates of a method for one query, as rows of the table, and the scores that it fuses.

    Args:
        table: The scores of the query, as ``queries_of`` gives them.
        method: Whose lists and weights decide.
        fusion: As the protocol says. ``paper`` takes the scores of the lists, 0 for a document that is
            missing from one, where a method unites lists; a method that re-ranks one list has its true scores
            in both.

    Raises:
        InvalidInput: A candidate has no multi-vector score: the method proposes more of them than were
            scored.
    """
    ranks: dict[Component, npt.NDArray[np.int32]] = {
        "dense": _numbers(table, "dense_rank", 0).astype(np.int32),
        "sparse": _numbers(table, "sparse_rank", 0).astype(np.int32),
    }
    chosen = np.zeros(len(table), dtype=np.bool_)
    for component, depth in method.candidates.items():
        chosen |= (ranks[component] > 0) & (ranks[component] <= depth)
    scores: dict[Component, Float32] = {}
    for component in COMPONENTS:
        if method.weights.of(component):
            column = _numbers(table, component, np.nan)
            if fusion == "paper" and component == "sparse" and "sparse" in method.candidates:
                column = _numbers(table, "sparse_list", 0)
            if fusion == "paper" and component == "dense" and len(method.candidates) > 1:
                column = np.where(ranks["dense"] > 0, column, 0)
            scores[component] = column[chosen].astype(np.float32)
            if np.isnan(scores[component]).any():
                raise InvalidInput(
                    f"method {method.name!r} needs a {component} score of candidates that have none.\n"
                    "  Only the best dense candidates have multi-vector scores: use fewer candidates."
                )
    return np.flatnonzero(chosen), scores


def _numbers(table: pa.Table, column: str, null: float) -> npt.NDArray[np.floating]:
    import pyarrow.compute as pc

    return np.asarray(pc.fill_null(table[column].cast("float64"), null).to_numpy())
