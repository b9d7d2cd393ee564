"""Low-rank adaptation (LoRA, arXiv 2106.09685) of the backbone's linear layers, by the library peft."""

from __future__ import annotations

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from m3_connectors.encoder.model import M3Model
from m3_connectors.errors import InvalidInput
from m3_connectors.training.forward import BACKBONE
from m3_connectors.training.ranges import STRICT

_ADAPTER = "default"


@dataclass(frozen=True, config=STRICT)
class LoraSettings:
    """The settings of the low-rank changes.

    Attributes:
        rank: The rank of the change of each layer.
        alpha: The change is multiplied by ``alpha / rank``.
        targets: The layers that are changed, by the ends of their names in the checkpoint; by default all linear
            layers of the backbone.
    """

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    targets: tuple[str, ...] = ("query", "key", "value", "dense")


def add_lora(model: M3Model, settings: LoraSettings, seed: int) -> None:
    """Add trainable low-rank changes, which are 0 at first; everything else of the backbone is frozen.

    The tables of the embeddings are frozen too: they would be most of what is trained and stored.

    Raises:
        InvalidInput: peft is not installed, or no layer matches ``targets``.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InvalidInput(
            f"[lora] needs the package peft: {error}\n  Install it with pip install 'm3-connectors[train]'."
        ) from error
    frozen = [value for name, value in model.named_parameters() if name.startswith(BACKBONE)]
    linear = [name for name, module in model.encoder.named_modules() if isinstance(module, torch.nn.Linear)]
    for target in settings.targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            raise InvalidInput(
                f"lora.targets has {target!r}, which no linear layer of the backbone has as its name.\n"
                f"  Use the end of a name such as {linear[0]}, or {linear[-1]}."
            )
    torch.manual_seed(seed)  # for the first factors
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=list(settings.targets),
        exclude_modules=["sparse_linear", "colbert_linear"],
        lora_dropout=0.0,
    )
    heads = {name: value.requires_grad for name, value in model.named_parameters()}
    inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
    for name, value in model.named_parameters():  # peft freezes the heads too
        value.requires_grad_(heads.get(name, True))
    for value in frozen:
        value.requires_grad_(False)


def merged_state(model: M3Model) -> dict[str, Tensor]:
    """Return the weights of a model with its low-rank changes, if it has any, added to its layers."""
    state = {name: value.detach() for name, value in model.state_dict().items()}
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            base = f"{name}.base_layer."
            state[f"{name}.weight"] = state.pop(f"{base}weight") + module.get_delta_weight(_ADAPTER).detach()
            state[f"{name}.bias"] = state.pop(f"{base}bias")
    return {name: value for name, value in state.items() if ".lora_" not in name}
