"""Labelled sets and parallel sentences in their own formats: valid, broken and odd files of each."""

from __future__ import annotations

import codecs
import gzip
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from m3_connectors.errors import InvalidInput
from m3_connectors.training_data.examples import Example, Unusable
from m3_connectors.training_data.labelled.formats import format_of, read_labelled
from m3_connectors.training_data.parallel import Parallel

Items = Iterable[Example | Unusable]


def examples(items: Items) -> list[Example]:
    found = list(items)
    assert all(isinstance(item, Example) for item in found), found
    return [item for item in found if isinstance(item, Example)]


def parted(items: Items) -> tuple[list[Example], list[Unusable]]:
    found = list(items)
    return [i for i in found if isinstance(i, Example)], [i for i in found if isinstance(i, Unusable)]


def write(path: Path, *records: Any, end: str = "\n") -> Path:
    lines = (
        record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records
    )
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


FLAG = {
    "query": "q",
    "pos": ["p", "r"],
    "neg": ["n"],
    "pos_scores": [3, 2.5],
    "neg_scores": [0],
    "prompt": "Do",
}
OWN = {"query": "q", "positive": "p", "lang_q": "de", "lang_p": "en"}
MIRACL = {
    "query_id": "1",
    "query": "q",
    "positive_passages": [{"docid": "a#0", "title": "T", "text": "p"}],
    "negative_passages": [{"docid": "b#0", "title": "", "text": "n"}],
}
SQUAD_LINE = {
    "id": "1",
    "title": "T",
    "context": "p",
    "question": "q",
    "answers": {"text": ["a"], "answer_start": [0]},
}


def squad(*questions: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": "v2.0",
        "data": [{"title": "T", "paragraphs": [{"context": "p", "qas": list(questions)}]}],
    }


