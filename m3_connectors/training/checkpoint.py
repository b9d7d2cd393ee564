"""Saving: a run's state to go on from, and a finished model in the published layout."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from m3_connectors.encoder.config import ModelConfig
from m3_connectors.encoder.model import M3Model
from m3_connectors.errors import InvalidInput, ModelFormat
from m3_connectors.training.optimizer import RowAdamW
from m3_connectors.training.tokenizer import save_tokenizer

HEADS = ("sparse_linear", "colbert_linear")


def export_model(model: M3Model, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a model as a Hugging Face XLM-RoBERTa directory with ``sparse_linear.pt`` and ``colbert_linear.pt``.

    Weights are float16: enough for a model whose embeddings are most of its size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    half = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    backbone = {name: value for name, value in half.items() if not name.startswith(HEADS)}
    save_file(backbone, folder / "model.safetensors", metadata={"format": "pt"})
    for head in HEADS:
        state = {
            name.removeprefix(f"{head}."): value
            for name, value in half.items()
            if name.startswith(f"{head}.")
        }
        torch.save(state, folder / f"{head}.pt")
    model.config.save(folder / "config.json")
    save_tokenizer(tokenizer, folder / "tokenizer.json")


def import_model(folder: Path) -> tuple[M3Model, Tokenizer]:
    """Read a model directory in the published layout, float32, ready to be trained.

    Raises:
        ModelFormat: A file is missing or a weight has another shape than ``config.json`` says.
    """
    model = M3Model(ModelConfig.load(folder / "config.json"))
    state: dict[str, Tensor] = {}
    try:
        for name, value in load_file(folder / "model.safetensors").items():
            state[name.removeprefix("roberta.")] = value.float()
        for head in HEADS:
            part = torch.load(folder / f"{head}.pt", weights_only=True, map_location="cpu")
            state |= {f"{head}.{name}": value.float() for name, value in part.items()}
        wanted = model.state_dict().keys()
        model.load_state_dict({name: value for name, value in state.items() if name in wanted})
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except (OSError, RuntimeError) as error:
        raise ModelFormat(
            f"{folder} cannot be trained from: {error}\n"
            "  It needs config.json, model.safetensors, sparse_linear.pt, colbert_linear.pt and tokenizer.json."
        ) from error
    return model, tokenizer


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: Steps done; the next step has this number.
        seconds: Time spent in steps so far.
    """

    step: int = 0
    seconds: float = 0.0


def save_state(
    folder: Path, model: M3Model, optimizer: RowAdamW, progress: Progress, fingerprint: str
) -> None:
    """Write a run's state; a run killed while saving leaves the state before it intact."""
    fresh, kept = folder / "state.new", folder / "state"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file(dict(model.state_dict()), fresh / "model.safetensors")
    save_file(optimizer.state(), fresh / "optimizer.safetensors")
    (fresh / "progress.json").write_text(
        json.dumps({**dataclasses.asdict(progress), "fingerprint": fingerprint})
    )
    shutil.rmtree(kept, ignore_errors=True)
    fresh.rename(kept)


def load_state(folder: Path, model: M3Model, optimizer: RowAdamW, fingerprint: str) -> Progress:
    """Take up a saved state, or begin at step 0 where there is none.

    Raises:
        InvalidInput: The state belongs to a run with other settings.
    """
    kept, fresh = folder / "state", folder / "state.new"
    if not (kept / "progress.json").exists():
        # Killed between removing the old state and renaming the new one: the new one is whole.
        if not (fresh / "progress.json").exists():
            return Progress()
        shutil.rmtree(kept, ignore_errors=True)
        fresh.rename(kept)
    saved = json.loads((kept / "progress.json").read_text())
    if saved.pop("fingerprint") != fingerprint:
        raise InvalidInput(
            f"{kept} belongs to a run with other settings.\n"
            "  Go on with the configuration that began it, or remove the folder to begin anew."
        )
    model.load_state_dict(load_file(kept / "model.safetensors"))
    optimizer.load_state(load_file(kept / "optimizer.safetensors"))
    return Progress(**saved)
