"""A model in other libraries: transformers cuts texts as we do, sentence-transformers gives our dense vectors."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3_connectors import M3Encoder
from m3_connectors.testing.checkpoints import TEXTS, write_checkpoint
from m3_connectors.training.checkpoint import export_model, import_model
from m3_connectors.training.interchange import write_interchange_files

SHIPPED = Path(__file__).parents[2] / "models" / "m3-tiny"
SENTENCES = [
    *TEXTS.values(),
    "What is BGE M3?",
    "Defination of BM25",
    "don't (Berlin), e-mail@example.org: 3.14 %",
    "  blanks   in\ttab\nline\u00a0no-break\u3000wide  ",
    "ﬁne Ⅷ ½ ＡＢＣ é e\u0301 ßẞ İı",
    "أهلا إلى آخر ٱلكتاب مُدَرِّس ـــ",
    "東京タワーはどこですか? ราคาเท่าไร 한국어",
    "emoji 👩‍👩‍👧 🇩🇪 \u200b\ufeff",
    "<s> a <mask> b </s> <pad> <unk>",
    "▁ a▁b",
    "x" * 300,
    "",
    " ",
]


@pytest.fixture(scope="module")
def encoder() -> M3Encoder:
    return M3Encoder(SHIPPED, device="cpu", precision="float32")


@pytest.fixture(scope="module")
def other():  # type: ignore[no-untyped-def]
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(SHIPPED))


def ours(encoder: M3Encoder, text: str) -> list[int]:
    tokens: list[int] = encoder._tokenise([text], encoder.max_length, mcls=False)[0].ids.tolist()
    return tokens


@pytest.mark.parametrize("text", SENTENCES)
def test_transformers_cuts_texts_into_our_tokens(encoder: M3Encoder, other, text: str) -> None:  # type: ignore[no-untyped-def]
    assert other(text)["input_ids"] == ours(encoder, text)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_transformers_cuts_any_text_into_our_tokens(encoder: M3Encoder, other, text: str) -> None:  # type: ignore[no-untyped-def]
    assert other(text)["input_ids"] == ours(encoder, text)


def test_transformers_cuts_long_texts_where_we_do(encoder: M3Encoder, other) -> None:  # type: ignore[no-untyped-def]
    text = "one two three " * 4000
    assert other.model_max_length == encoder.max_length
    assert other(text, truncation=True)["input_ids"] == ours(encoder, text)


def test_the_shipped_files_are_what_the_trainer_writes(tmp_path: Path) -> None:
    checkpoint = import_model(SHIPPED)
    export_model(checkpoint.model, checkpoint.tokenizer, tmp_path)
    names = ("tokenizer_config.json", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json")
    for name in (*names, "config.json", "tokenizer.json", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (SHIPPED / name).read_bytes(), name


def test_a_foreign_tokenizer_is_unchanged_after_writing_and_reading(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    start = import_model(write_checkpoint(tmp_path / "start"))
    export_model(start.model, start.tokenizer, tmp_path / "model")
    encoder = M3Encoder(tmp_path / "model", device="cpu", precision="float32")
    other = AutoTokenizer.from_pretrained(str(tmp_path / "model"))
    for text in SENTENCES:
        assert other(text)["input_ids"] == ours(encoder, text), text


def test_sentence_transformers_gives_our_dense_vectors(encoder: M3Encoder) -> None:
    from sentence_transformers import SentenceTransformer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        model = SentenceTransformer(str(SHIPPED), device="cpu", model_kwargs={"dtype": "float32"})
    assert model.max_seq_length == encoder.max_length
    texts = [text for text in SENTENCES if text.strip()]
    np.testing.assert_allclose(model.encode(texts), encoder.encode(texts).dense, atol=2e-5)


def test_the_files_name_the_sizes_of_the_model(tmp_path: Path) -> None:
    config = import_model(write_checkpoint(tmp_path)).model.config
    write_interchange_files(tmp_path, config)
    assert json.loads((tmp_path / "1_Pooling" / "config.json").read_text())["word_embedding_dimension"] == 32
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"] == 8192
