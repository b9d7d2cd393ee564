"""Comparisons of evaluations: what may be compared, what changed and why."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluations import Cells, write_evaluation

from m3_connectors.documents import Scores
from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.changes import most_changed
from m3_connectors.evaluation.compare import (
    Ranking,
    compare,
    pairs_of_methods,
    pairs_of_trees,
)
from m3_connectors.evaluation.folder import write_table
from m3_connectors.evaluation.record import Protocol
from m3_connectors.methods import ALL, DENSE, SPARSE

METHODS = (DENSE, SPARSE, ALL)


def world(queries: int = 24) -> tuple[Cells, dict[str, dict[str, int]]]:
    """Dense finds the relevant document of every query but each sixth, sparse of every third only."""
    cells: dict[str, dict[str, tuple[float, float, float]]] = {}
    for q in range(queries):
        dense, sparse = 0.9 if q % 6 else 0.1, 3.0 if q % 3 == 0 else 0.2
        cells[f"q{q:02}"] = {"good": (dense, sparse, 0.5), "bad": (0.5, 1.0, 0.4), "worse": (0.3, 0.9, 0.3)}
    return cells, {query: {"good": 1, "bad": 0} for query in cells}


def test_methods_of_one_evaluation(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "e", *world(), methods=METHODS)
    found = compare(pairs_of_methods(tmp_path, ["sparse", "dense", "all"]))
    assert [(c.before.method, c.after.method, c.measure) for c in found] == [
        ("sparse", "dense", "nDCG@10"),
        ("sparse", "all", "nDCG@10"),
    ]
    first = found[0]
    assert (first.test.queries, first.test.wins, first.test.ties, first.test.losses) == (24, 16, 4, 4)
    means = {
        method: sum(Ranking(folder, method).values("nDCG@10").values()) / 24 for method in ("sparse", "dense")
    }
    assert (first.test.before, first.test.after) == pytest.approx((means["sparse"], means["dense"]))
    assert first.real
    # Two comparisons: the smaller p-value is doubled.
    p_values = sorted(c.test.p_value for c in found)
    assert min(c.adjusted_p_value for c in found) == pytest.approx(2 * p_values[0])
    assert compare(pairs_of_methods(tmp_path, ["sparse", "dense"]), "MRR@10")[0].measure == "MRR@10"


def test_copies_of_a_query_are_one(tmp_path: Path) -> None:
    cells, qrels = world()
    copies = {
        query: f"One  question {i // 6}" if i % 2 else f"one question {i // 6} "
        for i, query in enumerate(cells)
    }
    write_evaluation(tmp_path / "copies", cells, qrels, methods=METHODS, texts=copies)
    write_evaluation(tmp_path / "own", cells, qrels, methods=METHODS)
    (copied,) = compare(pairs_of_methods(tmp_path / "copies", ["sparse", "dense"]))
    (own,) = compare(pairs_of_methods(tmp_path / "own", ["sparse", "dense"]))
    assert copied.test.difference == own.test.difference
    assert copied.test.p_value == 2 / 2**4  # four questions, all with the same gain
    assert not copied.real


def test_trees_are_matched_by_path_and_corrected_together(tmp_path: Path) -> None:
    cells, qrels = world()
    better = {
        query: {id: (s[0] + (0.8 if id == "good" else 0), *s[1:]) for id, s in documents.items()}
        for query, documents in cells.items()
    }
    for side, scores in (("a", cells), ("b", better)):
        for language in ("de", "en"):
            write_evaluation(
                tmp_path / side / language, scores, qrels, methods=METHODS, name=f"set/{language}"
            )
    found = compare(pairs_of_trees(tmp_path / "a", tmp_path / "b", "dense"))
    assert [c.before.dataset.name for c in found] == ["set/de", "set/en"]
    for comparison in found:
        assert (comparison.test.wins, comparison.test.losses) == (4, 0)
        assert comparison.adjusted_p_value == pytest.approx(2 * comparison.test.p_value)
    (one,) = compare(pairs_of_trees(tmp_path / "a" / "de", tmp_path / "b" / "de", "dense"))
    assert one.test == found[0].test
    write_evaluation(tmp_path / "b" / "fr", cells, qrels, methods=METHODS)
    with pytest.raises(
        InvalidInput, match=r"1 evaluations have no counterpart: .*b/fr exists, but not .*a/fr"
    ):
        pairs_of_trees(tmp_path / "a", tmp_path / "b", "dense")


def test_what_is_not_comparable_is_refused(tmp_path: Path) -> None:
    cells, qrels = world(6)
    one = Ranking(write_evaluation(tmp_path / "e", cells, qrels, methods=METHODS), "dense")

    def refused(says: str, **changed: object) -> None:
        path = tmp_path / f"o{len(list(tmp_path.iterdir()))}"
        other = Ranking(write_evaluation(path, cells, qrels, methods=METHODS, **changed), "dense")  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match=says):
            compare([(one, other)])
        with pytest.raises(InvalidInput, match=says):
            most_changed(one, other, "nDCG@10")

    refused("different datasets: toy and other", name="other")
    refused("different splits: test and dev", split="dev")
    refused("different kinds of judgements", protocol=Protocol(relevance="answers", measures=("Recall@20",)))
    refused(r"has no nDCG@10\.\n  Use one of MRR@10", protocol=Protocol(measures=("MRR@10",)))
    with pytest.raises(InvalidInput, match="method 'bm25' was not evaluated"):
        Ranking(one.folder, "bm25")
    with pytest.raises(InvalidInput, match="has no nDCG@20"):
        compare([(one, one)], "nDCG@20")
    with pytest.raises(InvalidInput, match="is incomplete"):
        Ranking(write_evaluation(tmp_path / "i", cells, qrels, complete=False), "dense")
    for methods in (["dense"], ["dense", "dense"]):
        with pytest.raises(InvalidInput, match="two or more"):
            pairs_of_methods(tmp_path / "e", methods)


def test_another_corpus_or_other_judgements_are_another_dataset(tmp_path: Path) -> None:
    cells, qrels = world(6)
    folders = [write_evaluation(tmp_path / side, cells, qrels, methods=METHODS) for side in "ab"]
    record = tmp_path / "b" / "evaluation.json"
    record.write_text(record.read_text().replace('"toy test"', '"changed"'))
    with pytest.raises(InvalidInput, match="different texts or judgements: toy test and changed"):
        compare(pairs_of_trees(tmp_path / "a", tmp_path / "b", "dense"))
    assert folders


def test_the_queries_that_changed_most_are_explained_from_the_files(tmp_path: Path) -> None:
    cells, qrels = world(7)
    folder = write_evaluation(
        tmp_path / "e",
        cells,
        {**qrels, "q01": {"good": 2, "worse": 1, "nowhere": 1}},
        methods=METHODS,
        baselines={"bm25": {query: [("good", 1.0)] for query in cells}},
    )
    found = most_changed(Ranking(folder, "sparse"), Ranking(folder, "dense"), "nDCG@10", count=2)
    # q00 and q06: dense has the relevant document last, sparse first. q01, q02, …: the other way round.
    assert [change.id for change in found.worse] == ["q00", "q06"]
    assert len(found.better) == 2
    worse = found.worse[0]
    assert (worse.text, worse.before, worse.after) == ("question q00", 1.0, 0.5)
    (document,) = worse.documents
    assert (document.id, document.grade) == ("good", 1)
    assert (document.before.rank, document.after.rank) == (1, 3)
    assert document.before.scores == Scores(pytest.approx(0.1), 3.0, 0.5)
    several = {
        change.id: change
        for change in most_changed(Ranking(folder, "sparse"), Ranking(folder, "dense"), "nDCG@10", 9).better
    }["q01"]
    assert [(d.id, d.grade, d.before.rank, d.after.rank) for d in several.documents] == [
        ("good", 2, 3, 1),
        ("worse", 1, 2, 3),
        ("nowhere", 1, None, None),
    ]
    assert (several.documents[2].before.scores, several.documents[2].before.candidate) == (None, False)
    assert several.documents[0].before.candidate
    baseline = most_changed(Ranking(folder, "dense"), Ranking(folder, "bm25"), "nDCG@10").better[0]
    assert baseline.documents[0].after.rank == 1
    assert (baseline.documents[0].after.scores, baseline.documents[0].after.candidate) == (None, None)
    assert baseline.documents[0].before.scores is not None
    same = most_changed(Ranking(folder, "dense"), Ranking(folder, "dense"), "nDCG@10")
    assert (same.better, same.worse) == ((), ())


def test_the_largest_changes_come_first_and_equal_ones_as_they_were_asked(tmp_path: Path) -> None:
    cells = {
        query: {"good": (0.9, sparse, 0.0), "bad": (0.5, 1.0, 0.0), "worse": (0.3, 0.8, 0.0)}
        for query, sparse in {"z": 0.9, "y": 0.9, "a": 0.1, "b": 2.0, "c": 0.2}.items()
    }
    folder = write_evaluation(tmp_path / "e", cells, {query: {"good": 1} for query in cells}, methods=METHODS)
    better = most_changed(Ranking(folder, "sparse"), Ranking(folder, "dense"), "nDCG@10", 9).better
    assert [change.id for change in better] == ["a", "c", "z", "y"]  # from rank 3, 3, 2, 2 to 1


def test_a_document_beyond_the_list_is_said_to_be_no_candidate(tmp_path: Path) -> None:
    documents = {f"d{i:03}": (1 - i / 1000, 0.001 * i, 0.5) for i in range(250)}
    folder = write_evaluation(tmp_path / "e", {"q": documents}, {"q": {"d249": 1}}, methods=METHODS)
    (change,) = most_changed(Ranking(folder, "all"), Ranking(folder, "sparse"), "nDCG@10").better
    (document,) = change.documents
    assert (document.before.rank, document.before.candidate) == (None, False)
    assert document.before.scores is not None
    assert (document.after.rank, document.after.candidate) == (1, True)


def test_a_smaller_set_of_queries_is_no_silent_matter(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "e", *world(6), methods=METHODS)
    write_table(tmp_path / "e" / "metrics.parquet", folder.metrics().slice(3))
    with pytest.raises(InvalidInput, match="nDCG@10 of dense for 3 of 6 queries"):
        compare(pairs_of_methods(tmp_path, ["dense", "sparse"]))
