"""Environment variables that the numerical libraries of a process read once, when they are loaded.

A library must not change them, because they belong to the program that imports it. ``m3`` is such a program.
"""

from __future__ import annotations

from collections.abc import MutableMapping

from m3_connectors.cores import allowed_cores, usable_cores

_SPINS = "1000"
"""How often a thread of PyTorch looks whether the others are ready before it sleeps: some 20 to 50 microseconds.

That covers the time from one operation to the next. The default of GNU's OpenMP library is 300,000, which is longer
than the turn of a process: where another process needs the cores too, a thread that waits takes the core from the one
that it waits for. See docs/encoder.md for what this costs.
"""


def settle_threads(environment: MutableMapping[str, str]) -> None:
    """Set how the threads of this process wait, and how many there are in a container with a CPU quota.

    Variables that the user has set stay as they are.
    """
    _limited_here.clear()
    if not environment.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
        environment["GOMP_SPINCOUNT"] = _SPINS
    if usable_cores() < allowed_cores():  # what the libraries find themselves
        _limit(environment, usable_cores())


def share_cores(environment: MutableMapping[str, str], processes: int) -> None:
    """Give each of several processes that inherit this environment its share of the cores.

    Variables that the user has set stay as they are; those that ``settle_threads`` has set are replaced.
    """
    _limit(environment, max(1, usable_cores() // processes))


_limited_here = set[str]()
"""The variables that this program has set in its own environment, so that it may change them."""


def _limit(environment: MutableMapping[str, str], threads: int) -> None:
    # PyTorch, OpenBLAS and MKL read the first one; tokenizers the second one.
    for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
        if name not in environment or name in _limited_here:
            environment[name] = str(threads)
            _limited_here.add(name)
