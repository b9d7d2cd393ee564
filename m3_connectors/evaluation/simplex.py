"""nDCG@10 of every query under many weights at once, from cached component scores."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from m3_connectors.embeddings import COMPONENTS
from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.folder import EvaluationFolder
from m3_connectors.evaluation.runs import candidates_of, queries_of
from m3_connectors.methods import Method

Float64 = npt.NDArray[np.float64]

CUTOFF = 10

_CELLS = 200_000
"""Scores that are fused at a time: what stays in the processor's cache."""


@dataclasses.dataclass(frozen=True)
class JudgedCandidates:
    """The candidates of one query.

    Attributes:
        scores: Dense, sparse and multi-vector score of each, float64 ``[3, n]``, ordered by document id; a
            component that the method does not score is 0.
        relevant: Positions of the judged ones with a grade above 0, ``[r]``.
        gains: Their grades, float64 ``[r]``.
        ideal: DCG of the best order of all judged documents, candidates or not; > 0, or 0 where none is
            relevant.
    """

    scores: Float64
    relevant: npt.NDArray[np.int64]
    gains: Float64
    ideal: float


def judged_candidates(folder: EvaluationFolder, method: Method) -> dict[str, JudgedCandidates]:
    """The candidates that a method ranks, from the component scores that an evaluation left.

    Args:
        folder: A complete evaluation.
        method: Its lists' depths decide who is a candidate, its components what is scored; its weights do not
            count.

    Returns:
        By query, in evaluation order.

    Raises:
        InvalidInput: The evaluation's lists are less deep, or a candidate has no score of a component.
    """
    record = folder.require_complete().record
    for component, depth in method.candidates.items():
        if depth > record.protocol.depths[component]:
            raise InvalidInput(
                f"{folder.path} has the first {record.protocol.depths[component]} of the {component} list, "
                f"but method {method.name} needs {depth}.\n"
                "  Use fewer candidates, or evaluate with deeper lists."
            )
    qrels = folder.qrels()
    judged = {query: _judged([], np.zeros((3, 0)), qrels.get(query, {})) for query in folder.asked}
    for query, table in queries_of(folder):
        rows, scored = candidates_of(table, method, record.protocol.fusion)
        scores = np.zeros((len(COMPONENTS), len(rows)))
        for row, component in enumerate(COMPONENTS):
            if component in scored:
                scores[row] = scored[component]
        documents = table["document_id"].take(rows).to_pylist()
        judged[query] = _judged(documents, scores, qrels.get(query, {}))
    return judged


def ndcg(candidates: Sequence[JudgedCandidates], weights: Float64) -> Float64:
    """Return nDCG@10 exactly as trec_eval computes it (grades as gains); equal scores are ordered by id.

    A document's rank is counted, not sorted for: only the relevant ones' ranks matter, and each is one more
    than the number of candidates before it.

    Args:
        candidates: Of ``q`` queries.
        weights: float64 ``[m, 3]``.

    Returns:
        float64 ``[m, q]``; 0 for a query without a relevant document.
    """
    values = np.zeros((len(weights), len(candidates)))
    for column, query in enumerate(candidates):
        if query.ideal and len(query.relevant):
            at_once = max(1, _CELLS // query.scores.shape[1])
            for start in range(0, len(weights), at_once):
                part = slice(start, start + at_once)
                values[part, column] = _dcg(query, weights[part]) / query.ideal
    return values


def grid(method: Method, divisions: int) -> Float64:
    """All weights of a method that are multiples of 1 / divisions and sum to 1.

    Args:
        method: Whose components are weighted.
        divisions: Steps from 0 to 1.

    Returns:
        float64 ``[m, 3]``: 231 rows for three components and 20 divisions, 21 for two.
    """
    free = [component in method.scored for component in COMPONENTS]
    whole = [
        counts
        for counts in itertools.product(*(range(divisions + 1) if one else (0,) for one in free))
        if sum(counts) == divisions
    ]
    return np.array(whole, dtype=np.float64) / divisions


def direction(weights: Iterable[float]) -> tuple[float, ...]:
    """Return the weights with sum 1; weights with the same direction rank equally."""
    every = list(weights)
    return tuple(round(weight / sum(every), 9) for weight in every)


def _dcg(query: JudgedCandidates, weights: Float64) -> Float64:
    dense, sparse, multivector = (
        weights[:, i, None] * query.scores[i] for i in range(len(COMPONENTS))
    )  # in the order of methods.fuse, so that ties are the same ones
    fused = dense + sparse + multivector
    gains = np.zeros((len(weights), CUTOFF))
    for position, gain in zip(query.relevant, query.gains, strict=True):
        own = fused[:, position, None]
        before = (fused[:, :position] >= own).sum(axis=1) + (fused[:, position + 1 :] > own).sum(axis=1)
        found = before < CUTOFF
        gains[found, before[found]] = gain
    return _discounted(gains)


def _discounted(gains: Float64) -> Float64:
    """DCG of gains by rank, ``[…, ranks]``; added rank by rank, as trec_eval does."""
    total = np.zeros(gains.shape[:-1])
    for rank in range(gains.shape[-1]):
        total += gains[..., rank] / np.log2(rank + 2)
    return total


def _judged(documents: Sequence[str], scores: Float64, grades: Mapping[str, int]) -> JudgedCandidates:
    position = {document: i for i, document in enumerate(documents)}
    gains = {document: grade for document, grade in grades.items() if grade > 0}
    found = [document for document in gains if document in position]
    best = np.sort(np.array(list(gains.values()), dtype=np.float64))[::-1][:CUTOFF]
    return JudgedCandidates(
        scores,
        relevant=np.array([position[document] for document in found], dtype=np.int64),
        gains=np.array([gains[document] for document in found], dtype=np.float64),
        ideal=float(_discounted(best)),
    )
