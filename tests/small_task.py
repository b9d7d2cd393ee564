"""A task of five documents and two queries, and an evaluation of it, for tests of baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from evaluations import write_evaluation

from m3_connectors.documents import Document
from m3_connectors.evaluation.datasets.dataset import Corpus, Dataset
from m3_connectors.evaluation.folder import EvaluationFolder

NO_ENCODER = cast(Any, None)
"""Passed instead of an encoder to baselines that do not use the evaluation's model."""

TEXTS = {
    "d1": "rain falls on the hills",
    "d2": "the ship sails on the sea",
    "d3": "green grass",
    "d4": "cold snow in winter",
    "d5": "",
}
QUERIES = {"q1": "rain on the hills", "q2": "ship on the sea"}


def small_task() -> Dataset:
    return Dataset(
        "x",
        "test",
        Corpus.of([Document(id, text) for id, text in TEXTS.items()]),
        QUERIES,
        {"q1": {"d1": 1}, "q2": {"d2": 1}},
    )


def small_evaluation(path: Path) -> EvaluationFolder:
    """Write an evaluation: dense ranks d4, d3, d2, d1 for every query; sparse finds d3 only."""
    cells = {
        query: {f"d{i}": (i / 10, 1.0 if i == 3 else 0.0, 0.0) for i in range(1, 5)} for query in QUERIES
    }
    return write_evaluation(path, cells, small_task().qrels)
