"""The encoder: computes the three representations of M3-Embedding from texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from m3_connectors.encoder.truncation import TruncationWarning

if TYPE_CHECKING:
    from m3_connectors.encoder.encoder import M3Encoder

__all__ = ["M3Encoder", "TruncationWarning"]


def __getattr__(name: str) -> object:
    if name == "M3Encoder":  # imported on first use, because it imports torch
        from m3_connectors.encoder.encoder import M3Encoder

        return M3Encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
