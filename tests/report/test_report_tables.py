"""Tables of evaluations: one line each, honest means."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from evaluations import write_evaluation

from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.folder import EvaluationFolder
from m3_connectors.evaluation.record import Protocol
from m3_connectors.methods import ALL, DENSE, SPARSE, Weights
from m3_connectors.report.comparison_tables import comparison_tables
from m3_connectors.report.table import Table
from m3_connectors.report.tables import incomplete_table, quality_tables

CELLS = {
    "q1": {"a": (0.9, 0.1, 0.5), "b": (0.8, 0.2, 0.5)},
    "q2": {"a": (0.9, 0.1, 0.5), "b": (0.8, 0.2, 0.5)},
}
FIRST, HALF = {"q1": {"a": 1}, "q2": {"a": 1}}, {"q1": {"a": 1}, "q2": {"b": 1}}
"""Dense answers a, b; sparse b, a: MRR 1 and 0.5 under FIRST, 0.75 each under HALF."""


def write(
    path: Path, language: str = "de", asked: str | None = None, qrels: object = None, **options: object
) -> EvaluationFolder:
    """An evaluation of family ``set`` in ``language``, asked in ``asked``."""
    folder = write_evaluation(
        path,
        CELLS,
        qrels or FIRST,  # type: ignore[arg-type]
        **{"methods": [DENSE, SPARSE], "name": f"set/{language}", **options},  # type: ignore[arg-type]
    )
    raw = json.loads((path / "evaluation.json").read_text())
    raw["dataset"] |= {"family": "set", "passage_language": language, "query_language": asked or language}
    (path / "evaluation.json").write_text(json.dumps(raw))
    return EvaluationFolder(folder.path)


def table(folders: list[EvaluationFolder], name: str = "quality-mrr-10") -> Table:
    return next(table for table in quality_tables(folders) if table.name == name)


def rows(folders: list[EvaluationFolder]) -> dict[str, tuple[object, ...]]:
    found = {str(row[0]): row[1:] for row in table(folders).rows}
    assert len(found) == len(table(folders).rows)
    return found


def test_languages_and_their_mean(tmp_path: Path) -> None:
    folders = [write(tmp_path / "de"), write(tmp_path / "fr", "fr", qrels=HALF)]
    assert rows(folders) == {
        "set/de": (2, 1.0, 0.5),
        "set/fr": (2, 0.75, 0.75),
        "set, mean": (4, 0.875, 0.625),
    }
    assert [column.name for column in table(folders).columns] == ["dataset", "queries", "dense", "sparse"]
    assert "| set/de | 2 | **1.000** | 0.500 |" in table(folders).to_markdown()


def test_across_languages(tmp_path: Path) -> None:
    folders = [write(tmp_path / "de" / "test")]
    for asked, language in (("en", "de"), ("fr", "de"), ("en", "fr")):
        folders.append(write(tmp_path / language / f"q-{asked}", language, asked, split=f"q-{asked}"))
    assert {label: values[0] for label, values in rows(folders).items()} == {
        "set, cross-lingual, documents in de": 4,
        "set, cross-lingual, en → de": 2,
        "set, cross-lingual, en → fr": 2,
        "set, cross-lingual, fr → de": 2,
        "set, cross-lingual, mean": 6,
        "set, cross-lingual, questions in en": 4,
        "set/de": 2,
    }


def test_no_mean_over_fewer_datasets(tmp_path: Path) -> None:
    folders = [write(tmp_path / "de"), write(tmp_path / "fr", "fr", methods=[DENSE])]
    found = rows(folders)
    assert found["set/fr"] == (2, 1.0, None)
    assert found["set, mean"] == (4, 1.0, None)
    assert "| set, mean | 4 | 1.000 | – |" in table(folders).to_markdown()


def test_what_differs_is_named_and_never_averaged(tmp_path: Path) -> None:
    folders = [
        write(tmp_path / f"{name}-{language}", language, protocol=protocol)
        for name, protocol in (("whole", Protocol()), ("cut", Protocol(passage_max_length=64)))
        for language in ("de", "fr")
    ]
    assert list(rows(folders)) == [
        "set, mean (truncated at none/64 tokens)",
        "set, mean (truncated at none/none tokens)",
        *("set/de (truncated at none/64 tokens)", "set/de (truncated at none/none tokens)"),
        *("set/fr (truncated at none/64 tokens)", "set/fr (truncated at none/none tokens)"),
    ]


def test_the_same_evaluation_in_two_folders_is_named_by_them(tmp_path: Path) -> None:
    folders = [write(tmp_path / run / language, language) for run in ("a", "b") for language in ("de", "fr")]
    assert {label: values[0] for label, values in rows(folders).items()} == {
        "set, mean (a)": 4,
        "set, mean (b)": 4,
        **{f"set/{language} ({run})": 2 for language in ("de", "fr") for run in ("a", "b")},
    }
    turned = [
        write(tmp_path / "x" / language / run, language) for run in ("a", "b") for language in ("de", "fr")
    ]
    assert sorted(rows(turned)) == ["set/de (de/a)", "set/de (de/b)", "set/fr (fr/a)", "set/fr (fr/b)"]


def test_no_mean_over_two_splits(tmp_path: Path) -> None:
    folders = [write(tmp_path / split, split=split) for split in ("test", "dev")]
    assert sorted(rows(folders)) == ["set/de, dev", "set/de, test"]
    folders.append(write(tmp_path / "fr", "fr", split="test"))
    assert sorted(rows(folders)) == ["set, test, mean", "set/de, dev", "set/de, test", "set/fr"]


def test_other_measures_have_tables_of_their_own(tmp_path: Path) -> None:
    folders = [
        write(tmp_path / "de"),
        write(tmp_path / "fr", "fr", protocol=Protocol(measures=("Recall@20",))),
    ]
    assert [row[0] for row in table(folders, "quality-recall-20").rows] == ["set/fr"]
    assert [row[0] for row in table(folders).rows] == ["set/de"]


def test_what_the_numbers_come_from(tmp_path: Path) -> None:
    folder = write(tmp_path / "de")
    raw = folder.record
    (folder.path / "evaluation.json").write_text(
        json.dumps(dataclasses.replace(raw, warnings=("3 of something",)).to_json())
    )
    folders = [EvaluationFolder(folder.path)]
    assert table(folders, "warnings").rows == (("set/de", "test", "3 of something"),)
    methods = table(folders, "methods").rows
    assert methods[0][:3] == ("dense", "dense 1,000", "1 0 0")
    assert methods[0][3] == "all 1"
    (tmp_path / "de" / "environment.json").write_text(
        json.dumps([{"commit": c, "processor": "P", "date": "2026-11-23T01:02"} for c in ("c1", "c2", "c1")])
    )
    values = dict(table(folders, "evaluations-shared").rows)
    assert (values["model"], values["fusion"], values["warnings"]) == ("toy (4 dims)", "exact", 1)
    assert (values["commit"], values["processor"], values["date"]) == ("c1, c2", "P", "2026-11-23")
    assert values["weights' fingerprint"] == "w"


def test_a_method_with_other_weights_says_where(tmp_path: Path) -> None:
    others = dataclasses.replace(ALL, weights=Weights(1, 2, 3))
    folders = [
        write(tmp_path / "de", methods=[DENSE, ALL]),
        write(tmp_path / "fr", "fr", methods=[DENSE, others]),
    ]
    found = [(row[0], row[2], row[3]) for row in table(folders, "methods").rows]
    assert found == [
        ("dense", "1 0 0", "all 2"),
        ("all", "1 0.3 1", "set/de test"),
        ("all", "1 2 3", "set/fr test"),
    ]


def test_two_models_of_one_name_are_never_averaged(tmp_path: Path) -> None:
    folders = [write(tmp_path / language, language) for language in ("de", "fr")]
    record = tmp_path / "fr" / "evaluation.json"
    raw = json.loads(record.read_text())
    raw["model"]["weights_fingerprint"] = "trained further"
    record.write_text(json.dumps(raw))
    folders = [EvaluationFolder(folder.path) for folder in folders]
    assert sorted(rows(folders)) == ["set/de (toy w)", "set/fr (toy trained)"]


def test_what_was_published_stands_beside(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "e", CELLS, FIRST, name="miracl/de", split="dev")
    found = next(
        one
        for one in comparison_tables([folder], {("miracl/de", "all", "nDCG@10"): 0.75})
        if one.name == "published"
    )
    # A toy is not the whole of MIRACL: the table says so, and takes no difference.
    ((task, *_, here, published, difference, why),) = found.rows
    assert (task, here, published, difference) == ("miracl/de", 1.0, 0.75, None)
    assert why == "2 of 15,866,222 documents; 2 of 305 queries"


def test_queries_that_change_most_show_why(tmp_path: Path) -> None:
    cells = {"q": {"a": (0.9, 0.1, 0.1), "b": (0.8, 0.9, 0.7)}}
    folder = write_evaluation(tmp_path / "e", cells, {"q": {"b": 1}})
    changes = next(one for one in comparison_tables([folder], {}) if one.name == "changes")
    (row,) = changes.rows
    assert row[4:6] == ("b", "2 → 1")
    assert row[6:9] == pytest.approx((0.8, 0.9, 0.7))
    assert row[10] == pytest.approx(0.8 + 0.3 * 0.9 + 0.7)


def test_incomplete_evaluations(tmp_path: Path) -> None:
    begun = write_evaluation(tmp_path / "x", CELLS, FIRST, complete=False)
    with pytest.raises(InvalidInput, match="is incomplete"):
        quality_tables([begun])
    assert incomplete_table([begun]).rows == (("x", "toy", "test"),)
