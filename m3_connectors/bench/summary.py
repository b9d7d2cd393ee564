"""Compute all numbers of a benchmark from its raw rows and the records of its collections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from m3_connectors.backends.planning import Shape, formula_of
from m3_connectors.backends.stores import takes_path
from m3_connectors.bench.records import (
    BenchRecord,
    Collection,
    Corpus,
    Fill,
    Latency,
    Load,
    Recall,
    Store,
    Summary,
)
from m3_connectors.bench.void import Columns, errors_of, void_of_fill, void_of_load, void_of_recall

if TYPE_CHECKING:
    import pyarrow as pa

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}

FULL_CORE = 0.85
"""The CPU share of this process above which it limits a load."""

Floats = npt.NDArray[np.float64]


def summarise(record: BenchRecord, requests: pa.Table, writes: pa.Table, recall: pa.Table) -> Summary:
    """Compute the numbers of a run.

    Args:
        record: The content of ``bench.json``.
        requests: A table of ``RequestRow``.
        writes: A table of ``WriteRow``.
        recall: A table of ``RecallRow``.
    """
    scenario = record.scenario
    urls = {store.name: store.url for store in scenario.stores}
    fills = [
        _fill(noted, urls.get(noted.store), scenario.corpus, _columns(writes)) for noted in record.collections
    ]
    broken = {(fill.store, fill.documents): fill.void for fill in fills}
    embedded = {store.name for store in scenario.stores if _in_process(store)}
    loads = []
    for key, rows in _groups(_with_cpu(_columns(requests)), "store", "documents", "load"):
        measured = _where(rows, rows["phase"] == "measured")
        window = _window(measured)
        void = *broken.get(key[:2], ()), *void_of_load(rows, allow_errors=scenario.allow_errors)
        whole = _load((*key, None), measured, window, void, together=True, alone=True)
        noted = () if key[0] in embedded else _noted(whole.client_cpu_share)
        loads.append(whole.model_copy(update={"noted": noted}))
        alone = not (measured["worker"] > 0).any()
        for (method,), of_method in _groups(measured, "method"):
            part = _load((*key, method), of_method, window, void, together=False, alone=alone)
            loads.append(part.model_copy(update={"noted": noted}))
    recalls = [
        _recall(key, rows, allow_errors=scenario.allow_errors)
        for key, rows in _groups(_columns(recall), *_RECALL_KEYS)
    ]
    return Summary(
        name=scenario.name,
        complete=record.complete,
        sessions=len(record.sessions) or 1,  # earlier versions recorded none
        void=any(item.void for item in (*fills, *loads, *recalls)),
        harness_seconds_per_request=record.harness_seconds_per_request,
        fills=tuple(fills),
        loads=tuple(loads),
        recall=tuple(recalls),
    )


def quantile(latencies: Floats, q: float) -> float | None:
    """Return the smallest latency that a share ``q`` of the requests did not exceed; None with too few.

    Among fewer than ``1 / (1 - q)`` requests none is beyond the quantile, so their slowest is not an estimate
    of it.
    """
    # Without rounding, 0.999 would require 1,001 requests.
    if len(latencies) < round(1 / (1 - q)):
        return None
    return float(np.quantile(latencies, q, method="inverted_cdf"))


def _fill(noted: Collection, url: str | None, corpus: Corpus, writes: Columns) -> Fill:
    """Summarise one collection: the rate of writing, the time for its index, and its size."""
    own = _where(writes, (writes["store"] == noted.store) & (writes["documents"] == noted.documents))
    upserts, optimizes = (_where(own, own["kind"] == kind) for kind in ("upsert", "optimize"))
    seconds = float((upserts["end_seconds"] - upserts["start_seconds"]).sum())
    cpu = float((upserts["end_cpu_seconds"] - upserts["start_cpu_seconds"]).sum())
    server = upserts["server_cpu_seconds"]
    written = int(upserts["written"].sum())
    disk: dict[str, float] | None = (
        None
        if noted.disk_bytes is None
        else {name: size / noted.documents for name, size in noted.disk_bytes.items()}
    )
    formula = formula_of(noted.backend)
    omitted = formula.omitted if formula else ()
    shape = Shape(
        noted.documents,
        noted.corpus.rows,
        corpus.dimension,
        noted.corpus.distinct_tokens,
        noted.corpus.text_bytes,
        corpus.storage.multivector_dtype,
        corpus.storage.long_documents,
        corpus.storage.components,
    )
    embedded = url is not None and takes_path(url.partition(":")[0])
    planned = None
    if formula:
        planned = (formula.plan if embedded or formula.server is None else formula.server)(shape)
    return Fill(
        store=noted.store,
        documents=noted.documents,
        count=noted.count,
        reused=noted.reused,
        documents_per_second=written / seconds if seconds else None,
        megabytes_per_second=float(upserts["size_bytes"].sum()) / 1e6 / seconds if seconds else None,
        optimize_seconds=float((optimizes["end_seconds"] - optimizes["start_seconds"]).sum())
        if len(optimizes["kind"])
        else None,
        client_cpu_share=cpu / seconds if seconds else None,
        server_cpu_share=float(server.sum()) / seconds if seconds and not np.isnan(server).any() else None,
        round_trips_per_batch=float(upserts["round_trips"].mean()) if written else None,
        disk_bytes_per_document=sum(noted.disk_bytes.values()) / noted.documents
        if noted.disk_bytes
        else None,
        component_bytes_per_document=disk,
        planned_bytes_per_document=planned.component_bytes if planned else None,
        comparable_bytes_per_document=sum(
            size for name, size in noted.disk_bytes.items() if name not in omitted
        )
        / noted.documents
        if noted.disk_bytes
        else None,
        server_memory_bytes=noted.server_memory_bytes,
        void=tuple(void_of_fill(noted.documents, noted.count)),
    )


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


def _load(
    key: tuple[Any, ...],
    rows: Columns,
    window: float,
    void: tuple[str, ...],
    *,
    together: bool,
    alone: bool,
) -> Load:
    """Summarise the answered requests: latency, throughput, and the distribution of time.

    Args:
        key: The store, the number of documents, the load, and the method.
        rows: The measured requests.
        window: The duration of the whole load in seconds.
        void: The reasons why the numbers must not be used.
        together: Whether they are all requests of their load, so that the server's CPU time belongs to them.
        alone: Whether they are all requests of their load or ran one after the other, so that the CPU time of
            this process between two responses belongs to the later one.
    """
    answered = _answered(rows)
    latency = answered["end_seconds"] - answered["intended_seconds"]
    own = answered["end_seconds"] - answered["start_seconds"]
    count = len(latency)
    store, documents, load, method = key
    cpu = float(np.nansum(answered["client_cpu_of_row"])) if alone and count else None
    server_seconds, server_share = _server_cpu(answered) if together else (None, None)
    quantiles = {name: quantile(latency, q) for name, q in QUANTILES.items()}
    return Load(
        store=store,
        documents=documents,
        load=load,
        method=method,
        requests=len(rows["number"]),
        answered=count,
        errors=errors_of(rows),
        latency_seconds=Latency(
            **quantiles, mean=_mean(latency), max=float(latency.max()) if count else None
        ),
        waited_to_be_sent_seconds=_mean(answered["start_seconds"] - answered["intended_seconds"]),
        requests_per_second=count / window if window else None,
        round_trips=_mean(answered["round_trips"]),
        store_share=float(answered["store_seconds"].sum() / own.sum())
        if answered["round_trips"].any() and own.sum()
        else None,
        client_cpu_seconds=None if cpu is None else cpu / count,
        client_cpu_share=None if cpu is None or not window else cpu / window,
        server_cpu_seconds=server_seconds,
        server_cpu_share=server_share,
        void=void,
        noted=(),
    )


def _server_cpu(rows: Columns) -> tuple[float | None, float | None]:
    """Compute the server's CPU time per request, and its share of a core, from the rows that have a reading."""
    order = np.argsort(rows["end_seconds"])
    read = rows["server_cpu_seconds"][order]
    at = np.flatnonzero(~np.isnan(read))
    if len(at) < 2:
        return None, None
    seconds = float(read[at[-1]] - read[at[0]])
    between = rows["end_seconds"][order][[at[0], at[-1]]]
    return seconds / int(at[-1] - at[0]), seconds / float(between[1] - between[0])


