"""The encoder: computes the three representations of M3-Embedding from texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m3_connectors.encoder.encoder import M3Encoder, TruncationWarning

__all__ = ["M3Encoder", "TruncationWarning"]


def __getattr__(name: str) -> object:
    if name in __all__:  # imported on first use, because it imports torch
        from m3_connectors.encoder import encoder

        return getattr(encoder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
