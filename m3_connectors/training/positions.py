"""More positions for a model: 512 to 8,192 as in section 3.3, so that it can be trained on long texts."""

from __future__ import annotations

import dataclasses

import torch

from m3_connectors.encoder.model import M3Model
from m3_connectors.errors import InvalidInput


def extend_positions(model: M3Model, max_length: int) -> M3Model:
    """Return a model with the same weights and positions for ``max_length`` tokens.

    The trained position embeddings are repeated: position p gets the embedding of position p modulo their number,
    so that texts that fit the model before are encoded exactly as before, and neighbours remain neighbours except
    at the borders. Interpolation would change every text; untrained embeddings have to be learnt from nothing.

    Args:
        model: The model; returned unchanged if it has exactly these positions.
        max_length: The maximum number of tokens of a text, with ``<s>`` and ``</s>``.

    Raises:
        InvalidInput: The model has more positions.
    """
    old = model.config
    if max_length == old.max_length:
        return model
    if max_length < old.max_length:
        raise InvalidInput(
            f"extend_positions is {max_length:,}, but the start model has {old.max_length:,} positions.\n"
            "  Remove extend_positions to keep them all, or set a larger number."
        )
    first = model.embeddings.first_position
    new = M3Model(dataclasses.replace(old, max_position_embeddings=first + max_length))
    state = model.state_dict()
    name = "embeddings.position_embeddings.weight"
    rows = torch.cat([torch.arange(first), first + torch.arange(max_length) % old.max_length])
    new.load_state_dict(state | {name: state[name][rows]})
    return new.train(model.training)