class TestLines:
    """What all formats of JSON Lines have in common."""

    @pytest.mark.parametrize(
        "record", [FLAG, OWN, MIRACL, SQUAD_LINE], ids=["flag", "own", "miracl", "squad"]
    )
    def test_marks_line_ends_blank_lines_and_compression(
        self, record: dict[str, Any], tmp_path: Path
    ) -> None:
        plain = (json.dumps(record) + "\n").encode()
        forms = {
            "plain": plain,
            "mark": codecs.BOM_UTF8 + plain,
            "crlf": b"\r\n" + plain.replace(b"\n", b"\r\n"),
            "no-end": plain.rstrip(),
            "utf16": plain.decode().encode("utf-16"),
        }
        for name, content in forms.items():
            path = tmp_path / f"{name}.jsonl"
            path.write_bytes(content)
            (example,) = examples(read_labelled(path))
            assert (example.query, example.positives[0].removeprefix("T\n")) == ("q", "p"), name
        packed = tmp_path / "packed.jsonl.gz"
        packed.write_bytes(gzip.compress(plain))
        assert examples(read_labelled(packed))[0].query == "q"

    def test_a_broken_line_is_named_and_the_rest_is_used(self, tmp_path: Path) -> None:
        path = tmp_path / "mixed.jsonl"
        rows = [
            json.dumps(OWN).encode(),
            b"not json",
            b"[1]",
            b'{"query": "caf\xe9", "positive": "p"}',
            b'{"query": "q", "positive": "\\ud800"}',
            b'{"query": "", "positive": "p"}',
            b'{"query": "q", "positive": 3}',
            b'{"query": "q"}',
            json.dumps(OWN | {"query": "last"}).encode(),
            b'{"query": "cut',
        ]
        path.write_bytes(b"\n".join(rows))
        found, broken = parted(read_labelled(path, "pairs"))
        assert [example.query for example in found] == ["q", "last"]
        assert [one.place for one in broken] == [f"{path}:{n}" for n in (2, 3, 4, 5, 6, 7, 8, 10)]
        assert {one.stage for one in broken} == {"broken"}
        for one, words in zip(
            broken,
            ["not JSON", "array", "UTF-8", "surrogate", "white space", "3", "neither", "not JSON"],
            strict=True,
        ):
            assert words in one.reason

    def test_a_cut_compressed_file_gives_what_is_before(self, tmp_path: Path) -> None:
        path = tmp_path / "cut.jsonl.gz"
        content = gzip.compress(
            "".join(json.dumps(OWN | {"query": f"q {i}"}) + "\n" for i in range(50_000)).encode()
        )
        path.write_bytes(content[: len(content) // 2])
        found, broken = parted(read_labelled(path, "pairs"))
        assert len(found) > 1000
        assert "cannot be read further" in broken[-1].reason

    @pytest.mark.parametrize("content", [b"", b"\n\n", codecs.BOM_UTF8])
    def test_an_empty_file_is_named(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "empty.jsonl"
        path.write_bytes(content)
        found, broken = parted(read_labelled(path))
        assert (found, [(one.place, one.reason) for one in broken]) == ([], [(str(path), "it is empty")])


class TestFlagEmbedding:
    def test_everything_is_kept(self, tmp_path: Path) -> None:
        (example,) = examples(read_labelled(write(tmp_path / "a.jsonl", FLAG)))
        assert example.to_record() == FLAG | {"lang_q": "und", "lang_p": "und"}
        assert (example.kind, example.place) == ("flagembedding", f"{tmp_path / 'a.jsonl'}:1")

    def test_own_pairs_with_negatives_become_that_form(self, tmp_path: Path) -> None:
        (plain,) = examples(read_labelled(write(tmp_path / "a.jsonl", OWN)))
        assert plain.to_record() == OWN
        (triple,) = examples(read_labelled(write(tmp_path / "b.jsonl", OWN | {"negative": "n"})))
        assert triple.to_record() == {
            "query": "q",
            "pos": ["p"],
            "neg": ["n"],
            "lang_q": "de",
            "lang_p": "en",
        }

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"pos": []}, "'pos' is empty"),
            ({"pos": "p"}, "must be a list"),
            ({"neg": [1]}, r"neg\[0\]"),
            ({"pos_scores": [1]}, "1 numbers for 2 texts"),
            ({"neg_scores": [float("nan")]}, "finite"),
            ({"neg_scores": None}, "a teacher scores both"),
            ({"query": " "}, "white space"),
        ],
    )
    def test_what_does_not_fit_together_is_broken(
        self, change: dict[str, Any], reason: str, tmp_path: Path
    ) -> None:
        found, (broken,) = parted(read_labelled(write(tmp_path / "a.jsonl", FLAG | change), "flagembedding"))
        assert not found
        assert re.search(reason, broken.reason)


class TestSquad:
    def test_questions_of_paragraphs_without_the_impossible_ones(self, tmp_path: Path) -> None:
        questions = [
            {"question": "q", "answers": [{"text": "p"}], "is_impossible": False},
            {"question": "never", "answers": [], "is_impossible": True},
            {"question": "none", "answers": []},
            {"question": "test set"},
            {"answers": []},
            "no question",
        ]
        path = tmp_path / "train.json"
        path.write_bytes(codecs.BOM_UTF8 + json.dumps(squad(*questions), indent=1).encode())  # type: ignore[arg-type]
        found, left = parted(read_labelled(path))
        assert [(one.query, one.positives) for one in found] == [("q", ("p",)), ("test set", ("p",))]
        assert [one.stage for one in left] == ["impossible questions"] * 2 + ["broken"] * 2
        assert left[0].place == f"{path} data[0].paragraphs[0].qas[1]"

    def test_lines(self, tmp_path: Path) -> None:
        impossible = SQUAD_LINE | {"answers": {"text": [], "answer_start": []}}
        found, left = parted(read_labelled(write(tmp_path / "a.jsonl", SQUAD_LINE, impossible)))
        assert ([one.query for one in found], [one.place for one in left]) == (
            ["q"],
            [f"{tmp_path / 'a.jsonl'}:2"],
        )

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (json.dumps(squad({"question": "q"}))[:-20], "nothing of the file was used"),
            ('{"version": 1}', "no list 'data'"),
            ('{"data": [{"paragraphs": 1}]}', "no list 'paragraphs'"),
            ('{"data": [{"paragraphs": [{"qas": 1}]}]}', "no list 'qas'"),
            ('{"data": [{"paragraphs": [{"qas": [{"question": "q"}]}]}]}', "no 'context'"),
        ],
    )
    def test_a_damaged_file_is_named(self, content: str, reason: str, tmp_path: Path) -> None:
        path = write(tmp_path / "a.json", content)
        found, (broken,) = parted(read_labelled(path))
        assert not found
        assert reason in broken.reason
        assert broken.place.startswith(str(path))


