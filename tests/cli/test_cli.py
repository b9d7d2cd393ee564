"""The command line: what it prints, where, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3_connectors.backends.qdrant.edge.backend import EdgeBackend
from m3_connectors.backends.schema import Schema
from m3_connectors.cli.app import main
from m3_connectors.cli.console import duration, out
from m3_connectors.cli.evaluate import collection_name
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.encoder.encoder import M3Encoder
from m3_connectors.errors import Corrupt
from m3_connectors.testing.checkpoints import write_checkpoint

TEXTS = {
    "wizards": "The quick brown fox jumps over the lazy dog.",
    "lake": "Where is the forest near the lake?",
    "library": "The book lies on a table in the city library.",
}


class Run:
    """One call of ``m3``: its exit code and what it printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


M3 = Callable[..., Run]


def unboxed(message: str) -> str:
    """A usage message without the frame that breaks its lines."""
    return " ".join(message.replace("│", " ").split())


@pytest.fixture
def m3(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> M3:
    """Runs ``m3`` in an empty current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("M3_MODEL", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def run(*arguments: object) -> Run:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Run(code, captured.out, captured.err)

    return run


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rows = [{"id": id, "text": text, "size": len(text)} for id, text in TEXTS.items()]
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


@pytest.fixture
def filled(m3: M3, corpus: Path, checkpoint: Path) -> str:
    """URL of a store that holds the corpus."""
    assert m3("index", "qdrant:./data", corpus, "--model", checkpoint).code == 0
    return "qdrant:./data"


class TestIndex:
    def test_summary_and_dead_letters(self, m3: M3, corpus: Path, checkpoint: Path) -> None:
        with corpus.open("a") as file:
            file.write('{broken\n{"id": "x"}\n')
        run = m3("index", "qdrant:./data", corpus, "--model", checkpoint)
        assert run.code == 0
        assert run.out.startswith("  3 documents · 2 skipped (see corpus.dead.jsonl) · ")
        assert run.out.endswith("documents/s\n")
        letters = [json.loads(line) for line in Path("corpus.dead.jsonl").read_text().splitlines()]
        assert [letter["line"] for letter in letters] == [4, 5]
        assert letters[0]["file"] == str(corpus)

    def test_json_is_all_there_is_on_stdout(self, m3: M3, corpus: Path, checkpoint: Path) -> None:
        report = m3("index", "qdrant:./data", corpus, "--model", checkpoint, "--json").json
        assert report["documents"] == report["count"] == 3
        assert report["skipped"] == report["replaced"] == 0
        assert report["dead_letters"] == report["duplicates"] == []

    def test_again_changes_nothing(self, m3: M3, filled: str, corpus: Path) -> None:
        report = m3("index", filled, corpus, "--json").json  # the collection's own model is found again
        assert [report[name] for name in ("documents", "unchanged", "replaced", "count")] == [0, 3, 0, 3]

    def test_the_last_of_two_with_one_id_wins_and_is_reported(
        self, m3: M3, tmp_path: Path, checkpoint: Path
    ) -> None:
        (tmp_path / "c.jsonl").write_text('{"id": "a", "text": "first"}\n{"id": "a", "text": "last"}\n')
        report = m3("index", "qdrant:./data", "c.jsonl", "-m", checkpoint, "--json").json
        assert (report["documents"], report["duplicates"]) == (1, ["a"])
        (hit,) = m3("search", "qdrant:./data", "x", "--json").json["hits"]
        assert hit["text"] == "last"

    def test_ids_of_two_files_that_are_the_same_are_named(
        self, m3: M3, tmp_path: Path, checkpoint: Path
    ) -> None:
        for name in ("a", "b"):
            (tmp_path / "tables").mkdir(exist_ok=True)
            (tmp_path / "tables" / f"{name}.csv").write_text("id,text\n1,rain\n2,snow\n")
        reason = "replaced: tables/b.csv:2 has the same id '1' (to keep both, use different ids)"
        report = m3("index", "qdrant:./data", "tables", "-m", checkpoint, "--json").json
        assert (report["documents"], report["skipped"], report["duplicates"]) == (2, 2, ["1", "2"])
        assert report["repeats"][0] == {
            "file": "tables/a.csv",
            "line": 2,
            "reason": reason,
            "stage": "read",
        }
        run = m3("index", "qdrant:./data", "tables")
        assert f"2 ids occurred more than once, the last was kept (tables/a.csv:2: {reason})" in run.out
        letters = [json.loads(line) for line in Path("tables.dead.jsonl").read_text().splitlines()]
        assert letters == report["repeats"]

    def test_options_of_reading(self, m3: M3, tmp_path: Path, checkpoint: Path) -> None:
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "a.csv").write_bytes("id|text|more\n1|café|x\n2|b|7\n".encode("cp1252"))
        (tmp_path / "notes" / "draft.txt").write_text("not yet")
        options = ["--encoding", "latin1", "--delimiter", "|", "--exclude", "draft*"]
        run = m3("index", "qdrant:./data", "notes", *options, "-m", checkpoint, "--json")
        assert (run.json["documents"], run.json["skipped"], run.json["text_columns"]) == (2, 0, {"more": "x"})
        assert "column 'more' contains numbers but is stored as text, because 'x' is not a number" in unboxed(
            run.err
        )
        hits = m3("search", "qdrant:./data", "x", "--json").json["hits"]
        assert {hit["text"]: hit["metadata"] for hit in hits} == {"café": {"more": "x"}, "b": {"more": "7"}}

    @pytest.mark.parametrize(
        ("option", "value", "reason"),
        [
            ("--encoding", "undefined", "not a known encoding"),
            ("--delimiter", "||", "not a single character"),
            ("--format", "xlsx", "not a supported format"),
        ],
    )
    def test_invalid_read_options_are_refused(
        self, m3: M3, corpus: Path, option: str, value: str, reason: str
    ) -> None:
        run = m3("index", "qdrant:./data", corpus, option, value)
        assert run.code == 2
        assert reason in unboxed(run.err)

    def test_one_bad_page_does_not_end_the_run(self, m3: M3, tmp_path: Path, checkpoint: Path) -> None:
        (tmp_path / "pages").mkdir()
        (tmp_path / "pages" / "bad.html").write_bytes(b"<meta charset=iso-2022-kr><p>x")
        (tmp_path / "pages" / "good.html").write_text('<meta charset="undefined"><p>good')
        report = m3("index", "qdrant:./data", "pages", "-m", checkpoint, "--json").json
        assert (report["documents"], report["skipped"]) == (1, 1)

    def test_a_folder_that_holds_the_store(self, m3: M3, tmp_path: Path, checkpoint: Path) -> None:
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "a.md").write_text("a note")
        for _ in range(2):
            report = m3("index", "qdrant:./notes/store", "notes", "-m", checkpoint, "--json").json
            assert (report["read"], report["skipped"]) == (1, 0)

    def test_nothing_to_index_is_a_failure_with_a_reason(
        self, m3: M3, tmp_path: Path, checkpoint: Path
    ) -> None:
        (tmp_path / "c.csv").write_text("id,body\n1,x\n")
        run = m3("index", "qdrant:./data", "c.csv", "-m", checkpoint)
        assert (run.code, run.out) == (1, "")
        assert run.err.startswith(
            "InvalidInput: nothing was indexed: 1 record skipped, the first is c.csv: no column"
        )

    def test_nothing_to_index_makes_no_collection(self, m3: M3, tmp_path: Path, checkpoint: Path) -> None:
        (tmp_path / "emptydir").mkdir()
        run = m3("index", "qdrant:./data", "emptydir", "-m", checkpoint)
        assert run.code == 1
        assert "InvalidInput: emptydir contains no files of a supported format" in run.err
        (tmp_path / "bad.jsonl").write_text("{broken\n")
        assert m3("index", "qdrant:./data", "bad.jsonl", "-m", checkpoint).code == 1
        assert "CollectionNotFound" in m3("search", "qdrant:./data", "x", "-m", checkpoint).err

    @pytest.mark.parametrize("store", ["notes/st#ore", "notes/what?", "~/notes/store"])
    def test_a_store_of_an_odd_name_in_the_folder(
        self, m3: M3, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, store: str
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "a.md").write_text("a note")
        for _ in range(2):
            report = m3("index", f"qdrant:{store}", "notes", "-m", checkpoint, "--json").json
            assert (report["read"], report["skipped"]) == (1, 0)

    def test_texts_that_are_cut_are_named_with_what_is_lost(
        self, m3: M3, tmp_path: Path, checkpoint: Path, encoder: M3Encoder
    ) -> None:
        long, longer = "fox " * 9000, "lake " * 12_000
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "long.txt").write_text(long)
        (tmp_path / "notes" / "short.txt").write_text("a fox")
        rows = [{"id": "row", "text": longer}, {"id": "other", "text": "a lake"}]
        (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        kept = encoder.max_length
        counts = encoder.count_tokens([long, longer])
        call = ("index", "qdrant:./data", "notes", "c.jsonl", "-m", checkpoint)
        run = m3(*call)
        lost = sum(counts) - 2 * kept
        assert (
            f"2 truncated to the model's limit: {lost:,} of their {sum(counts):,} tokens lost, "
            f"{lost / sum(counts):.0%} (see notes.cut.jsonl, c.cut.jsonl) · " in run.out
        )
        assert run.err == ""

        def cut(name: str) -> list[dict[str, object]]:
            return [json.loads(line) for line in Path(name).read_text().splitlines()]

        def row(id: str, file: str, tokens: int) -> dict[str, object]:
            share = round((tokens - kept) / tokens, 4)
            return {"id": id, "file": file, "tokens": tokens, "kept": kept, "lost_share": share}

        assert cut("notes.cut.jsonl") == [row("long.txt", "notes/long.txt", counts[0])]
        assert cut("c.cut.jsonl") == [row("row", "c.jsonl", counts[1])]
        (tmp_path / "notes" / "long.txt").write_text("short now")
        report = m3(*call, "--json").json
        assert (report["truncated"], report["lost_tokens"]) == (1, counts[1] - kept)
        assert report["cut_documents"] == [str(tmp_path / "c.cut.jsonl")]
        assert not Path("notes.cut.jsonl").exists()

    def test_reports_of_earlier_runs_are_skipped_but_files_with_similar_names_are_read(
        self, m3: M3, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "notes").mkdir()
        monkeypatch.chdir(tmp_path / "notes")
        Path("long.txt").write_text("fox " * 9000)
        Path("own.cut.jsonl").write_text('{"id": "own", "text": "prices that were cut"}\n')
        for _ in range(2):
            report = m3("index", "qdrant:../data", ".", "-m", checkpoint, "--json").json
            assert (report["read"], report["skipped"]) == (2, 0)
        assert Path("notes.cut.jsonl").exists()


class TestSearch:
    def test_a_truncated_query_is_reported(self, m3: M3, filled: str, encoder: M3Encoder) -> None:
        question = "fox " * 9000
        (tokens,) = encoder.count_tokens([question])
        for command in (
            ("search", filled, question, "--json"),
            ("explain", filled, question, "lake", "--json"),
        ):
            run = m3(*command)
            assert run.json["query"] == question
            assert run.err.startswith(
                f"warning  the query has {tokens:,} tokens, but the model reads at most "
                f"{encoder.max_length:,}: the last "
            )

    def test_one_backend_is_built_and_opened(
        self, m3: M3, filled: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[str] = []
        build, open = EdgeBackend.from_url, EdgeBackend.open

        def counted_build(*arguments: Any) -> EdgeBackend:
            calls.append("build")
            return build(*arguments)

        async def counted_open(backend: EdgeBackend) -> Schema:
            calls.append("open")
            return await open(backend)

        monkeypatch.setattr(EdgeBackend, "from_url", counted_build)
        monkeypatch.setattr(EdgeBackend, "open", counted_open)
        assert m3("search", filled, TEXTS["lake"]).code == 0
        assert calls == ["build", "open"]

    def test_table(self, m3: M3, filled: str) -> None:
        run = m3("search", filled, TEXTS["lake"], "--method", "dense", "-k", "2")
        assert run.code == 0
        heading, first, second = run.out.splitlines()
        assert heading.split() == ["#", "score", "dense", "sparse", "multi", "document"]
        assert first.split()[:3] == ["1", "1.000", "1.000"]
        assert f"lake · {TEXTS['lake']}" in first
        assert second.split()[0] == "2"

    def test_a_long_text_is_shortened_but_numbers_are_not(
        self, m3: M3, tmp_path: Path, checkpoint: Path
    ) -> None:
        (tmp_path / "long.txt").write_text("a very long line " * 100)
        m3("index", "qdrant:./data", "long.txt", "-m", checkpoint)
        heading, row = m3("search", "qdrant:./data", "line").out.splitlines()
        assert heading.split() == ["#", "score", "dense", "sparse", "multi", "document"]
        assert row.rstrip().endswith("…")
        assert len(row) <= 140
        assert all(len(number.partition(".")[2]) == 3 for number in row.split()[1:5])

    def test_json(self, m3: M3, filled: str) -> None:
        answer = m3("search", filled, TEXTS["lake"], "--json", "-k", "1", "--method", "multi_vec").json
        assert answer["method"] == "multi_vec"
        assert answer["weights"] == [0, 0, 1]
        (hit,) = answer["hits"]
        assert (hit["id"], hit["text"], hit["metadata"]) == (
            "lake",
            TEXTS["lake"],
            {"size": len(TEXTS["lake"])},
        )
        assert hit["score"] == hit["scores"]["multivector"] == pytest.approx(1, abs=1e-3)
        assert hit["scores"]["dense"] == pytest.approx(1, abs=1e-2)

    def test_filter_and_weights(self, m3: M3, filled: str) -> None:
        answer = m3(
            "search", filled, "fox", "--json", "--filter", '{"size": {"$lt": 40}}', "--weights", "2,0,3"
        ).json
        assert answer["weights"] == [2, 0, 3]
        (hit,) = answer["hits"]
        assert hit["id"] == "lake"
        assert hit["score"] == pytest.approx(
            2 * hit["scores"]["dense"] + 3 * hit["scores"]["multivector"], abs=1e-4
        )

    def test_weights_from_a_file(self, m3: M3, filled: str) -> None:
        Path("weights.json").write_text('{"all": [0.15, 0.5, 0.35]}')
        assert m3("search", filled, "fox", "--json", "--weights", "weights.json").json["weights"] == [
            0.15,
            0.5,
            0.35,
        ]

    def test_the_weights_of_the_method_are_used(self, m3: M3, filled: str) -> None:
        def weights(*arguments: str) -> Any:
            return m3("search", filled, "fox", "--json", *arguments).json["weights"]

        assert weights("--method", "dense_sparse", "--weights", "1,2") == [1, 2, 0]
        assert weights("--method", "dense_sparse", "--weights", "1,2,3") == [1, 2, 0]
        Path("weights.json").write_text('{"dense_sparse": [0.2, 0.8, 0.5]}')
        assert weights("--method", "dense_sparse", "--weights", "weights.json") == [0.2, 0.8, 0]
        run = m3("search", filled, "fox", "--method", "all", "--weights", "1,1")
        assert run.code == 2
        assert "takes 3" in unboxed(run.err)

    def test_documents_that_share_no_token_with_the_query(self, m3: M3, filled: str) -> None:
        run = m3("search", filled, "fox", "--method", "sparse")
        assert len(run.out.splitlines()) == 2
        assert run.err == "  2 other documents share no token with the query\n"
        assert m3("search", filled, "fox", "--method", "dense").err == ""
        none = m3("search", filled, "fox", "--method", "sparse", "--filter", '{"size": {"$lt": 40}}')
        assert none.out == "  no document shares a token with the query\n"

    def test_a_piped_table_has_no_trailing_blanks(self, m3: M3, filled: str) -> None:
        lines = m3("search", filled, "fox").out.splitlines()
        assert lines == [line.rstrip() for line in lines]

    def test_nothing_passes(self, m3: M3, filled: str) -> None:
        run = m3("search", filled, "fox", "--filter", '{"size": 0}')
        assert (run.code, run.out) == (0, "  no document matches the filter\n")


class TestModelOfACollection:
    """A collection is opened with the model that wrote it, wherever the command runs."""

    @pytest.fixture
    def project(self, m3: M3, corpus: Path, tmp_path: Path) -> Path:
        """A folder with a model and a store that was filled from inside it."""
        folder = tmp_path / "project"
        (folder / "models").mkdir(parents=True)
        write_checkpoint(folder / "models" / "small")
        (folder / "elsewhere").mkdir()
        with contextlib.chdir(folder):
            assert m3("index", "qdrant:./data", corpus, "-m", "models/small").code == 0
        return folder

    def forget(self) -> None:
        (Path(os.environ["M3_CACHE_DIR"]) / "models.json").unlink()

    def test_a_model_used_on_this_machine_is_found_by_its_fingerprint(
        self, m3: M3, project: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "away").mkdir()
        (project / "data").rename(tmp_path / "away" / "data")
        with contextlib.chdir(tmp_path / "away"):
            run = m3("search", "qdrant:./data", "fox", "--json")
            again = m3("search", "qdrant:./data", "fox")
        assert len(run.json["hits"]) == 3
        assert run.err == f"using the collection's model models/small from {project}/models/small\n"
        assert again.code == 0

    def test_a_model_next_to_the_store_is_found(self, m3: M3, project: Path, tmp_path: Path) -> None:
        self.forget()  # as on another machine
        moved = tmp_path / "moved"
        project.rename(moved)
        (tmp_path / "away").mkdir()
        with contextlib.chdir(tmp_path / "away"):
            run = m3("search", f"qdrant:{moved}/data", "fox", "--json")
            findings = m3("doctor", f"qdrant:{moved}/data", "--json").json["findings"]
        assert len(run.json["hits"]) == 3
        assert f"model models/small from {moved}/models/small" in run.err
        assert [f["value"].partition(" ")[0] for f in findings if f["what"] == "model"] == [
            f"{moved}/models/small"
        ]

    def test_a_namesake_is_passed_over(self, m3: M3, project: Path, tmp_path: Path) -> None:
        (tmp_path / "away" / "models").mkdir(parents=True)
        write_checkpoint(tmp_path / "away" / "models" / "small", seed=9)
        with contextlib.chdir(tmp_path / "away"):
            run = m3("search", f"qdrant:{project}/data", "fox", "--json")
        assert len(run.json["hits"]) == 3
        assert f"model models/small from {project}/models/small" in run.err

    def test_a_model_that_is_not_found_is_named_with_the_next_step(
        self, m3: M3, project: Path, tmp_path: Path
    ) -> None:
        (project / "models" / "small").rename(tmp_path / "kept")
        (tmp_path / "away" / "models").mkdir(parents=True)
        write_checkpoint(tmp_path / "away" / "models" / "small", seed=9)
        (Path(os.environ["M3_CACHE_DIR"]) / "models.json").write_text("{damaged")
        url = f"qdrant:{project}/data"
        with contextlib.chdir(tmp_path / "away"):
            run = m3("search", url, "fox")
            found = m3("search", url, "fox", "--json", "-m", tmp_path / "kept")
        assert (run.code, run.out) == (1, "")
        first, *rest = run.err.splitlines()
        assert re.fullmatch(
            r'ModelFormat: collection "documents" was written by models/small \(32 dims\) '
            r"\(fingerprint [0-9a-f]{12}\), which was not found here\.",
            first,
        )
        assert re.search(r"away/models/small contains another model \(fingerprint [0-9a-f]{12}\)\.", rest[0])
        assert "Searched for a directory models/small in: the current directory and its parents" in rest[1]
        assert rest[-1] == "  Give its location: --model DIRECTORY, or M3_MODEL=DIRECTORY."
        assert len(found.json["hits"]) == 3


def test_explain(m3: M3, filled: str, encoder: M3Encoder) -> None:
    run = m3("explain", filled, "the lake", "lake", "--weights", "1,0.5,2")
    first, tokens, pairs = run.out.splitlines()
    assert first.startswith("  dense ")
    assert " × 0.5 + multi " in first
    assert tokens.startswith("  matched tokens ")
    assert pairs.startswith("  token pairs ")
    explained = m3("explain", filled, "the lake", "lake", "--weights", "1,0.5,2", "--json").json
    assert explained["score"] == pytest.approx(sum(explained["weighted"].values()))
    assert explained["weighted"]["sparse"] == pytest.approx(0.5 * explained["scores"]["sparse"])
    parts = sum(token["query_weight"] * token["document_weight"] for token in explained["tokens"])
    assert parts == pytest.approx(explained["scores"]["sparse"], abs=1e-5)
    assert len(explained["pairs"]) == len(encoder.token_strings("the lake"))


def test_explain_breaks_between_items_only(
    m3: M3, filled: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ("explain", filled, "where is the city library near the quick brown fox", "library")
    piped = m3(*call).out.splitlines()
    assert len(piped) == 3
    assert "</s>" not in "".join(piped)
    monkeypatch.setattr(type(out), "is_terminal", True)
    monkeypatch.setattr(type(out), "width", 60)
    _first, *lines = m3(*call).out.splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) <= 60
    assert all(line.startswith((" " * 19, "  matched tokens   ", "  token pairs      ")) for line in lines)
    items = [item.strip(" ·") for line in lines for item in line[19:].split(" · ")]
    assert items == [item for line in piped[1:] for item in line[19:].split(" · ")]


class TestEval:
    @pytest.fixture
    def dataset(self, tmp_path: Path) -> Path:
        root = tmp_path / "sets" / "tiny"
        (root / "qrels").mkdir(parents=True)
        (root / "corpus.jsonl").write_text(
            "\n".join(json.dumps({"_id": id, "text": text}) for id, text in TEXTS.items())
        )
        (root / "queries.jsonl").write_text(
            "\n".join(json.dumps({"_id": f"q-{id}", "text": text}) for id, text in TEXTS.items())
        )
        rows = "".join(f"q-{id}\t{id}\t1\n" for id in TEXTS)
        (root / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
        return root

    def test_json_has_the_documented_shape(self, m3: M3, dataset: Path, checkpoint: Path) -> None:
        names = ["dense", "sparse", "multi_vec", "dense_sparse", "all"]
        run = m3(
            *("eval", dataset, "--split", "test", "--to", "qdrant:./data", "--model", checkpoint),
            *("--methods", ",".join(names), "--baseline", "bm25", "--json"),
        )
        document = run.json
        lengths = ["query_max_length", "passage_max_length"]
        assert list(document) == [
            *("dataset", "split", "model", "fusion", *lengths, "warnings", "out", "results"),
        ]
        assert (document["dataset"], document["split"], document["fusion"]) == ("tiny", "test", "exact")
        assert [result["method"] for result in document["results"]] == [*names, "bm25"]
        for result in document["results"]:
            assert list(result) == ["method", "weights", "nDCG@10", "Recall@100", "MRR@10", "queries"]
            assert result["queries"] == 3
        by_method = {result["method"]: result for result in document["results"]}
        assert by_method["dense"]["nDCG@10"] == by_method["multi_vec"]["MRR@10"] == 1
        assert by_method["bm25"]["Recall@100"] == 1

    def test_table_with_weights_and_no_second_encoding(self, m3: M3, dataset: Path, checkpoint: Path) -> None:
        call = ("eval", dataset, "--to", "qdrant:./data", "-m", checkpoint, "--methods", "all,dense_sparse")
        first = m3(*call, "--weights", "1,2,3")
        assert "already" not in first.err
        assert ["all", "1", "2", "3"] in [line.split()[:4] for line in first.out.splitlines()]
        assert ["dense_sparse", "1", "2", "0"] in [line.split()[:4] for line in first.out.splitlines()]
        second = m3(*call, "--weights", "paper")
        assert (
            "3 of 3 documents are already in qdrant:./data sets-tiny and are not encoded again" in second.err
        )
        assert ["all", "1", "0.3", "1"] in [line.split()[:4] for line in second.out.splitlines()]

    def test_fusion_and_the_papers_weights(self, m3: M3, dataset: Path, checkpoint: Path) -> None:
        call = ("eval", dataset, "--to", "qdrant:./data", "-m", checkpoint, "--fusion", "paper", "--json")
        document = m3(*call, "--methods", "all,all-paper,sparse", "--weights", "1,2,3").json
        assert document["fusion"] == "paper"
        weights = {result["method"]: result["weights"] for result in document["results"]}
        assert weights == {"all": [1, 2, 3], "all-paper": [1, 0.3, 1], "sparse": [0, 1, 0]}
        assert Path("data/sets-tiny-hundredths").is_dir()
        assert m3(*call, "--fusion", "both").code == 2

    def test_a_collection_of_other_documents_is_refused(self, m3: M3, dataset: Path, filled: str) -> None:
        (dataset / "corpus.jsonl").write_text('{"_id": "lake", "text": "only one of three"}\n')
        run = m3("eval", dataset, "--to", filled, "--collection", "documents")
        assert run.code == 1
        assert "2 documents that are not in this corpus" in run.err

    def test_wrong_usage(self, m3: M3, dataset: Path) -> None:
        assert m3("eval", dataset, "--methods", "all,none").code == 2
        assert m3("eval", dataset, "--baseline", "lucene").code == 2
        assert m3("eval").code == 2
        assert m3("eval", dataset, "--methods", "dense, sparse", "--to", "foo:bar").code == 2

    def test_errors_are_reported_before_the_corpus_is_encoded(
        self, m3: M3, dataset: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        call = ("eval", dataset, "--to", "qdrant:./data", "-m", checkpoint)
        for wrong in (
            ("--weights", "1,2", "--methods", "all"),
            ("--weights", "nan,1,1"),
            ("--query-max-length", "100000"),
            ("--passage-max-length", "2"),
        ):
            assert m3(*call, *wrong).code == 2, wrong
        monkeypatch.setitem(sys.modules, "bm25s", None)
        run = m3(*call, "--baseline", "bm25")
        assert (run.code, run.err.split(":")[0]) == (1, "MissingDependency")
        assert not Path("data").exists()

    def test_the_passage_length_does_not_apply_to_queries(
        self, m3: M3, dataset: Path, checkpoint: Path
    ) -> None:
        call = ("eval", dataset, "--to", "qdrant:./data", "-m", checkpoint, "--methods", "multi_vec, dense")
        lengths: list[int] = []
        real = M3Encoder.encode

        def spy(self: M3Encoder, texts: Any, **options: Any) -> M3Embeddings:
            result = real(self, texts, **options)
            assert result.multivectors is not None
            lengths.append(int(result.multivectors.counts.max()))
            return result

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(M3Encoder, "encode", spy)
            assert m3(*call, "--passage-max-length", "4").code == 0
        corpus, queries = lengths
        assert corpus == 3  # <s> has no row
        assert queries > 3
        assert "already" not in m3(*call).err  # other vectors, another collection

    def test_collection_names(self) -> None:
        assert collection_name(Path("/data/mldr/en")) == "mldr-en"
        assert collection_name(Path("/data/ö x/…y")) == "x-y"
        assert collection_name(Path("/")) == "dataset"
        assert collection_name(Path("/data/mldr/en"), 512) == "mldr-en-512"
        assert len(collection_name(Path("/data") / ("x" * 250), 512)) == 180  # room for -hundredths


class TestEncode:
    def test_json(self, m3: M3, checkpoint: Path, encoder: M3Encoder) -> None:
        document = m3("encode", "the lake", "a fox", "--json", "-m", checkpoint).json
        first, second = document["embeddings"]
        assert (first["text"], second["text"]) == ("the lake", "a fox")
        expected = encoder.encode(["the lake", "a fox"])
        assert expected.dense is not None
        # The command computes in bfloat16 where the machine does; the fixture in float32.
        assert float(np.dot(first["dense"], expected.dense[0])) == pytest.approx(1, abs=1e-2)
        assert set(first["sparse"]) == set(expected.lexical_weights(0, encoder))
        assert len(second["multivectors"]) == len(encoder.token_strings("a fox"))

    def test_a_file_of_vectors(self, m3: M3, checkpoint: Path, corpus: Path) -> None:
        run = m3(
            "encode", "--file", corpus, "--to", "v.safetensors", "--components", "dense", "-m", checkpoint
        )
        assert (run.code, run.err) == (0, "")
        assert "3 texts · dense · " in run.out
        loaded = M3Embeddings.load("v.safetensors")
        assert (len(loaded), loaded.components) == (3, ("dense",))

    def test_lines_of_text_keep_their_places(self, m3: M3, checkpoint: Path) -> None:
        Path("lines.txt").write_text("one\n\nthree\n")
        document = m3("encode", "-f", "lines.txt", "--json", "--components", "sparse", "-m", checkpoint).json
        assert [row["text"] for row in document["embeddings"]] == ["one", "", "three"]

    def test_texts_that_are_cut_are_named(self, m3: M3, checkpoint: Path, encoder: M3Encoder) -> None:
        texts = ["a fox", "the lazy brown fox", *(f"the lazy brown fox {i}" for i in range(11))]
        counts = encoder.count_tokens(texts)
        assert counts[0] <= 5 < counts[1]
        call = ("encode", *texts, "-m", checkpoint, "--max-length", "5", "--components", "dense")
        run = m3(*call, "--json")
        assert [(row["truncated"], row["tokens"], row["kept"]) for row in run.json["embeddings"]] == [
            (count > 5, count, min(count, 5)) for count in counts
        ]
        said = run.err.splitlines()
        lost = counts[1] - 5
        assert said[0] == (
            f"warning  text 2 has {counts[1]} tokens and was truncated to 5: {lost} tokens "
            f"({lost / counts[1]:.0%}) are lost"
        )
        assert len(said) == 11
        assert said[-1].startswith("warning  2 more texts were truncated: ")
        m3(*call, "--to", "v.safetensors")
        saved = M3Embeddings.load("v.safetensors").token_counts
        assert saved is not None
        assert saved.tolist() == counts

    def test_a_bad_record_is_an_error_so_that_rows_stay_aligned(
        self, m3: M3, corpus: Path, checkpoint: Path
    ) -> None:
        with corpus.open("a") as file:
            file.write("{broken\n")
        run = m3("encode", "-f", corpus, "--json", "-m", checkpoint)
        assert (run.code, run.out) == (1, "")
        assert "corpus.jsonl:4: not JSON" in run.err

    def test_a_file_that_is_not_utf_8(self, m3: M3, checkpoint: Path) -> None:
        Path("latin1.txt").write_bytes(b"caf\xe9\n")
        run = m3("encode", "-f", "latin1.txt", "--json", "-m", checkpoint)
        assert run.code == 1
        assert run.err.startswith("InvalidInput: latin1.txt is not UTF-8 at byte 3.\n  Convert it")

    def test_a_pipe_is_a_file(self, m3: M3, checkpoint: Path, tmp_path: Path) -> None:
        os.mkfifo("pipe")
        writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("a fox\n"))
        writer.start()
        document = m3(
            "encode", "-f", "pipe", "--json", "--components", " dense , sparse", "-m", checkpoint
        ).json
        writer.join()
        assert [row["text"] for row in document["embeddings"]] == ["a fox"]

    @pytest.mark.parametrize("to", ["nodir/x", "."])
    def test_an_unwritable_output_is_reported_before_the_model_loads(self, m3: M3, to: str) -> None:
        run = m3("encode", "x", "--to", to, "-m", "no-model-here")
        assert run.code == 1
        assert run.err.startswith("InvalidInput: --to")

    def test_a_length_that_the_model_cannot_read(self, m3: M3, checkpoint: Path) -> None:
        assert m3("encode", "x", "--json", "-m", checkpoint, "--max-length", "100000").code == 2
        assert "'2' is not valid; give an integer of at least 3" in unboxed(
            m3("encode", "x", "--json", "--max-length", "2").err
        )

    @pytest.mark.parametrize(
        "call", [[], ["a"], ["a", "-f", "b", "--json"], ["a", "--json", "--components", "x"]]
    )
    def test_wrong_usage(self, m3: M3, call: list[str]) -> None:
        assert m3("encode", *call).code == 2


class TestDoctor:
    def test_a_healthy_store(self, m3: M3, filled: str, checkpoint: Path) -> None:
        report = m3("doctor", filled, "-m", checkpoint, "--json").json
        assert report["ok"]
        values = {finding["what"]: finding["value"] for finding in report["findings"]}
        assert values["collection"] == "documents, 3 documents"
        assert "32 dims" in values["written by"]
        assert "python" not in values["precision"]
        assert "int8" in values["int8"]
        assert {"torch", "qdrant-edge-py", "bm25s", "device"} <= set(values)

    def test_a_missing_collection_is_a_note(self, m3: M3, checkpoint: Path) -> None:
        run = m3("doctor", "qdrant:./nothing", "-m", checkpoint, "--json")
        assert run.code == 0
        (note,) = [finding for finding in run.json["findings"] if finding["what"] == "collection"]
        assert note["level"] == "note"
        assert "m3 index qdrant:./nothing" in note["remedy"]
        assert not Path("nothing").exists()

    def test_an_incomplete_model(self, m3: M3, tmp_path: Path) -> None:
        write_checkpoint(tmp_path / "model")
        (tmp_path / "model" / "colbert_linear.pt").unlink()
        assert "colbert_linear.pt is missing" in self.problem(m3("doctor", "-m", "model", "--json"))

    def problem(self, run: Run) -> str:
        assert run.code == 1
        (problem,) = [finding for finding in run.json["findings"] if finding["level"] == "problem"]
        return f"{problem['what']}: {problem['value']} {problem['remedy']}"

    def test_weights_that_are_damaged_or_missing(self, m3: M3, tmp_path: Path) -> None:
        weights = write_checkpoint(tmp_path / "model") / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        assert "model.safetensors cannot be read" in self.problem(m3("doctor", "-m", "model", "--json"))
        weights.unlink()
        assert "neither model.safetensors" in self.problem(m3("doctor", "-m", "model", "--json"))

    def test_a_name_of_no_model(self, m3: M3, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        assert "config.json is missing" in self.problem(m3("doctor", "-m", "empty", "--json"))
        assert "neither a directory" in self.problem(m3("doctor", "-m", "./not/there", "--json"))

    def test_a_model_that_did_not_write_the_collection(self, m3: M3, filled: str, tmp_path: Path) -> None:
        write_checkpoint(tmp_path / "other-m3", seed=1)
        problem = self.problem(m3("doctor", filled, "-m", "other-m3", "--json"))
        assert problem.startswith("model: ModelMismatch")
        assert "M3Encoder" not in problem

    def test_the_collections_model_is_gone(self, m3: M3, corpus: Path, tmp_path: Path) -> None:
        model = write_checkpoint(tmp_path / "away" / "model")
        m3("index", "qdrant:./data", corpus, "-m", model)
        model.rename(tmp_path / "moved")
        assert "away/model" in self.problem(m3("doctor", "qdrant:./data", "--json"))

    def test_documents_that_cannot_be_read(
        self, m3: M3, filled: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fail(*_: object) -> None:
            raise Corrupt("document 'lake' has no text", backend="qdrant", operation="fetch")

        monkeypatch.setattr("m3_connectors.backends.base.Backend.fetch", fail)
        problem = self.problem(m3("doctor", filled, "-m", checkpoint, "--json"))
        assert problem.startswith("read back: Corrupt: qdrant fetch: document 'lake'")


class TestFailures:
    def assert_reason(self, run: Run, code: int, *parts: str) -> None:
        assert run.code == code
        assert run.out == ""
        assert "Traceback" not in run.err
        for part in parts:
            assert part in run.err

    def test_no_collection(self, m3: M3) -> None:
        run = m3("search", "qdrant:./nothing", "x")
        self.assert_reason(run, 1, "CollectionNotFound:", "\n  Create it:  m3 index qdrant:./nothing SOURCE")
        assert not Path("nothing").exists()

    def test_an_unknown_store(self, m3: M3, corpus: Path) -> None:
        self.assert_reason(m3("index", "no:where", corpus), 2, "'no:where' does not name a store")

    def test_a_directory_without_a_model(self, m3: M3, corpus: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        run = m3("index", "qdrant:./data", corpus, "--model", "empty")
        self.assert_reason(run, 1, "ModelFormat:", "config.json")

    def test_another_model_is_refused_by_name(
        self, m3: M3, filled: str, tmp_path: Path, checkpoint: Path
    ) -> None:
        other = write_checkpoint(tmp_path / "other-m3", seed=1)
        run = m3("search", filled, "x", "--model", other)
        self.assert_reason(run, 1, "ModelMismatch:", "small-m3", "other-m3")

    def test_a_model_that_is_gone(self, m3: M3, corpus: Path, tmp_path: Path) -> None:
        model = write_checkpoint(tmp_path / "away" / "model")
        m3("index", "qdrant:./data", corpus, "-m", model)
        model.rename(tmp_path / "moved")
        run = m3("search", "qdrant:./data", "x")
        self.assert_reason(run, 1, "ModelFormat:", "away/model", "--model DIRECTORY")
        assert m3("search", "qdrant:./data", "x", "-m", "moved").code == 0

    def test_the_environment_names_the_model(
        self, m3: M3, corpus: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("M3_MODEL", str(checkpoint))
        assert m3("index", "qdrant:./data", corpus).code == 0

    def test_no_document_to_explain(self, m3: M3, filled: str) -> None:
        self.assert_reason(m3("explain", filled, "x", "nobody"), 1, "DocumentNotFound:", "'nobody'")

    def test_a_missing_source(self, m3: M3) -> None:
        self.assert_reason(m3("index", "qdrant:./data", "nothing.jsonl"), 1, "nothing.jsonl does not exist")

    def test_negative_weights_and_unknown_operators(self, m3: M3, filled: str) -> None:
        self.assert_reason(m3("search", filled, "x", "--weights=-1,0,1"), 2, "weight of dense is -1")
        self.assert_reason(m3("search", filled, "x", "--filter", '{"a": {"$near": 1}}'), 2, "'$near'", "$gte")

    @pytest.mark.parametrize(
        "call",
        [
            [],
            ["no-such-command"],
            ["index"],
            ["index", "memory:"],
            ["search", "memory:", "x", "-k", "0"],
            ["search", "memory:", "x", "--method", "best"],
            ["search", "memory:", "x", "--filter", "{"],
            ["search", "memory:", "x", "--filter", "[1]"],
            ["search", "memory:", "x", "--no-such-option"],
            ["search", "memory:", "x", "--filter", ""],
            ["search", "memory:", "x", "-c", "_bad name"],
            ["search", "memory:", "x", "--weights", "0,0,0"],
            ["search", "memory:", "x", "--weights", "nan,1,1"],
            ["explain", "memory:", "x", "id", "--weights", "1"],
            ["explain", "foo:bar", "x", "id"],
            ["doctor", "foo:bar"],
            ["search", "qdrant:", "x"],
        ],
    )
    def test_wrong_usage(self, m3: M3, call: list[str]) -> None:
        assert m3(*call).code == 2

    @pytest.mark.parametrize("value", ["0", "-3", "many", "1.5"])
    def test_wrong_values_are_named(self, m3: M3, value: str) -> None:
        run = m3("search", "memory:", "x", "-k", value)
        assert run.code == 2
        assert f"'{value}' is not valid; give an integer of at least 1" in unboxed(run.err)

    def test_advice_is_for_the_command_line(
        self, m3: M3, filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert "m3 index qdrant:./data SOURCE -c other" in m3("search", filled, "x", "-c", "other").err
        assert "memory: is empty when a command starts" in m3("search", "memory:", "x").err
        other = write_checkpoint(tmp_path / "other-m3", seed=1)
        mismatch = m3("search", filled, "x", "--model", other).err
        assert "Omit --model" in mismatch
        assert "M3Encoder" not in mismatch

        def offline(*_: object, **__: object) -> None:
            raise OSError("no route to host")

        monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
        hub = m3("encode", "x", "--json", "-m", "some/model").err
        assert hub.startswith("Unavailable:")
        assert hub.endswith("  Use a local directory: --model DIRECTORY.\n")
        assert "M3Encoder" not in hub

    @pytest.mark.parametrize("value", ["a,b", "1", "1,2,3,4"])
    def test_weights_that_are_none(self, m3: M3, filled: str, value: str) -> None:
        assert m3("search", filled, "x", "--weights", value).code == 2

    def test_weights_for_a_single_score(self, m3: M3, filled: str) -> None:
        run = m3("search", filled, "x", "--method", "dense", "--weights", "1,2,3")
        assert run.code == 2
        assert "method dense takes no weights" in " ".join(run.err.replace("│", " ").split())

    def test_debug_shows_the_traceback(self, m3: M3) -> None:
        assert "Traceback" in m3("search", "qdrant:./nothing", "x", "--debug").err

    def test_a_bug_in_m3_is_reported_as_one(
        self, m3: M3, filled: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise KeyError("inner")

        monkeypatch.setattr("m3_connectors.blocking.Index.search", fail)
        self.assert_reason(
            m3("search", filled, "x"), 1, "KeyError: 'inner'", "run the command again with --debug"
        )


class TestProcess:
    """What only a process of its own shows."""

    def run(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[bytes]:
        program = "import sys; from m3_connectors.cli.app import main; sys.exit(main())"
        return subprocess.run(
            [sys.executable, "-c", program, *arguments], cwd=cwd, capture_output=True, timeout=120
        )

    def test_stdout_is_one_json_document(self, tmp_path: Path, checkpoint: Path, corpus: Path) -> None:
        done = self.run(
            "index", "qdrant:./data", "corpus.jsonl", "-m", str(checkpoint), "--json", cwd=tmp_path
        )
        assert done.returncode == 0
        assert json.loads(done.stdout)["documents"] == 3
        assert done.stderr == b""

    def test_a_terminal_without_unicode(self, tmp_path: Path, checkpoint: Path) -> None:
        program = "import sys; from m3_connectors.cli.app import main; sys.exit(main())"
        environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "müsli.txt").write_text("中文 and more")
        (tmp_path / os.fsdecode(b"notes/\xff.txt")).write_text("a name that is no Unicode")
        for call in (
            ["index", "qdrant:./data", "notes", "-m", str(checkpoint)],
            ["search", "qdrant:./data", "中文"],
            ["search", "qdrant:./data", "中文", "--json"],
        ):
            command = [sys.executable, "-c", program, *call]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120)
            assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["hits"][0]["text"] == "中文 and more"
        letter = json.loads((tmp_path / "notes.dead.jsonl").read_text())
        assert "its name is not UTF-8" in letter["reason"]

    def test_help_loads_neither_torch_nor_a_client(self, tmp_path: Path) -> None:
        program = (
            "import sys; from m3_connectors.cli.app import main; main(['--help']); "
            "heavy = {'torch', 'qdrant_edge', 'huggingface_hub', 'ir_measures', 'bm25s'} & set(sys.modules); "
            "sys.exit(str(heavy) if heavy else 0)"
        )
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        for command in (b"index", b"search", b"explain", b"eval", b"encode", b"doctor"):
            assert command in done.stdout


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (12.3, "12 s"),
        (59.6, "1 min 0 s"),
        (130, "2 min 10 s"),
        (11520, "3 h 12 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
