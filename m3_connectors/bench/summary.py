"""Compute all numbers of a benchmark from its raw rows and the records of its collections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from m3_connectors.bench.plan import BESIDE, Shape, planned_bytes
from m3_connectors.bench.void import Columns, errors_of, void_of_fill, void_of_load, void_of_recall

if TYPE_CHECKING:
    import pyarrow as pa

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}

FULL_CORE = 0.85
"""The CPU share of this process above which it limits a load."""

Floats = npt.NDArray[np.float64]


def summarise(
    record: Mapping[str, Any], requests: pa.Table, writes: pa.Table, recall: pa.Table
) -> dict[str, Any]:
    """Compute the numbers of a run.

    Args:
        record: The content of ``bench.json``.
        requests: A table of ``RequestRow``.
        writes: A table of ``WriteRow``.
        recall: A table of ``RecallRow``.

    Returns:
        A JSON object: ``fills`` (one for each collection), ``loads`` (one for each level, with ``method``
            null, and
        one for each of its methods), ``recall`` (one for each method and filter), ``void`` (whether any of
        them must not be used), ``complete`` (whether the run is finished), and ``sessions`` (the number of
        sessions). With a reason in ``void``, numbers must not be used; with one in ``noted``, they do not
        describe the store alone.
    """
    allow_errors = bool(record["scenario"]["allow_errors"])
    corpus = record["scenario"]["corpus"]
    fills = [_fill(noted, corpus, _columns(writes)) for noted in record["collections"]]
    broken = {(fill["store"], fill["documents"]): fill["void"] for fill in fills}
    embedded = {store["name"] for store in record["scenario"]["stores"] if _in_process(store)}
    loads = []
    for (store, documents, load), rows in _groups(
        _with_cpu(_columns(requests)), "store", "documents", "load"
    ):
        measured = _where(rows, rows["phase"] == "measured")
        void = broken.get((store, documents), []) + void_of_load(rows, allow_errors=allow_errors)
        key = {"store": store, "documents": documents, "load": load}
        window = _window(measured)
        whole = _load(measured, window, together=True, alone=True)
        remarks = {"void": void, "noted": [] if store in embedded else _noted(whole["client_cpu_share"])}
        loads.append(key | {"method": None} | whole | remarks)
        alone = not (measured["worker"] > 0).any()
        for (method,), of_method in _groups(measured, "method"):
            part = _load(of_method, window, together=False, alone=alone)
            loads.append(key | {"method": method} | part | remarks)
    recalls = [
        _recall(key, rows, allow_errors=allow_errors)
        for key, rows in _groups(_columns(recall), *_RECALL_KEYS)
    ]
    return {
        "format": 1,
        "name": record["scenario"]["name"],
        "complete": record["complete"],
        "sessions": len(record.get("sessions", (None,))),
        "void": any(item["void"] for item in (*fills, *loads, *recalls)),
        "harness_seconds_per_request": record["harness_seconds_per_request"],
        "fills": fills,
        "loads": loads,
        "recall": recalls,
    }


def quantile(latencies: Floats, q: float) -> float | None:
    """Return the smallest latency that a share ``q`` of the requests did not exceed; None with too few.

    Among fewer than ``1 / (1 - q)`` requests none is beyond the quantile, so their slowest is not an estimate
    of it.
    """
    # Without rounding, 0.999 would require 1,001 requests.
    if len(latencies) < round(1 / (1 - q)):
        return None
    return float(np.quantile(latencies, q, method="inverted_cdf"))


def _fill(noted: Mapping[str, Any], corpus: Mapping[str, Any], writes: Columns) -> dict[str, Any]:
    """Summarise one collection: the rate of writing, the time for its index, and its size."""
    own = _where(writes, (writes["store"] == noted["store"]) & (writes["documents"] == noted["documents"]))
    upserts, optimizes = (_where(own, own["kind"] == kind) for kind in ("upsert", "optimize"))
    seconds = float((upserts["end_seconds"] - upserts["start_seconds"]).sum())
    cpu = float((upserts["end_cpu_seconds"] - upserts["start_cpu_seconds"]).sum())
    server = upserts["server_cpu_seconds"]
    written = int(upserts["written"].sum())
    disk = noted["disk_bytes"]
    beside = BESIDE.get(noted["backend"], ())
    return {
        "store": noted["store"],
        "documents": noted["documents"],
        "count": noted["count"],
        "reused": noted["reused"],
        "documents_per_second": written / seconds if seconds else None,
        "megabytes_per_second": float(upserts["size_bytes"].sum()) / 1e6 / seconds if seconds else None,
        "optimize_seconds": float((optimizes["end_seconds"] - optimizes["start_seconds"]).sum())
        if len(optimizes["kind"])
        else None,
        "client_cpu_share": cpu / seconds if seconds else None,
        "server_cpu_share": float(server.sum()) / seconds if seconds and not np.isnan(server).any() else None,
        "round_trips_per_batch": float(upserts["round_trips"].mean()) if written else None,
        "disk_bytes_per_document": disk and sum(disk.values()) / noted["documents"],
        "component_bytes_per_document": disk
        and {name: size / noted["documents"] for name, size in disk.items()},
        "planned_bytes_per_document": _planned(noted, corpus),
        "comparable_bytes_per_document": disk
        and sum(size for name, size in disk.items() if name not in beside) / noted["documents"],
        "server_memory_bytes": noted["server_memory_bytes"],
        "void": void_of_fill(noted["documents"], noted["count"]),
    }


def _planned(noted: Mapping[str, Any], corpus: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the plan of ``m3 bench plan`` for the same documents, by component."""
    shape = Shape(
        noted["documents"],
        noted["corpus"]["rows"],
        corpus["dimension"],
        noted["corpus"]["distinct_tokens"],
        noted["corpus"]["text_bytes"],
        corpus["storage"]["multivector_dtype"],
        corpus["storage"].get("long_documents", "split"),
    )
    return planned_bytes(noted["backend"], shape)


