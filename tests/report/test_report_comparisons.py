"""Tables of comparisons: tests fine enough for their number, and the paper's experiment is told from others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from evaluations import write_evaluation

from m3_connectors.evaluation import compare
from m3_connectors.evaluation.datasets.published import numbers_by_task
from m3_connectors.evaluation.significance import (
    RESAMPLES,
    SIGNIFICANT,
    PairedTest,
    PairedValues,
    paired_tests,
    resamples_for,
)
from m3_connectors.methods import ALL, DENSE
from m3_connectors.report.comparison_tables import comparison_tables

CELLS = {f"q{i}": {"good": (0.9, 0.5, 0.9), "bad": (0.1, 0.1, 0.1)} for i in range(3)}
QRELS = {query: {"good": 1} for query in CELLS}


def test_the_smallest_p_value_survives_holm_however_many_comparisons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def spy(pairs: Sequence[PairedValues], *, resamples: int, seed: int) -> list[PairedTest]:
        drawn.append(resamples)
        return paired_tests(pairs, seed=seed)

    monkeypatch.setattr(compare, "paired_tests", spy)
    folders = [
        write_evaluation(tmp_path / str(i), CELLS, QRELS, methods=[DENSE, ALL], name=f"t/{i}")
        for i in range(60)
    ]
    _, tests, *_ = comparison_tables(folders, {})
    assert set(drawn) == {resamples_for(60)}
    assert resamples_for(60) > RESAMPLES
    assert f"{resamples_for(60):,} random sign flips" in tests.note
    for comparisons in (60, 1_000, 10_000):
        assert comparisons / (1 + resamples_for(comparisons)) < SIGNIFICANT


def test_another_experiment_has_no_difference_from_the_papers(tmp_path: Path) -> None:
    folder = write_evaluation(
        tmp_path, CELLS, QRELS, methods=[ALL.weighted(0.01, 9, 0.02)], name="miracl/yo", split="dev"
    )
    (table,) = comparison_tables([folder], numbers_by_task())
    ((dataset, method, _, fusion, _, here, published, difference, deviations),) = table.rows
    assert (dataset, method, fusion, here, published) == ("miracl/yo", "all", "exact fusion", 1, 0.835)
    assert difference is None
    assert deviations == "2 of 49,043 documents; 3 of 119 queries; weights 0.01 9 0.02, not 1 0.3 1"
