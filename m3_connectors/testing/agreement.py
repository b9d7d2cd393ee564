"""How far a store's answers are from the oracle's: the memory backend over the same world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from m3_connectors.backends.base import Backend, ScoredId
from m3_connectors.backends.memory import MemoryBackend
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.filters import Filter
from m3_connectors.methods import Method
from m3_connectors.testing.worlds import World


async def oracle_of(world: World) -> MemoryBackend:
    """The memory backend filled with a world."""
    oracle = MemoryBackend("oracle")
    await oracle.create(world.schema)
    await oracle.upsert(world.documents, world.embeddings)
    return oracle


async def compare_search(
    backend: Backend,
    oracle: MemoryBackend,
    query: M3Embeddings,
    method: Method,
    k: int,
    *,
    filter: Filter | None = None,
    tolerance: float = 1e-5,
) -> dict[str, float]:
    """Search both and hold one to the other: same ids in the same order, every score within the tolerance.

    Two documents whose true scores lie within twice the tolerance of each other may change places, so that no
    store fails by the last bit of a sum.

    Returns:
        The largest difference by name of the score; ``fused`` is the ranking's own.

    Raises:
        AssertionError: They disagree; says where.
    """
    # All candidates of the lists that k asks for, ranked to the end.
    everyone = await oracle._search(query, method.deep_enough(k), 10**6, filter, True)
    got = await backend.search(query, method, k, filter=filter, exact=True)
    want = everyone[:k]
    where = f"{method.name}, k={k}, filter={filter}"
    assert len(got) == len(want), f"{where}: {len(got)} hits instead of {len(want)}"
    assert got == sorted(got, key=lambda hit: (-hit.score, hit.id)), (
        f"{where}: hits are not ordered by score and id"
    )
    assert len({hit.id for hit in got}) == len(got), f"{where}: a document comes twice"
    truth = {hit.id: hit for hit in everyone}
    largest = dict.fromkeys(("dense", "sparse", "multivector", "fused"), 0.0)
    for position, (ours, theirs) in enumerate(zip(got, want, strict=True)):
        assert ours.id in truth, f"{where}: {ours.id!r} at {position} is no answer at all"
        true = truth[ours.id]
        apart = abs(true.score - theirs.score)
        assert ours.id == theirs.id or apart <= 2 * tolerance, (
            f"{where}: position {position} is {ours.id!r} ({true.score}) instead of {theirs.id!r} ({theirs.score})"
        )
        for name, difference in _differences(ours, true).items():
            assert difference <= tolerance, f"{where}: {name} of {ours.id!r} differs by {difference}"
            largest[name] = max(largest[name], difference)
    return largest


def largest_of(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The largest value of each name."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: max(part.get(name, 0.0) for part in parts) for name in names}


def _differences(ours: ScoredId, true: ScoredId) -> dict[str, float]:
    result = {"fused": abs(ours.score - true.score)}
    for name in ("dense", "sparse", "multivector"):
        a, b = getattr(ours.scores, name), getattr(true.scores, name)
        assert (a is None) == (b is None), f"{name} of {ours.id!r} is {a} instead of {b}"
        if a is not None:
            result[name] = float(np.abs(a - b))
    return result
