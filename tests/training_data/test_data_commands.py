"""``m3 data``: what is written, what is dropped and where it is named; what is written is what the trainer reads."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from m3_connectors.cli.app import main
from m3_connectors.training.pairs import read_lines

RIVER = "A river erodes the outer bank of a curve because the water is faster there, and leaves sand inside. "
GLACIER = (
    "Glaciers grow where more snow falls in winter than melts in summer, and they slowly flow downhill. "
)
GERMAN = "Ein Fluss trägt das äußere Ufer einer Kurve ab, weil das Wasser dort schneller fließt als innen. "


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def data(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["data", *arguments, "--to", "out/pairs.jsonl", "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def write(name: str, *records: dict[str, Any]) -> None:
    Path("out").mkdir(exist_ok=True)
    Path(name).write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")


def lines(name: str = "out/pairs.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text("utf-8").splitlines()]


@pytest.mark.parametrize(
    ("command", "source"),
    [("unsupervised", "out/pairs.jsonl"), ("unsupervised", "out"), ("convert", "out/pairs.jsonl")],
)
def test_a_source_is_never_the_output(command: str, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    write("out/pairs.jsonl", {"query": "Why do rivers bend?", "positive": RIVER, "text": RIVER})
    before = Path("out/pairs.jsonl").read_bytes()
    assert main(["data", command, source, "--to", "out/pairs.jsonl"]) == 1
    assert f"would be read as a part of {source}" in capsys.readouterr().err
    assert Path("out/pairs.jsonl").read_bytes() == before


class TestUnsupervised:
    def test_pairs_are_cleaned_tagged_and_deduplicated(self, capsys: pytest.CaptureFixture[str]) -> None:
        write(
            "rows.jsonl",
            {"id": "river", "title": "Bends", "text": RIVER * 2},
            {"id": "again", "title": "Bends of rivers", "text": RIVER + RIVER.upper()},
            {"id": "german", "title": "Kurven", "text": GERMAN},
            {"id": "short", "title": "Short", "text": "Too short."},
            {"id": "numbers", "title": "Table", "text": "1 2 3 4 5 6 7 8 9 " * 10},
            {"id": "broken", "title": "Page", "text": GLACIER[:60] + "\ue000" * 60},
            {"id": "menu", "title": "Menu", "text": (GLACIER[:50] + "\n") * 5},
        )
        report = data(capsys, "unsupervised", "rows.jsonl", "--pairs", "title-body")
        assert [(line["query"], line["lang_q"], line["lang_p"]) for line in lines()] == [
            ("Bends", "en", "en"),
            ("Kurven", "de", "de"),
        ]
        dropped = {line["place"]: line["stage"] for line in lines("out/pairs.dropped.jsonl")}
        assert {place.split()[1]: stage for place, stage in dropped.items()} == {
            "again": "near duplicates",
            "short": "characters",
            "numbers": "letters",
            "broken": "broken characters",
            "menu": "repeated lines",
        }
        assert report["read"] == report["kept"] + sum(report["dropped"].values()) == 7
        assert report["languages"] == {"en": 1, "de": 1}
        assert report["kinds"] == {"title-body": 2}

    def test_the_kinds_of_one_document_do_not_repeat_each_other(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("out").mkdir()
        Path("page.md").write_text(f"# Rivers\n\n{GLACIER}{RIVER * 3}\n\n## Glaciers\n\n{GLACIER}\n")
        report = data(capsys, "unsupervised", "page.md")
        assert report["kinds"] == {"title-body": 1, "heading-section": 1, "first-sentence-rest": 1}

    def test_languages_can_be_chosen(self, capsys: pytest.CaptureFixture[str]) -> None:
        write("rows.jsonl", {"title": "Bends", "text": RIVER}, {"title": "Kurven", "text": GERMAN})
        report = data(capsys, "unsupervised", "rows.jsonl", "--languages", "de")
        assert (report["kept"], report["dropped"]) == (1, {"language": 1})

    def test_nothing_kept_is_an_error_and_leaves_the_earlier_file(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write("rows.jsonl", {"text": "No pair"})
        Path("out/pairs.jsonl").write_text("earlier")
        assert main(["data", "unsupervised", "rows.jsonl", "--to", "out/pairs.jsonl"]) == 1
        err = capsys.readouterr().err
        assert "no pair was kept of 1" in err
        assert "pairs.dropped.jsonl has the reasons" in err
        assert Path("out/pairs.jsonl").read_text() == "earlier"
        assert lines("out/pairs.dropped.jsonl")[0]["stage"] == "no pair"

    @pytest.mark.parametrize(
        ("to", "message"),
        [("pairs.csv", "does not end in .jsonl"), ("none/pairs.jsonl", "does not exist (none)")],
    )
    def test_where_it_cannot_be_written(
        self, to: str, message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write("rows.jsonl", {"title": "Bends", "text": RIVER})
        assert main(["data", "unsupervised", "rows.jsonl", "--to", to]) == 1
        assert message in capsys.readouterr().err

    def test_a_collection_is_no_source(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["data", "unsupervised", "qdrant:./data", "--to", "pairs.jsonl"]) == 2
        assert "is a collection" in " ".join(capsys.readouterr().err.split())


class TestConvert:
    def test_several_formats_become_one_file(self, capsys: pytest.CaptureFixture[str]) -> None:
        write(
            "own.jsonl", {"query": "What do rivers erode?", "positive": RIVER, "lang_q": "en", "lang_p": "en"}
        )
        flag = {"query": "Warum wachsen Gletscher?", "pos": [GLACIER, RIVER], "neg": [GERMAN, RIVER, GERMAN]}
        write("flag.jsonl", flag | {"pos_scores": [9, 8.5], "neg_scores": [1, 2, 3]})
        report = data(capsys, "convert", "own.jsonl", "flag.jsonl")
        own, flag = lines()
        assert own == {"query": "What do rivers erode?", "positive": RIVER, "lang_q": "en", "lang_p": "en"}
        assert flag == {
            "query": "Warum wachsen Gletscher?",
            "pos": [GLACIER, RIVER],
            "neg": [GERMAN],
            "pos_scores": [9, 8.5],
            "neg_scores": [1],
            "lang_q": "de",
            "lang_p": "en",
        }
        assert (report["read"], report["kept"], report["examples"], report["negatives"]) == (3, 3, 2, 1)
        assert report["negatives_dropped"] == {"repeated, or a positive": 2}
        assert report["languages"] == {"de-en": 2, "en": 1}
        assert [len(line.pairs) for line in read_lines(Path("out"))] == [1, 2]

    def test_a_passage_may_have_several_questions_but_not_the_same(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        questions = ["Why?", "How?", " Why? "]
        paragraph = {
            "context": RIVER,
            "qas": [{"question": q, "answers": [{"text": "a"}]} for q in questions],
        }
        impossible = {"question": "Who?", "answers": [], "is_impossible": True}
        near = {"context": RIVER.replace("faster", "quicker") * 3, "qas": [{"question": "When?"}, impossible]}
        long = {"context": RIVER * 3, "qas": [{"question": "Where?"}]}
        Path("out").mkdir()
        Path("squad.json").write_text(json.dumps({"data": [{"paragraphs": [paragraph, long, near]}]}))
        report = data(capsys, "convert", "squad.json")
        assert [line["query"] for line in lines()] == ["Why?", "How?", "Where?", "When?"]
        assert report["dropped"] == {"repeated pairs": 1, "impossible questions": 1}
        repeated = lines("out/pairs.dropped.jsonl")[0]
        assert repeated["duplicate_of"] == "squad.json data[0].paragraphs[0].qas[0]"
        report = data(capsys, "convert", "squad.json", "--drop-duplicates", "near:0.6")
        assert [line["query"] for line in lines()] == ["Why?", "How?", "When?"]
        assert report["dropped"]["near duplicates"] == 1

    def test_triples_that_repeat_a_pair_keep_their_negatives(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("out").mkdir()
        rows = [("q", RIVER, "n one"), ("r", RIVER, "n one"), ("q", RIVER, "n two")]
        rows += [("r", GLACIER, "n one"), ("q", RIVER, "n one")]
        Path("triples.tsv").write_text("".join("\t".join(map(str.strip, row)) + "\n" for row in rows))
        report = data(capsys, "convert", "triples.tsv")
        assert [(line["query"], line["neg"]) for line in lines()] == [
            ("q", ["n one"]),
            ("r", ["n one"]),
            ("q", ["n two"]),
            ("r", ["n one"]),
        ]
        assert report["dropped"] == {"repeated pairs": 1}

    def test_evaluation_texts_are_kept_out_and_counted_by_set(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write(
            "rows.jsonl",
            {"query": "Who asks?", "positive": GLACIER},
            {"query": "Why do rivers bend?", "positive": GERMAN},
            {"query": "What?", "positive": f"It is said: {RIVER}"},
            {"query": "When?", "positive": GERMAN, "negatives": [RIVER, "Other."]},
        )
        write("one.jsonl", {"text": RIVER})
        write("two.jsonl", {"text": "Why do rivers bend"})
        report = data(capsys, "convert", "rows.jsonl", "--keep-out", "one.jsonl", "--keep-out", "two.jsonl")
        assert [line["query"] for line in lines()] == ["Who asks?", "When?"]
        assert lines()[1]["neg"] == ["Other."]
        assert report["kept_out"] == {"one.jsonl": 1, "two.jsonl": 1}
        assert report["dropped"] == {"evaluation texts": 2}
        assert report["negatives_dropped"] == {"evaluation texts": 1}
        dropped = lines("out/pairs.dropped.jsonl")
        assert dropped[0]["value"] == "why do rivers bend"
        assert dropped[1]["value"] in RIVER.casefold().replace(",", "")

    def test_compressed_output_is_the_same_bytes_each_time(self, capsys: pytest.CaptureFixture[str]) -> None:
        write("rows.jsonl", {"query": "Why?", "positive": RIVER}, {"query": "a", "positive": "a"})
        contents = []
        for name in ("first.jsonl.gz", "second.jsonl.gz"):
            assert main(["data", "convert", "rows.jsonl", "--to", name]) == 0
            contents.append(Path(name).read_bytes())
        assert contents[0] == contents[1]
        assert json.loads(gzip.decompress(contents[0])) == {
            "query": "Why?",
            "positive": RIVER,
            "lang_q": "en",
            "lang_p": "en",
        }
        out = " ".join(capsys.readouterr().out.split())
        assert "dropped: query is the passage 1" in out
        assert "1 line in second.jsonl.gz · 1 dropped (see second.dropped.jsonl)" in out

    def test_a_report_of_an_earlier_run_does_not_stay(self, capsys: pytest.CaptureFixture[str]) -> None:
        write("rows.jsonl", {"query": "Why?", "positive": RIVER}, {"query": "a"})
        data(capsys, "convert", "rows.jsonl")
        assert Path("out/pairs.dropped.jsonl").exists()
        write("rows.jsonl", {"query": "Why?", "positive": RIVER})
        assert data(capsys, "convert", "rows.jsonl")["dropped_pairs"] is None
        assert not Path("out/pairs.dropped.jsonl").exists()


class TestParallel:
    def test_translations_are_tagged_and_may_share_a_side(self, capsys: pytest.CaptureFixture[str]) -> None:
        write(
            "rows.jsonl",
            {"en": RIVER, "other": GERMAN},
            {
                "en": RIVER,
                "other": "Une rivière érode la rive extérieure d'une courbe, car l'eau y est plus rapide.",
            },
            {"en": RIVER, "other": RIVER},
        )
        report = data(capsys, "parallel", "rows.jsonl", "--fields", "other, en")
        assert [(line["lang_q"], line["lang_p"]) for line in lines()] == [("de", "en"), ("fr", "en")]
        assert report["dropped"] == {"query is the passage": 1}

    def test_given_languages_are_not_detected(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path("out").mkdir()
        Path("a.en").write_text("OK then\n")
        Path("a.sv").write_text("Visst\n")
        data(capsys, "parallel", "a.en", "a.sv", "--lang-q", "en", "--lang-p", "sv", "--both-ways")
        assert [(line["query"], line["lang_q"], line["lang_p"]) for line in lines()] == [
            ("OK then", "en", "sv"),
            ("Visst", "sv", "en"),
        ]

    def test_usage(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["data", "parallel", "none.en", "none.de", "--to", "a.jsonl"]) == 1
        assert "none.en is not a file" in capsys.readouterr().err
        assert main(["data", "parallel", "none.jsonl", "--fields", "a", "--to", "a.jsonl"]) == 2
