"""A tiny training run for tests: generated questions whose words occur in their passage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from m3_connectors.training.dense_teacher import text_key

TEACHER_WIDTH = 40

CONFIG = """
output = "model"
[data]
folder = "pairs"
query_longest = 16
groups = [{ longest = 32, batch = 8 }]
held_out_share = 0.2
shifted_share = 0.5
[data.source_weights]
qa = 1.0
[tokenizer]
vocabulary_size = 300
[model]
hidden_size = 32
layers = 1
heads = 2
intermediate_size = 48
max_length = 64
[optimizer]
table_learning_rate = 1e-2
[run]
steps = 6
save_every = 100
distil_from = 0.5
threads = 1
[tune_importance]
qa = 1.0
"""


def write_world(root: Path) -> Path:
    """Write a folder with ``pairs`` (150 passages, two questions each) and ``tiny.toml``."""
    (root / "pairs").mkdir(parents=True)
    rng = np.random.default_rng(0)
    syllables = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "or", "il")]
    words = ["".join(rng.choice(syllables, 2)) for _ in range(120)]
    with (root / "pairs" / "qa.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(150):
            passage = rng.choice(words, 14)
            for _ in range(2):
                pair = {
                    "query": " ".join(rng.choice(passage, 4, replace=False)) + "?",
                    "positive": " ".join(passage) + ".",
                    "lang_q": "en",
                    "lang_p": "en",
                }
                file.write(json.dumps(pair) + "\n")
    (root / "tiny.toml").write_text(CONFIG, encoding="utf-8")
    return root


def texts_of(world: Path) -> list[str]:
    """The distinct texts of a world."""
    rows = [json.loads(line) for line in (world / "pairs" / "qa.jsonl").read_text().splitlines()]
    return list(dict.fromkeys(row[side] for row in rows for side in ("query", "positive")))


def taught(texts: list[str]) -> NDArray[np.float32]:
    """What a good teacher says: the mean of a random vector for each word, far from the origin as real ones are."""
    rng = np.random.default_rng(3)
    words: dict[str, NDArray[np.float64]] = {}
    rows = [
        np.mean(
            [words.setdefault(word, rng.standard_normal(TEACHER_WIDTH)) for word in text.strip("?.").split()],
            0,
        )
        for text in texts
    ]
    vectors = np.array(rows) + 1.0
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def write_teacher(path: Path, texts: list[str]) -> None:
    """Write a file of teacher vectors for these texts."""
    save_file({"keys": np.array([*map(text_key, texts)], np.uint64), "vectors": taught(texts)}, path)