_RECALL_KEYS = ("store", "documents", "kind", "method", "depth", "selectivity")


def _recall(key: Sequence[Any], rows: Columns, *, allow_errors: bool) -> Recall:
    errors = errors_of(rows) if "error" in rows else {}  # missing in folders of earlier versions
    rows = _answered(rows) if errors else rows
    some = rows["expected"] > 0
    return Recall(
        **dict(zip(_RECALL_KEYS, key, strict=True)),
        queries=int(some.sum()),
        recall=_mean(rows["found"][some] / rows["expected"][some]),
        worst=float((rows["found"][some] / rows["expected"][some]).min()) if some.any() else None,
        approximate_p50_seconds=quantile(rows["approximate_seconds"], 0.5),
        exact_p50_seconds=quantile(rows["exact_seconds"], 0.5),
        errors=errors,
        void=tuple(void_of_recall(errors, allow_errors=allow_errors)),
    )


def _in_process(store: Store) -> bool:
    """Return whether the engine runs in this process, whose CPU time then includes the engine's."""
    return store.url is not None and "+http" not in store.url


def _noted(client_cpu_share: float | None) -> tuple[str, ...]:
    """Return a remark if this process used a whole core, which limits the load: Python uses only one."""
    if client_cpu_share is None or client_cpu_share < FULL_CORE:
        return ()
    return (
        f"this process used {client_cpu_share:.0%} of a core: "
        "the client, not the store, limits latency and rate",
    )


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
