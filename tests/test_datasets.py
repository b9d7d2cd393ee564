"""Datasets: folders, files of one's own, hub sets, and what is wrong with them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.datasets.beir import load_beir

CORPUS = [
    {"_id": "d1", "title": "Rain", "text": "Clouds bring rain to the hills.", "metadata": {"lang": "en"}},
    {"_id": "d2", "text": "The hills are green after rain."},
    {"_id": "d3", "title": "", "text": "A ship sails the sea."},
]
QUERIES = [
    {"_id": "q1", "text": "rain on hills"},
    {"_id": "q2", "text": "ship"},
    {"_id": "q3", "text": "unjudged"},
]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t1\nq2\td3\t1\n"


def write_beir(
    root: Path, *, corpus: list[dict[str, object]] = CORPUS, qrels: str = QRELS, compress: bool = False
) -> Path:
    files = {
        "corpus.jsonl": "\n".join(map(json.dumps, corpus)),
        "queries.jsonl": "\n".join(map(json.dumps, QUERIES)),
        "qrels/test.tsv": qrels,
    }
    (root / "qrels").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if compress:
            (root / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
        else:
            (root / name).write_text(content)
    return root


class TestBeir:
    @pytest.mark.parametrize("compress", [False, True])
    def test_reads_a_folder(self, tmp_path: Path, compress: bool) -> None:
        dataset = load_beir(write_beir(tmp_path / "weather", compress=compress))
        assert dataset.name == "weather"
        assert next(iter(dataset.documents)) == Document(
            "d1", "Rain\nClouds bring rain to the hills.", {"lang": "en"}
        )
        assert list(dataset.documents)[2].text == "A ship sails the sea."
        assert dataset.queries == {"q1": "rain on hills", "q2": "ship"}
        assert dataset.qrels == {"q1": {"d1": 2, "d2": 1}, "q2": {"d3": 1}}
        assert dataset.warnings == ("1 queries without a judgement in split test: not asked",)

    def test_counts_what_does_not_fit_together(self, tmp_path: Path) -> None:
        dataset = load_beir(write_beir(tmp_path, qrels=QRELS + "q9\td1\t1\nq2\tgone\t1\nq2\tlost\t1\n"))
        assert dataset.warnings[1:] == (
            "1 judged queries whose text is not there: left out",
            "2 judgements of documents that the corpus does not have: they count as not found",
        )
        assert dataset.qrels["q2"] == {"d3": 1, "gone": 1, "lost": 1}
        assert "q9" not in dataset.qrels

    def test_an_unknown_split_names_those_that_are_there(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="Splits that are there: test"):
            load_beir(write_beir(tmp_path), "dev")

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("{broken", "not JSON"),
            ("[1]", "not a JSON object"),
            ('{"_id": "x"}', "must be a string"),
            ('{"text": "t"}', "an id is a string"),
            ('{"_id": "' + "x" * 600 + '", "text": "t"}', "600 bytes"),
        ],
    )
    def test_a_broken_corpus_is_an_error_with_its_line(self, tmp_path: Path, line: str, reason: str) -> None:
        write_beir(tmp_path)
        with (tmp_path / "corpus.jsonl").open("a") as file:
            file.write(f"\n{line}\n")
        with pytest.raises(InvalidInput, match=reason) as error:
            load_beir(tmp_path)
        assert "corpus.jsonl:4" in str(error.value)

    def test_an_id_that_comes_twice_is_an_error_with_both_places(self, tmp_path: Path) -> None:
        twice = [*CORPUS, {"_id": "d1", "text": "again"}]
        with pytest.raises(InvalidInput, match=r"corpus\.jsonl: document 4 has the id 'd1' of document 1"):
            load_beir(write_beir(tmp_path, corpus=twice))

    def test_broken_qrels(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match=r"test\.tsv:5: 'q1 d1 1'"):
            load_beir(write_beir(tmp_path / "a", qrels=QRELS + "q1 d1 1\n"))
        with pytest.raises(InvalidInput, match="none of the 3 queries is judged"):
            load_beir(write_beir(tmp_path / "b", qrels="query-id\tcorpus-id\tscore\nzz\td1\t1\n"))

    def test_no_folder_and_missing_files(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="is no folder"):
            load_beir(tmp_path / "nothing")
        write_beir(tmp_path / "x")
        (tmp_path / "x" / "corpus.jsonl").unlink()
        with pytest.raises(InvalidInput, match="has neither corpus"):
            load_beir(tmp_path / "x")