def _answered(rows: Columns) -> Columns:
    return _where(rows, np.array([error is None for error in rows["error"].tolist()], dtype=bool))


def _window(rows: Columns) -> float:
    """Return the seconds from a load's first intended start to its last response.

    The rate of every method uses it, because the first and last request of one method may be close together.
    """
    answered = _answered(rows)
    if not len(answered["number"]):
        return 0.0
    return float(answered["end_seconds"].max() - answered["intended_seconds"].min())


def _load(rows: Columns, window: float, *, together: bool, alone: bool) -> dict[str, Any]:
    """Summarise the answered requests: latency, throughput, and the distribution of time.

    Args:
        rows: The measured requests.
        window: The duration of the whole load in seconds.
        together: Whether they are all requests of their load, so that the server's CPU time belongs to them.
        alone: Whether they are all requests of their load or ran one after the other, so that the CPU time of
            this process between two responses belongs to the later one.
    """
    answered = _answered(rows)
    latency = answered["end_seconds"] - answered["intended_seconds"]
    own = answered["end_seconds"] - answered["start_seconds"]
    count = len(latency)
    result: dict[str, Any] = {
        "requests": len(rows["number"]),
        "answered": count,
        "errors": errors_of(rows),
        "latency_seconds": {name: quantile(latency, q) for name, q in QUANTILES.items()}
        | {"mean": _mean(latency), "max": float(latency.max()) if count else None},
        "waited_to_be_sent_seconds": _mean(answered["start_seconds"] - answered["intended_seconds"]),
        "requests_per_second": count / window if window else None,
        "round_trips": _mean(answered["round_trips"]),
        "store_share": float(answered["store_seconds"].sum() / own.sum())
        if answered["round_trips"].any() and own.sum()
        else None,
        "client_cpu_seconds": None,
        "client_cpu_share": None,
        "server_cpu_seconds": None,
        "server_cpu_share": None,
    }
    if alone and count:
        cpu = float(np.nansum(answered["client_cpu_of_row"]))
        result["client_cpu_seconds"] = cpu / count
        result["client_cpu_share"] = cpu / window if window else None
    if together:
        result |= _server_cpu(answered)
    return result


