"""Measured means beside the published ones: what was measured otherwise says so, and has no difference."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from evaluations import MODEL, write_evaluation

from m3_connectors.cli.evaluate import preset
from m3_connectors.evaluation import beside
from m3_connectors.evaluation.beside import beside_published
from m3_connectors.evaluation.datasets.catalogue import CATALOGUE
from m3_connectors.evaluation.datasets.published import numbers_by_task
from m3_connectors.evaluation.datasets.sizes import Size, size_of
from m3_connectors.evaluation.folder import EvaluationFolder
from m3_connectors.evaluation.record import Protocol
from m3_connectors.methods import ALL, DENSE, DENSE_SPARSE, METHODS, Method

CELLS = {
    "q1": {"good": (0.9, 0.5, 0.9), "bad": (0.1, 0.1, 0.1)},
    "q2": {"good": (0.1, 0.5, 0.1), "bad": (0.9, 0.9, 0.9)},
}
MEAN = (1 + 0.6309297535714575) / 2
"""nDCG@10 of q1 is 1, of q2 it is 1 / log2(3)."""

LONG = ALL.weighted(0.15, 0.5, 0.35)
"""As the paper weighs on MLDR."""


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two documents and two queries are the whole of every dataset."""
    monkeypatch.setattr(beside, "size_of", lambda *_: Size(2, 2))


def evaluation(
    path: Path,
    name: str,
    *,
    split: str = "dev",
    methods: Sequence[Method] = (DENSE, ALL),
    protocol: Protocol | None = None,
) -> EvaluationFolder:
    qrels = {query: {"good": 1} for query in CELLS}
    return write_evaluation(path, CELLS, qrels, methods=methods, name=name, split=split, protocol=protocol)


def renamed(folder: EvaluationFolder, old: str, new: str) -> EvaluationFolder:
    """The same evaluation with another name for one of its runs."""
    (folder.path / "runs" / f"{old}.trec").rename(folder.path / "runs" / f"{new}.trec")
    (folder.path / "metrics.parquet").unlink()
    path = folder.path / "evaluation.json"
    raw = json.loads(path.read_text())
    for method in raw["methods"]:
        method["name"] = new if method["name"] == old else method["name"]
    path.write_text(json.dumps(raw))
    return EvaluationFolder(folder.path)


@pytest.mark.usefixtures("whole")
class TestTheSameExperiment:
    def test_a_language(self, tmp_path: Path) -> None:
        folder = evaluation(tmp_path / "de", "miracl/de")
        (row,) = beside_published([folder], numbers_by_task())
        assert (row.task, row.method, row.measure, row.published) == ("miracl/de", "all", "nDCG@10", 0.598)
        assert (row.model, row.fusion, row.deviations) == (MODEL.name, "exact", ())
        assert row.measured == pytest.approx(MEAN)
        assert row.difference == pytest.approx(MEAN - 0.598)

    def test_the_run_under_the_papers_weights_is_the_papers(self, tmp_path: Path) -> None:
        folder = renamed(
            evaluation(tmp_path / "en", "mldr/en", split="test", methods=[LONG]), "all", "all-paper"
        )
        (row,) = beside_published([folder], numbers_by_task())
        assert (row.method, row.published, row.deviations) == ("all-paper", 0.638, ())

    def test_the_papers_lengths(self, tmp_path: Path) -> None:
        protocol = Protocol(fusion="paper", query_max_length=512, passage_max_length=512)
        (row,) = beside_published(
            [evaluation(tmp_path / "de", "miracl/de", protocol=protocol)], numbers_by_task()
        )
        assert (row.fusion, row.deviations) == ("paper", ())

    def test_weights_that_rank_the_same(self, tmp_path: Path) -> None:
        folder = evaluation(tmp_path / "de", "miracl/de", methods=[ALL.weighted(10, 3, 10)])
        assert [row.deviations for row in beside_published([folder], numbers_by_task())] == [()]


