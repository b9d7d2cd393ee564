"""Reciprocal rank fusion of an evaluation's lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from evaluations import write_evaluation

from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.baselines.baseline import Baseline
from m3_connectors.evaluation.baselines.registry import baseline_for
from m3_connectors.evaluation.baselines.rrf import ReciprocalRankFusion

NO_TEXTS = cast(Any, None)
"""The lists are all that it reads."""


def test_by_hand(tmp_path: Path) -> None:
    # dense: c a b d; sparse: b a (c and d share no token).
    cells = {
        "q": {"a": (0.8, 1.0, 0), "b": (0.5, 2.0, 0), "c": (0.9, 0.0, 0), "d": (0.1, 0.0, 0)},
        "nothing": {},
    }
    folder = write_evaluation(tmp_path / "e", cells, {"q": {"a": 1}, "nothing": {"a": 1}})
    baseline: Baseline = ReciprocalRankFusion()
    run = baseline.run(NO_TEXTS, folder, NO_TEXTS)
    assert run == {
        "q": [
            ("b", pytest.approx(1 / 63 + 1 / 61)),
            ("a", pytest.approx(1 / 62 + 1 / 62)),
            ("c", pytest.approx(1 / 61)),
            ("d", pytest.approx(1 / 64)),
        ],
        "nothing": [],
    }
    assert baseline.name == "rrf"
    # A steeper curve: the first of a list outweighs the second of both.
    assert [id for id, _ in ReciprocalRankFusion(k=0).run(NO_TEXTS, folder, NO_TEXTS)["q"]] == [
        "b",
        "a",
        "c",
        "d",
    ]


def test_equal_sums_are_in_the_order_of_ids(tmp_path: Path) -> None:
    cells = {"q": {"é": (0.9, 1.0, 0), "Z": (0.8, 2.0, 0)}, "r": {"a": (0.8, 2.0, 0), "b": (0.9, 1.0, 0)}}
    folder = write_evaluation(tmp_path / "e", cells, {"q": {"Z": 1}, "r": {"a": 1}})
    for answers in ReciprocalRankFusion().run(NO_TEXTS, folder, NO_TEXTS).values():
        assert answers[0][1] == answers[1][1]
        assert answers[0][0] < answers[1][0]


def test_is_no_longer_than_a_run(tmp_path: Path) -> None:
    cells = {"q": {f"d{i:03}": (1 - i / 1000, 0.0, 0) for i in range(150)}}
    folder = write_evaluation(tmp_path / "e", cells, {"q": {"d001": 1}})
    answer = ReciprocalRankFusion().run(NO_TEXTS, folder, NO_TEXTS)["q"]
    assert [id for id, _ in answer] == [f"d{i:03}" for i in range(100)]


def test_is_that_of_a_plain_loop(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cells = {
        f"q{q}": {
            f"d{d}": (float(rng.random()), float(max(0, rng.normal())), 0.0)
            for d in range(rng.integers(1, 60))
        }
        for q in range(50)
    }
    folder = write_evaluation(tmp_path / "e", cells, {query: {"d0": 1} for query in cells})
    run = ReciprocalRankFusion(k=7).run(NO_TEXTS, folder, NO_TEXTS)
    for query, documents in cells.items():
        sums: dict[str, float] = {}
        for column in (0, 1):
            scores = {
                id: np.float32(one[column]) for id, one in documents.items() if column == 0 or one[1] > 0
            }
            for position, id in enumerate(sorted(scores, key=lambda id: (-scores[id], id))):
                sums[id] = sums.get(id, 0) + 1 / (8 + position)
        assert run[query] == [
            (id, pytest.approx(sums[id])) for id in sorted(sums, key=lambda id: (-sums[id], id))
        ]


@pytest.mark.parametrize("k", [-1, "-1", "many", "", 0.5])
def test_a_constant_that_is_none(k: Any) -> None:
    with pytest.raises(InvalidInput, match=f"k of reciprocal rank fusion is {k!r}"):
        ReciprocalRankFusion(k)


def test_by_name() -> None:
    assert baseline_for("rrf").name == "rrf"
    assert (baseline_for("rrf:20").name, baseline_for("rrf:20").description[-6:]) == ("rrf-20", "k = 20")
