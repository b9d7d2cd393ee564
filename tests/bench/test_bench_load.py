"""Load: closed loops, open loops whose latency counts from the intended start, and loops that end by themselves."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from m3_connectors.bench.load import MOST_ERRORS, Loader, Mix
from m3_connectors.bench.meter import Meter
from m3_connectors.bench.rows import RequestRow, Sink
from m3_connectors.bench.run import harness_seconds
from m3_connectors.bench.scenario import CorpusSettings, Level, Queries, read_scenario
from m3_connectors.bench.synthetic import Corpus, uniform
from m3_connectors.bench.void import void_of_load
from m3_connectors.documents import Document, Hit, Scores
from m3_connectors.errors import Unavailable

CORPUS = Corpus(CorpusSettings(dimension=8, vocabulary=100, topics=2, query_rows=2), 50, seed=1)
HITS = [Hit(Document(f"d{i}", ""), 1.0, Scores()) for i in range(10)]


class Backend:
    """Answers after a while; on one call it stalls, and everybody with it."""

    def __init__(self, seconds: float = 0.0, *, stall_at: int = -1, stall_seconds: float = 0.0) -> None:
        self.seconds, self.stall_at, self.stall_seconds = seconds, stall_at, stall_seconds
        self.calls = self.under_way = self.most_under_way = 0
        self.asked: list[dict[str, Any]] = []

    async def search(self, query: object, **asked: Any) -> Sequence[Hit]:
        self.calls += 1
        self.asked.append(asked)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await anyio.sleep(self.stall_seconds if self.calls == self.stall_at else self.seconds)
        self.under_way -= 1
        return HITS


def measure(
    tmp_path: Path, backend: Any, level: Level, queries: Queries | None = None, **options: Any
) -> pa.Table:
    """The rows of one load."""
    path = tmp_path / "requests.parquet"

    async def run() -> None:
        with Sink(path, RequestRow) as rows:
            defaults = {"store": "s", "documents": 50, "timeout_seconds": 5.0, "seed": 1}
            mix = Mix(queries or Queries(count=5), CORPUS, 1)
            await Loader(backend.search, mix, level, rows, Meter(), **(defaults | options)).run()

    anyio.run(run)
    return pq.read_table(path)


@pytest.mark.parametrize("concurrency", [1, 4, 16])
def test_a_closed_loop_keeps_so_many_requests_under_way_and_no_more(tmp_path: Path, concurrency: int) -> None:
    backend = Backend(0.005)
    rows = measure(tmp_path, backend, Level(concurrency=concurrency, seconds=5, requests=200))
    assert backend.most_under_way == concurrency
    assert rows.num_rows == backend.calls == 200
    assert set(rows["worker"].to_pylist()) == set(range(concurrency))
    assert (rows["start_seconds"].to_numpy() >= rows["intended_seconds"].to_numpy()).all()


def test_a_load_ends_after_its_time_and_the_warm_up_does_not_count(tmp_path: Path) -> None:
    began = time.perf_counter()
    rows = measure(tmp_path, Backend(0.01), Level(concurrency=2, warm_up_seconds=0.3, seconds=0.5))
    assert 0.8 < time.perf_counter() - began < 3
    phases = Counter(rows["phase"].to_pylist())
    assert phases["warm-up"] > 10
    assert phases["measured"] > 20
    measured = rows.filter(pc.equal(rows["phase"], "measured"))
    starts = measured["intended_seconds"].to_pylist()
    assert max(starts) - min(starts) < 0.51


def test_a_slow_store_is_measured_once_at_least(tmp_path: Path) -> None:
    rows = measure(tmp_path, Backend(0.3), Level(warm_up_seconds=0.05, seconds=0.01))
    assert Counter(rows["phase"].to_pylist()) == {"warm-up": 1, "measured": 1}


def test_in_an_open_loop_who_had_to_wait_counts_the_waiting(tmp_path: Path) -> None:
    """Coordinated omission: one stall of 0.4 s at 100 requests a second delays about forty of them."""
    backend = Backend(stall_at=20, stall_seconds=0.4)
    level = Level(kind="open", requests_per_second=100.0, arrivals="constant", concurrency=1, seconds=1.2)
    rows = measure(tmp_path, backend, level)
    start, end, intended = (
        rows[name].to_numpy() for name in ("start_seconds", "end_seconds", "intended_seconds")
    )
    assert (end - start > 0.1).sum() == 1  # what a closed loop would have seen
    assert 25 <= (end - intended > 0.1).sum() <= 60
    assert (start >= intended).all()


def test_an_open_loop_asks_at_its_times_however_slow_the_store_is(tmp_path: Path) -> None:
    level = Level(kind="open", requests_per_second=50.0, arrivals="constant", concurrency=64, seconds=0.5)
    backend = Backend(0.3)
    rows = measure(tmp_path, backend, level)
    assert np.diff(rows.sort_by("number")["intended_seconds"].to_numpy()) == pytest.approx(0.02)
    assert rows.num_rows == 24
    assert backend.most_under_way > 10


class OneAtATime:
    """Takes everything at once and answers twenty a second, in order."""

    def __init__(self) -> None:
        self.free = 0.0

    async def search(self, query: object, **asked: Any) -> Sequence[Hit]:
        self.free = max(self.free, time.perf_counter()) + 0.05
        await anyio.sleep(self.free - time.perf_counter())
        return HITS


@pytest.mark.parametrize(("rate", "too_many"), [(40.0, True), (8.0, False)])
def test_an_open_loop_beyond_what_a_store_can_do_is_void(tmp_path: Path, rate: float, too_many: bool) -> None:
    """64 senders: nothing waits to be sent, the queue is in the store."""
    level = Level(kind="open", requests_per_second=rate, concurrency=64, seconds=3.0)
    rows = measure(tmp_path, OneAtATime(), level)
    columns = {name: rows[name].to_numpy() for name in rows.column_names}
    assert any("saturated" in reason for reason in void_of_load(columns, allow_errors=False)) == too_many


def test_poisson_arrivals_are_irregular_and_the_same_every_time(tmp_path: Path) -> None:
    level = Level(kind="open", requests_per_second=200.0, arrivals="poisson", concurrency=8, seconds=0.5)

    def gaps() -> list[float]:
        rows = measure(tmp_path, Backend(), level).sort_by("number")
        return np.diff(rows["intended_seconds"].to_numpy())[:50].tolist()

    first, again = gaps(), gaps()
    assert first == pytest.approx(again)
    assert max(first) > 5 * min(first)
    assert sum(first) / len(first) == pytest.approx(1 / 200, rel=0.5)


def test_an_open_loop_that_cannot_keep_up_ends_and_names_who_was_not_sent(tmp_path: Path) -> None:
    level = Level(
        kind="open",
        requests_per_second=500.0,
        arrivals="constant",
        concurrency=1,
        seconds=60,
        most_waiting=20,
    )
    began = time.perf_counter()
    rows = measure(tmp_path, Backend(0.1), level)
    assert time.perf_counter() - began < 10
    unsent = rows.filter(pc.is_null(rows["start_seconds"]))
    assert unsent.num_rows >= 20
    assert all(error.startswith("NotSent") for error in unsent["error"].to_pylist())


def test_what_takes_too_long_is_an_error(tmp_path: Path) -> None:
    rows = measure(tmp_path, Backend(stall_at=2, stall_seconds=9), Level(requests=4), timeout_seconds=0.2)
    assert [error and error.partition(":")[0] for error in rows["error"].to_pylist()] == [
        None,
        "TimedOut",
        None,
        None,
    ]
    assert rows["hits"].to_pylist() == [10, None, 10, 10]


class Failing(Backend):
    async def search(self, query: object, **asked: Any) -> Sequence[Hit]:
        await super().search(query, **asked)
        raise Unavailable("nobody is there\n  more", backend="fake", operation="search")


@pytest.mark.parametrize("allow_errors", [False, True])
def test_a_store_that_fails_does_not_fill_the_disk_with_errors(tmp_path: Path, allow_errors: bool) -> None:
    rows = measure(tmp_path, Failing(), Level(requests=300), allow_errors=allow_errors)
    assert rows.num_rows == (300 if allow_errors else MOST_ERRORS)
    assert set(rows["error"].to_pylist()) == {"Unavailable: fake search: nobody is there"}


def test_the_mix_keeps_its_shares(tmp_path: Path) -> None:
    queries = Queries.model_validate(
        {
            "count": 5,
            "k": 3,
            "exact": True,
            "methods": {"all": 3.0, "sparse": 1.0},
            "filters": ({"share": 0.5, "selectivity": 0.1},),
        }
    )
    backend = Backend()
    rows = measure(tmp_path, backend, Level(requests=1000), queries)
    methods = Counter(rows["method"].to_pylist())
    assert methods["all"] == pytest.approx(750, abs=60)
    filtered = [asked for asked in backend.asked if asked["filter"]]
    assert len(filtered) == pytest.approx(500, abs=60)
    assert filtered[0]["filter"] == {"uniform": {"$lt": 0.1}}
    assert all(asked["k"] == 3 and asked["exact"] for asked in backend.asked)
    assert {row["expected_hits"] for row in rows.to_pylist() if row["method"] == "all"} == {3}


def test_a_sparse_list_must_hold_at_least_the_document_that_is_paraphrased(tmp_path: Path) -> None:
    queries = Queries.model_validate(
        {"count": 5, "methods": {"sparse": 1.0}, "filters": ({"share": 0.5, "selectivity": 0.3},)}
    )
    for row in measure(tmp_path, Backend(), Level(requests=200), queries).to_pylist():
        source = CORPUS.source(row["query"])
        passes = row["selectivity"] is None or uniform(source) < 0.3
        assert row["expected_hits"] == (passes and CORPUS.shares_a_token(row["query"]))


def test_the_harness_costs_little() -> None:
    """The aim is 0.2 ms; the bound is loose, since tests share their machine."""
    scenario = read_scenario({"name": "s", "stores": [{"name": "m", "url": "memory:"}], "loads": [{}]}, "s")
    assert anyio.run(harness_seconds, scenario) < 1e-3
