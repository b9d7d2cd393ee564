"""The failures that users of the reference code report: each is named or avoided. The numbers are FlagEmbedding's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_worlds import CONFIG, write_world

from m3_connectors.errors import Diverged, InvalidInput
from m3_connectors.training.config import TrainingConfig
from m3_connectors.training.losses import Scores
from m3_connectors.training.pairs import ALWAYS_SKIPPED, read_lines, read_pairs
from m3_connectors.training.trainer import Trainer
from m3_connectors.training.watch import Watch, measures

Records = list[dict[str, Any]]


def configured(root: Path, **changes: str) -> TrainingConfig:
    """The tiny configuration, with lines added to its tables."""
    text = CONFIG.replace("[tune_importance]\nqa = 1.0", "")
    text = text.replace("steps = 6", "steps = 60")
    for table, line in changes.items():
        text += f"\n[{table}]\n{line}\n"
    (root / "tiny.toml").write_text(text)
    return TrainingConfig.load(root / "tiny.toml")


def trained(root: Path, config: TrainingConfig, steps: int) -> tuple[Trainer, Records, list[str]]:
    records: Records = []
    trainer = Trainer(config, root / "pairs", root / "work", records.append)
    trainer.run(steps=steps)
    return (
        trainer,
        records,
        [str(record["message"]) for record in records if record.get("event") == "warning"],
    )


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return write_world(tmp_path / "world")


def test_982_a_sparse_head_that_collapses_to_zero_is_named_once(world: Path) -> None:
    records: Records = []
    trainer = Trainer(configured(world), world / "pairs", world / "work", records.append)
    with torch.no_grad():
        trainer.model.sparse_linear.weight.zero_()
        trainer.model.sparse_linear.bias.fill_(-1.0)
    trainer.run(steps=25)
    said = [record["message"] for record in records if record.get("event") == "warning"]
    (collapse,) = [message for message in said if "sparse head collapses" in message]
    assert collapse.startswith("step 19: ")
    assert "0.00% of the tokens have a weight above 0" in collapse
    assert "lambdas" in collapse.split("\n")[1]
    assert all(record["sparse_active"] == 0 for record in records if "loss" in record)


def test_a_sparse_head_that_is_not_trained_is_not_watched(world: Path) -> None:
    configured(world)
    path = world / "tiny.toml"
    path.write_text('train = ["dense", "multivector"]\n' + path.read_text())
    records: Records = []
    trainer = Trainer(TrainingConfig.load(path), world / "pairs", world / "work", records.append)
    with torch.no_grad():
        trainer.model.sparse_linear.weight.zero_()
        trainer.model.sparse_linear.bias.fill_(-1.0)
    trainer.run(steps=21)
    assert not any("sparse head" in str(record.get("message")) for record in records)


def test_a_sound_run_has_no_warning_of_its_scores(world: Path) -> None:
    _, records, said = trained(world, configured(world), 30)
    assert not [message for message in said if message.startswith("step ")]
    steps = [record for record in records if "loss" in record]
    assert all(0.5 < record["sparse_active"] <= 1 for record in steps)


def test_823_a_loss_of_0_is_named() -> None:
    watch = Watch()
    said = [
        message
        for step in range(25)
        for message in watch.warnings({"step": step, "loss": 0.0, "sparse_active": 0.9})
    ]
    (message,) = said
    assert message.startswith("step 19: the loss of the last 20 steps is 0")
    assert "m3 mine" in message


def test_747_the_score_of_positives_is_logged_beside_its_margin(world: Path) -> None:
    _, records, _ = trained(world, configured(world), 3)
    for record in records:
        if "loss" in record:
            for name in ("dense", "lex", "mul"):
                assert record[f"{name}_positive"] >= -1
                assert math.isfinite(record[f"{name}_margin"])
            assert record["tokens_per_second"] > 0
            assert record["learning_rate"] == pytest.approx(1e-3 * record["rate_factor"], abs=1e-7)


def test_measures_are_those_of_loops() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 4, 6))
    targets, cross = np.array([0, 1, 1, 5]), np.array([False, True, False, False])
    ignored = rng.random((4, 6)) < 0.3
    ignored[3] = True
    ignored[np.arange(4), targets] = False
    shown = measures(
        Scores(*(torch.tensor(view) for view in values)),
        torch.tensor(targets),
        torch.tensor(ignored),
        torch.tensor(cross),
        torch.tensor([0.0, 0.5, 0.0, 2.0]),
    )
    assert shown["sparse_active"] == 0.5
    for view, name in enumerate(("dense", "lex", "mul")):
        queries = [q for q in range(4) if not (name == "lex" and cross[q])]
        positive = [values[view, q, targets[q]] for q in queries]
        assert shown[f"{name}_positive"] == pytest.approx(np.mean(positive), abs=1e-4)
        margins = []
        for q in queries:
            negatives = [values[view, q, p] for p in range(6) if p != targets[q] and not ignored[q, p]]
            if negatives:
                margins.append(values[view, q, targets[q]] - np.mean(negatives))
        assert shown[f"{name}_margin"] == pytest.approx(np.mean(margins), abs=1e-4)


def test_positives_below_their_negatives_are_named() -> None:
    watch = Watch()
    record = {"loss": 3.0, "sparse_active": 1.0, "dense_positive": 0.1, "dense_margin": -0.05}
    said = [message for step in range(40) for message in watch.warnings({"step": step, **record})]
    (message,) = said
    assert "the dense score of positives (0.100) is not above that of negatives (margin -0.050)" in message


def add_lines(world: Path, lines: list[bytes]) -> None:
    with (world / "pairs" / "qa.jsonl").open("ab") as file:
        file.write(b"".join(line + b"\n" for line in lines))


def test_broken_lines_are_named_with_their_place_and_the_rest_is_used(world: Path) -> None:
    add_lines(world, [b"{", b'{"query": "a\xff"}', b'{"query": " ", "pos": ["b"]}'])
    _, records, said = trained(world, configured(world), 2)
    (message,) = [text for text in said if "broken line" in text]
    assert message.startswith("3 broken lines skipped: ")
    for place in ("qa.jsonl:301 is not a training pair", "qa.jsonl:302 is not UTF-8", "qa.jsonl:303"):
        assert place in message
    assert sum("loss" in record for record in records) == 2


def test_too_many_broken_lines_end_the_run_before_its_first_step(world: Path) -> None:
    add_lines(world, [b"{"] * ALWAYS_SKIPPED)
    assert len(list(read_pairs(world / "pairs"))) == 300
    add_lines(world, [b"{"])
    with pytest.raises(
        InvalidInput, match=r"11 of 311 lines of .* are broken; at most 1% are skipped"
    ) as caught:
        Trainer(configured(world), (world / "pairs",), world / "work")
    assert "qa.jsonl:301" in str(caught.value)
    assert "PosixPath" not in str(caught.value)
    (world / "pairs" / "qa.jsonl").write_bytes(b"{\n{\n")
    with pytest.raises(InvalidInput, match="2 of 2 lines"):
        list(read_lines(world / "pairs"))


def test_texts_without_tokens_and_texts_longer_than_the_model_are_counted_once(world: Path) -> None:
    rows = [
        {"query": "\u064b", "pos": ["kato suna"]},
        {"query": "long", "pos": [" ".join(["bamo"] * 200)]},
    ]
    add_lines(world, [json.dumps(row).encode() for row in rows])
    _, _, said = trained(world, configured(world), 3)
    (empty,) = [text for text in said if "have no tokens" in text]
    assert empty.startswith("1 texts")
    (long,) = [text for text in said if "than the model has positions" in text]
    assert long.startswith("1 texts")


def test_a_batch_of_one_passage_is_left_out_and_named(world: Path) -> None:
    """A single passage has no negatives, so that its loss would always be 0."""
    row = {"query": "kato?", "pos": ["kato suna"]}
    (world / "pairs" / "qa_alone.jsonl").write_text(json.dumps(row) + "\n")
    _, records, said = trained(world, configured(world), 10)
    (message,) = [text for text in said if "qa_alone" in text]
    assert "there is only one passage" in message or "all its pairs are held out" in message
    assert all(record["passages"] > 1 for record in records if "loss" in record)


def test_a_nan_ends_the_run_with_its_batch_and_its_negatives(world: Path) -> None:
    trainer, _, _ = trained(world, configured(world), 1)
    with torch.no_grad():
        trainer.model.sparse_linear.bias.fill_(math.nan)
    with pytest.raises(Diverged, match="step 1"):
        trainer.run(steps=1)
    saved = json.loads((world / "work" / "diverged-step-1.json").read_text())
    assert saved["queries"]
    assert "ignored" in saved


KD_ROWS = [
    {
        "query": f"q{i} kato",
        "pos": [f"q{i} suna bamo{i}"],
        "neg": [f"q{j} suna" for j in range(100, 104)],
        "pos_scores": [4.0],
        "neg_scores": [1.0, 0.0, -1.0, 2.0],
    }
    for i in range(60)
]


@pytest.mark.parametrize("kd", ["m3_kd", "kl"])
def test_a_run_learns_from_the_scores_of_a_teacher(tmp_path: Path, kd: str) -> None:
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in KD_ROWS))
    losses = {}
    for name in ("none", kd):
        config = configured(tmp_path, loss=f'kd = "{name}"')
        records: Records = []
        Trainer(config, tmp_path / "pairs", tmp_path / f"work-{name}", records.append).run(steps=2)
        losses[name] = [record["loss"] for record in records if "loss" in record]
        unused = [r for r in records if "the teacher's scores of" in str(r.get("message"))]
        assert bool(unused) == (name == "none")
    assert losses["none"] != losses[kd]


def test_kd_without_scores_is_refused(world: Path) -> None:
    with pytest.raises(InvalidInput, match="no line of the pairs has neg, pos_scores and neg_scores"):
        Trainer(configured(world, loss='kd = "kl"'), world / "pairs", world / "work")