class TestTriples:
    def test_triples_of_one_pair_are_one_example(self, tmp_path: Path) -> None:
        path = write(
            tmp_path / "a.tsv",
            "query\tpositive\tnegative",
            "q\tp\tn",
            "q\tp\tm",
            "",
            "q\tr\tn",
            "s\tp\tn",
            "s\tp",
            end="\r\n",
        )
        assert [(e.query, e.positives, e.negatives) for e in examples(read_labelled(path))] == [
            ("q", ("p",), ("n", "m")),
            ("q", ("r",), ("n",)),
            ("s", ("p",), ("n",)),
        ]

    def test_lines_with_other_cells_are_broken(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.tsv", "q\tp\tn\tx", "q", "q\t\tn", "q\tp\tn")
        found, broken = parted(read_labelled(path))
        assert ([e.query for e in found], len(broken)) == (["q"], 3)

    def test_ids_instead_of_texts_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match=r"has ids \('1\\t2\\t3'\), not texts"):
            list(read_labelled(write(tmp_path / "a.tsv", "1\t2\t3")))


class TestBeir:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "qrels").mkdir()
        write(
            tmp_path / "corpus.jsonl",
            {"_id": "d0", "title": "T", "text": "p"},
            "{broken",
            {"_id": "d1", "text": "r"},
            {"_id": "d2", "title": "", "text": "n"},
            {"_id": "d3", "text": ""},
        )
        write(tmp_path / "queries.jsonl", {"_id": "q0", "text": "q"}, {"_id": "q1", "text": "s"})
        rows = [
            "query-id\tcorpus-id\tscore",
            "q0\td0\t2",
            "q0\td1\t1",
            "q0\td2\t0",
            "q1\td2\t0",
            "q2\td0\t1",
            "q0 d9",
        ]
        write(tmp_path / "qrels" / "train.tsv", *rows, "q1\td3\t1")
        write(tmp_path / "qrels" / "test.tsv", *rows)
        return tmp_path

    def test_judgements_become_positives_and_negatives(self, folder: Path) -> None:
        found, left = parted(read_labelled(folder))
        assert [(e.query, e.positives, e.negatives) for e in found] == [("q", ("T\np", "r"), ("n",))]
        assert [(one.place.rpartition("/")[2], one.stage) for one in left] == [
            ("train.tsv:7", "broken"),
            ("corpus.jsonl:2", "broken"),
            ("corpus.jsonl:5", "broken"),
            ("train.tsv:5", "broken"),
            ("train.tsv:5", "no positive"),
            ("train.tsv:6", "broken"),
        ]

    def test_only_the_training_split_is_read_unasked(self, folder: Path) -> None:
        (folder / "qrels" / "train.tsv").unlink()
        with pytest.raises(InvalidInput, match=r"no judgements qrels/train\.tsv, only test\.\n.*--split"):
            list(read_labelled(folder))
        assert len(parted(read_labelled(folder, split="test"))[0]) == 1

    def test_what_is_no_folder_of_that_kind(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="no BEIR folder"):
            read_labelled(tmp_path)
        path = write(tmp_path / "a.jsonl", OWN)
        with pytest.raises(InvalidInput, match="is a file, which the format beir does not read"):
            read_labelled(path, "beir")
        with pytest.raises(InvalidInput, match="split 'dev' has no effect"):
            read_labelled(path, split="dev")


