"""Stages that follow each other, and steps in sub-batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_worlds import write_world

from m3_connectors.encoder.config import ModelConfig
from m3_connectors.encoder.model import M3Model
from m3_connectors.training.batches import wrap
from m3_connectors.training.forward import TrainingEncoder, split
from m3_connectors.training.losses import LossSettings, objective, score_all
from m3_connectors.training.run import train


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world") / "training")


def test_sub_batches_give_the_gradients_of_the_whole_batch() -> None:
    torch.manual_seed(0)
    model = M3Model(ModelConfig(200, 32, 2, 2, 48, 66))
    rng = np.random.default_rng(0)
    texts = [wrap(rng.integers(5, 200, rng.integers(2, 30)), 64) for _ in range(24)]
    targets = torch.arange(8)

    def gradients(tokens_at_once: int) -> tuple[float, dict[str, torch.Tensor]]:
        model.zero_grad()
        encoder = TrainingEncoder(model, torch.float32, tokens_at_once=tokens_at_once)
        shown, tables = encoder(texts)
        scores = score_all(*split(shown, 8))
        loss, _ = objective(
            scores,
            targets,
            LossSettings(),
            cross_lingual=torch.zeros(8, dtype=torch.bool),
            self_distillation=True,
        )
        loss.backward()
        dense = {
            name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None
        }
        return loss.item(), dense | {name: rows.values.grad for name, rows in tables.items()}

    whole_loss, whole = gradients(0)
    for tokens_at_once in (1, 40, 100):
        loss, parts = gradients(tokens_at_once)
        assert loss == pytest.approx(whole_loss, abs=1e-6)
        assert parts.keys() == whole.keys()
        for name, gradient in whole.items():
            torch.testing.assert_close(parts[name], gradient, atol=1e-6, rtol=1e-4)


STAGES = """
[[stages]]
objective = "unsupervised"
run.steps = 2
loss.temperature = 0.05
[[stages]]
run.steps = 3
"""


def test_stages_run_one_after_another_and_resume(world: Path, tmp_path: Path) -> None:
    config = world / "stages.toml"
    config.write_text((world / "tiny.toml").read_text() + STAGES)
    stopped = tmp_path / "stopped"
    records: list[dict[str, Any]] = []
    stops = 0
    for _ in range(7):  # each call takes one more step at most
        seen = len([record for record in records if "step" in record])
        try:
            train(
                config,
                output=tmp_path / "a",
                work=stopped,
                report=records.append,
                stop=lambda seen=seen: len([record for record in records if "step" in record]) > seen,
            )
        except KeyboardInterrupt:
            stops += 1
            continue
        break
    whole: list[dict[str, Any]] = []
    train(config, output=tmp_path / "b", work=tmp_path / "whole", report=whole.append)

    def losses(records: list[dict[str, Any]]) -> list[float]:
        return [record["loss"] for record in records if "step" in record]

    assert stops > 2
    assert len(losses(whole)) == 5
    assert losses(records) == losses(whole)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
