"""A multi-vector head that is narrower than the model, as FlagEmbedding's ``colbert_dim``."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m3_connectors.encoder.model import M3Model
from m3_connectors.errors import InvalidInput
from m3_connectors.training.batches import wrap
from m3_connectors.training.data import PairStore

_SAMPLED_TEXTS, _SAMPLED_TOKENS = 400, 128
"""How many passages, and how many tokens of each, determine a narrower head."""


@torch.no_grad()
def narrow_head(model: M3Model, store: PairStore, width: int, seed: int) -> None:
    """Replace the multi-vector head by a narrower one that keeps most of the inner products of its rows.

    Its rows are the projections of the wide ones to the ``width`` directions that keep most of them: the first
    eigenvectors of the second moment of the unit rows of some training passages.

    Raises:
        InvalidInput: The head is narrower already.
    """
    wide = model.colbert_linear
    if width > wide.out_features:
        raise InvalidInput(
            f"colbert_dim is {width}, but the model that the run starts from has multi-vectors of "
            f"{wide.out_features} dimensions.\n  Set it to at most {wide.out_features}, or leave it out."
        )
    kept = np.unique(store.passage[~np.asarray(store.held_out)])
    chosen = np.random.default_rng(seed).choice(kept, min(_SAMPLED_TEXTS, len(kept)), replace=False)
    longest = min(_SAMPLED_TOKENS, model.config.max_length)
    moment = torch.zeros(wide.out_features, wide.out_features, dtype=torch.float64)
    for number in chosen:
        text = torch.from_numpy(wrap(store.text(number), longest))
        rows = F.normalize(wide(model(text, [len(text)])[1:]), dim=1).double()
        moment += rows.T @ rows
    # Eigenvalues increase, so the last vectors are the ones to keep.
    directions = torch.linalg.eigh(moment).eigenvectors[:, -width:].flip(1).float()
    model.colbert_linear = _linear(directions.T @ wide.weight, directions.T @ wide.bias)


def trim_head(model: M3Model) -> None:
    """Remove the zeros with which the encoder pads a narrow multi-vector head."""
    wide = model.colbert_linear
    used = ((wide.weight != 0).any(1) | (wide.bias != 0)).nonzero().flatten()
    width = int(used[-1]) + 1 if len(used) else wide.out_features
    if width < wide.out_features:
        model.colbert_linear = _linear(wide.weight.detach()[:width], wide.bias.detach()[:width])


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight, linear.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return linear
