"""Apply load to a store: closed loops, where clients wait for responses, and open loops with a given rate.

The latency of an open loop is measured from the intended start of a request. A stall of the store therefore
counts for every request that had to wait, and not only for the one in progress (coordinated omission).
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import anyio
import anyio.abc
import anyio.to_thread
import numpy as np
from anyio.streams.memory import MemoryObjectReceiveStream

from m3_connectors.bench.meter import Meter
from m3_connectors.bench.rows import RequestRow, Sink
from m3_connectors.bench.scenario import Level, Queries
from m3_connectors.bench.synthetic import Corpus, filter_for, uniform
from m3_connectors.bench.trips import Trips, counting
from m3_connectors.documents import Hit
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.methods import MethodName

MOST_ERRORS = 100
"""A load stops after this number of failed requests."""

NOT_SENT = "NotSent: the load ended before the request was sent"

_FLUSH_SECONDS = 1.0
_MIX = 4096


class Search(Protocol):
    """``AsyncIndex.search``, or a substitute."""

    def __call__(
        self,
        query: M3Embeddings,
        *,
        method: MethodName,
        k: int,
        filter: Mapping[str, Any] | None,
        exact: bool,
    ) -> Awaitable[Sequence[Hit]]:
        """Return the k best documents."""


@dataclasses.dataclass(frozen=True)
class Request:
    """The parameters of one request.

    Attributes:
        query: The number of the query.
        method: The name of the method.
        selectivity: The selectivity of its filter; None without a filter.
        expected_hits: The minimum number of hits.
    """

    query: int
    method: MethodName
    selectivity: float | None
    expected_hits: int


class Mix:
    """The requests of a scenario, in an order that depends on its seed.

    Args:
        settings: Shares, k, number of queries.
        corpus: The corpus of the queries.
        seed: The seed of the order.
    """

    def __init__(self, settings: Queries, corpus: Corpus, seed: int) -> None:
        self.k, self.exact = settings.k, settings.exact
        self.vectors = list(corpus.queries(settings.count))
        rng = np.random.default_rng([seed, 3])
        names = cast("list[MethodName]", list(settings.methods))  # the scenario has validated them
        shares = np.array(list(settings.methods.values()))
        self._methods = [names[i] for i in rng.choice(len(names), size=_MIX, p=shares / shares.sum())]
        selectivities = [None, *(filtered.selectivity for filtered in settings.filters)]
        filtered = np.array([filtered.share for filtered in settings.filters])
        chances = np.r_[max(0.0, 1 - filtered.sum()), filtered]
        self._filters = [
            selectivities[i] for i in rng.choice(len(chances), size=_MIX, p=chances / chances.sum())
        ]
        self._passing = {
            value: len(corpus) if value is None else corpus.passing(value) for value in selectivities
        }
        self._witnesses = [
            corpus.source(query) if corpus.shares_a_token(query) else None for query in range(settings.count)
        ]

    def __getitem__(self, number: int) -> Request:
        method, selectivity = self._methods[number % _MIX], self._filters[number % _MIX]
        query = number % len(self.vectors)
        expected = min(self.k, self._passing[selectivity])
        if method == "sparse":
            # A dense list contains every matching document; of a sparse list, only one entry is known.
            witness = self._witnesses[query]
            expected = int(witness is not None and (selectivity is None or uniform(witness) < selectivity))
        return Request(query, method, selectivity, expected)


class Loader:
    """Applies one load to one store.

    Args:
        search: The search function.
        mix: The requests.
        level: The concurrency, rate and duration.
        rows: Records each request.
        meter: The clock and CPU times.
        store: The name of the store, for the rows.
        documents: The size of the corpus, for the rows.
        timeout_seconds: A request that takes longer is an error.
        seed: The seed of the arrivals of an open loop.
        allow_errors: Continue regardless of the number of failed requests.
    """

    def __init__(
        self,
        search: Search,
        mix: Mix,
        level: Level,
        rows: Sink[RequestRow],
        meter: Meter,
        *,
        store: str,
        documents: int,
        timeout_seconds: float,
        seed: int,
        allow_errors: bool = False,
    ) -> None:
        self._search, self._mix, self._level = search, mix, level
        self._rows, self._meter = rows, meter
        self._store, self._documents = store, documents
        self._timeout_seconds, self._seed = timeout_seconds, seed
        self._errors_left = math.inf if allow_errors else MOST_ERRORS
        self._number = 0
        self._measured = 0
        self._measure_from: float | None = None
        self._begin = 0.0

    async def run(self) -> None:
        """Send requests until the time or the number of requests of the level is reached."""
        self._begin = self._meter.now()
        ask = self._closed if self._level.kind == "closed" else self._open
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._flush)
                await ask()
                tasks.cancel_scope.cancel()
        except ExceptionGroup as group:
            # Requests do not raise, so this is the task that writes rows; the disk may be full.
            raise group.exceptions[0] from None
        self._rows.flush()

    async def _flush(self) -> None:
        while True:
            await anyio.sleep(_FLUSH_SECONDS)
            await anyio.to_thread.run_sync(self._rows.flush)

    # -- closed

    async def _closed(self) -> None:
        async with anyio.create_task_group() as clients:
            for worker in range(self._level.concurrency):
                clients.start_soon(self._client, worker)

    async def _client(self, worker: int) -> None:
        while (number := self._next(now := self._meter.now())) is not None:
            await self._ask(number, worker, now)

    def _next(self, now: float) -> int | None:
        """Return the number of the next request, or None at the end; also starts the measurement."""
        if self._measure_from is None and now >= self._begin + self._level.warm_up_seconds:
            self._measure_from = now
        if self._measure_from is not None:
            if now >= self._measure_from + self._level.seconds or self._measured >= self._level.requests:
                return None
            self._measured += 1
        if self._errors_left <= 0:
            return None
        self._number += 1
        return self._number - 1

    # -- open

    async def _open(self) -> None:
        send, receive = anyio.create_memory_object_stream[tuple[int, float]](self._level.most_waiting)
        self._measure_from = self._begin + self._level.warm_up_seconds
        # This bounds the load in all cases: a request that waits longer than the timeout is not sent.
        end = self._measure_from + self._level.seconds + self._timeout_seconds
        async with anyio.create_task_group() as senders:
            for worker in range(self._level.concurrency):
                senders.start_soon(self._sender, worker, receive.clone(), end)
            async with send:
                for number, intended in enumerate(self._arrivals()):
                    await anyio.sleep(max(0.0, intended - self._meter.now()))
                    try:
                        send.send_nowait((number, intended))
                    except anyio.WouldBlock:
                        self._not_sent(number, intended)
                        self._errors_left = 0
                    if self._errors_left <= 0:
                        break
        receive.close()

    def _arrivals(self) -> Iterator[float]:
        level = self._level
        assert level.requests_per_second is not None and self._measure_from is not None
        rng = np.random.default_rng([self._seed, 4])
        gap = 1 / level.requests_per_second
        intended, measured = self._begin, 0
        while True:
            intended += gap if level.arrivals == "constant" else float(rng.exponential(gap))
            measured += intended >= self._measure_from
            if intended >= self._measure_from + level.seconds or measured > level.requests:
                return
            yield intended

    async def _sender(
        self, worker: int, waiting: MemoryObjectReceiveStream[tuple[int, float]], end: float
    ) -> None:
        async with waiting:
            async for number, intended in waiting:
                if self._errors_left <= 0 or self._meter.now() > end:
                    self._not_sent(number, intended)
                else:
                    await self._ask(number, worker, intended)

    # -- one request

    async def _ask(self, number: int, worker: int, intended: float) -> None:
        request, mix = self._mix[number], self._mix
        filter = None if request.selectivity is None else filter_for(request.selectivity)
        hits: Sequence[Hit] = ()
        error = None
        start = self._meter.now()
        with counting() as trips:
            try:
                with anyio.fail_after(self._timeout_seconds):
                    hits = await self._search(
                        mix.vectors[request.query],
                        method=request.method,
                        k=mix.k,
                        filter=filter,
                        exact=mix.exact,
                    )
            except TimeoutError:
                error = timed_out(self._timeout_seconds)
                self._errors_left -= 1
            except Exception as caught:  # noqa: BLE001 (an error is a result and must not end the run)
                error = named(caught)
                self._errors_left -= 1
        end, client_cpu = self._meter.now(), self._meter.client_cpu_seconds()
        self._record(
            number,
            worker,
            intended,
            start,
            end,
            None if error else [hit.document.id for hit in hits],
            error,
            trips,
            client_cpu,
            await self._meter.server_cpu_seconds_sometimes(),
        )

    def _not_sent(self, number: int, intended: float) -> None:
        cpu = self._meter.client_cpu_seconds()
        self._record(number, None, intended, None, None, None, NOT_SENT, None, cpu, None)

    def _record(
        self,
        number: int,
        worker: int | None,
        intended: float,
        start: float | None,
        end: float | None,
        ids: Sequence[str] | None,
        error: str | None,
        trips: Trips | None,
        client_cpu: float,
        server_cpu: float | None,
    ) -> None:
        request = self._mix[number]
        counts = self._measure_from is not None and intended >= self._measure_from
        self._rows.add(
            RequestRow(
                store=self._store,
                documents=self._documents,
                load=self._level.name,
                phase="measured" if counts else "warm-up",
                number=number,
                worker=worker,
                query=request.query,
                method=request.method,
                selectivity=request.selectivity,
                k=self._mix.k,
                exact=self._mix.exact,
                expected_hits=request.expected_hits,
                intended_seconds=intended,
                start_seconds=start,
                end_seconds=end,
                hits=None if ids is None else len(ids),
                distinct_hits=None if ids is None else len(set(ids)),
                ids_hash=None if ids is None else zlib.crc32("\n".join(ids).encode()),
                error=error,
                round_trips=None if trips is None else trips.count,
                store_seconds=None if trips is None else trips.seconds,
                client_cpu_seconds=client_cpu,
                server_cpu_seconds=server_cpu,
            )
        )


def named(error: BaseException) -> str:
    """Return the type and first line of an error, as recorded in rows."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def timed_out(seconds: float) -> str:
    """Return the error text of a request that exceeded the timeout."""
    return f"TimedOut: no response within {seconds:g} s"
