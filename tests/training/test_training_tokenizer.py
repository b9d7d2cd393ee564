"""Our own unigram tokenizer: its layout, its word marker, its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from m3_connectors.errors import InvalidInput
from m3_connectors.training.tokenizer import build_tokenizer, sample_texts, save_tokenizer, train_tokenizer

TEXTS = [
    "The cat sat on the mat, and the dog sat (quietly) on the log.",
    "Der Hund schläft; die Katze auch. Hund und Katze schlafen.",
    "北京是中国的首都。中国很大,北京也很大。",
    "القطة في البيت والكلب في البيت",
    "बिल्ली घर में है और कुत्ता घर में है",
] * 8


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_tokenizer(TEXTS, 200)


def test_special_tokens_have_the_ids_of_xlm_roberta(trained: Tokenizer) -> None:
    assert [trained.id_to_token(i) for i in range(4)] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert trained.id_to_token(trained.get_vocab_size() - 1) == "<mask>"
    assert trained.get_vocab_size() <= 200
    encoding = trained.encode("the cat")
    assert (encoding.ids[0], encoding.ids[-1]) == (0, 2)
    assert trained.encode("").ids == [0, 2]
    assert trained.encode("the cat", add_special_tokens=False).ids == encoding.ids[1:-1]


def test_no_piece_of_the_training_text_is_unknown_and_a_strange_letter_is(trained: Tokenizer) -> None:
    for text in TEXTS[:5]:
        assert 3 not in trained.encode(text).ids
    assert 3 in trained.encode("𓀀").ids


def test_a_word_has_one_form_whatever_stands_around_it() -> None:
    tokenizer = build_tokenizer(
        [("▁berlin", -1), ("北京", -1), ("首都", -1), ("(", -2), (")", -2), ("。", -2), ("“", -2)]
    )

    def pieces(text: str) -> set[str]:
        return set(tokenizer.encode(text, add_special_tokens=False).tokens)

    assert "▁berlin" in pieces("Berlin")
    assert "▁berlin" in pieces("(BERLIN)")
    assert "▁berlin" in pieces("“Berlin”")
    assert "▁berlin" in pieces("北京Berlin")
    assert {"北京", "首都"} <= pieces("北京首都")
    assert {"北京", "首都"} <= pieces("首都。北京")
    assert {"北京", "首都"} <= pieces("首都 (北京)")


def test_arabic_spelling_variants_fold() -> None:
    tokenizer = build_tokenizer([("▁احمد", -1)])
    assert tokenizer.encode("أَحْمَد").tokens == tokenizer.encode("احمد").tokens == ["<s>", "▁احمد", "</s>"]


def test_the_saved_file_is_minified_and_gives_the_same_ids(trained: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    save_tokenizer(trained, path)
    again = Tokenizer.from_file(str(path))
    for text in [*TEXTS[:5], "Unseen words, 12 of them!", "", "  \n"]:
        assert again.encode(text).ids == trained.encode(text).ids
    raw = path.read_text(encoding="utf-8")
    assert raw == json.dumps(json.loads(raw), ensure_ascii=False, separators=(",", ":"))


def test_a_vocabulary_without_room_is_refused() -> None:
    with pytest.raises(InvalidInput, match="vocabulary_size is 5"):
        train_tokenizer(TEXTS, 5)


def test_small_languages_are_levelled_and_emphasis_counts() -> None:
    texts = {"en": [f"{n:04d}" * 5 for n in range(500)], "hi": [f"h{n:03d}" * 5 for n in range(100)]}

    def share(**options: object) -> float:
        drawn = sample_texts(texts, total_characters=1000, **options)  # type: ignore[arg-type]
        return sum(text.startswith("h") for text in drawn) / len(drawn)

    assert share(exponent=1.0) == pytest.approx(1 / 6, abs=0.05)
    assert share(exponent=0.0) == pytest.approx(1 / 2, abs=0.05)
    assert share(exponent=0.0, emphasis={"hi": 3.0}) == pytest.approx(3 / 4, abs=0.05)
    assert sample_texts(texts, total_characters=1000) == sample_texts(texts, total_characters=1000)
