"""Splits texts into batches of bounded cost, and detects out-of-memory errors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_ALLOCATION_FAILURES = ("can't allocate memory", "not enough memory", "MPS backend out of memory")


def by_budget(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Return the indices of the texts, longest first, in batches of at most ``budget`` tokens.

    The longest come first so that a lack of memory shows at once. A text longer than the budget gets its own
    batch.
    """
    batches: list[list[int]] = []
    tokens = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or tokens + lengths[i] > budget:
            batches.append([])
            tokens = 0
        batches[-1].append(i)
        tokens += lengths[i]
    return batches


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means out of memory (a plain RuntimeError in some allocators of PyTorch)."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ALLOCATION_FAILURES)
