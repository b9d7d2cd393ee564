"""Measures: equal to trec_eval's and to their definitions, to the last digit."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval

from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.folder import trec_run
from m3_connectors.evaluation.measures import per_query

MEASURES = ("nDCG@10", "Recall@100", "MRR@10")


def ndcg_at_10(grades: Mapping[str, int], answer: Sequence[str]) -> float:
    """From the definition: sum of grade / log2(rank + 1), over that of the best order."""
    gains = [max(0, grades.get(document, 0)) for document in answer[:10]]
    ideal = sorted((grade for grade in grades.values() if grade > 0), reverse=True)[:10]

    def dcg(values: Sequence[int]) -> float:
        total = 0.0
        for rank, gain in enumerate(values, 1):
            total += gain / math.log2(rank + 1)
        return total

    return dcg(gains) / dcg(ideal) if ideal else 0.0


def recall_at_100(grades: Mapping[str, int], answer: Sequence[str]) -> float:
    relevant = {document for document, grade in grades.items() if grade > 0}
    return len(relevant & set(answer[:100])) / len(relevant) if relevant else 0.0


def mrr_at_10(grades: Mapping[str, int], answer: Sequence[str]) -> float:
    ranks = [rank for rank, document in enumerate(answer[:10], 1) if grades.get(document, 0) > 0]
    return 1 / ranks[0] if ranks else 0.0


def some_run(seed: int) -> tuple[dict[str, dict[str, int]], dict[str, list[tuple[str, float]]]]:
    """40 queries, grades 0 to 3, judged documents that nobody answers, ties in every answer, our order of ties."""
    rng = np.random.default_rng(seed)
    documents = [f"d{i}" for i in range(300)]
    qrels: dict[str, dict[str, int]] = {}
    run: dict[str, list[tuple[str, float]]] = {}
    for i in range(40):
        judged = rng.choice(documents, size=int(rng.integers(1, 30)), replace=False)
        qrels[f"q{i}"] = {
            str(id): int(grade) for id, grade in zip(judged, rng.integers(0, 4, len(judged)), strict=True)
        }
        qrels[f"q{i}"] |= {f"missing{j}": 1 for j in range(int(rng.integers(0, 3)))}
        answered = rng.choice(documents, size=int(rng.integers(0, 130)), replace=False)
        scores = rng.integers(0, 40, len(answered)) / 8
        pairs = [(str(id), float(score)) for id, score in zip(answered, scores, strict=True)]
        run[f"q{i}"] = sorted(pairs, key=lambda pair: (-pair[1], pair[0]))
    return qrels, run


@pytest.mark.parametrize("seed", range(10))
def test_ten_runs_equal_trec_eval_and_the_definitions(seed: int, tmp_path: Path) -> None:
    qrels, run = some_run(seed)
    order = {query: [document for document, _ in answer] for query, answer in run.items()}
    ours = per_query(qrels, order, MEASURES)

    # trec_eval's own code reads the file that an evaluation leaves.
    (tmp_path / "run.trec").write_text(trec_run("all", run))
    with (tmp_path / "run.trec").open() as file:
        read = pytrec_eval.parse_run(file)
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.100", "recip_rank"})
    theirs = evaluator.evaluate(read)

    for query, grades in qrels.items():
        of = theirs.get(query, {"ndcg_cut_10": 0.0, "recall_100": 0.0, "recip_rank": 0.0})
        assert ours["nDCG@10"][query] == of["ndcg_cut_10"]
        assert ours["Recall@100"][query] == of["recall_100"] == recall_at_100(grades, order[query])
        reciprocal = of["recip_rank"] if of["recip_rank"] >= 0.1 else 0
        assert ours["MRR@10"][query] == reciprocal == mrr_at_10(grades, order[query])
        assert ours["nDCG@10"][query] == pytest.approx(ndcg_at_10(grades, order[query]), abs=1e-15)
    assert any(len({score for _, score in answer}) < len(answer) for answer in run.values())
    assert 0 < statistics.fmean(ours["nDCG@10"].values()) < 1


def test_by_hand() -> None:
    qrels = {"q1": {"a": 1, "b": 1}, "q2": {"c": 1}, "q3": {"d": 1}}
    found = per_query(qrels, {"q1": ["x", "a", "b"], "q2": ["c"], "q3": []}, MEASURES)
    ideal = 1 + 1 / math.log2(3)
    assert found["nDCG@10"] == pytest.approx({"q1": (1 / math.log2(3) + 1 / 2) / ideal, "q2": 1, "q3": 0})
    assert found["Recall@100"] == {"q1": 1, "q2": 1, "q3": 0}
    assert found["MRR@10"] == {"q1": 1 / 2, "q2": 1, "q3": 0}
    assert statistics.fmean(found["MRR@10"].values()) == pytest.approx(1 / 2)


def test_cuts() -> None:
    ids = [f"x{i}" for i in range(100)]
    late = per_query({"q": {"a": 1}}, {"q": [*ids[:10], "a"]}, MEASURES)
    assert [late[name]["q"] for name in MEASURES] == [0, 1, 0]
    assert per_query({"q": {"a": 1}}, {"q": [*ids, "a"]}, ["Recall@100"])["Recall@100"]["q"] == 0


def test_the_order_answered_counts_whatever_the_ids() -> None:
    assert per_query({"q": {"a": 1}}, {"q": ["a", "z"]}, ["MRR@10"])["MRR@10"]["q"] == 1
    assert per_query({"q": {"z": 1}}, {"q": ["a", "z"]}, ["MRR@10"])["MRR@10"]["q"] == 0.5


def test_one_passage_with_an_answer_is_all_that_recall_over_answers_asks() -> None:
    qrels = {"q": {"a": 1, "b": 1, "c": 1, "x": 0}, "none": {}}
    run = {"q": ["x", "a"], "none": ["x"]}
    assert per_query(qrels, run, ["Recall@1", "Recall@2"], "answers") == {
        "Recall@1": {"q": 0, "none": 0},
        "Recall@2": {"q": 1, "none": 0},
    }
    assert per_query(qrels, run, ["Recall@2"])["Recall@2"]["q"] == 1 / 3


def test_judged_but_nothing_relevant_counts_zero() -> None:
    assert per_query({"q": {"a": 0}, "p": {"b": 1}}, {"q": ["a"], "p": ["b"]}, MEASURES)["nDCG@10"] == {
        "q": 0,
        "p": 1,
    }
    assert per_query({"q": {}}, {"q": ["a"]}, MEASURES)["MRR@10"] == {"q": 0}


def test_never_over_a_smaller_set() -> None:
    with pytest.raises(InvalidInput, match="there are no judged queries"):
        per_query({}, {"q": ["a"]}, MEASURES)
    with pytest.raises(InvalidInput, match="1 judged queries are not in the run, such as 'p'"):
        per_query({"q": {"a": 1}, "p": {"b": 1}}, {"q": ["a"]}, MEASURES)
    with pytest.raises(InvalidInput, match="1 queries are not judged, such as 'p'"):
        per_query({"q": {"a": 1}}, {"q": ["a"], "p": ["b"]}, MEASURES)


@pytest.mark.parametrize("name", ["MAP@10", "nDCG", "nDCG@0", "Recall@x"])
def test_unknown_measures(name: str) -> None:
    with pytest.raises(InvalidInput, match="not a measure"):
        per_query({"q": {"a": 1}}, {"q": ["a"]}, [name])
