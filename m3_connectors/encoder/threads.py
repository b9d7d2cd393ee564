"""The number of threads of PyTorch's CPU operators, which is one number for the whole process."""

from __future__ import annotations

import os

import torch

from m3_connectors.cores import usable_cores

_CHOSEN_BY_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def set_threads(threads: int | None) -> None:
    """Set the number of threads of PyTorch's CPU operators.

    PyTorch's own number is that of the physical cores in the affinity of the process. It does not know the CPU quota
    of a container, and with more threads than the quota allows, all of them stand still for a part of each period.

    Args:
        threads: The number; None lowers PyTorch's to the cores that this process may use, unless one of the
            environment variables ``OMP_NUM_THREADS`` and ``MKL_NUM_THREADS`` is set.
    """
    now = torch.get_num_threads()
    if threads is None:
        chosen = any(os.environ.get(name) for name in _CHOSEN_BY_USER)
        threads = now if chosen else min(now, usable_cores())
    if threads != now:
        torch.set_num_threads(threads)
