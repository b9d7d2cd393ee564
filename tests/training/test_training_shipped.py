"""The shipped model: complete, small enough, and it finds what it should in several languages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from m3_connectors import M3Encoder
from m3_connectors.training.config import load_stages

FOLDER = Path(__file__).parents[2] / "models" / "m3-tiny"

PASSAGES = [
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen in the leaves of plants.",
    "The bridge was opened in 1937 and spans the strait between the bay and the ocean.",
    "A fever is often a sign that the body fights an infection; drink enough and rest.",
    "The parliament passed the budget after a long debate about taxes.",
]
QUESTIONS = {
    "en": ["How do plants make oxygen?", "When was the bridge opened?", "What helps against a fever?"],
    "de": ["Was machen Pflanzen mit Licht?", "Wann wurde die Brücke eröffnet?", "Was tun bei Fieber?"],
    "es": [
        "¿Qué hacen las plantas con la luz?",
        "¿Cuándo se abrió el puente?",
        "¿Es la fiebre una infección?",
    ],
}


@pytest.fixture(scope="module")
def encoder() -> M3Encoder:
    return M3Encoder(str(FOLDER), precision="float32")


def test_the_folder_is_complete_and_small() -> None:
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert set(files) >= {
        "ATTRIBUTION.tsv",
        "README.md",
        "colbert_linear.pt",
        "config.json",
        "model.safetensors",
        "sparse_linear.pt",
        "tokenizer.json",
        "training.toml",
        "training_log.jsonl",
        "weights.json",
    }
    assert sum(files.values()) < 40_000_000


def test_its_configuration_and_log_belong_to_it(encoder: M3Encoder) -> None:
    stages = load_stages(FOLDER / "training.toml")
    config = stages[-1]
    assert encoder.info.dimension == config.model.hidden_size
    assert encoder.info.vocabulary_size == config.tokenizer.vocabulary_size
    records = [json.loads(line) for line in (FOLDER / "training_log.jsonl").read_text().splitlines()]
    assert {record["stage"] for record in records} == {stage.objective for stage in stages}
    for stage in stages:
        losses = [r["loss"] for r in records if "loss" in r and r["stage"] == stage.objective]
        assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


def test_it_recommends_weights(encoder: M3Encoder) -> None:
    weights = encoder.recommended_weights
    assert set(weights) == {"dense_sparse", "all"}
    assert all(min(values) >= 0 and max(values) > 0 for values in weights.values())
    assert weights["dense_sparse"][2] == 0


def test_it_finds_passages_within_and_across_languages(encoder: M3Encoder) -> None:
    passages = encoder.encode(PASSAGES)
    assert passages.multivectors is not None
    right = 0
    for questions in QUESTIONS.values():
        queries = encoder.encode(questions)
        assert queries.dense is not None
        assert queries.multivectors is not None
        assert passages.dense is not None
        weights = encoder.recommended_weights["all"]
        for number in range(len(questions)):
            sparse = (queries.sparse[[number]] @ passages.sparse.T).toarray()[0]  # type: ignore[index, union-attr]
            rows = queries.multivectors[number]
            late = [float((rows @ other.T).max(1).mean()) for other in passages.multivectors]
            total = (
                weights[0] * (passages.dense @ queries.dense[number])
                + weights[1] * sparse
                + weights[2] * np.array(late)
            )
            right += int(total.argmax()) == number
    assert right >= 8, "of 9 questions"
