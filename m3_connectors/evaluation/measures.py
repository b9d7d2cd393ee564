"""The paper's measures, computed by ir_measures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from m3_connectors.errors import InvalidInput, MissingDependency

Run = Mapping[str, Sequence[str]]
"""Query id to document ids, best first."""


@dataclasses.dataclass(frozen=True)
class Measures:
    """Means over the judged queries; a query without an answer counts 0.

    Attributes:
        ndcg_at_10: nDCG@10, grades as gains (trec_eval's ``ndcg_cut``).
        recall_at_100: Share of the relevant documents among the first 100.
        mrr_at_10: Mean reciprocal rank of the first relevant document among the first 10.
        queries: Judged queries.
    """

    ndcg_at_10: float
    recall_at_100: float
    mrr_at_10: float
    queries: int


def measure(qrels: Mapping[str, Mapping[str, int]], run: Run) -> Measures:
    """Measure a run.

    Args:
        qrels: Query id to document id to grade.
        run: Answers; at least 100 a query, where so many exist.

    Raises:
        InvalidInput: No query is judged.
        MissingDependency: ir_measures is not installed.
    """
    if not qrels:
        raise InvalidInput("no query is judged: there is nothing to measure.")
    try:
        import ir_measures
        from ir_measures import RR, R, nDCG
    except ImportError:
        raise MissingDependency("ir_measures", "eval") from None
    # trec_eval sorts by score and breaks ties its own way: ranks as scores measure the order that was answered.
    answers = [
        ir_measures.ScoredDoc(query, document, -float(rank))
        for query, documents in run.items()
        for rank, document in enumerate(documents)
    ]
    judgements = [
        ir_measures.Qrel(query, document, grade)
        for query, grades in qrels.items()
        for document, grade in grades.items()
    ]
    values = ir_measures.calc_aggregate([nDCG @ 10, R @ 100, RR @ 10], judgements, answers)
    return Measures(
        ndcg_at_10=float(values[nDCG @ 10]),
        recall_at_100=float(values[R @ 100]),
        mrr_at_10=float(values[RR @ 10]),
        queries=len(qrels),
    )