def _server_cpu(rows: Columns) -> dict[str, Any]:
    """Compute the server's CPU time per request from its readings, which only some rows have."""
    order = np.argsort(rows["end_seconds"])
    read = rows["server_cpu_seconds"][order]
    at = np.flatnonzero(~np.isnan(read))
    if len(at) < 2:
        return {}
    seconds = float(read[at[-1]] - read[at[0]])
    between = rows["end_seconds"][order][[at[0], at[-1]]]
    return {
        "server_cpu_seconds": seconds / int(at[-1] - at[0]),
        "server_cpu_share": seconds / float(between[1] - between[0]),
    }


_RECALL_KEYS = ("store", "documents", "kind", "method", "depth", "selectivity")


def _recall(key: Sequence[Any], rows: Columns, *, allow_errors: bool) -> dict[str, Any]:
    errors = errors_of(rows) if "error" in rows else {}  # missing in folders of earlier versions
    rows = _answered(rows) if errors else rows
    some = rows["expected"] > 0
    return dict(zip(_RECALL_KEYS, key, strict=True)) | {
        "queries": int(some.sum()),
        "recall": _mean(rows["found"][some] / rows["expected"][some]),
        "worst": float((rows["found"][some] / rows["expected"][some]).min()) if some.any() else None,
        "approximate_p50_seconds": quantile(rows["approximate_seconds"], 0.5),
        "exact_p50_seconds": quantile(rows["exact_seconds"], 0.5),
        "errors": errors,
        "void": void_of_recall(errors, allow_errors=allow_errors),
    }


def _in_process(store: Mapping[str, Any]) -> bool:
    """Return whether the engine runs in this process, whose CPU time then includes the engine's."""
    return store["url"] is not None and "+http" not in store["url"]


def _noted(client_cpu_share: float | None) -> list[str]:
    """Return a remark if this process used a whole core, which limits the load: Python uses only one."""
    if client_cpu_share is None or client_cpu_share < FULL_CORE:
        return []
    return [
        f"this process used {client_cpu_share:.0%} of a core: "
        "the client, not the store, limits latency and rate"
    ]


def _with_cpu(rows: Columns) -> Columns:
    """Add to each row the CPU time of this process since the previous response in its load."""
    spent: Floats = np.full(len(rows["number"]), np.nan)
    order = np.lexsort(
        (rows["end_seconds"], rows["load"].astype(str), rows["documents"], rows["store"].astype(str))
    )
    if len(order):
        cpu = rows["client_cpu_seconds"][order]
        same = np.ones(len(order) - 1, dtype=bool)
        for name in ("store", "documents", "load"):
            column = rows[name][order]
            same &= column[1:] == column[:-1]
        spent[order[1:][same]] = np.diff(cpu)[same]
    return {**rows, "client_cpu_of_row": spent}


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None


def _columns(table: pa.Table) -> dict[str, npt.NDArray[Any]]:
    """Convert a table to NumPy columns; nulls are NaN in numbers and None in texts."""
    return {name: table.column(name).to_numpy() for name in table.column_names}


def _where(rows: Columns, mask: npt.NDArray[np.bool_]) -> dict[str, npt.NDArray[Any]]:
    return {name: column[mask] for name, column in rows.items()}


def _groups(rows: Columns, *names: str) -> Iterator[tuple[tuple[Any, ...], dict[str, npt.NDArray[Any]]]]:
    """Group rows that are equal in these columns, in the order of first occurrence; nulls are equal."""
    columns = ([None if value != value else value for value in rows[name].tolist()] for name in names)
    keys = list(zip(*columns, strict=True))
    places: dict[tuple[Any, ...], list[int]] = {}
    for i, key in enumerate(keys):
        places.setdefault(key, []).append(i)
    for key, where in places.items():
        yield key, {name: column[where] for name, column in rows.items()}
