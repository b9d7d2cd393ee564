"""The demo: what it reads, and that it runs from end to end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from m3_connectors.demo import __main__ as demo
from m3_connectors.demo.__main__ import QUESTIONS, demonstrate, is_right, known_item_dataset
from m3_connectors.demo.pydocs import Entry, collect


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    return collect(3000)


class TestCollect:
    def test_entries_are_public_distinct_and_documented(self, entries: list[Entry]) -> None:
        assert len(entries) == 3000
        assert len({entry.name for entry in entries}) == len({entry.docstring for entry in entries}) == 3000
        assert all(len(entry.docstring) >= 40 for entry in entries)
        assert not any(part.startswith("_") for entry in entries for part in entry.name.split("."))

    def test_what_everyone_knows_is_there(self, entries: list[Entry]) -> None:
        by_name = {entry.name: entry for entry in entries}
        assert by_name["str.strip"].signature == "(self, chars=None, /)"
        assert by_name["str.strip"].summary.startswith(
            "Return a copy of the string with leading and trailing"
        )
        assert by_name["itertools.chain"].kind == "class"
        assert {entry.kind for entry in entries} == {"module", "class", "function"}

    def test_the_choice_is_the_same_each_time(self, entries: list[Entry]) -> None:
        assert collect(3000) == entries
        assert collect(1000) == entries[:1000]

    def test_nothing_is_imported(self) -> None:
        program = (
            "import sys; from m3_connectors.demo.pydocs import collect; before = set(sys.modules); collect(3000); "
            "compiled = {'math', 'itertools', 'time', 'zlib', 'array', 'select', 'unicodedata'}; "
            "new = {name for name in set(sys.modules) - before if not name.startswith('_sysconfigdata')}; "
            "sys.exit(str(new - compiled) if new - compiled else 0)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr


def test_known_items_leave_out_what_cannot_be_told_apart() -> None:
    long = "x " * 60

    def entry(name: str, docstring: str) -> Entry:
        return Entry(name, "()", docstring, "function")

    entries = [
        entry("good", f"Return the right answer.\n\n{long}"),
        entry("same.summary", f"Return the right answer.\n\nother {long}"),
        entry("same.details", f"Return another right answer.\n\n{long}"),
        entry("short.summary", f"Too short.\n\n1 {long}"),
        entry("no.details", "Return what has no further words."),
        entry("also.good", f"Summary over\ntwo lines here.\n\n2 {long}"),
    ]
    dataset = known_item_dataset(entries, documents=10, queries=10)
    assert dataset.queries == {
        "good": "Return the right answer.",
        "also.good": "Summary over two lines here.",
    }
    assert dataset.qrels == {"good": {"good": 1}, "also.good": {"also.good": 1}}
    assert [document.text[:2] for document in dataset.documents] == ["x ", "2 "]
    assert len(known_item_dataset(entries, documents=10, queries=1).queries) == 1


def test_runs_from_end_to_end_and_again(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the second run finds what the first one left, and begins anew
        demonstrate(str(checkpoint), entries=300, known_items=40, known_item_queries=10)
        shown = capsys.readouterr().out
        for part in (
            "300 documents",
            "dense_sparse",
            "matched tokens",
            "token pairs",
            "10 queries",
            "bm25",
            "m3 index",
        ):
            assert part in shown
        assert "\x1b" not in shown  # plain where nobody watches


@pytest.mark.parametrize("known", [True, False])
def test_the_answer_that_is_explained_is_a_right_one(
    known: bool,
    entries: list[Entry],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of the first question no answer is right here; the third has one, where it is ``known``."""
    monkeypatch.chdir(tmp_path)
    others = [entry for entry in entries if not any(is_right(question, entry.name) for question in QUESTIONS)]
    right = Entry("getopt", "", "Parser for command line options, which parses the options given.", "module")
    monkeypatch.setattr(demo, "collect", lambda limit: [*others[: limit - 1], right][: limit - 1 + known])
    monkeypatch.setattr(demo, "_measure", lambda *_: None)
    demonstrate("m3-tiny", entries=200)
    explained = capsys.readouterr().out.partition("4  Explain")[2].partition("5  Measure")[0]
    assert ("“parse the options given on the command line” and getopt:" in explained) == known
    assert ("a wrong answer: this model found no right one" in explained) == (not known)


def test_a_missing_model_is_reported_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "m3_connectors.demo", "--model", "no/such/model"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("ModelFormat: no/such/model")
