"""Stub."""

from __future__ import annotations


def encode() -> None:
    """Stub."""