class TestMiracl:
    def test_titles_are_a_line_of_their_own(self, tmp_path: Path) -> None:
        (example,) = examples(read_labelled(write(tmp_path / "a.jsonl", MIRACL)))
        assert (example.positives, example.negatives, example.kind) == (("T\np",), ("n",), "miracl")

    def test_queries_without_a_passage(self, tmp_path: Path) -> None:
        path = write(
            tmp_path / "a.jsonl",
            MIRACL | {"positive_passages": []},
            MIRACL | {"positive_passages": "p"},
            MIRACL | {"positive_passages": [{"title": "T"}]},
            MIRACL | {"negative_passages": []},
        )
        found, left = parted(read_labelled(path, "mrtydi"))
        assert [one.stage for one in left] == ["no positive", "broken", "broken"]
        assert [(e.kind, e.negatives) for e in found] == [("mrtydi", ())]


def test_an_unknown_format_names_what_it_has_and_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"a\.jsonl:2 has the fields 'a', 'b'.*\n.*squad"):
        format_of(write(tmp_path / "a.jsonl", "broken", {"a": 1, "b": 2}))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_labelled(tmp_path / "none.jsonl")


class TestParallel:
    def test_aligned_files(self, tmp_path: Path) -> None:
        english = write(tmp_path / "a.en", "one", "", "three\u2028four", "five", end="\r\n")
        german = write(tmp_path / "a.de", "eins", "zwei", "drei", " ")
        found, left = parted(Parallel((english, german), lang_q="en", lang_p="de", both_ways=True))
        assert [(e.query, e.positives[0], e.lang_q, e.lang_p) for e in found] == [
            ("one", "eins", "en", "de"),
            ("eins", "one", "de", "en"),
            ("three\u2028four", "drei", "en", "de"),
            ("drei", "three\u2028four", "de", "en"),
        ]
        assert [(one.place, one.reason) for one in left] == [
            (f"{english}:2", "the first sentence is empty"),
            (f"{english}:4", "the second sentence is empty"),
        ]

    def test_files_of_different_lengths_are_refused(self, tmp_path: Path) -> None:
        files = write(tmp_path / "a.en", "one", "two"), write(tmp_path / "a.de", "eins")
        with pytest.raises(
            InvalidInput, match=r"has 2 lines and .* has 1, so their lines do not belong together"
        ):
            list(Parallel(files))

    def test_undecodable_lines_do_not_shift_the_others(self, tmp_path: Path) -> None:
        first, second = tmp_path / "a.en", tmp_path / "a.de"
        first.write_bytes(b"one\ncaf\xe9\nthree\n")
        second.write_bytes(b"eins\nzwei\ndrei")
        found, (broken,) = parted(Parallel((first, second)))
        assert [(e.query, e.positives[0]) for e in found] == [("one", "eins"), ("three", "drei")]
        assert broken.place == f"{first}:2"

    def test_tables_and_records(self, tmp_path: Path) -> None:
        plain = write(tmp_path / "plain.tsv", "one\teins\t0.9", "alone", "", "two\tzwei")
        found, (broken,) = parted(Parallel((plain,)))
        assert [(e.query, e.positives[0]) for e in found] == [("one", "eins"), ("two", "zwei")]
        assert broken.place == f"{plain}:2"
        named = write(tmp_path / "named.tsv", "\ufeffid\tde\ten", "1\teins\tone")
        assert examples(Parallel((named,), ("en", "de")))[0].query == "one"
        with pytest.raises(InvalidInput, match="no column 'fr', only 'id', 'de', 'en'"):
            list(Parallel((named,), ("en", "fr")))
        records = write(tmp_path / "a.jsonl", {"en": "one", "de": "eins"}, {"en": "two"}, "{")
        found, left = parted(Parallel((records,), ("de", "en")))
        assert [(e.query, e.positives[0]) for e in found] == [("eins", "one")]
        assert [one.place for one in left] == [f"{records}:2", f"{records}:3"]

    @pytest.mark.parametrize(
        ("names", "fields", "message"),
        [
            (("a.txt", "b.txt", "c.txt"), None, "3 files were given"),
            (("a.txt", "b.txt"), ("x", "y"), "fields x,y have no effect"),
            (("a.jsonl.gz",), None, "nothing says which two fields"),
        ],
    )
    def test_what_does_not_fit_together(
        self, names: tuple[str, ...], fields: tuple[str, str] | None, message: str
    ) -> None:
        with pytest.raises(InvalidInput, match=message):
            Parallel(tuple(map(Path, names)), fields)
