"""Measured means beside the published ones: only what was measured as it was published."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluations import write_evaluation

from m3_connectors.evaluation.beside import beside_published
from m3_connectors.evaluation.datasets.catalogue import CATALOGUE
from m3_connectors.evaluation.datasets.published import numbers_by_task
from m3_connectors.evaluation.folder import EvaluationFolder
from m3_connectors.evaluation.record import Protocol
from m3_connectors.methods import ALL, DENSE

CELLS = {
    "q1": {"good": (0.9, 0.5, 0.9), "bad": (0.1, 0.1, 0.1)},
    "q2": {"good": (0.1, 0.5, 0.1), "bad": (0.9, 0.9, 0.9)},
}
MEAN = (1 + 0.6309297535714575) / 2
"""nDCG@10 of q1 is 1, of q2 it is 1 / log2(3)."""


def evaluation(path: Path, name: str, *, split: str = "dev", limit: int | None = None) -> EvaluationFolder:
    return write_evaluation(
        path,
        CELLS,
        {query: {"good": 1} for query in CELLS},
        methods=[DENSE, ALL],
        name=name,
        split=split,
        protocol=Protocol(limit_queries=limit),
    )


def test_a_language(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "de", "miracl/de")
    (row,) = beside_published([folder], numbers_by_task())
    assert (row.task, row.method, row.measure, row.published) == ("miracl/de", "all", "nDCG@10", 0.598)
    assert row.measured == pytest.approx(MEAN)
    assert row.difference == pytest.approx(MEAN - 0.598)


def test_a_part_another_split_or_another_dataset_is_another_number(tmp_path: Path) -> None:
    folders = [
        evaluation(tmp_path / "a", "miracl/de", limit=2),
        evaluation(tmp_path / "b", "miracl/de", split="train"),
        evaluation(tmp_path / "c", "mine/de"),
    ]
    published = {**numbers_by_task(), ("mine/de", "all", "nDCG@10"): 0.5}
    assert beside_published(folders, published) == []


def test_the_mean_of_a_family_needs_all_its_languages_in_the_same_way(tmp_path: Path) -> None:
    names = CATALOGUE["mldr"].names()
    folders = [evaluation(tmp_path / name, name, split="test") for name in names]
    rows = {(row.task, row.method): row for row in beside_published(folders, numbers_by_task())}
    assert len(rows) == len(names) + 2  # each language for All, the mean for Dense and All
    assert rows["mldr", "dense"].published == 0.525
    assert rows["mldr", "dense"].measured == pytest.approx(MEAN)
    less = beside_published(folders[1:], numbers_by_task())
    assert not any(row.task == "mldr" for row in less)
    path = tmp_path / names[0] / "evaluation.json"
    path.write_text(path.read_text().replace('"fusion": "exact"', '"fusion": "paper"'))
    mixed = beside_published([EvaluationFolder(path.parent), *folders[1:]], numbers_by_task())
    assert not any(row.task == "mldr" for row in mixed)
