"""Generated questions, asked of a real server on loopback: what is stored, rejected, tried again and continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat import message, prompt_of
from loopback import Answer, endpoint

from m3_connectors.cli.app import main

TOPICS = {
    "glaciers": "Glaciers grow where more snow falls in winter than melts in summer, and slowly flow downhill",
    "bridges": "Suspension bridges carry their deck on cables that hang between two tall towers of steel",
    "bees": "Honey bees dance in their dark hive to tell other bees where flowers with nectar can be found",
    "printing": "Printers of the fifteenth century set each page from single letters that were cast in lead",
    "volcanoes": "Volcanoes above a subduction zone erupt explosively because their magma contains much water",
}
QUESTIONS = {
    "glaciers": "When does the ice of glaciers become thicker over the years?",
    "bridges": "Which part of suspension bridges holds the road up in the air?",
    "bees": "How do honey bees learn from others about new flowers?",
    "printing": "What did printers in the fifteenth century make their pages from?",
    "volcanoes": "Why are the volcanoes of a subduction zone so explosive?",
}
GERMAN = "Warum sind die Vulkane über einer Subduktionszone so gefährlich und explosiv?"


def article(name: str) -> str:
    """A long text about one topic: each sentence has a number, so that no passage is like another."""
    sentences = (
        f"{TOPICS[name]}, as chapter {i} of the book about {name} explains at length." for i in range(54)
    )
    return f"All about {name}\n\n" + " ".join(sentences)


@pytest.fixture
def articles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    rows = [{"id": name, "text": article(name)} for name in TOPICS]
    path = tmp_path / "articles.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def topic_of(body: dict[str, Any]) -> str:
    return next(name for name in TOPICS if TOPICS[name] in prompt_of(body))


def good(_: int, body: dict[str, Any]) -> Answer:
    return message(QUESTIONS[topic_of(body)])


Said = Callable[[int, dict[str, Any]], Answer]


def run(
    base: str,
    capsys: pytest.CaptureFixture[str],
    *arguments: str,
    sources: tuple[str, ...] = ("articles.jsonl",),
    code: int = 0,
) -> tuple[dict[str, Any], str]:
    """Run the command; return its report and what it wrote to stderr."""
    known = [*sources, "--endpoint", base, "--model", "small", "--to", "pairs.jsonl", "--json"]
    assert main(["data", "questions", *known, *arguments]) == code
    captured = capsys.readouterr()
    return (json.loads(captured.out) if code == 0 else {}), captured.err


def lines(name: str) -> list[dict[str, Any]]:
    path = Path(name)
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


@pytest.mark.usefixtures("articles")
class TestQuestions:
    def test_the_whole_article_is_the_positive_of_a_question_about_a_passage(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with endpoint(good) as (base, heard):
            report, _ = run(base, capsys)
        assert {(request["path"], request["model"], request["key"]) for request in heard} == {
            ("/v1/chat/completions", "small", "Bearer sk-secret")
        }
        assert (report["asked"], report["kept"], report["languages"]) == (5, 5, {"en": 5})
        for line in lines("pairs.jsonl"):
            name = line["document"].split()[-1]
            assert line["query"] == QUESTIONS[name]
            assert line["positive"] == article(name)
            assert (line["lang_q"], line["lang_p"]) == ("en", "en")
            passage = line["positive"][line["passage"]["start"] : line["passage"]["end"]].strip()
            assert len(passage) < len(article(name)) / 2
            assert any(passage in prompt_of(request) for request in heard)
        assert not Path("pairs.rejected.jsonl").exists()

    def test_the_same_seed_asks_the_same(self, capsys: pytest.CaptureFixture[str]) -> None:
        asked: list[set[str]] = []
        for seed in ("1", "1", "2"):
            with endpoint(good) as (base, heard):
                run(base, capsys, "--count", "3", "--seed", seed)
            asked.append({prompt_of(request) for request in heard})
            Path("pairs.jsonl").unlink()
        assert asked[0] == asked[1] != asked[2]
        assert len(asked[0]) == 3

    @pytest.mark.parametrize(
        ("answer", "stage"),
        [
            (GERMAN, "language"),
            ("Why?", "length"),
            ("Here is a question:\nWhy are the volcanoes explosive?", "length"),
            ("why " * 70, "length"),
            (TOPICS["volcanoes"] + "?", "copy"),
            ("How do honey bees learn from others about new flowers?", "round trip"),
        ],
    )
    def test_an_answer_that_fails_a_check_is_kept_with_the_reason(
        self, answer: str, stage: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def said(n: int, body: dict[str, Any]) -> Answer:
            return message(answer) if topic_of(body) == "volcanoes" else good(n, body)

        with endpoint(said) as (base, _):
            report, _ = run(base, capsys, "--round-trip", "9")
        assert (report["kept"], report["rejected"]) == (4, {stage: 1})
        (rejected,) = lines("pairs.rejected.jsonl")
        assert (rejected["answer"], rejected["stage"]) == (answer, stage)
        assert rejected["document"].endswith("volcanoes")

    @pytest.mark.parametrize(
        "answer",
        [
            "Question: {}",
            '"{}"',
            "<think>The text is about it.\nIs it?</think>\n\n{}\n",
            "The text is about it.</think>\n**Question:** {}",
        ],
    )
    def test_what_models_write_around_a_question_is_removed(
        self, answer: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with endpoint(lambda n, body: message(answer.format(QUESTIONS[topic_of(body)]))) as (base, _):
            run(base, capsys)
        assert {line["query"] for line in lines("pairs.jsonl")} == set(QUESTIONS.values())

    def test_a_rate_limit_is_waited_for_as_long_as_the_server_asks(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def said(n: int, body: dict[str, Any]) -> Answer:
            if n < 2:
                return 429, {"Retry-After": "0"}, {"error": {"message": "slow down"}}
            return good(n, body)

        with endpoint(said) as (base, heard):
            report, _ = run(base, capsys)
        assert (len(heard), report["kept"]) == (7, 5)

    def test_a_broken_answer_is_one_rejection(self, capsys: pytest.CaptureFixture[str]) -> None:
        broken: dict[str, Answer] = {
            "bees": (200, {}, {"choices": []}),
            "printing": (200, {}, "not an object"),
            "bridges": (400, {}, {"error": {"message": "filtered"}}),
            "glaciers": (200, {}, {"choices": [{"message": {"content": None}}]}),
        }

        def said(n: int, body: dict[str, Any]) -> Answer:
            return broken.get(topic_of(body), good(n, body))

        with endpoint(said) as (base, _):
            report, _ = run(base, capsys)
        assert (report["kept"], report["rejected"]) == (1, {"broken answer": 4})
        reasons = " ".join(line["reason"] for line in lines("pairs.rejected.jsonl"))
        assert "400: filtered" in reasons
        assert "no message of a chat" in reasons
        assert "an empty message" in reasons

    def test_a_server_that_is_none_ends_the_run(self, capsys: pytest.CaptureFixture[str]) -> None:
        rows = [
            {"id": f"{name} {i}", "text": f"{i} {i} {i} " + article(name)}
            for name in TOPICS
            for i in range(3)
        ]
        Path("articles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with endpoint(lambda n, body: (200, {}, {"hello": "world"})) as (base, heard):
            _, err = run(base, capsys, "--drop-duplicates", "exact", code=1)
        assert len(heard) < 15
        assert "answered no message of a chat" in err
        assert "--endpoint" in err
        with endpoint(lambda n, body: (401, {}, {"error": {"message": "bad key"}})) as (base, heard):
            _, err = run(base, capsys, code=1)
        assert "OPENAI_API_KEY" in err
        assert "sk-secret" not in err

    def test_what_was_asked_is_not_asked_again(self, capsys: pytest.CaptureFixture[str]) -> None:
        def said(n: int, body: dict[str, Any]) -> Answer:
            if n == 3:
                return 401, {}, {"error": {"message": "expired"}}
            return message(GERMAN) if n == 1 else good(n, body)

        with endpoint(said) as (base, heard):
            run(base, capsys, "--at-once", "1", code=1)
        first = [prompt_of(request) for request in heard]
        assert len(lines("pairs.jsonl")) == 2
        with endpoint(good) as (base, heard):
            report, _ = run(base, capsys)
        assert (report["asked"], report["kept"], report["rejected"]) == (2, 4, {"language": 1})
        assert {prompt_of(request) for request in heard} & set(first[:3]) == set()
        with endpoint(good) as (base, heard):
            report, _ = run(base, capsys, sources=(str(Path("articles.jsonl").resolve()),))
        assert (report["asked"], report["kept"], len(heard)) == (0, 4, 0)

    def test_a_killed_run_is_continued(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Killed while the third question is under way, with half a line in the file as a kill may leave it."""
        third = threading.Event()
        release = threading.Event()

        def said(n: int, body: dict[str, Any]) -> Answer:
            if n == 2:
                third.set()
                release.wait(60)
            return good(n, body)

        command = [
            sys.executable,
            "-m",
            "m3_connectors",
            "data",
            "questions",
            "articles.jsonl",
            "--model",
            "small",
        ]
        with endpoint(said) as (base, heard):
            process = subprocess.Popen(
                [*command, "--endpoint", base, "--to", "pairs.jsonl", "--at-once", "1"],
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )
            assert third.wait(120)
            process.send_signal(signal.SIGKILL)
            process.wait(60)
            release.set()
            before = [prompt_of(request) for request in heard[:2]]
        kept = Path("pairs.jsonl").read_text("utf-8")
        assert kept.count("\n") == 2
        Path("pairs.jsonl").write_text(kept + kept[:100], "utf-8")
        with endpoint(good) as (base, heard):
            report, _ = run(base, capsys)
        assert (report["asked"], report["kept"]) == (3, 5)
        assert Path("pairs.jsonl").read_text("utf-8").startswith(kept)
        assert len({line["query"] for line in lines("pairs.jsonl")}) == 5
        assert {prompt_of(request) for request in heard}.isdisjoint(before)

    def test_a_file_of_another_origin_is_left_as_it_is(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path("pairs.jsonl").write_text('{"query": "a", "positive": "b"}\n')
        with endpoint(good) as (base, heard):
            _, err = run(base, capsys, code=1)
        assert "pairs.jsonl:1 is not a line of m3 data questions" in err
        assert Path("pairs.jsonl").read_text() == '{"query": "a", "positive": "b"}\n'
        assert not heard

    def test_evaluation_texts_are_neither_asked_about_nor_asked(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("evaluation.jsonl").write_text(
            json.dumps({"_id": "1", "text": QUESTIONS["bees"].upper()})
            + "\n"
            + json.dumps({"_id": "2", "text": f"It is said: {TOPICS['bridges']}."})
            + "\n"
        )
        with endpoint(good) as (base, heard):
            report, _ = run(base, capsys, "--keep-out", "evaluation.jsonl")
        assert (report["kept"], report["kept_out"]) == (3, {"evaluation.jsonl": 1})
        assert report["rejected"] == {"evaluation texts": 1}
        assert not any("bridges" in prompt_of(request) for request in heard)

    def test_short_documents_and_broken_records_are_named(self, capsys: pytest.CaptureFixture[str]) -> None:
        with Path("articles.jsonl").open("a", encoding="utf-8") as file:
            file.write('{"id": "short", "text": "Too short to ask about."}\n{"id": "cut", "te')
        with endpoint(good) as (base, _):
            report, _ = run(base, capsys)
        assert (report["read"], report["fit"]) == (7, 5)
        assert report["dropped"] == {"broken": 1, "characters": 1}
        assert {line["place"] for line in lines("pairs.dropped.jsonl")} == {
            "articles.jsonl:7",
            "articles.jsonl short",
        }

    def test_the_round_trip_with_an_encoder(
        self, checkpoint: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with endpoint(good) as (base, _):
            everything, _ = run(base, capsys, "--encoder", str(checkpoint), "--round-trip", "1000")
        assert everything["kept"] == 5
