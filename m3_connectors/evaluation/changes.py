"""The queries that changed most between two rankings, each with its reasons, made from the files alone."""

from __future__ import annotations

import dataclasses

from m3_connectors.documents import Scores
from m3_connectors.embeddings import COMPONENTS
from m3_connectors.evaluation.compare import Ranking, check_comparable
from m3_connectors.evaluation.folder import Run


@dataclasses.dataclass(frozen=True)
class Standing:
    """Where a document stands in a ranking, and why.

    Attributes:
        rank: From 1; None where the run does not have it.
        scores: Its component scores, where there are any: in no list, or in a baseline's ranking, there are
            none.
        candidate: Whether the method's lists have it; None for a baseline.
    """

    rank: int | None
    scores: Scores | None = None
    candidate: bool | None = None


@dataclasses.dataclass(frozen=True)
class DocumentChange:
    """A relevant document in both rankings.

    Attributes:
        id: Its id.
        grade: As it was judged.
        before, after: Where it stands.
    """

    id: str
    grade: int
    before: Standing
    after: Standing


@dataclasses.dataclass(frozen=True)
class QueryChange:
    """A query whose value changed.

    Attributes:
        id: Its id.
        text: What was asked.
        before, after: Its values.
        documents: The relevant documents, those first that moved most.
    """

    id: str
    text: str
    before: float
    after: float
    documents: tuple[DocumentChange, ...]


@dataclasses.dataclass(frozen=True)
class Changes:
    """The queries that changed most, largest change first, equal ones in the order they were asked.

    Attributes:
        better: Those that ``after`` answers better.
        worse: Those that it answers worse.
    """

    better: tuple[QueryChange, ...]
    worse: tuple[QueryChange, ...]


def most_changed(before: Ranking, after: Ranking, measure: str, count: int = 3) -> Changes:
    """The queries that changed most, in both directions.

    Args:
        before, after: Rankings of the same queries.
        measure: By which.
        count: Most queries of each direction.

    Raises:
        InvalidInput: The rankings are not comparable, or lack the measure.
    """
    check_comparable(before, after)
    first, second = before.values(measure), after.values(measure)
    table = before.folder.queries()
    texts = dict(zip(table["query_id"].to_pylist(), table["text"].to_pylist(), strict=True))
    order = sorted(texts, key=lambda query: -abs(second[query] - first[query]))
    better = [query for query in order if second[query] > first[query]][:count]
    worse = [query for query in order if second[query] < first[query]][:count]
    chosen = {*better, *worse}
    relevant = {
        query: {document: grade for document, grade in grades.items() if grade > 0}
        for query, grades in before.folder.qrels().items()
        if query in chosen
    }
    standings = [_standings(ranking, relevant) for ranking in (before, after)]

    def changes(queries: list[str]) -> tuple[QueryChange, ...]:
        return tuple(
            QueryChange(
                query,
                texts[query],
                first[query],
                second[query],
                tuple(
                    sorted(
                        (
                            DocumentChange(document, grade, *(side[query][document] for side in standings))
                            for document, grade in relevant[query].items()
                        ),
                        key=_stillness,
                    )
                ),
            )
            for query in queries
        )

    return Changes(changes(better), changes(worse))


def _standings(ranking: Ranking, relevant: dict[str, dict[str, int]]) -> dict[str, dict[str, Standing]]:
    run: Run = ranking.folder.run(ranking.method)
    proposed = _proposed(ranking, list(relevant)) if ranking.record.candidates else None
    standings = {}
    for query, documents in relevant.items():
        ranks = {document: rank for rank, (document, _) in enumerate(run[query], 1)}
        standings[query] = {
            document: Standing(ranks.get(document))
            if proposed is None
            else Standing(ranks.get(document), *proposed.get((query, document), (None, False)))
            for document in documents
        }
    return standings


def _proposed(ranking: Ranking, queries: list[str]) -> dict[tuple[str, str], tuple[Scores, bool]]:
    """Return the component scores of all candidates of some queries, and whether the method lists them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    chosen = pa.array(queries, pa.string())
    depths = ranking.record.candidates or {}
    found = {}
    for part in ranking.folder.score_parts():
        for row in part.filter(pc.is_in(part["query_id"], value_set=chosen)).to_pylist():
            ranks = {component: row[f"{component}_rank"] for component in depths}
            candidate = any(
                rank is not None and rank <= depths[component] for component, rank in ranks.items()
            )
            scores = Scores(*(row[component] for component in COMPONENTS))
            found[row["query_id"], row["document_id"]] = (scores, candidate)
    return found


def _stillness(change: DocumentChange) -> tuple[float, str]:
    """Sorts by distance moved near the top, where ranks count most."""
    before, after = (1 / side.rank if side.rank else 0.0 for side in (change.before, change.after))
    return (-abs(after - before), change.id)
