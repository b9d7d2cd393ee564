"""The paper's measures, computed by ir_measures (trec_eval's own code) for each query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from m3_connectors.errors import InvalidInput, MissingDependency

Qrels = Mapping[str, Mapping[str, int]]
"""Query id to document id to grade; a grade of 1 or more is relevant."""

Run = Mapping[str, Sequence[str]]
"""Query id to document ids, best first."""


def per_query(
    qrels: Qrels,
    run: Run,
    measures: Sequence[str],
    relevance: Literal["documents", "answers"] = "documents",
) -> dict[str, dict[str, float]]:
    """The measures of every judged query; one without an answer counts 0.

    Args:
        qrels: The judgements.
        run: The answers.
        measures: ``nDCG@K`` (grades as gains, trec_eval's ``ndcg_cut``), ``Recall@K``, ``MRR@K`` (reciprocal
            rank of the first relevant document among the first K).
        relevance: ``answers``: each relevant document holds the one answer, so that ``Recall@K`` is 1 for a
            query with one of them among the first K (paper, section 4.2), which trec_eval calls success.

    Returns:
        By measure, by query in the order of ``qrels``.

    Raises:
        InvalidInput: An unknown measure, no query is judged, a judged query is not in the run (an empty
            answer is), or an answered one is not judged.
        MissingDependency: ir_measures is not installed.
    """
    if not qrels:
        raise InvalidInput("there are no judged queries.\n  Use a dataset with judgements.")
    missing = [query for query in qrels if query not in run]
    unjudged = [query for query in run if query not in qrels]
    for queries, what in (
        (missing, "judged queries are not in the run"),
        (unjudged, "queries are not judged"),
    ):
        if queries:
            raise InvalidInput(
                f"{len(queries)} {what}, such as {queries[0]!r}.\n"
                "  Check that the run belongs to this dataset."
            )
    try:
        import ir_measures
    except ImportError:
        raise MissingDependency("ir_measures", "eval") from None
    known = {_parse(name, relevance): name for name in measures}
    # trec_eval sorts by score and breaks ties its own way: ranks as scores measure the order that was
    # answered.
    answers = {
        query: {document: -float(rank) for rank, document in enumerate(documents)}
        for query, documents in run.items()
        if documents
    }
    values: dict[str, dict[str, float]] = {name: dict.fromkeys(qrels, 0.0) for name in measures}
    judgements = {query: dict(grades) for query, grades in qrels.items() if grades}
    for metric in ir_measures.iter_calc(list(known), judgements, answers) if judgements else ():
        values[known[metric.measure]][metric.query_id] = float(metric.value)
    return values


def _parse(name: str, relevance: str) -> Any:
    from ir_measures import RR, R, Success, nDCG

    known = {"nDCG": nDCG, "Recall": Success if relevance == "answers" else R, "MRR": RR}
    measure, _, cutoff = name.partition("@")
    if measure not in known or not cutoff.isdecimal() or int(cutoff) < 1:
        raise InvalidInput(f"{name!r} is not a measure.\n  Use nDCG@K, Recall@K or MRR@K.")
    return known[measure] @ int(cutoff)
