"""RetroMAE: the loss against a computation by hand, masks, split batches, and what is left out or refused."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import erf, logsumexp
from tokenizers import Tokenizer
from training_worlds import write_world

from m3_connectors.encoder.config import ModelConfig
from m3_connectors.encoder.model import M3Model
from m3_connectors.errors import InvalidInput
from m3_connectors.training.config import TrainingConfig
from m3_connectors.training.data import open_pairs
from m3_connectors.training.forward import POSITIONS, WORDS, TrainingEncoder
from m3_connectors.training.retromae import RetroMAESettings, choose, tied_cross_entropy, visible
from m3_connectors.training.run import train
from m3_connectors.training.stages import StageInputs
from m3_connectors.training.stages.retromae import RetroMAE
from m3_connectors.training.tokenizer import MASK
from m3_connectors.training.trainer import learn_tokenizer

Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_world(tmp_path_factory.mktemp("world") / "training")
    rng = np.random.default_rng(1)
    with (root / "pairs" / "notes.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(40):  # lengths differ, so that padding and sub-batches matter
            words = rng.choice(["kala", "mivo", "dator", "fine", "Sulo", "bagi"], rng.integers(1, 12))
            file.write(json.dumps({"text": " ".join(words), "lang": "en"}) + "\n")
    return root


@pytest.fixture(scope="module")
def tokenizer(world: Path) -> Tokenizer:
    return learn_tokenizer(world / "pairs", TrainingConfig.load(world / "tiny.toml").tokenizer)


def make_stage(
    world: Path,
    tokenizer: Tokenizer,
    *,
    tokens_at_once: int = 0,
    dtype: torch.dtype = torch.float64,
    sources: dict[str, float] | None = None,
    **settings: Any,
) -> RetroMAE:
    config = TrainingConfig.load(world / "tiny.toml")
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, source_weights=sources or {"notes": 1.0}),
        run=dataclasses.replace(config.run, tokens_at_once=tokens_at_once),
        retromae=RetroMAESettings(**settings),
    )
    store = open_pairs(world / "pairs", tokenizer, world / "tokens", longest=64, held_out_share=0.2)
    torch.manual_seed(3)
    model = M3Model(ModelConfig(tokenizer.get_vocab_size(), 32, 2, 2, 48, 66)).to(dtype)
    encoder = TrainingEncoder(model, dtype, tokens_at_once=tokens_at_once)
    stage = RetroMAE(StageInputs(config, store, model, encoder, tokenizer, world))
    stage.extra.to(dtype)
    with torch.no_grad():  # every weight counts, also those that start at 0 or 1
        for value in stage.extra.parameters():
            value += 0.1 * torch.randn(value.shape, dtype=dtype)
    return stage


# The computation by hand: numpy, one text and one position after the other.


def norm(x: Array, name: str, w: dict[str, Array]) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: Array, name: str, w: dict[str, Array]) -> Array:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def gelu(x: Array) -> Array:
    return np.asarray(x * 0.5 * (1 + erf(x / math.sqrt(2))))


def layer(
    h1: Array, h2: Array, seen: NDArray[np.bool_], name: str, w: dict[str, Array], heads: int = 2
) -> Array:
    q, k, v = (
        linear(x, f"{name}.attention.self.{part}", w)
        for x, part in ((h1, "query"), (h2, "key"), (h2, "value"))
    )
    width = q.shape[1] // heads
    out = np.zeros_like(q)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for row in range(len(q)):
            scores = np.array([q[row, part] @ k[column, part] for column in range(len(k))]) / math.sqrt(width)
            scores[~seen[row]] = -np.inf
            share = np.exp(scores - logsumexp(scores))
            out[row, part] = share @ v[:, part]
    hidden = norm(
        linear(out, f"{name}.attention.output.dense", w) + h1, f"{name}.attention.output.LayerNorm", w
    )
    inner = gelu(linear(hidden, f"{name}.intermediate.dense", w))
    return norm(linear(inner, f"{name}.output.dense", w) + hidden, f"{name}.output.LayerNorm", w)


def embed(ids: NDArray[np.int64], first: int, w: dict[str, Array]) -> Array:
    places = w[POSITIONS][first + 2 : first + 2 + len(ids)]
    token_type = w["embeddings.token_type_embeddings.weight"][0]
    return norm(w[WORDS][ids] + token_type + places, "embeddings.LayerNorm", w)


def by_hand(stage: RetroMAE, step: int) -> tuple[float, float]:
    """L_enc and L_dec of a step; only the random choices come from the stage."""
    w = {name: value.detach().numpy() for name, value in stage._model.named_parameters()}
    x = {name: value.detach().numpy() for name, value in stage.extra.named_parameters()}
    batch = stage.sampler.batch(step)
    masked, firsts = stage._masked(batch, step), stage._first_positions(batch, step)
    mask = stage._tokenizer.token_to_id(MASK)
    rng = stage._rng(step, 5)
    losses: tuple[list[float], list[float]] = ([], [])
    for number, text in enumerate(batch.texts):
        everything = np.ones((len(text), len(text)), np.bool_)
        hidden = embed(np.where(masked[number], mask, text), firsts[number], w)
        for depth in range(2):
            hidden = layer(hidden, hidden, everything, f"encoder.layer.{depth}", w)
        rows = np.flatnonzero(choose(text >= 4, stage._settings.decoder_share, rng))
        assert mask not in text
        seen = visible(rows, len(text), stage._settings.decoder_mask_ratio, stage._rng(step, 6, number))
        h1 = hidden[0] + w[POSITIONS][firsts[number] + 2 + rows]
        h2 = embed(text, firsts[number], w)
        h2[0] = hidden[0]
        decoded = layer(h1, h2, seen, "decoder", x)
        of_encoder = [(hidden[place], text[place]) for place in np.flatnonzero(masked[number])]
        of_decoder = list(zip(decoded, text[rows], strict=True))
        for found, states in zip(losses, (of_encoder, of_decoder), strict=True):
            for state, target in states:
                changed = norm(gelu(linear(state, "transform.dense", x)), "transform.LayerNorm", x)
                logits = w[WORDS] @ changed + x["bias"]
                found.append(logsumexp(logits) - logits[target])
    return (float(np.mean(losses[0])) if losses[0] else 0.0), float(np.mean(losses[1]))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"encoder_mask_ratio": 0.0},
        {"decoder_mask_ratio": 1.0},
        {"decoder_mask_ratio": 0.0},
        {"decoder_share": 0.4},
    ],
    ids=str,
)
def test_the_loss_is_that_of_a_computation_by_hand(
    world: Path, tokenizer: Tokenizer, settings: dict[str, float]
) -> None:
    stage = make_stage(world, tokenizer, **settings)
    for step in range(3):
        outcome = stage.loss(step, 0.0)
        encoder, decoder = by_hand(stage, step)
        assert outcome.loss.item() == pytest.approx(encoder + decoder, abs=1e-12)
        assert outcome.parts.get("encoder", 0.0) == pytest.approx(encoder, abs=1e-12)
        assert outcome.parts["decoder"] == pytest.approx(decoder, abs=1e-12)
        assert ("encoder" in outcome.parts) == (encoder > 0)  # a part that does not exist is not a loss of 0


def gradients(stage: RetroMAE, step: int) -> tuple[float, dict[str, torch.Tensor]]:
    outcome = stage.loss(step, 0.0)
    outcome.loss.backward()
    found = {
        f"{kind}{name}": value.grad
        for kind, module in (("", stage._model), ("stage.", stage.extra))
        for name, value in module.named_parameters()
        if value.grad is not None
    }
    return outcome.loss.item(), found | {name: rows.values.grad for name, rows in outcome.tables.items()}


def test_sub_batches_give_the_gradients_of_the_whole_batch(world: Path, tokenizer: Tokenizer) -> None:
    whole_loss, whole = gradients(make_stage(world, tokenizer), 1)
    assert whole[WORDS].shape[0] == tokenizer.get_vocab_size()
    for tokens_at_once in (1, 30):
        loss, parts = gradients(make_stage(world, tokenizer, tokens_at_once=tokens_at_once), 1)
        assert loss == pytest.approx(whole_loss, abs=1e-12)
        assert parts.keys() == whole.keys()
        for name, gradient in whole.items():
            torch.testing.assert_close(parts[name], gradient, atol=1e-12, rtol=1e-9)


def test_the_heads_of_the_model_get_no_gradient_and_the_layers_of_the_stage_all(
    world: Path, tokenizer: Tokenizer
) -> None:
    stage = make_stage(world, tokenizer)
    _, found = gradients(stage, 0)
    trained = {name for name, value in found.items() if value.abs().max() > 0}
    assert not [name for name in found if name.startswith(("sparse_linear", "colbert_linear"))]
    key_bias = "stage.decoder.attention.self.key.bias"  # a softmax does not change with it
    assert {f"stage.{name}" for name, _ in stage.extra.named_parameters()} - {key_bias} <= trained


def test_chunks_of_the_vocabulary_softmax_give_the_plain_loss_and_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("m3_connectors.training.retromae._LOGITS_AT_ONCE", 150)  # 3 rows at once
    torch.manual_seed(0)
    leaves = [
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((11, 6), (50, 6), (50,))
    ]
    targets = torch.randint(0, 50, (11,))
    weights = torch.rand(11, dtype=torch.float64)
    loss, losses = tied_cross_entropy(*leaves, targets, weights)
    (3 * loss).backward()
    states, words, bias = (leaf.detach().requires_grad_() for leaf in leaves)
    plain = torch.nn.functional.cross_entropy(states @ words.T + bias, targets, reduction="none")
    (3 * (plain * weights).sum()).backward()
    torch.testing.assert_close(losses, plain.detach(), atol=1e-12, rtol=0)
    for ours, theirs in zip(leaves, (states, words, bias), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-12, rtol=0)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 1.0])
def test_a_position_of_the_decoder_sees_the_sentence_never_itself_and_a_share_of_the_others(
    ratio: float,
) -> None:
    rows = np.arange(1, 200, 3)
    seen = visible(rows, 200, ratio, np.random.default_rng(0))
    assert seen[:, 0].all()
    assert not seen[np.arange(len(rows)), rows].any()
    assert seen[:, 1:].sum() / (len(rows) * 198) == pytest.approx(1 - ratio, abs=0.02)
    assert ratio in (0.0, 1.0) or len(np.unique(seen, axis=0)) == len(rows)  # each row its own sample


def test_a_share_of_the_tokens_is_masked_and_at_least_one() -> None:
    rng = np.random.default_rng(0)
    candidates = np.array([False, *[True] * 10, False])
    assert choose(candidates, 0.3, rng).sum() == 3
    assert choose(candidates, 0.01, rng).sum() == 1
    assert choose(candidates, 0.0, rng).sum() == 0
    assert choose(~candidates & False, 0.5, rng).sum() == 0
    assert not choose(candidates, 1.0, rng)[[0, -1]].any()


def test_special_tokens_are_neither_masked_nor_predicted(
    world: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    # A text that contains special tokens literally, one of nothing else, and one usable token.
    lines = [
        {"text": f"kala {MASK} mivo <unk> dator </s>"},
        {"text": f"{MASK}</s>"},
        {"text": "<unk>"},
        {"text": "a"},
    ]
    (folder / "notes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = TrainingConfig.load(world / "tiny.toml")
    data = dataclasses.replace(config.data, source_weights={"notes": 1.0}, shifted_share=0.0)
    store = open_pairs(folder, tokenizer, tmp_path / "tokens", longest=64, held_out_share=0.0)
    torch.manual_seed(0)
    model = M3Model(ModelConfig(tokenizer.get_vocab_size(), 32, 1, 2, 48, 66))
    encoder = TrainingEncoder(model, torch.float32)
    inputs = StageInputs(dataclasses.replace(config, data=data), store, model, encoder, tokenizer, tmp_path)
    stage = RetroMAE(inputs)
    (warning,) = stage.warnings
    assert "notes: 2 of 4 texts (they have no tokens to predict)" in warning
    batch = stage.sampler.batch(0)
    mask = tokenizer.token_to_id(MASK)
    special = [np.isin(text, [0, 1, 2, 3, mask]) for text in batch.texts]
    assert len(batch.texts) == 2
    assert any(is_special[1:-1].any() for is_special in special)
    for hidden, is_special in zip(stage._masked(batch, 0), special, strict=True):
        assert hidden.any()
        assert not (hidden & is_special).any()
    outcome = stage.loss(0, 0.0)
    assert outcome.counts["predicted"] == sum(int((~is_special).sum()) for is_special in special)
    assert math.isfinite(outcome.loss.item())


def test_passages_and_texts_are_used_and_queries_if_wanted(world: Path, tokenizer: Tokenizer) -> None:
    def texts(**settings: bool) -> set[bytes]:
        stage = make_stage(world, tokenizer, sources={"qa": 1.0}, **settings)
        return {text.tobytes() for step in range(60) for text in stage.sampler.batch(step).texts}

    store = open_pairs(world / "pairs", tokenizer, world / "tokens", longest=64, held_out_share=0.2)
    held = np.asarray(store.held_out)
    of_qa = np.asarray(store.source) == store.sources.index("qa")

    def wrapped(numbers: NDArray[np.int32]) -> set[bytes]:
        return {np.array([0, *store.text(number)[:30], 2], np.int64).tobytes() for number in numbers}

    passages, queries = wrapped(store.passage[of_qa & ~held]), wrapped(store.query[of_qa & ~held])
    assert texts() <= passages
    assert len(texts()) > 0.9 * len(passages)
    assert texts(queries=True) & queries
    assert not texts() & wrapped(store.passage[of_qa & held])


def test_a_tokenizer_without_mask_is_refused(world: Path, tokenizer: Tokenizer) -> None:
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] != MASK]
    raw["model"]["vocab"] = [piece for piece in raw["model"]["vocab"] if piece[0] != MASK]
    with pytest.raises(InvalidInput, match=r"the tokenizer has no token <mask>.*\n  Add <mask>"):
        make_stage(world, Tokenizer.from_str(json.dumps(raw)))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("encoder_mask_ratio = 1.0", "encoder_mask_ratio"),  # nothing would be left to encode
        ("encoder_mask_ratio = -0.1", "encoder_mask_ratio"),
        ("decoder_mask_ratio = 1.1", "decoder_mask_ratio"),
        ("decoder_share = 0.0", "decoder_share"),
        ("mask_ratio = 0.3", "mask_ratio"),
    ],
)
def test_masks_out_of_range_are_refused(world: Path, tmp_path: Path, line: str, reason: str) -> None:
    config = tmp_path / "wrong.toml"
    config.write_text((world / "tiny.toml").read_text() + f"[retromae]\n{line}\n")
    with pytest.raises(InvalidInput, match=reason):
        TrainingConfig.load(config)


def test_no_usable_text_is_refused(world: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    (folder / "notes.jsonl").write_text(json.dumps({"text": "<unk>"}) + "\n")
    store = open_pairs(folder, tokenizer, tmp_path / "tokens", longest=64, held_out_share=0.0)
    stage = make_stage(world, tokenizer)
    config = TrainingConfig.load(world / "tiny.toml")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, source_weights={"notes": 1.0}))
    inputs = StageInputs(config, store, stage._model, stage._encoder, tokenizer, tmp_path)
    with pytest.raises(
        InvalidInput, match=r"no batch can be made from the texts: .*no tokens to predict(.|\n)*  Add"
    ):
        RetroMAE(inputs)


THREE = """
[[stages]]
objective = "retromae"
run.steps = 60
run.save_every = 7
data.source_weights = { qa = 1.0, notes = 0.5 }
[[stages]]
objective = "unsupervised"
run.steps = 2
[[stages]]
run.steps = 2
"""


def test_three_stages_run_the_loss_falls_and_a_stopped_run_takes_the_same_steps(
    world: Path, tmp_path: Path
) -> None:
    config = world / "three.toml"
    config.write_text((world / "tiny.toml").read_text() + THREE)
    whole: list[dict[str, Any]] = []
    train(config, output=tmp_path / "a", work=tmp_path / "whole", report=whole.append)
    stopped: list[dict[str, Any]] = []
    for limit in (23, 61, 1000):
        try:
            train(
                config,
                output=tmp_path / "b",
                work=tmp_path / "stopped",
                report=stopped.append,
                stop=lambda limit=limit: len([r for r in stopped if "step" in r]) >= limit,
            )
        except KeyboardInterrupt:
            continue

    def losses(records: list[dict[str, Any]]) -> list[float]:
        return [record["loss"] for record in records if "step" in record]

    assert len(losses(whole)) == 64
    assert losses(stopped) == losses(whole)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert np.mean(losses(whole)[50:60]) < 0.9 * np.mean(losses(whole)[:5])
    assert not any("stage" in path.name for path in (tmp_path / "a").iterdir())
    groups = [record["groups"] for record in whole if record.get("event") == "groups"]
    steps = [record for record in whole if "step" in record]
    assert len(groups) == 3
    assert groups[0][0]["group"] == 32
    assert groups[0][0]["tokens"] == sum(record["tokens"] for record in steps[:60])
    assert groups[0][0]["loss"] == pytest.approx(np.mean(losses(whole)[:60]), abs=1e-4)