@pytest.mark.usefixtures("whole")
class TestAnotherExperiment:
    def row(self, path: Path, name: str = "miracl/yo", **how: Any) -> beside.BesidePublished:
        (row,) = beside_published([evaluation(path, name, **how)], numbers_by_task())
        assert row.difference is None
        return row

    def test_other_weights(self, tmp_path: Path) -> None:
        row = self.row(tmp_path, methods=[ALL.weighted(0.01, 9, 0.02)])
        assert row.deviations == ("weights 0.01 9 0.02, not 1 0.3 1",)

    def test_the_weights_that_the_paper_has_for_other_datasets(self, tmp_path: Path) -> None:
        row = self.row(tmp_path, "mldr/en", split="test", methods=[ALL])
        assert row.deviations == ("weights 1 0.3 1, not 0.15 0.5 0.35",)

    def test_other_lengths(self, tmp_path: Path) -> None:
        protocol = Protocol(query_max_length=32, passage_max_length=8)
        assert self.row(tmp_path, methods=[ALL], protocol=protocol).deviations == (
            "queries cut at 32 tokens, not 512",
            "documents cut at 8 tokens, not 512",
        )

    def test_other_lists(self, tmp_path: Path) -> None:
        shallow = Method("all", {"dense": 50}, ALL.weights)
        row = self.row(tmp_path, methods=[shallow], protocol=Protocol(exact_lists=False))
        assert row.deviations == ("candidates {'dense': 50}, not {'dense': 200}", "approximate lists")

    def test_part_of_the_documents(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(beside, "size_of", size_of)
        row = self.row(tmp_path, methods=[ALL])
        assert row.deviations == ("2 of 49,043 documents", "2 of 119 queries")


def test_a_part_another_split_or_another_dataset_is_another_number(tmp_path: Path) -> None:
    folders = [
        evaluation(tmp_path / "a", "miracl/de", protocol=Protocol(limit_queries=2)),
        evaluation(tmp_path / "b", "miracl/de", split="train"),
        evaluation(tmp_path / "c", "mine/de"),
    ]
    published = {**numbers_by_task(), ("mine/de", "all", "nDCG@10"): 0.5}
    assert beside_published(folders, published) == []


@pytest.mark.usefixtures("whole")
def test_the_mean_of_a_family_needs_all_its_languages_in_the_same_way(tmp_path: Path) -> None:
    names = CATALOGUE["mldr"].names()
    folders = [evaluation(tmp_path / name, name, split="test", methods=[DENSE, LONG]) for name in names]
    rows = {(row.task, row.method): row for row in beside_published(folders, numbers_by_task())}
    assert len(rows) == len(names) + 2  # each language for All, the mean for Dense and All
    assert rows["mldr", "dense"].published == 0.525
    assert rows["mldr", "dense"].measured == pytest.approx(MEAN)
    assert rows["mldr", "all"].difference == pytest.approx(MEAN - 0.65)
    less = beside_published(folders[1:], numbers_by_task())
    assert not any(row.task == "mldr" for row in less)
    path = tmp_path / names[0] / "evaluation.json"
    exact = path.read_text()
    path.write_text(exact.replace('"fusion": "exact"', '"fusion": "paper"'))
    mixed = beside_published([EvaluationFolder(path.parent), *folders[1:]], numbers_by_task())
    assert not any(row.task == "mldr" for row in mixed)
    path.write_text(exact.replace("0.35", "0.9"))
    rows = {
        (row.task, row.method): row
        for row in beside_published([EvaluationFolder(path.parent), *folders[1:]], numbers_by_task())
    }
    assert rows["mldr", "dense"].deviations == ()
    assert rows["mldr", "all"].deviations == ("weights in 1 of 13 languages",)


class TestDefaultWeights:
    """Of ``m3 eval``: the model's own, else what the paper has for the dataset."""

    def weights(self, name: str, family: str, **recommended: tuple[float, float, float]) -> tuple[float, ...]:
        encoder, dataset = SimpleNamespace(recommended_weights=recommended), SimpleNamespace(paper=None)
        dataset.paper = CATALOGUE[family].paper
        return tuple(preset(name, cast(Any, encoder), cast(Any, dataset), paper=False).weights)

    def test_are_the_papers_for_the_dataset(self) -> None:
        assert self.weights("all", "mldr") == (0.15, 0.5, 0.35)
        assert self.weights("dense_sparse", "narrativeqa") == (0.2, 0.8, 0)
        assert self.weights("all", "miracl") == tuple(METHODS["all"].weights)
        assert self.weights("dense_sparse", "mkqa") == tuple(DENSE_SPARSE.weights)

    def test_are_the_models_if_it_ships_some(self) -> None:
        assert self.weights("all", "mldr", all=(1, 2, 3)) == (1, 2, 3)
        assert self.weights("all-paper", "mldr", all=(1, 2, 3)) == (0.15, 0.5, 0.35)
