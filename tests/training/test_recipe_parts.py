"""Parts that stages share: extended positions, shuffled segments, equal texts, statistics of length groups."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from training_worlds import write_world

from m3_connectors.encoder import M3Encoder
from m3_connectors.encoder.config import ModelConfig
from m3_connectors.encoder.model import M3Model
from m3_connectors.errors import InvalidInput
from m3_connectors.training.checkpoint import export_model
from m3_connectors.training.config import TrainingConfig
from m3_connectors.training.data import open_pairs
from m3_connectors.training.forward import TrainingEncoder
from m3_connectors.training.negatives import answers_by_tokens
from m3_connectors.training.positions import extend_positions
from m3_connectors.training.run import train
from m3_connectors.training.stages import STAGES, StageInputs
from m3_connectors.training.stages.pairs import shuffled_segments
from m3_connectors.training.stages.unsupervised import Unsupervised
from m3_connectors.training.statistics import group_counts, group_statistics
from m3_connectors.training.trainer import learn_tokenizer


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world") / "training")


@pytest.fixture(scope="module")
def tokenizer(world: Path) -> Tokenizer:
    return learn_tokenizer(world / "pairs", TrainingConfig.load(world / "tiny.toml").tokenizer)


@pytest.fixture(scope="module")
def short_model(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("short") / "model"
    torch.manual_seed(0)
    model = M3Model(ModelConfig(tokenizer.get_vocab_size(), 32, 1, 2, 48, 66))
    export_model(model, tokenizer, folder, torch.float32)
    return folder


def test_short_texts_are_encoded_as_before_and_long_ones_repeat_the_positions() -> None:
    torch.manual_seed(0)
    model = M3Model(ModelConfig(100, 32, 2, 2, 48, 66)).eval()
    longer = extend_positions(model, 200)
    ids = torch.randint(4, 100, (64,))
    with torch.no_grad():
        assert torch.equal(model(ids, [64]), longer(ids, [64]))
    assert longer.config.max_length == 200
    old = model.embeddings.position_embeddings.weight
    new = longer.embeddings.position_embeddings.weight
    assert torch.equal(new[:66], old)
    for position in (64, 127, 128, 199):
        assert torch.equal(new[2 + position], old[2 + position % 64])
    assert extend_positions(model, 64) is model
    with pytest.raises(
        InvalidInput, match=r"extend_positions is 63, but the start model has 64 positions\.\n  "
    ):
        extend_positions(model, 63)


def test_a_run_with_more_positions_is_exported_with_them(
    world: Path, short_model: Path, tmp_path: Path
) -> None:
    config = world / "longer.toml"
    text = (world / "tiny.toml").read_text().replace("longest = 32", "longest = 150")
    text = f'start_from = "{short_model}"\nextend_positions = 200\n' + text
    stages = '[[stages]]\nobjective = "retromae"\nrun.steps = 1\n[[stages]]\nrun.steps = 1\n'
    config.write_text(text.replace("[tune_importance]\nqa = 1.0\n", "") + stages)
    train(config, output=tmp_path / "out", work=tmp_path / "work")
    assert json.loads((tmp_path / "out/config.json").read_text())["max_position_embeddings"] == 202
    assert json.loads((tmp_path / "out/tokenizer_config.json").read_text())["model_max_length"] == 200
    long_text = " ".join(["kala mivo dator"] * 20)
    ours = M3Encoder(tmp_path / "out", device="cpu", precision="float32").encode([long_text, "kala"]).dense
    transformers = pytest.importorskip("transformers")
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    for row, each in zip(ours, (long_text, "kala"), strict=True):
        inputs = tokens(each, return_tensors="pt")
        assert each == "kala" or 64 < inputs["input_ids"].shape[1] <= 200
        with torch.no_grad():
            state = torch.nn.functional.normalize(theirs(**inputs).last_hidden_state[0, 0], dim=0)
        np.testing.assert_allclose(row, state.numpy(), atol=1e-5)


def test_positions_of_a_new_model_are_not_extended(world: Path, tmp_path: Path) -> None:
    config = world / "scratch.toml"
    config.write_text("extend_positions = 8192\n" + (world / "tiny.toml").read_text())
    with pytest.raises(
        InvalidInput, match=r"extend_positions is 8,192, but the run starts from scratch\.\n  "
    ):
        train(config, output=tmp_path / "out", work=tmp_path / "work")


def test_segments_change_places_and_keep_their_tokens() -> None:
    text = np.array([0, *range(10, 110), 2], np.int64)
    thirds = np.array_split(text[1:-1], 3)
    orders = set()
    for seed in range(60):
        shuffled = shuffled_segments(text, np.random.default_rng(seed))
        assert (shuffled[0], shuffled[-1]) == (0, 2)
        order = tuple(np.argsort([int(np.flatnonzero(shuffled == third[0])[0]) for third in thirds]))
        orders.add(order)
        np.testing.assert_array_equal(shuffled[1:-1], np.concatenate([thirds[number] for number in order]))
    assert len(orders) == 6


def make_stage(world: Path, tokenizer: Tokenizer, folder: Path | None = None, **data: Any) -> Unsupervised:
    config = TrainingConfig.load(world / "tiny.toml")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **data))
    store = open_pairs(
        folder or world / "pairs",
        tokenizer,
        (folder or world / "pairs").with_suffix(".tokens"),
        longest=64,
        held_out_share=0.0,
    )
    torch.manual_seed(0)
    model = M3Model(ModelConfig(tokenizer.get_vocab_size(), 32, 1, 2, 48, 66))
    encoder = TrainingEncoder(model, torch.float32)
    stage = STAGES["unsupervised"](StageInputs(config, store, model, encoder, tokenizer, world))
    assert isinstance(stage, Unsupervised)
    return stage


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_a_share_of_the_long_passages_is_shuffled_by_seed_and_step(
    world: Path, tokenizer: Tokenizer, share: float
) -> None:
    stage = make_stage(world, tokenizer, segment_shuffle=share, segment_shuffle_above=30)
    again = make_stage(world, tokenizer, segment_shuffle=share, segment_shuffle_above=30)
    changed = total = 0
    for step in range(40):
        plain, batch = stage.sampler.batch(step).passages, stage.batch(step).passages
        for before, after, repeated in zip(plain, batch, again.batch(step).passages, strict=True):
            np.testing.assert_array_equal(after, repeated)
            np.testing.assert_array_equal(np.sort(before), np.sort(after))
            if len(before) <= 30:
                np.testing.assert_array_equal(before, after)
            else:
                total += 1
                changed += not np.array_equal(before, after)
    # One order in six is the first one.
    assert changed / total == pytest.approx(share * 5 / 6, abs=0.06)
    record = stage.batch_record(0)
    assert [text["ids"] for text in record["passages"]] == [text.tolist() for text in stage.batch(0).passages]


def ids(*numbers: int) -> NDArray[np.int64]:
    return np.array([0, *numbers, 2], np.int64)


def test_equal_tokens_are_no_negatives() -> None:
    queries = [ids(5), ids(6), ids(5), ids(7)]
    passages = [ids(10), ids(11), ids(12), ids(6), ids(12)]
    answers = answers_by_tokens(queries, passages, np.array([0, 1, 2, 3]))
    np.testing.assert_array_equal(
        answers,
        [
            [True, False, True, False, True],  # its own, that of the equal query, and the copy of that one
            [False, False, False, True, False],  # the passage that is the query itself
            [True, False, True, False, True],
            [False, False, False, False, False],
        ],
    )


def test_texts_that_only_the_model_cannot_tell_apart_are_no_negatives_in_a_stage(
    world: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    pairs = [("Kala", "mivo dator"), ("kala", "sulo bagi"), ("fine", "dulo mako"), ("rubi", "Dulo  mako")]
    with (folder / "qa.jsonl").open("w") as file:
        for query, positive in pairs:
            line = {"query": query, "positive": positive, "lang_q": "en", "lang_p": "en"}
            file.write(json.dumps(line) + "\n")
    stage = make_stage(world, tokenizer, folder, shifted_share=0.0)
    batch = stage.batch(0)
    assert len(batch) == 4
    assert batch.ignored.sum() == 4  # twice two that the tokens do not tell apart
    assert not batch.ignored[np.arange(4), batch.targets].any()
    outcome = stage.loss(0, 0.0)
    with torch.no_grad():
        dense, _ = stage._encoder.dense(batch.queries + batch.passages)
        scores = (dense[:4] @ dense[4:].T / 0.02).double().numpy()
    expected = [
        -scores[row, target] + np.log(np.exp(scores[row][~batch.ignored[row]]).sum())
        for row, target in enumerate(batch.targets)
    ]
    assert outcome.loss.item() == pytest.approx(np.mean(expected), abs=1e-5)


def test_the_unsupervised_stage_keeps_the_heads_bit_for_bit(
    world: Path, short_model: Path, tmp_path: Path
) -> None:
    config = world / "heads.toml"
    text = f'start_from = "{short_model}"\nobjective = "unsupervised"\n' + (world / "tiny.toml").read_text()
    text = text.replace("[tune_importance]\nqa = 1.0\n", "").replace("[run]", "weight_decay = 0.5\n[run]")
    config.write_text(text)
    train(config, output=tmp_path / "out", work=tmp_path / "work")
    for head in ("sparse_linear.pt", "colbert_linear.pt"):
        before, after = (
            torch.load(folder / head, weights_only=True) for folder in (short_model, tmp_path / "out")
        )
        for name, value in before.items():
            assert torch.equal(value.half(), after[name])


def test_statistics_of_length_groups() -> None:
    texts = [np.zeros(n, np.int64) for n in (10, 20, 30)]
    assert group_counts(64, texts) == {"group": 64, "padding": round(1 - 60 / 90, 4)}
    records = [
        {"event": "phase"},
        {"step": 0, "group": 512, "tokens": 600, "loss": 2.0, "padding": 0.5, "seconds": 2.0},
        {"step": 1, "group": 64, "tokens": 200, "loss": 1.0, "padding": 0.1, "seconds": 0.5},
        {"step": 2, "group": 64, "tokens": 200, "loss": 3.0, "padding": 0.3, "seconds": 0.5},
    ]
    short = {"group": 64, "steps": 2, "tokens": 400, "token_share": 0.4, "loss": 2.0, "padding": 0.2}
    long = {"group": 512, "steps": 1, "tokens": 600, "token_share": 0.6, "loss": 2.0, "padding": 0.5}
    assert group_statistics(records) == [
        short | {"tokens_per_second": 400},
        long | {"tokens_per_second": 300},
    ]
    assert group_statistics([]) == []
