"""Texts of a window into batches of bounded cost, and what to do when memory runs out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_ALLOCATION_FAILURES = ("can't allocate memory", "not enough memory", "MPS backend out of memory")


def by_budget(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of texts, longest first, cut into batches of at most ``budget`` tokens.

    Longest first: if memory is short, that shows at once. A text longer than the budget is a batch alone.
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
    """Whether an error says that memory ran out; PyTorch's CPU and MPS allocators raise plain RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ALLOCATION_FAILURES)
