"""What of a model a run trains: heads, backbone or low-rank changes."""

from __future__ import annotations

from m3_connectors.encoder.model import M3Model
from m3_connectors.errors import InvalidInput
from m3_connectors.training.config import TrainingConfig
from m3_connectors.training.data import PairStore
from m3_connectors.training.heads import narrow_head
from m3_connectors.training.lora import add_lora

_HEADS = {"sparse_linear.": "sparse", "colbert_linear.": "multivector"}


def prepare_model(model: M3Model, config: TrainingConfig, store: PairStore) -> None:
    """Make the parameters trainable that the configuration names, and freeze all others.

    Raises:
        InvalidInput: ``colbert_dim`` or ``loss.matryoshka`` is wider than the model, or LoRA is not possible.
    """
    width = model.config.hidden_size
    widest = {"colbert_dim": config.colbert_dim, "loss.matryoshka": max(config.loss.matryoshka, default=0)}
    for name, wanted in widest.items():
        if wanted > width:
            raise InvalidInput(
                f"{name} is {wanted:,}, but the vectors of the model have {width:,} dimensions.\n"
                f"  Set it to at most {width}."
            )
    if config.colbert_dim and config.colbert_dim != model.colbert_linear.out_features:
        narrow_head(model, store, config.colbert_dim, config.run.seed)
    for name, value in model.named_parameters():
        part = next((head for prefix, head in _HEADS.items() if name.startswith(prefix)), "dense")
        value.requires_grad_(part in config.train)
    if config.lora:
        add_lora(model, config.lora, config.run.seed)
