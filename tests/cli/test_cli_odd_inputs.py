"""The command line with odd files and arguments: no file of the user is removed, misread, or skipped silently."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reading import write

from m3_connectors import Document, connect
from m3_connectors.cli.app import main
from m3_connectors.encoder.encoder import M3Encoder
from m3_connectors.errors import InvalidInput
from m3_connectors.readers import DeadLetter, DeadLetterFiles

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def m3(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> Call:
    """Runs ``m3`` in an empty current directory: exit code, stdout and stderr without the frame of usage messages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("M3_MODEL", str(checkpoint))

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, " ".join(captured.err.replace("│", " ").split())

    return run


def indexed(m3: Call, *arguments: str) -> Any:
    code, out, err = m3("index", "qdrant:store", *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


class TestReports:
    OWN = '{"id": "own", "text": "a file of the user"}\n'

    @pytest.mark.parametrize("own", [OWN, "", "no JSON at all", '{"id": "no text"}\n'])
    def test_a_file_of_the_user_is_neither_removed_nor_overwritten(self, m3: Call, own: str) -> None:
        for name in ("prices.dead.jsonl", "prices.cut.jsonl"):
            write(Path(name), own)
        write(Path("prices.jsonl"), '{"text": "fox"}\n{"text": "' + "fox " * 9000 + '"}\nnot JSON\n')
        for _ in range(2):
            report = indexed(m3, "prices.jsonl")
            assert [Path(path).name for path in report["dead_letters"]] == ["prices.2.dead.jsonl"]
            assert [Path(path).name for path in report["cut_documents"]] == ["prices.2.cut.jsonl"]
        assert Path("prices.dead.jsonl").read_text() == Path("prices.cut.jsonl").read_text() == own
        write(Path("prices.jsonl"), '{"text": "fox"}\n')
        indexed(m3, "prices.jsonl")
        assert sorted(path.name for path in Path().glob("prices.*")) == [
            "prices.cut.jsonl",
            "prices.dead.jsonl",
            "prices.jsonl",
        ]

    def test_a_shells_pattern_may_name_the_reports_of_the_run_before(self, m3: Call) -> None:
        write(Path("a.jsonl"), '{"id": "a", "text": "fox"}\nnot JSON\n')
        write(Path("own.dead.jsonl"), self.OWN)
        for _ in range(3):
            report = indexed(m3, *sorted(str(path) for path in Path().glob("*.jsonl")))
            assert (report["read"], report["skipped"]) == (2, 1)
        assert sorted(path.name for path in Path().glob("*.jsonl")) == [
            "a.dead.jsonl",
            "a.jsonl",
            "own.dead.jsonl",
        ]

    def test_an_unwritable_report_is_an_error_with_the_next_step(self, tmp_path: Path) -> None:
        with (
            DeadLetterFiles(tmp_path / "gone") as dead,
            pytest.raises(
                InvalidInput, match=r"a\.dead\.jsonl cannot be written.*\n  Run m3 ingest in a folder"
            ),
        ):
            dead.add(Path("a.jsonl"), DeadLetter("a.jsonl", 1, "not JSON"))


class TestFilters:
    @pytest.fixture
    def store(self, tmp_path: Path, encoder: M3Encoder) -> str:
        url = f"qdrant:{tmp_path / 'filtered'}"
        with connect(url, encoder=encoder) as index:
            index.add([Document(str(year), "fox", {"year": year}) for year in (1990, 2010, 2030)])
        return url

    @pytest.mark.parametrize(
        "filter",
        [
            '{"year": {"$gte": 2000}, "year": {"$lt": 2020}}',
            '{"year": {"$gte": 2000, "$gte": 1900}}',
            '{"$or": [{"year": 2010}], "$or": [{"year": 1990}]}',
        ],
    )
    def test_a_duplicate_name_is_refused(self, m3: Call, store: str, filter: str) -> None:
        for call in (["delete", store, "--yes"], ["search", store, "fox"]):
            code, _, err = m3(*call, "--filter", filter)
            assert code == 2
            assert "occurs twice in one object" in " ".join(err.split())
        with connect(store, create=False) as index:
            assert index.count() == 3

    @pytest.mark.parametrize("filter", ['{"n": ' + "9" * 5000 + "}", '{"a": ' * 5000 + "1" + "}" * 5000])
    def test_one_that_cannot_be_parsed_is_wrong_usage(self, m3: Call, store: str, filter: str) -> None:
        code, _, err = m3("search", store, "fox", "--filter", filter)
        assert code == 2
        assert "fault of m3" not in err
        assert "Invalid value for --filter" in err


class TestSources:
    def test_a_file_named_as_standard_input_is_read(self, m3: Call) -> None:
        write(Path("-"), "fox")
        write(Path("sub/-"), "lake")
        report = indexed(m3, ".")
        assert (report["documents"], report["skipped"]) == (2, 0)
        code, out, _ = m3("get", "qdrant:store", "--", "-", "sub/-")
        assert code == 0
        assert [line for line in out.splitlines() if line.startswith("  ")] == ["  fox", "  lake"]

    def test_collections_in_a_folder_are_not_read_as_documents(self, m3: Call) -> None:
        write(Path("a.txt"), "fox")
        indexed(m3, "a.txt")
        for url in ("qdrant:store", "qdrant:other", "qdrant:."):
            code, out, err = m3("index", url, ".", "--json", "-c", "second")
            assert code == 0, err
            assert json.loads(out)["count"] == 1, url

    @pytest.mark.parametrize("sources", [[""], ["a.txt", ""]])
    def test_an_empty_name_is_not_the_current_directory(self, m3: Call, sources: list[str]) -> None:
        write(Path("a.txt"), "fox")
        code, _, err = m3("index", "qdrant:store", *sources)
        assert code == 2
        assert "SOURCE is empty" in err
        assert not Path("store").exists()

    def test_one_that_is_given_twice_is_read_once(self, m3: Call) -> None:
        write(Path("a.jsonl"), '{"id": "a", "text": "fox"}\n')
        report = indexed(m3, "a.jsonl", "./a.jsonl")
        assert (report["documents"], report["duplicates"]) == (1, [])

    def test_excluded_files_are_not_reported_as_unsupported(self, m3: Call) -> None:
        write(Path("a.jsonl"), '{"id": "a", "text": "fox"}\n')
        code, _, err = m3("index", "qdrant:store", "a.jsonl", "--exclude", "*.jsonl")
        assert code == 1
        assert "no records that --exclude does not leave out" in err

    def test_records_without_a_text_are_named(self, m3: Call) -> None:
        write(
            Path("a.jsonl"),
            '{"id": "a", "text": ""}\n{"id": "b", "text": " \\n"}\n{"id": "c", "text": "fox"}',
        )
        write(Path("t.csv"), "id,title,text\n1,,\n2,lake,\n")
        report = indexed(m3, "a.jsonl", "t.csv")
        assert (report["documents"], report["skipped"]) == (2, 3)
        letters = [
            json.loads(line)
            for path in report["dead_letters"]
            for line in Path(path).read_text().splitlines()
        ]
        assert [(letter["line"], letter["reason"]) for letter in letters] == [
            (1, "text is empty"),
            (2, "text is empty"),
            (2, "text is empty"),
        ]

    def test_ascii_is_not_windows_1252(self, m3: Call) -> None:
        write(Path("a.csv"), "id,text\n1,café\n2,fox\n")
        report = indexed(m3, "a.csv", "--encoding", "ascii")
        assert (report["documents"], report["skipped"]) == (1, 1)


class TestTexts:
    def test_get_prints_no_control_characters(self, m3: Call, tmp_path: Path, encoder: M3Encoder) -> None:
        text = "\x1b[2J\x1b]0;title\x07red\x9b31m\tfox"
        with connect(f"qdrant:{tmp_path / 'store'}", encoder=encoder) as index:
            index.add([Document("a", text)])
        code, out, _ = m3("get", "qdrant:store", "a")
        assert code == 0
        assert not set(out) & {"\x1b", "\x07", "\x9b"}
        assert "red" in out
        assert json.loads(m3("get", "qdrant:store", "a", "--json")[1])["text"] == text

    def test_an_empty_id_is_refused_with_a_clear_message(self, m3: Call) -> None:
        code, _, err = m3("get", "qdrant:store", "")
        assert code == 2
        assert "Invalid value for ID: id is empty" in err

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("t.txt", "fox\ncafé\n".encode("utf-16")),
            ("t.txt", "\ufefffox\ncafé\n".encode()),
            ("t.txt.gz", gzip.compress("fox\ncafé\n".encode(), mtime=0)),
        ],
    )
    def test_lines_to_encode_may_be_marked_or_compressed(self, m3: Call, name: str, content: bytes) -> None:
        write(Path(name), content)
        code, out, err = m3("encode", "--file", name, "--json")
        assert code == 0, err
        assert [entry["text"] for entry in json.loads(out)["embeddings"]] == ["fox", "café"]

    def test_records_to_encode_may_be_empty_so_that_rows_agree(self, m3: Call) -> None:
        write(Path("t.jsonl"), '{"text": "fox"}\n{"text": ""}\n')
        code, out, err = m3("encode", "--file", "t.jsonl", "--json")
        assert code == 0, err
        assert [entry["text"] for entry in json.loads(out)["embeddings"]] == ["fox", ""]
