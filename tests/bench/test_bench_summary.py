"""Numbers from rows: each by its definition, and void where they would mislead."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_connectors.bench.folder import BenchFolder
from m3_connectors.bench.recall import found_of
from m3_connectors.bench.records import BenchRecord, Summary
from m3_connectors.bench.rows import RecallRow, RequestRow, Sink, WriteRow
from m3_connectors.bench.summary import quantile, summarise
from m3_connectors.environment import environment
from m3_connectors.errors import InvalidInput

REQUEST = RequestRow(
    store="a", documents=100, load="closed-1", phase="measured", number=0, worker=0, query=0, method="all",
    selectivity=None, k=10, exact=False, expected_hits=10, intended_seconds=0.0, start_seconds=0.0, end_seconds=0.1,
    hits=10, distinct_hits=10, ids_hash=1, error=None, round_trips=3, store_seconds=0.08, client_cpu_seconds=1.0,
    server_cpu_seconds=None,
)  # fmt: skip
WRITE = WriteRow(
    store="a", documents=100, kind="upsert", first=0, written=50, size_bytes=5_000_000, start_seconds=0.0,
    end_seconds=0.5, round_trips=2, store_seconds=0.4, start_cpu_seconds=1.0, end_cpu_seconds=1.2,
    server_cpu_seconds=None,
)  # fmt: skip
COLLECTION = {
    "store": "a",
    "backend": "qdrant",
    "documents": 100,
    "count": 100,
    "reused": False,
    "disk_bytes": {"dense": 400, "sparse": 100},
    "server_memory_bytes": None,
    "corpus": {"rows": 4.0, "distinct_tokens": 3.0, "text_bytes": 20.0},
}


def numbers(
    tmp_path: Path,
    requests: list[RequestRow],
    *,
    writes: list[WriteRow] | None = None,
    recall: list[RecallRow] | None = None,
    allow_errors: bool = False,
    url: str = "qdrant+http://h:6333",
    **collection: Any,
) -> Summary:
    """The summary of these rows, by way of the files that a run writes."""
    tables = []
    for kind, rows in ((RequestRow, requests), (WriteRow, writes or [WRITE]), (RecallRow, recall or [])):
        path = tmp_path / f"{kind.__name__}.parquet"
        with Sink(path, kind) as sink:  # type: ignore[type-var]
            for row in rows:
                sink.add(row)  # type: ignore[arg-type]
        tables.append(pq.read_table(path))
    record = {
        "format": 1,
        "scenario": {
            "name": "s",
            "stores": [{"name": "a", "url": url}],
            "allow_errors": allow_errors,
            "corpus": {
                "dimension": 16,
                "rows": {"mean": 4.0},
                "query_rows": 4,
                "storage": {"multivector_dtype": "float16"},
            },
            "queries": {"k": 10},
        },
        "environment": environment(),
        "collections": [COLLECTION | collection],
        "harness_seconds_per_request": 1e-4,
        "complete": True,
    }
    return summarise(BenchRecord.model_validate_json(json.dumps(record)), *tables)


def sequence(*latencies: float, **fields: Any) -> list[RequestRow]:
    """One request after the other."""
    rows, at = [], 0.0
    for number, latency in enumerate(latencies):
        times = {"intended_seconds": at, "start_seconds": at, "end_seconds": at + latency}
        rows.append(
            REQUEST._replace(number=number, client_cpu_seconds=1 + 0.01 * number, **times)._replace(**fields)
        )
        at += latency
    return rows


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=300), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_quantile_is_the_smallest_latency_that_a_share_did_not_exceed(
    latencies: list[float], q: float
) -> None:
    found = quantile(np.array(latencies), q)
    if len(latencies) < round(1 / (1 - q)):
        assert found is None
        return
    ordered = sorted(latencies)
    assert found == ordered[math.ceil(round(q * len(latencies), 9)) - 1]
    assert sum(latency <= found for latency in latencies) >= q * len(latencies) - 1e-9


def test_of_too_few_requests_a_far_quantile_is_not_told() -> None:
    assert quantile(np.arange(999.0), 0.999) is None
    assert quantile(np.arange(1000.0), 0.999) == 998.0
    assert quantile(np.empty(0), 0.5) is None


def test_a_load_in_numbers(tmp_path: Path) -> None:
    rows = [
        row._replace(method="all" if i % 2 else "dense") for i, row in enumerate(sequence(*[0.1, 0.3] * 20))
    ]
    rows.insert(
        0, rows[0]._replace(phase="warm-up", end_seconds=-0.5, start_seconds=-9.0, client_cpu_seconds=0.99)
    )
    summary = numbers(tmp_path, rows)
    whole, dense, all_methods = summary.loads
    assert (whole.method, dense.method, all_methods.method) == (None, "dense", "all")
    assert whole.answered == 40
    assert whole.latency_seconds.p50 == pytest.approx(0.1)
    assert whole.latency_seconds.p95 == pytest.approx(0.3)
    assert whole.latency_seconds.mean == pytest.approx(0.2)
    assert whole.latency_seconds.p99_9 is None
    assert whole.requests_per_second == pytest.approx(40 / 8)
    assert whole.client_cpu_seconds == pytest.approx(0.01)
    assert whole.client_cpu_share == pytest.approx(0.05)
    assert whole.store_share == pytest.approx(0.08 * 40 / 8)
    assert whole.round_trips == 3
    assert dense.latency_seconds.mean == pytest.approx(0.1)
    assert dense.client_cpu_seconds == pytest.approx(0.01)
    assert not summary.void


def test_the_rate_of_a_method_is_of_the_time_of_its_load(tmp_path: Path) -> None:
    """Two requests that follow each other at once are not a method of ten a second in a load of four seconds."""
    rows = [
        row._replace(method="sparse" if i in (7, 8) else "all") for i, row in enumerate(sequence(*[0.1] * 40))
    ]
    whole, mixed, rare = numbers(tmp_path, rows).loads
    assert rare.answered == 2
    assert rare.requests_per_second == pytest.approx(2 / 4)
    assert whole.requests_per_second == pytest.approx(mixed.requests_per_second + rare.requests_per_second)


def test_the_cpu_time_of_a_request_is_not_told_where_others_ran_beside_it(tmp_path: Path) -> None:
    rows = [row._replace(worker=i % 2) for i, row in enumerate(sequence(*[0.1] * 10))]
    whole, method = numbers(tmp_path, rows).loads
    assert whole.client_cpu_seconds is not None
    assert method.client_cpu_seconds is None


def test_a_store_whose_calls_are_not_seen_has_no_share(tmp_path: Path) -> None:
    whole = numbers(tmp_path, sequence(0.1, 0.1, round_trips=0, store_seconds=0.0)).loads[0]
    assert whole.store_share is None


def test_server_cpu_comes_from_its_readings(tmp_path: Path) -> None:
    rows = sequence(*[0.1] * 11)
    rows[2] = rows[2]._replace(server_cpu_seconds=7.0)
    rows[10] = rows[10]._replace(server_cpu_seconds=7.4)
    whole, method = numbers(tmp_path, rows).loads
    assert whole.server_cpu_seconds == pytest.approx(0.05)
    assert whole.server_cpu_share == pytest.approx(0.5)
    assert method.server_cpu_seconds is None


def test_latency_counts_from_the_intended_start(tmp_path: Path) -> None:
    rows = [row._replace(intended_seconds=row.intended_seconds - 1.0) for row in sequence(0.1, 0.1)]
    whole = numbers(tmp_path, rows).loads[0]
    assert whole.latency_seconds.p50 == pytest.approx(1.1)
    assert whole.waited_to_be_sent_seconds == pytest.approx(1.0)


def test_a_fill_in_numbers(tmp_path: Path) -> None:
    optimize = WRITE._replace(kind="optimize", written=0, size_bytes=0, start_seconds=1.0, end_seconds=4.0)
    second = WRITE._replace(first=50, start_seconds=0.5, end_seconds=1.0)
    other = WRITE._replace(store="b")
    (fill,) = numbers(tmp_path, sequence(0.1), writes=[WRITE, second, optimize, other]).fills
    assert fill.documents_per_second == pytest.approx(100)
    assert fill.megabytes_per_second == pytest.approx(10)
    assert fill.optimize_seconds == pytest.approx(3)
    assert fill.client_cpu_share == pytest.approx(0.4)
    assert fill.disk_bytes_per_document == 5
    assert fill.component_bytes_per_document == {"dense": 4, "sparse": 1}
    assert fill.planned_bytes_per_document["dense"] == 64


def test_a_collection_that_was_there_has_no_write_rate(tmp_path: Path) -> None:
    (fill,) = numbers(tmp_path, sequence(0.1), writes=[WRITE._replace(store="b")], reused=True).fills
    assert fill.documents_per_second is None
    assert fill.optimize_seconds is None


def test_recall_counts_what_was_found_of_what_there_is(tmp_path: Path) -> None:
    row = RecallRow("a", 100, "list", 0, "dense", None, 10, 10, 9, 0.1, 0.2, False, None)
    recall = [row, row._replace(found=10, query=1), row._replace(expected=0, found=0, query=2)]
    (one,) = numbers(tmp_path, sequence(0.1), recall=recall).recall
    assert one.recall == pytest.approx(0.95)
    assert one.worst == pytest.approx(0.9)
    assert one.queries == 2


def test_recall_is_told_apart_by_filter(tmp_path: Path) -> None:
    row = RecallRow("a", 100, "list", 0, "dense", None, 10, 10, 9, 0.1, 0.2, False, None)
    recall = [row, row._replace(selectivity=0.1, found=5, approximate_seconds=0.7), row]
    whole, filtered = numbers(tmp_path, sequence(0.1), recall=recall).recall
    assert (whole.selectivity, whole.queries, whole.recall) == (None, 2, pytest.approx(0.9))
    assert (filtered.selectivity, filtered.queries, filtered.recall) == (0.1, 1, pytest.approx(0.5))
    assert filtered.approximate_p50_seconds is None  # of a single one
    assert whole.approximate_p50_seconds == pytest.approx(0.1)


def test_a_question_that_failed_is_in_no_recall(tmp_path: Path) -> None:
    row = RecallRow("a", 100, "list", 0, "dense", None, 10, 10, 10, 0.1, 0.2, False, None)
    failed = row._replace(expected=0, found=0, approximate_seconds=None, exact_seconds=None, error="Busy: x")
    summary = numbers(tmp_path, sequence(0.1), recall=[row, failed])
    (one,) = summary.recall
    assert summary.void
    assert (one.recall, one.errors) == (1.0, {"Busy: x": 1})
    assert one.void == ("1 of its queries failed (Busy: x)",)
    allowed = numbers(tmp_path, sequence(0.1), recall=[row, failed], allow_errors=True)
    assert not allowed.void


def test_a_client_that_fills_a_core_is_noted_and_not_void(tmp_path: Path) -> None:
    rows = [row._replace(client_cpu_seconds=1 + 0.095 * row.number) for row in sequence(*[0.1] * 20)]
    (load, _) = numbers(tmp_path, rows).loads
    assert not load.void
    assert load.noted == (
        "this process used 90% of a core: the client, not the store, limits latency and rate",
    )
    assert numbers(tmp_path, sequence(*[0.1] * 20)).loads[0].noted == ()
    # An engine in this process: its work is counted here, and says nothing of the client.
    assert numbers(tmp_path, rows, url="qdrant:./data").loads[0].noted == ()


def test_what_is_not_planned_is_not_compared_with_the_plan(tmp_path: Path) -> None:
    disk = {"dense": 400, "log": 900, "second copy until merged": 70}
    for backend, bytes_each in (("qdrant", 4.7), ("elasticsearch", 13.0), ("milvus", 13.7), ("memory", 13.7)):
        (fill,) = numbers(tmp_path, sequence(0.1), disk_bytes=disk, backend=backend).fills
        assert fill.comparable_bytes_per_document == pytest.approx(bytes_each), backend
        assert fill.disk_bytes_per_document == pytest.approx(13.7)


def test_a_folder_of_an_earlier_version_can_be_read() -> None:
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "acceptance-2026-11-23"
    folder = BenchFolder(results)
    computed = folder.summary()
    written = json.loads((results / "summary.json").read_text())
    for kind in ("loads", "fills", "recall"):
        for now, then in zip(computed.to_json()[kind], written[kind], strict=True):
            assert {key: now[key] for key in then} == then
    assert computed.sessions == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.pop("complete"), "lacks the key complete"),
        (
            lambda record: record["collections"][1].update(documents=0),
            r"collections\[1\]\.documents is 0: Input should be greater than or equal to 1",
        ),
        (
            lambda record: record["collections"][0]["corpus"].update(rows=float("nan")),
            r"collections\[0\]\.corpus\.rows is nan: Input should be a finite number",
        ),
        (lambda record: record["collections"][1].pop("count"), r"lacks the key collections\[1\]\.count"),
        (
            lambda record: record["scenario"]["corpus"].update(dimension="256"),
            r"scenario\.corpus\.dimension is '256': Input should be a valid integer",
        ),
        (lambda record: record.update(complete=1), "complete is 1: Input should be a valid boolean"),
        (lambda record: record.update(format=2), "has format 2, not 1"),
    ],
)
def test_a_record_that_lacks_a_key_or_has_a_wrong_type_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "acceptance-2026-11-23"
    record = json.loads((results / "bench.json").read_text())
    change(record)
    (tmp_path / "bench.json").write_text(json.dumps(record))
    with pytest.raises(InvalidInput, match=message) as told:
        BenchFolder(tmp_path)
    assert str(told.value).startswith(f"{tmp_path / 'bench.json'}")
    assert "\n  " in str(told.value)


@pytest.mark.parametrize(
    ("approximate", "exact", "found"),
    [
        ([3.0, 2.0, 1.0], [3.0, 2.0, 1.0], 3),
        ([3.0, 1.0, 0.5], [3.0, 2.0, 1.0], 2),
        ([2.0, 2.0], [2.0, 2.0], 2),  # ties: any of them
        ([], [1.0], 0),
        ([1.0], [], 0),
        ([3.0, 2.0], [3.0, 2.0, 1.0], 2),
    ],
)
def test_what_belongs_into_an_exact_list_is_told_by_its_score(
    approximate: list[float], exact: list[float], found: int
) -> None:
    assert found_of(approximate, exact) == found


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"hits": 0, "distinct_hits": 0}, "no hits"),
        ({"hits": 9, "distinct_hits": 9}, "fewer hits than expected"),
        ({"distinct_hits": 9}, "the same document twice"),
        ({"error": "Unavailable: gone", "hits": None, "distinct_hits": None}, "failed (Unavailable: gone)"),
        ({"end_seconds": 0.05}, "clock went backwards"),
        ({"start_seconds": 0.1}, "clock went backwards"),
        (
            {
                "error": "NotSent: the load ended",
                "start_seconds": None,
                "end_seconds": None,
                "worker": None,
                "hits": None,
            },
            "saturated",
        ),
    ],
)
def test_one_bad_request_makes_a_load_void(tmp_path: Path, fields: dict[str, Any], reason: str) -> None:
    rows = sequence(*[0.1] * 5)
    rows[2] = rows[2]._replace(**fields)
    summary = numbers(tmp_path, rows)
    assert summary.void
    assert any(reason in void for void in summary.loads[0].void)


def test_a_bad_request_of_the_warm_up_does_not_count(tmp_path: Path) -> None:
    rows = sequence(*[0.1] * 5)
    rows[0] = rows[0]._replace(phase="warm-up", hits=0, distinct_hits=0)
    assert not numbers(tmp_path, rows).void


def test_errors_that_are_allowed_are_listed_and_left_out(tmp_path: Path) -> None:
    rows = sequence(*[0.1] * 5)
    rows[2] = rows[2]._replace(error="Unavailable: gone", hits=None, distinct_hits=None, end_seconds=0.2001)
    summary = numbers(tmp_path, rows, allow_errors=True)
    whole = summary.loads[0]
    assert not summary.void
    assert whole.errors == {"Unavailable: gone": 1}
    assert whole.answered == 4
    assert whole.latency_seconds.mean == pytest.approx(0.1)  # the failure was fast


def queue(capacity: float, servers: int, seed: int, seconds: float = 5.0) -> list[RequestRow]:
    """An open loop of 40 requests a second for some seconds, answered by so many servers with exponential times."""
    rng = np.random.default_rng(seed)
    free = np.zeros(servers)
    rows, at = [], 0.0
    while (at := at + float(rng.exponential(1 / 40))) < seconds:
        server = int(free.argmin())
        start = max(at, float(free[server]))
        free[server] = start + rng.exponential(servers / capacity)
        rows.append(
            REQUEST._replace(
                load="open-40-at-64",
                number=len(rows),
                phase="measured" if at > 1 else "warm-up",
                worker=server,
                intended_seconds=at,
                start_seconds=start,
                end_seconds=float(free[server]),
            )
        )
    return rows


def saturated(tmp_path: Path, rows: list[RequestRow]) -> bool:
    return any("saturated" in reason for reason in numbers(tmp_path, rows).loads[0].void)


@pytest.mark.parametrize("servers", [1, 8])
def test_a_store_that_answers_half_of_an_open_loop_is_saturated(tmp_path: Path, servers: int) -> None:
    """Though never more than 64 of them wait, as many as may be under way."""
    assert all(saturated(tmp_path, queue(20, servers, seed)) for seed in range(20))


@pytest.mark.parametrize(("capacity", "servers"), [(80, 1), (60, 8), (400, 400)])
def test_bursts_of_a_store_that_keeps_up_are_not_saturation(
    tmp_path: Path, capacity: float, servers: int
) -> None:
    """With 400 servers each answer takes a second, and 40 are under way at the end."""
    assert not any(saturated(tmp_path, queue(capacity, servers, seed)) for seed in range(40))


def test_a_store_that_gets_slower_and_slower_is_saturated(tmp_path: Path) -> None:
    rows = [
        row._replace(end_seconds=(row.start_seconds or 0) + 0.05 + 0.8 * row.intended_seconds)
        for row in queue(400, 400, 1)
    ]
    assert saturated(tmp_path, rows)


def test_a_closed_loop_is_never_saturated(tmp_path: Path) -> None:
    assert not saturated(tmp_path, [row._replace(load="closed-64") for row in queue(20, 1, 1)])


def test_a_collection_of_another_size_makes_all_of_its_loads_void(tmp_path: Path) -> None:
    summary = numbers(tmp_path, sequence(0.1), count=99)
    assert "99 documents" in summary.fills[0].void[0]
    assert all(load.void for load in summary.loads)


def test_a_load_without_a_measured_request_is_void(tmp_path: Path) -> None:
    summary = numbers(tmp_path, [REQUEST._replace(phase="warm-up")])
    assert summary.loads[0].void == ("no request was measured",)
