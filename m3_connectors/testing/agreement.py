"""How far a store's answers are from the oracle's: the memory backend over the same world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from m3_connectors.backends.base import Backend, ScoredId
from m3_connectors.backends.memory import MemoryBackend
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.filters import Filter, parse_filter
from m3_connectors.methods import ALL, METHODS, Method, Weights, fuse
from m3_connectors.testing.worlds import World

METHODS_TO_COMPARE = (
    *METHODS.values(),
    ALL.weighted(0.15, 0.5, 0.35),
    Method("shallow", {"dense": 5, "sparse": 4}, Weights(0.3, 2.0, 0.7)),
    Method("by the other list", {"sparse": 6}, Weights(1.0, 0.0, 0.5)),
    Method("scored by one", {"dense": 8}, Weights(0.0, 1.0, 0.0)),
)
"""The five methods, and some whose lists are shallow or whose candidates come from one list alone."""


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


async def compare_scores(
    backend: Backend,
    oracle: MemoryBackend,
    query: M3Embeddings,
    method: Method,
    k: int,
    *,
    filter: Filter | None = None,
    tolerance: float = 1e-5,
) -> dict[str, float]:
    """Search without ``exact`` and hold every hit to the oracle's exact scores of the same document.

    Which documents are listed may be approximate (B17); what is said of a listed document may not be. Each hit must
    pass the filter, must have the exact score of every component, the fused score that follows from them, and the
    scores that ``score`` gives for its id. There are as many hits as the method's longest list promises.

    Returns:
        The largest difference by name of the score; ``fused`` is the ranking's own.

    Raises:
        AssertionError: They disagree; says where.
    """
    got = await backend.search(query, method, k, filter=filter)
    ids = [hit.id for hit in got]
    where = f"{method.name}, k={k}, filter={filter}, not exact"
    deep = method.deep_enough(k)
    lists = [
        await oracle.candidates(name, query, depth, filter=filter) for name, depth in deep.candidates.items()
    ]
    least = min(k, max(len(found.ids) for found in lists))
    assert least <= len(got) <= k, f"{where}: {len(got)} hits instead of at least {least}"
    assert len(set(ids)) == len(ids), f"{where}: a document comes twice"
    assert got == sorted(got, key=lambda hit: (-hit.score, hit.id)), (
        f"{where}: hits are not ordered by score and id"
    )
    passing = set(oracle._passing(filter))
    assert set(ids) <= passing, f"{where}: {set(ids) - passing} do not pass the filter"
    largest = dict.fromkeys(("dense", "sparse", "multivector", "fused"), 0.0)
    if not ids:
        return largest
    true = {name: await oracle.score(name, query, ids) for name in backend.schema.components}
    said = {name: await backend.score(name, query, ids) for name in backend.schema.components}
    fused = fuse({name: true[name] for name in method.scored}, method.weights)
    for i, hit in enumerate(got):
        for name in true:
            shown = getattr(hit.scores, name)
            assert shown is not None, f"{where}: {hit.id!r} has no {name} score"
            for value, source in ((shown, "search"), (said[name][i], "score()")):
                difference = abs(float(value) - float(true[name][i]))
                assert difference <= tolerance, (
                    f"{where}: {name} of {hit.id!r} is {value} by {source}, {true[name][i]} in truth "
                    f"(differs by {difference:.1e})"
                )
                largest[name] = max(largest[name], difference)
        difference = abs(hit.score - float(fused[i]))
        assert difference <= tolerance, f"{where}: the fused score of {hit.id!r} differs by {difference:.1e}"
        largest["fused"] = max(largest["fused"], difference)
    return largest


async def compare_world(
    backend: Backend, world: World, *, methods: Sequence[Method] = METHODS_TO_COMPARE, shift: int = 0
) -> list[dict[str, float]]:
    """Compare searches of a backend that holds a world: every query by every method, half of them filtered.

    Args:
        backend: Holds exactly the world's documents.
        world: With the schema that the backend was made with.
        methods: Those to search by.
        shift: Another number pairs methods with other filters.

    Returns:
        The largest differences of each search, as ``compare_search`` gives them.

    Raises:
        AssertionError: A search disagrees; says which.
    """
    oracle = await oracle_of(world)
    parts = []
    for i, query in enumerate(world.queries):
        for j, method in enumerate(methods):
            raw = world.filters[(7 * i + j + shift) % len(world.filters)] if (i + j) % 2 else None
            k = (1, 5, 100)[(i + j) % 3]
            parts.append(await compare_search(backend, oracle, query, method, k, filter=parse_filter(raw)))
    return parts


def same_answer(got: Sequence[ScoredId], want: Sequence[ScoredId], *, tolerance: float = 1e-5) -> None:
    """Hold two answers of one store to each other: same ids in the same order, every score within the tolerance.

    Stores may score the same vectors by another kernel after a flush or a merge, which changes the last bit.

    Raises:
        AssertionError: They disagree; says where.
    """
    assert [hit.id for hit in got] == [hit.id for hit in want]
    for ours, theirs in zip(got, want, strict=True):
        for name, difference in _differences(ours, theirs).items():
            assert difference <= tolerance, f"{name} of {ours.id!r} differs by {difference}"


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
