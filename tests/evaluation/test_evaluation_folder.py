"""The folder of an evaluation: what is written comes back, and what does not belong there is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow.parquet as pq
import pytest
import pytrec_eval
from evaluations import MODEL, without_digests, write_evaluation
from hypothesis import given
from hypothesis import strategies as st

from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.folder import (
    SCORES_COLUMNS,
    EvaluationFolder,
    find_folders,
    trec_id,
    trec_run,
)
from m3_connectors.evaluation.record import Protocol
from m3_connectors.evaluation.runs import method_run
from m3_connectors.evaluation.writer import FolderWriter
from m3_connectors.methods import ALL, DENSE_SPARSE

CELLS = {
    f"q {i}": {f"d%{j}\u00a0x": (1 - 0.1 * j, 0.2 * ((i + j) % 3), 0.5 + 0.01 * j) for j in range(5)}
    for i in range(40)
}
QRELS = {query: {"d%1\u00a0x": 2, "d%4\u00a0x": 1, "not in the corpus": 1} for query in CELLS}


@pytest.fixture
def folder(tmp_path: Path) -> EvaluationFolder:
    return write_evaluation(tmp_path / "evaluation", CELLS, QRELS)


def test_what_is_written_comes_back(folder: EvaluationFolder) -> None:
    again = EvaluationFolder(folder.path)
    assert again.record == folder.record
    assert again.qrels() == QRELS
    assert again.asked == tuple(CELLS)
    scores = again.scores()
    assert tuple(scores.column_names) == SCORES_COLUMNS[:-1]  # sparse_list is for paper fusion
    assert len(scores) == 200
    assert [path.name for path in sorted((folder.path / "scores").iterdir())] == [
        "00000.parquet",
        "00001.parquet",
    ]
    first = scores.slice(0, 1).to_pylist()[0]
    assert (first["query_id"], first["document_id"], first["dense_rank"]) == ("q 0", "d%0\u00a0x", 1)
    assert first["sparse"] == 0
    assert first["sparse_rank"] is None
    run = again.run("all")
    assert run == method_run(again, ALL)
    assert set(run) == set(CELLS)
    assert again.documents()["document_id"].to_pylist() == sorted(CELLS["q 0"])


def test_means_are_those_of_the_metrics(folder: EvaluationFolder) -> None:
    metrics = folder.metrics().to_pylist()
    assert len(metrics) == 40 * 5 * 3
    values = [row["value"] for row in metrics if (row["method"], row["measure"]) == ("sparse", "MRR@10")]
    assert folder.means()["sparse"]["MRR@10"] == pytest.approx(np.mean(values))


ids = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=12)


@given(id=ids)
def test_any_id_is_one_word_of_a_trec_file(id: str) -> None:
    assert len(trec_id(id).split()) == 1
    assert unquote(trec_id(id)) == id


@given(
    st.dictionaries(
        st.text("abcdefgh", min_size=1, max_size=3),
        st.one_of(
            st.sampled_from([0.0, 0.5, 1.0, -1.0]),
            st.floats(-3, 3),
            st.floats(0.4999999, 0.5000001),  # differ in float64, equal in float32
        ),
        min_size=1,
        max_size=20,
    )
)
def test_trec_eval_keeps_our_order(scores: dict[str, float]) -> None:
    answer = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
    read = pytrec_eval.parse_run(trec_run("m", {"q": answer}).splitlines())["q"]
    # trec_eval: by score as a C float, then by id, both falling.
    theirs = sorted(read, key=lambda id: (np.float32(read[id]), id), reverse=True)
    assert theirs == [id for id, _ in answer]
    assert all(read[id] == pytest.approx(score, abs=1e-5) for id, score in answer)
    # And trec_eval itself: the document at each rank is found there.
    for rank, (id, _) in enumerate(answer, 1):
        evaluator = pytrec_eval.RelevanceEvaluator({"q": {id: 1}}, {"recip_rank"})
        assert evaluator.evaluate({"q": read})["q"]["recip_rank"] == 1 / rank


def test_scores_without_ties_are_written_as_they_are() -> None:
    lines = trec_run("a b", {"q": [("x", 0.1 + 0.2), ("y", 0.1)]}).splitlines()
    assert lines == ["q Q0 x 1 0.30000000000000004 a%20b", "q Q0 y 2 0.1 a%20b"]


class TestAnotherEvaluation:
    def test_is_refused_with_what_differs(self, folder: EvaluationFolder) -> None:
        record = folder.record
        others = {
            "fusion: 'exact', not 'paper'": dataclasses.replace(record, protocol=Protocol(fusion="paper")),
            "query max length: None, not 32": dataclasses.replace(
                record, protocol=Protocol(query_max_length=32)
            ),
            "model: toy": dataclasses.replace(
                record, model=dataclasses.replace(MODEL, weights_fingerprint="other")
            ),
            "dataset's fingerprint: 'toy test', not 'changed'": dataclasses.replace(
                record, dataset=dataclasses.replace(record.dataset, fingerprint="changed")
            ),
            "method dense is there, but was not requested": dataclasses.replace(
                record, methods=record.methods[1:]
            ),
            "method dense: weights 1.0 0.0 0.0 of {'dense': 1000}, not weights 1.0 1.0 0.0": dataclasses.replace(
                record,
                methods=(
                    dataclasses.replace(record.methods[0], weights=(1.0, 1.0, 0.0)),
                    *record.methods[1:],
                ),
            ),
        }
        for difference, other in others.items():
            with pytest.raises(InvalidInput) as error:
                FolderWriter(folder.path, other, dict.fromkeys(CELLS, ""))
            assert difference in str(error.value)
            assert "Use another --out" in str(error.value)
        renamed = dataclasses.replace(
            record, model=dataclasses.replace(MODEL, name="moved/toy"), warnings=("w",)
        )
        assert FolderWriter(folder.path, renamed, dict.fromkeys(CELLS, "")).complete

    def test_a_folder_of_other_files_is_refused(self, folder: EvaluationFolder, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("")
        with pytest.raises(InvalidInput, match="is not an empty folder"):
            FolderWriter(tmp_path / "mine", folder.record, {"q": "t"})

    def test_scores_of_another_model(self, folder: EvaluationFolder, tmp_path: Path) -> None:
        other = write_evaluation(tmp_path / "other", CELLS, QRELS)
        raw = json.loads((other.path / "evaluation.json").read_text())
        raw["model"]["weights_fingerprint"] = "fine-tuned"
        (folder.path / "evaluation.json").write_text(json.dumps(raw))
        with pytest.raises(
            InvalidInput, match=r"00000.parquet contains the scores of another evaluation, .*model w"
        ):
            EvaluationFolder(folder.path).scores()

    def test_a_run_of_another_dataset(self, folder: EvaluationFolder) -> None:
        folder = without_digests(folder)
        path = folder.path / "runs" / "all.trec"
        path.write_text(path.read_text() + "stranger Q0 d1 1 0.5 all\n")
        with pytest.raises(InvalidInput, match=r"all\.trec:201: query 'stranger' is not in toy"):
            folder.measure()

    def test_a_run_of_another_corpus(self, folder: EvaluationFolder) -> None:
        folder = without_digests(folder)
        path = folder.path / "runs" / "all.trec"
        path.write_text(path.read_text().replace("d%250%C2%A0x", "stranger"))
        with pytest.raises(InvalidInput, match="'stranger' is not a document of"):
            folder.measure()

    def test_judgements_of_another_dataset(self, folder: EvaluationFolder) -> None:
        folder = without_digests(folder)
        (folder.path / "qrels.trec").write_text("stranger 0 d1 1\n")
        with pytest.raises(InvalidInput, match=r"qrels\.trec:1: query 'stranger'"):
            folder.measure()


class TestDamage:
    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("q%200 Q0 d 6 0.1", "has 5 columns; it must have 6"),
            ("q%200 Q0 d 6 high all", "'high' is not a score"),
            ("q%200 Q0 d 6 9.5 all", "increase; the best must be first"),
            ("q%200 Q0 d%250%C2%A0x 6 -9 all", "has a document twice"),
        ],
    )
    def test_malformed_runs(self, folder: EvaluationFolder, line: str, reason: str) -> None:
        folder = without_digests(folder)
        path = folder.path / "runs" / "all.trec"
        path.write_text(path.read_text() + line + "\n")
        with pytest.raises(InvalidInput, match=reason):
            folder.run("all")

    def test_missing_files_say_what_to_do(self, folder: EvaluationFolder) -> None:
        (folder.path / "scores" / "00001.parquet").unlink()
        with pytest.raises(InvalidInput, match=r"00001\.parquet is missing\.\n  Run the same m3 eval"):
            folder.scores()
        (folder.path / "runs" / "all.trec").unlink()
        with pytest.raises(InvalidInput, match=r"all\.trec is missing"):
            folder.measure()
        with pytest.raises(
            InvalidInput, match=r"method 'none' was not evaluated on toy\.\n  Use one of dense,"
        ):
            folder.run("none")

    @pytest.mark.parametrize(
        "name",
        ["qrels.trec", "runs/all.trec", "queries.parquet", "documents.parquet", "scores/00000.parquet"],
    )
    def test_a_file_that_was_cut_off(self, folder: EvaluationFolder, name: str) -> None:
        path = folder.path / name
        content = path.read_bytes()
        # Text is cut at the end of a line: what is left looks whole.
        path.write_bytes(content[: content.rindex(b"\n", 0, len(content) // 2) + 1])
        again = EvaluationFolder(folder.path)
        with pytest.raises(
            InvalidInput, match=r"was truncated or changed.*\n  Run the same m3 eval command"
        ) as error:
            (again.measure(), again.scores())
        assert str(path) in str(error.value)

    def test_a_damaged_table(self, folder: EvaluationFolder) -> None:
        without_digests(folder)
        (folder.path / "queries.parquet").write_bytes(b"PAR1 no more")
        with pytest.raises(InvalidInput, match=r"queries\.parquet is damaged"):
            EvaluationFolder(folder.path).queries()

    def test_metrics_over_fewer_queries(self, folder: EvaluationFolder) -> None:
        path = folder.path / "metrics.parquet"
        pq.write_table(folder.metrics().slice(1), path)
        with pytest.raises(InvalidInput, match="for 39 of 40 queries"):
            folder.means()

    def test_no_evaluation(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="contains no evaluation"):
            EvaluationFolder(tmp_path)
        with pytest.raises(InvalidInput, match="contains no evaluation"):
            find_folders(tmp_path)
        (tmp_path / "evaluation.json").write_text('{"format": 2}')
        with pytest.raises(InvalidInput, match="has format 2, not 1"):
            EvaluationFolder(tmp_path)
        (tmp_path / "evaluation.json").write_text("{")
        with pytest.raises(InvalidInput, match="is not valid JSON"):
            EvaluationFolder(tmp_path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda raw: raw["protocol"].update(run_depth="100"), r"protocol\.run_depth is '100'"),
            (lambda raw: raw["protocol"].update(rerank=1), r"an unknown key protocol\.rerank"),
            (lambda raw: raw["methods"][0].update(weights=[1, 0]), r"methods\[0\]\.weights"),
            (lambda raw: raw["store"].pop("url"), r"lacks the key store\.url"),
            (lambda raw: raw.update(complete=None), "complete is None"),
        ],
    )
    def test_a_damaged_record(
        self, folder: EvaluationFolder, change: Callable[[dict[str, Any]], object], message: str
    ) -> None:
        path = folder.path / "evaluation.json"
        raw = json.loads(path.read_text())
        change(raw)
        path.write_text(json.dumps(raw))
        with pytest.raises(InvalidInput, match=rf"evaluation\.json.*{message}.*\n  Repeat the evaluation"):
            EvaluationFolder(folder.path)

    def test_a_damaged_environment(self, folder: EvaluationFolder) -> None:
        (folder.path / "environment.json").write_text('[{"commit": 1}]')
        with pytest.raises(InvalidInput, match=r"environment\.json: \[0\]\.commit is 1.*\n  Delete it"):
            folder.environment()


def test_an_incomplete_evaluation_is_not_measured(tmp_path: Path) -> None:
    begun = write_evaluation(tmp_path / "x", CELLS, QRELS, complete=False)
    with pytest.raises(InvalidInput, match="is incomplete"):
        begun.metrics()
    assert len(begun.scores()) == 200


def test_a_run_must_answer_every_query(folder: EvaluationFolder, tmp_path: Path) -> None:
    writer = FolderWriter(tmp_path / "new", folder.record, dict.fromkeys(CELLS, "text"))
    with pytest.raises(InvalidInput, match="the run of all has 1 queries; it must have all 40"):
        writer.add_run("all", {"q 0": []})


def test_folders_are_found_below_a_root(tmp_path: Path) -> None:
    for name in ("b/test", "a/test", "a/q-en"):
        write_evaluation(tmp_path / name, {"q": CELLS["q 0"]}, {"q": {"d": 1}})
    found = [folder.path.relative_to(tmp_path).as_posix() for folder in find_folders(tmp_path)]
    assert found == ["a/q-en", "a/test", "b/test"]


def test_a_method_deeper_than_the_scores(tmp_path: Path) -> None:
    protocol = Protocol(depths={"dense": 50, "sparse": 1000, "multivector": 200})
    with pytest.raises(InvalidInput, match="needs 1000 dense candidates"):
        write_evaluation(tmp_path / "x", CELLS, QRELS, methods=[DENSE_SPARSE], protocol=protocol)
