"""Real weights (see ``real_weights``): tokens as XLM-RoBERTa's, and token vectors with the traits of real models."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from real_weights import (
    PASSAGE,
    QUERY,
    NoRealWeights,
    RealEncoder,
    data_vocabulary,
    real_checkpoint,
)
from tokenizers import Tokenizer

from m3_connectors import M3Embeddings, M3Encoder
from m3_connectors.encoder import TruncationWarning
from m3_connectors.scoring import multivector_scores
from m3_connectors.testing.checkpoints import TEXTS

XLM_R_TOKENS = {
    "What is BGE M3?": "▁What ▁is ▁B GE ▁M 3 ?",
    "Hello world": "▁Hello ▁world",
    "  line\tand\u3000line\u200b\nline  ": "▁line ▁and ▁line ▁line",
    "ﬁne Ｆｕｌｌ": "▁fine ▁Full",
    "cafe\u0301": "▁café",
}
"""Published examples of BAAI/bge-m3's tokenizer, and what SentencePiece's nmt_nfkc does to a text before it."""

TOKEN_COUNTS = dict(zip(TEXTS, (35, 29, 27, 28, 29, 37, 38, 26, 25, 36, 31, 35), strict=True))
"""The tokens of each text after the prefix of passages, as counted by the package's own tokenizer, with ``<s>`` and
``</s>``."""


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return real_checkpoint()
    except NoRealWeights as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def real(folder: Path) -> RealEncoder:
    return RealEncoder(folder)


@pytest.fixture(scope="module")
def passages(real: RealEncoder) -> M3Embeddings:
    return real.encode(list(TEXTS.values()), PASSAGE)


@pytest.mark.parametrize("text", XLM_R_TOKENS)
def test_tokens_are_those_of_xlm_roberta(folder: Path, text: str) -> None:
    assert M3Encoder(folder).token_strings(text) == [*XLM_R_TOKENS[text].split(" "), "</s>"]


def test_special_tokens_have_the_ids_of_xlm_roberta(tokenizer: Tokenizer) -> None:
    known = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, ",": 4, ".": 5, "▁": 6, "<mask>": 250_001}
    assert {token: tokenizer.token_to_id(token) for token in known} == known
    assert tokenizer.get_vocab_size() == 250_002
    assert tokenizer.encode("What is BGE M3?").ids == [0, 4865, 83, 335, 11679, 276, 363, 32, 2]


def test_the_normaliser_agrees_with_the_models_table_on_every_character(tokenizer: Tokenizer) -> None:
    _, table = data_vocabulary()
    characters = [chr(code) for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000]
    others = {
        character
        for character in characters
        if tokenizer.normalizer.normalize_str(character) != table.get(character, character)
    }
    # Unicode 11 came after the model; U+FFFF is no character.
    assert others == {"\N{SQUARED CJK UNIFIED IDEOGRAPH-914D}", "\uffff"}


@pytest.mark.parametrize("script", TEXTS)
def test_text_of_every_script_has_tokens_that_spell_it(tokenizer: Tokenizer, script: str) -> None:
    encoding = tokenizer.encode(TEXTS[script], add_special_tokens=False)
    assert 3 not in encoding.ids, "a piece is unknown"
    spelled = "".join(encoding.tokens).replace("▁", " ").strip()
    assert spelled == unicodedata.normalize("NFKC", TEXTS[script])
    assert len(tokenizer.encode(PASSAGE + TEXTS[script]).ids) == TOKEN_COUNTS[script]


def test_translations_are_nearer_than_other_texts(real: RealEncoder) -> None:
    """Positions, blocks of 4-bit codes, and every layer are read as they were written, or this fails."""
    dog = [text for script, text in TEXTS.items() if script in ("Greek", "Cyrillic", "Hangul", "Hebrew")]
    rain = ["Το τρένο φεύγει στις οκτώ.", "Поезд отправляется в восемь часов.", "기차는 여덟 시에 출발한다."]
    asked = real.encode(
        ["a fox jumps over a dog; the book is in the library", "when does the train leave?"], QUERY
    )
    stored = real.encode([*dog, *rain], PASSAGE)
    dense = asked.dense @ stored.dense.T
    late = np.array([multivector_scores(rows, stored.multivectors) for rows in asked.multivectors])
    for scores in (dense, late):
        assert scores[0, : len(dog)].min() > scores[0, len(dog) :].max()
        assert scores[1, : len(dog)].max() < scores[1, len(dog) :].min()


def test_the_checkpoint_is_one_that_the_encoder_reads(folder: Path, real: RealEncoder) -> None:
    """The same rows come from ``M3Encoder``, to which the prefix is text like any other."""
    text = TEXTS["Devanagari"]
    ours = real.encode([text], PASSAGE).multivectors[0]
    embeddings = M3Encoder(folder, precision="float32").encode([PASSAGE + text])
    rows = embeddings.multivectors[0]
    np.testing.assert_allclose(rows[-len(ours) :], ours, atol=1e-4)
    assert set(embeddings.sparse.data.tolist()) == {1.0}


def test_a_text_beyond_512_tokens_is_cut_and_said_to_be(folder: Path, real: RealEncoder) -> None:
    long = TEXTS["Latin"] * 40
    assert real.encode([long], PASSAGE).truncated.all()
    with pytest.warns(TruncationWarning, match="512 tokens"):
        M3Encoder(folder).encode([long])


def test_token_vectors_are_not_centred_and_have_outliers(passages: M3Embeddings) -> None:
    rows = passages.multivectors.rows
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    centre = rows.mean(axis=0)
    assert 0.7 < np.linalg.norm(centre) < 0.9
    spread = rows.std(axis=0)
    largest = (
        np.abs(rows - centre).max(axis=1) / np.linalg.norm(rows - centre, axis=1) * np.sqrt(rows.shape[1])
    )
    assert spread.max() > 2 * np.median(spread), "a few dimensions vary more than the others"
    assert np.percentile(largest, 99) > 6, (
        "some rows have a value of more than six times their standard deviation"
    )
