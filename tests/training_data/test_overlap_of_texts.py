"""Evaluation texts are found in training texts by runs of words, and nothing else is."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_connectors.curation.words import words_of
from m3_connectors.errors import InvalidInput
from m3_connectors.training_data.overlap import RUN_WORDS, KeptOut

WORDS = st.lists(
    st.sampled_from(["ab", "cd", "ef", "gh", "ij", "kl", "mn", "op", "qr", "st"]), min_size=1, max_size=40
)
SPOKEN = st.sampled_from([" ", "  ", ", ", "\n", " - ", ". "])


def shared_by_definition(first: list[str], second: list[str], length: int) -> bool:
    """A run of ``length`` words in both; of shorter texts, all words."""
    runs = [
        {tuple(words[i : i + length]) for i in range(max(len(words) - length, 0) + 1)}
        for words in (first, second)
    ]
    return bool(runs[0] & runs[1])


@given(WORDS, WORDS, st.integers(1, 15), SPOKEN, st.booleans())
def test_it_is_the_definition(
    evaluation: list[str], training: list[str], length: int, between: str, upper: bool
) -> None:
    text = between.join(training)
    kept_out = KeptOut({"set": [" ".join(evaluation)]}, length)
    found = kept_out.shared_with(text.upper() if upper else text)
    assert (found is not None) == shared_by_definition(evaluation, training, length)
    if found is not None:
        assert found.run in " ".join(evaluation)
        assert found.run in " ".join(training)


@given(st.lists(WORDS, max_size=5), WORDS)
def test_several_texts_are_each_compared(evaluation: list[list[str]], training: list[str]) -> None:
    found = KeptOut({"set": map(" ".join, evaluation)}, 4).shared_with(" ".join(training))
    assert (found is not None) == any(shared_by_definition(text, training, 4) for text in evaluation)


@given(st.integers(0, 60), st.integers(RUN_WORDS - 3, RUN_WORDS + 3), st.randoms(use_true_random=False))
def test_a_run_inside_a_long_text_counts_from_thirteen_words(
    before: int, length: int, source: random.Random
) -> None:
    common = [f"w{i}" for i in range(length)]
    evaluation = [f"e{i}" for i in range(20)] + common + ["after"]
    training = [f"t{source.random()}".replace(".", "") for _ in range(before)] + common + ["end"] * 20
    found = KeptOut({"set": [" ".join(evaluation)]}).shared_with(" ".join(training))
    assert (found is not None) == (length >= RUN_WORDS)


@pytest.mark.parametrize(
    ("evaluation", "training", "overlap"),
    [
        ("What is a glacier?", "what is a GLACIER", True),
        ("What is a glacier?", "What is a glacier made of?", False),
        ("What is a glacier?", "Many ask: what is a glacier?", False),
        ("冰川是在降雪多于融雪的地方形成的巨大冰体。", "据说，冰川是在降雪多于融雪的地方形成的。", True),
        ("冰川是什么？", "冰川是什么", True),
        ("ＷＨＡＴ is e\u0301", "what is é", True),
        ("?!", "?!", False),
    ],
)
def test_case_punctuation_and_scripts(evaluation: str, training: str, overlap: bool) -> None:
    assert (KeptOut({"set": [evaluation]}).shared_with(training) is not None) == overlap


def test_the_first_set_that_shares_is_named_with_the_words() -> None:
    found = KeptOut({"one": ["a b c"], "two": ["d e f"], "three": []}).shared_with("D, E: f")
    assert found is not None
    assert (found.name, found.run) == ("two", "d e f")


LONG = "The river carries sand from the mountains down to the sea and builds a wide delta there"
assert len(words_of(LONG)) > RUN_WORDS


def beir(folder: Path, query: str, passage: str) -> Path:
    (folder / "qrels").mkdir(parents=True)
    with gzip.open(folder / "corpus.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps({"_id": "d0", "title": "Delta", "text": passage}) + "\n")
    (folder / "queries.jsonl").write_text(
        "\ufeff" + json.dumps({"_id": "q0", "text": query, "metadata": {"lang": "en"}}) + "\r\n\n", "utf-8"
    )
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\n")
    return folder


class TestRead:
    def test_beir_folders_below_a_folder_are_sets_of_their_own(self, tmp_path: Path) -> None:
        english = beir(tmp_path / "en", "Who builds deltas?", LONG)
        german = beir(tmp_path / "de", "Wer baut Deltas?", "Ein Delta.")
        kept_out = KeptOut.read([tmp_path])
        assert set(kept_out.names) == {str(english), str(german)}
        for text, name in (
            (f"So: {LONG}.", english),
            ("wer baut deltas", german),
            ("Delta: ein Delta", german),
        ):
            found = kept_out.shared_with(text)
            assert found is not None
            assert found.name == str(name)
        assert kept_out.shared_with("en") is None, "metadata and ids are no texts"
        assert kept_out.shared_with("q0") is None
        assert kept_out.shared_with("Delta") is None, "a title alone is not a text of the set"

    def test_text_files_by_line_and_across_lines(self, tmp_path: Path) -> None:
        path = tmp_path / "questions.txt"
        half = LONG.index("down")
        path.write_bytes(f"Who builds deltas?\r\n{LONG[:half]}\r\n{LONG[half:]}\r\n".encode("utf-16"))
        kept_out = KeptOut.read([path])
        assert kept_out.shared_with("who builds deltas") is not None
        assert kept_out.shared_with(LONG) is not None

    def test_training_pairs_and_unknown_records(self, tmp_path: Path) -> None:
        path = tmp_path / "other.jsonl"
        path.write_text(
            '{"query": "one two", "pos": ["three four"], "id": "x1"}\n{"body": {"a": ["five six"]}}\n'
        )
        kept_out = KeptOut.read([path])
        assert [
            kept_out.shared_with(text) is not None for text in ("one two", "three four", "five six", "x1")
        ] == [
            True,
            True,
            True,
            False,
        ]

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("empty.jsonl", b"", "has no text"),
            ("cut.jsonl", b'{"text": "a"}\n{"text": "b', r"cut\.jsonl:2: not JSON.*would not be kept out"),
            ("latin.txt", b"caf\xe9\n", r"latin\.txt:1: not UTF-8"),
        ],
    )
    def test_what_cannot_be_read_cannot_be_kept_out(
        self, name: str, content: bytes, message: str, tmp_path: Path
    ) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidInput, match=message):
            KeptOut.read([tmp_path / name])

    def test_a_folder_without_texts_and_a_path_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="has no file of texts"):
            KeptOut.read([tmp_path])
        with pytest.raises(FileNotFoundError, match="does not exist"):
            KeptOut.read([tmp_path / "none"])
        with pytest.raises(InvalidInput, match="a run of 0 words"):
            KeptOut({}, 0)
