"""Measure what a store's approximate lists miss: each query runs approximately and exactly."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

import anyio

from m3_connectors.backends.base import Backend
from m3_connectors.bench.load import Mix, Request, named, timed_out
from m3_connectors.bench.rows import RecallRow, Sink
from m3_connectors.bench.scenario import Recall
from m3_connectors.bench.synthetic import filter_for
from m3_connectors.filters import parse_filter
from m3_connectors.methods import METHODS

MOST_ERRORS = 5
"""The comparison of a store stops after this number of failed queries."""

_TIE = 1e-6
"""Scores that differ by less are equal; which of the two is in a list is arbitrary."""

_WARM_UP = 3
"""The number of queries before the timed ones; they load into memory what later queries reuse."""

Ask = Callable[[bool], Awaitable[list[float]]]
"""Runs a query, exactly or approximately, and returns the scores."""


async def compare(
    backend: Backend,
    mix: Mix,
    settings: Recall,
    rows: Sink[RecallRow],
    *,
    store: str,
    documents: int,
    timeout_seconds: float,
) -> None:
    """Run the first requests of the mix, and their dense lists, approximately and exactly.

    The order of the two alternates, because the second one finds warm caches. A failed query is recorded as a
    row.
    """
    # Warm up with later queries, so that no timed query has run before.
    for number in range(settings.queries, settings.queries + min(_WARM_UP, settings.queries)):
        for ask in _questions(backend, mix, mix[number], settings).values():
            for exact in (False, True):
                await _timed(ask, exact, timeout_seconds)
    failed = 0
    for number in range(settings.queries):
        request = mix[number]
        exact_first = number % 2 == 1
        for kind, ask in _questions(backend, mix, request, settings).items():
            scores: dict[bool, list[float]] = {}
            seconds: dict[bool, float] = {}
            error = None
            for exact in (exact_first, not exact_first):
                scores[exact], seconds[exact], failure = await _timed(ask, exact, timeout_seconds)
                error = error or failure
            failed += error is not None
            rows.add(
                RecallRow(
                    store=store,
                    documents=documents,
                    kind=kind,
                    query=request.query,
                    method=request.method if kind == "search" else "dense",
                    selectivity=request.selectivity,
                    depth=mix.k if kind == "search" else settings.depth,
                    expected=0 if error else len(scores[True]),
                    found=0 if error else found_of(scores[False], scores[True]),
                    approximate_seconds=None if error else seconds[False],
                    exact_seconds=None if error else seconds[True],
                    exact_first=exact_first,
                    error=error,
                )
            )
        if failed >= MOST_ERRORS:
            return


def _questions(backend: Backend, mix: Mix, request: Request, settings: Recall) -> dict[str, Ask]:
    """Return the queries of a request by kind, as named in rows."""
    query = mix.vectors[request.query]
    filter = None if request.selectivity is None else parse_filter(filter_for(request.selectivity))

    async def search(exact: bool) -> list[float]:
        method = METHODS[request.method]
        return [
            found.score for found in await backend.search(query, method, mix.k, filter=filter, exact=exact)
        ]

    async def dense_list(exact: bool) -> list[float]:
        ranking = await backend.candidates("dense", query, settings.depth, filter=filter, exact=exact)
        scores: list[float] = ranking.scores.tolist()
        return scores

    return {"search": search, "list": dense_list}


async def _timed(ask: Ask, exact: bool, timeout_seconds: float) -> tuple[list[float], float, str | None]:
    """Run a query and return its scores, its seconds, and its error or None."""
    scores: list[float] = []
    error = None
    start = time.perf_counter()
    try:
        with anyio.fail_after(timeout_seconds):
            scores = await ask(exact)
    except TimeoutError:
        error = timed_out(timeout_seconds)
    except Exception as caught:  # noqa: BLE001 (an error of a store is a result and must not end the run)
        error = named(caught)
    return scores, time.perf_counter() - start, error


def found_of(approximate: Sequence[float], exact: Sequence[float]) -> int:
    """Count the entries of an approximate list that belong to the exact one; both are scores, best first."""
    if not exact:
        return 0
    return min(len(exact), sum(score >= exact[-1] - _TIE for score in approximate))
