"""Compare a store's results with the reference: the memory backend with the same world."""

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
"""The five methods, some with short lists, and some whose candidates come from only one list."""


async def oracle_of(world: World) -> MemoryBackend:
    """Return a memory backend filled with a world."""
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
    """Search both stores and compare: same ids in the same order, every score within the tolerance.

    Two documents whose true scores differ by at most twice the tolerance may be swapped, so that no store
    fails because of the last bit of a sum.

    Returns:
        The largest difference by name of the score; ``fused`` is the score of the ranking itself.

    Raises:
        AssertionError: The results differ; the message says where.
    """
    # The full ranking of all candidates of the lists that k requires.
    everyone = await oracle._search(query, method.deep_enough(k), 10**6, filter, True)
    got = await backend.search(query, method, k, filter=filter, exact=True)
    want = everyone[:k]
    where = f"{method.name}, k={k}, filter={filter}"
    assert len(got) == len(want), f"{where}: {len(got)} hits instead of {len(want)}"
    assert got == sorted(got, key=lambda hit: (-hit.score, hit.id)), (
        f"{where}: the hits are not ordered by score and id"
    )
    assert len({hit.id for hit in got}) == len(got), f"{where}: a document appears twice"
    truth = {hit.id: hit for hit in everyone}
    largest = dict.fromkeys(("dense", "sparse", "multivector", "fused"), 0.0)
    for position, (ours, theirs) in enumerate(zip(got, want, strict=True)):
        assert ours.id in truth, f"{where}: {ours.id!r} at position {position} is not a candidate"
        true = truth[ours.id]
        apart = abs(true.score - theirs.score)
        assert ours.id == theirs.id or apart <= 2 * tolerance, (
            f"{where}: position {position} is {ours.id!r} ({true.score}) instead of {theirs.id!r} "
            f"({theirs.score})"
        )
        for name, difference in _differences(ours, true).items():
            assert difference <= tolerance, f"{where}: {name} of {ours.id!r} differs by {difference}"
            largest[name] = max(largest[name], difference)
    return largest


async def compare_parents(
    backend: Backend,
    oracle: MemoryBackend,
    query: M3Embeddings,
    method: Method,
    k: int,
    *,
    filter: Filter | None = None,
    tolerance: float = 1e-5,
) -> None:
    """Search both stores for parents and compare: as many, each once, in the same order, with the same scores.

    Two hits whose true scores differ by at most twice the tolerance may be swapped.

    Raises:
        AssertionError: The results differ; the message says where.
    """
    got = await backend.search(query, method, k, filter=filter, exact=True, group_by="parent")
    want = await oracle.search(query, method, k, filter=filter, exact=True, group_by="parent")
    where = f"{method.name}, k={k}, filter={filter}, by parent"
    parents = [hit.document.parent for hit in got if hit.document]
    assert len(got) == len(want) == len(set(parents)), (
        f"{where}: {len(got)} hits of {len(set(parents))} parents"
    )
    for position, (ours, theirs) in enumerate(zip(got, want, strict=True)):
        apart = abs(ours.score - theirs.score)
        assert apart <= tolerance, f"{where}: score {ours.score} at position {position}, not {theirs.score}"
        is_tie = any(abs(theirs.score - hit.score) <= 2 * tolerance for hit in want if hit is not theirs)
        assert ours.id == theirs.id or is_tie, (
            f"{where}: {ours.id!r} at position {position}, not {theirs.id!r}"
        )


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
    """Search without ``exact`` and compare every hit with the reference's exact scores of the same document.

    The lists may be approximate (B17), but the scores of a listed document may not be. Each hit must pass the
    filter, must have the exact score of every component, the fused score that follows from them, and the
    scores that ``score`` returns for its id. There must be as many hits as the longest list of the method
    guarantees.

    Returns:
        The largest difference by name of the score; ``fused`` is the score of the ranking itself.

    Raises:
        AssertionError: The results differ; the message says where.
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
    assert len(set(ids)) == len(ids), f"{where}: a document appears twice"
    assert got == sorted(got, key=lambda hit: (-hit.score, hit.id)), (
        f"{where}: the hits are not ordered by score and id"
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
                    f"{where}: {name} of {hit.id!r} is {value} by {source}; the true score is "
                    f"{true[name][i]} (differs by {difference:.1e})"
                )
                largest[name] = max(largest[name], difference)
        difference = abs(hit.score - float(fused[i]))
        assert difference <= tolerance, f"{where}: the fused score of {hit.id!r} differs by {difference:.1e}"
        largest["fused"] = max(largest["fused"], difference)
    return largest


async def compare_world(
    backend: Backend, world: World, *, methods: Sequence[Method] = METHODS_TO_COMPARE, shift: int = 0
) -> list[dict[str, float]]:
    """Compare searches of a backend that holds a world: every query with every method, half of them filtered.

    Args:
        backend: A backend with exactly the world's documents.
        world: A world with the schema that the backend was created with.
        methods: The methods to search with.
        shift: Another value pairs the methods with other filters.

    Returns:
        The largest differences of each search, as ``compare_search`` returns them.

    Raises:
        AssertionError: The results of a search differ; the message says which.
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
    """Compare two results of one store: same ids in the same order, every score within the tolerance.

    After a flush or a merge, stores may score the same vectors with another kernel, which changes the last
    bit.

    Raises:
        AssertionError: The results differ; the message says where.
    """
    assert [hit.id for hit in got] == [hit.id for hit in want]
    for ours, theirs in zip(got, want, strict=True):
        for name, difference in _differences(ours, theirs).items():
            assert difference <= tolerance, f"{name} of {ours.id!r} differs by {difference}"


def largest_of(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the largest value of each name."""
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
