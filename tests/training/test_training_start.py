"""The start from scratch: what it counts, and that it retrieves before any training."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from m3_connectors.encoder.config import ModelConfig
from m3_connectors.encoder.model import M3Model
from m3_connectors.training.batches import wrap
from m3_connectors.training.data import PairStore, open_pairs
from m3_connectors.training.start import (
    StartSettings,
    build_start,
    count_matrix,
    idf_by_language,
    passages_by_language,
)
from m3_connectors.training.tokenizer import FIRST_PIECE, build_tokenizer
from m3_connectors.training.validate import encode

TOPICS = 12
ENGLISH = [f"e{topic}x{word}" for topic in range(TOPICS) for word in range(6)]
GERMAN = [f"g{topic}x{word}" for topic in range(TOPICS) for word in range(6)]
VOCABULARY = ["the", "der", *ENGLISH, *GERMAN]


def text(rng: np.random.Generator, words: list[str], topic: int, count: int, stop: str) -> str:
    """A stop word, then words of one topic."""
    return f"{stop} " + " ".join(rng.choice(words[6 * topic : 6 * topic + 6], count))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    """English questions on English passages, and translations, over a dozen topics."""
    folder = tmp_path_factory.mktemp("start")
    rng = np.random.default_rng(0)
    with (folder / "qa.jsonl").open("w", encoding="utf-8") as qa, (folder / "par_x.jsonl").open("w") as par:
        for number in range(600):
            topic = number % TOPICS
            pair = {
                "query": text(rng, ENGLISH, topic, 2, "the"),
                "positive": text(rng, ENGLISH, topic, 8, "the"),
                "lang_q": "en",
                "lang_p": "en",
            }
            qa.write(json.dumps(pair) + "\n")
            pair |= {"query": text(rng, GERMAN, topic, 6, "der"), "lang_q": "de"}
            pair |= {"positive": text(rng, ENGLISH, topic, 6, "the")}
            par.write(json.dumps(pair) + "\n")
            swapped = {"query": pair["positive"], "positive": pair["query"], "lang_q": "en", "lang_p": "de"}
            par.write(json.dumps(swapped) + "\n")
    return open_pairs(
        folder, tokenizer(), folder / "cache", longest=64, held_out_share=0.0, linked_sources=("par_",)
    )


def tokenizer() -> Tokenizer:
    return build_tokenizer([(f"▁{word}", -1.0) for word in VOCABULARY])


def ids(words: list[str]) -> list[int]:
    return [FIRST_PIECE + VOCABULARY.index(word) for word in words]


SIZE = FIRST_PIECE + len(VOCABULARY) + 1
CONFIG = ModelConfig(SIZE, 64, 2, 2, 64, 130)


@pytest.fixture(scope="module")
def model(store: PairStore) -> M3Model:
    return build_start(store, CONFIG, StartSettings())


def test_documents_join_passages_with_queries_and_sentences_with_translations(store: PairStore) -> None:
    counts = count_matrix(store, SIZE, 384)
    distinct = {}
    for query, passage, source in zip(store.query, store.passage, store.source, strict=True):
        joined = {int(query), int(passage)}
        key = frozenset(joined) if store.sources[source].startswith("par_") else int(passage)
        distinct.setdefault(key, set()).update(joined)
    total = sum(len(store.text(number)) for texts in distinct.values() for number in texts)
    assert abs(counts.sum() - total) <= 0.02 * total  # a few random texts are equal and merge documents
    german = set(ids(GERMAN))
    both = [row for row in counts if german & set(row.indices) and set(ids(ENGLISH)) & set(row.indices)]
    assert len(both) > 500


def test_a_stop_word_of_a_small_language_counts_as_common(store: PairStore) -> None:
    idf = idf_by_language(*passages_by_language(store, SIZE, 384))
    stop, words = idf[ids(["the", "der"])], idf[ids([*ENGLISH, *GERMAN])]
    assert (stop < 0.1).all()
    assert (words > 1.0).all()


def test_translations_lie_nearer_than_other_words(model: M3Model) -> None:
    vectors = torch.nn.functional.normalize(model.embeddings.word_embeddings.weight.detach()[:, :-2], dim=1)
    likeness = (vectors[ids(ENGLISH)] @ vectors[ids(GERMAN)].T).numpy()
    topic = np.repeat(np.arange(TOPICS), 6)
    same = topic[:, None] == topic[None, :]
    assert likeness[same].mean() > likeness[~same].mean() + 0.15


def test_the_start_retrieves_across_languages_before_training(model: M3Model) -> None:
    rng = np.random.default_rng(9)
    coder = tokenizer()
    english = [coder.encode(text(rng, ENGLISH, topic, 8, "the")).ids[1:-1] for topic in range(TOPICS)]
    german = [coder.encode(text(rng, GERMAN, topic, 3, "der")).ids[1:-1] for topic in range(TOPICS)]
    shown = encode(
        model, [wrap(np.array(one), 64) for one in [*german, *english]], dtype=torch.float32, token_budget=64
    )
    best = (shown.dense[:TOPICS] @ shown.dense[TOPICS:].T).argmax(1)
    assert (best == np.arange(TOPICS)).mean() >= 0.9


def test_sparse_weights_begin_near_the_root_of_idf(model: M3Model, store: PairStore) -> None:
    idf = idf_by_language(*passages_by_language(store, SIZE, 384))
    words = ["the", *ENGLISH[:6]]
    shown = encode(model, [wrap(np.array(ids(words)), 64)], dtype=torch.float32)
    weights = shown.sparse[[0]].toarray()[0]
    wanted = 0.14 * np.sqrt(idf[ids(words)])
    np.testing.assert_allclose(weights[ids(words)], wanted, atol=0.05)
    assert weights[ids(["the"])][0] < 0.5 * weights[ids(ENGLISH[:6])].min()
    assert set(np.flatnonzero(weights)) <= set(ids(words))
