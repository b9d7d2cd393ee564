"""Estimates of the memory of a training step."""

from __future__ import annotations

from m3_connectors.encoder.config import ModelConfig


def activation_bytes(sizes: ModelConfig, tokens: int, bytes_per_value: int = 2) -> int:
    """Return about how many bytes the layers store for the backward pass of so many tokens.

    For each token, a layer stores about 12 states of the width of the model (inputs and outputs of the projections,
    of the two layer norms and of the residuals), 2 of the feed-forward block, and the attention of short texts.
    """
    per_layer = 12 * sizes.hidden_size + 2 * sizes.intermediate_size
    return tokens * sizes.num_hidden_layers * per_layer * bytes_per_value
