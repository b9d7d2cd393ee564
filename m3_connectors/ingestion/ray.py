"""Ingestion on Ray Data: parts are read by tasks, encoded by actors on their devices, and written by a few actors.

The guarantees are those of ``ingest``: one process keeps the ledger; a document is entered there before it is written
and acknowledged after the store has acknowledged it and holds nothing of earlier versions. When a process dies, Ray
repeats its batch, under the same ids.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from m3_connectors.adding import AddReport, Cuts
from m3_connectors.backends.registry import DEFAULT_COLLECTION, store_for
from m3_connectors.backends.schema import Storage
from m3_connectors.blocking import connect
from m3_connectors.embeddings import ModelInfo
from m3_connectors.errors import InvalidInput, M3Error, MissingDependency
from m3_connectors.index import Encoder
from m3_connectors.ingestion.chunking import Chunking
from m3_connectors.ingestion.failures import WAIT_SECONDS
from m3_connectors.ingestion.ledger import Ledger, Version
from m3_connectors.ingestion.origin import Origin
from m3_connectors.ingestion.pipeline import IngestReport, OnProgress
from m3_connectors.ingestion.progress import IngestProgress
from m3_connectors.ingestion.ray_ledger import Counts, LedgerKeeper
from m3_connectors.ingestion.ray_stages import (
    Encoding,
    Plan,
    Reading,
    Told,
    Writing,
    connect_when_free,
    delete,
    packed,
    unpacked,
)
from m3_connectors.ingestion.run import OnCut, OnRefused, fingerprint
from m3_connectors.ingestion.sharding import ALL, Shard
from m3_connectors.ingestion.verifying import Verification, compared

P = TypeVar("P")

_WHOLE = Chunking()
_MOST_READ_TASKS = 1000
_MOST_NAMED = 1000
_SUMS = (
    "read",
    "chunks",
    "tokens",
    "batches",
    "pooled",
    "encoding_seconds",
    "writing_seconds",
    "waited_seconds",
)
_ROW_BYTES = 64 * 1024
"""Ray passes on what a task has made in blocks of at least this size: about one batch of texts."""


def ingest_on_ray(
    parts: Sequence[P],
    read: Callable[[P], Iterable[object]],
    url: str,
    collection: str = DEFAULT_COLLECTION,
    *,
    encoder: Callable[[], Encoder],
    ledger: Path,
    address: str | None = None,
    encoders: int | None = None,
    writers: int = 2,
    storage: Storage | None = None,
    options: Mapping[str, Any] | None = None,
    chunking: Chunking = _WHOLE,
    origin: Callable[[P], Origin] = lambda _: Origin(),
    sync: Sequence[str] = (),
    unread: Callable[[Version], bool] = lambda _: False,
    check: bool = False,
    shard: Shard = ALL,
    wait_seconds: float = WAIT_SECONDS,
    progress: OnProgress = lambda progress: None,
    on_cut: OnCut = lambda cut, origin: None,
    on_refused: OnRefused = lambda refused: None,
    on_repeated: Callable[[P, str], object] = lambda part, id: None,
    on_skipped: Callable[[P, Any], object] = lambda part, record: None,
) -> IngestReport:
    """Store the documents of parts, such as files, that the collection does not hold yet; replace what has changed.

    The collection is the same as after ``ingest`` with the documents of the parts in their order: of several with the
    same id, the last remains. All callbacks are called in this process; ``read``, ``encoder`` and the parts are sent to
    others and must be importable there.

    Args:
        parts: What is read by one task each: the name of a file, a query.
        read: Yields the documents of a part, the same ones each time; what is not a Document is a record that was
            skipped.
        url: The store. An embedded one is written by one process on this machine, a server by ``writers``.
        collection: The name of the collection.
        encoder: Creates an encoder, once in each encoding process.
        ledger: The file of the ledger, on this machine (``ledger_path``).
        address: The Ray cluster, ``HOST:PORT`` or ``auto``; ``local`` starts one in processes of this machine. By
            default, the one that this process is connected to, or ``local``.
        encoders: The number of encoding processes; by default one for each GPU, or without GPUs for each machine.
        writers: The number of processes that write to a server.
        storage: How a new collection stores its vectors, as for ``connect``.
        options: The options of the store, as for ``connect``.
        chunking: How documents are cut.
        sync: As for ``ingest``, but nothing is removed if no document is read at all.
        origin: Returns where the documents of a part come from.
        unread: Says of a document that its source may still have it.
        check: Compare store and ledger before the run in any case.
        shard: Which documents this run takes care of.
        wait_seconds: For how long each writing process waits for a store that is down.
        progress: Called after each batch.
        on_cut: Called with each chunk of which only the beginning is searchable, as by ``ingest``.
        on_refused: Called with each document that cannot be cut, encoded or written, as by ``ingest``.
        on_repeated: Called with a part and an id that several documents have; the last of them remains.
        on_skipped: Called with the part and each record that was skipped.

    Raises:
        InvalidInput: A number is out of range, the address is not one of a cluster, or the ledger cannot be used.
        MissingDependency: Ray is not installed.
        BackendError: The store failed. What it has acknowledged is in the ledger.
    """
    began = time.monotonic()
    _check(encoders, writers)
    with _connected(address) as ray:
        sizes = _Sizes.of(ray, encoders)
        info: ModelInfo = _run(ray, ray.remote(_info_of).options(**sizes.encoding).remote(encoder))
        with (
            connect(
                url, collection, encoder=cast(Encoder, _Described(info)), storage=storage, **(options or {})
            ) as index,
            Ledger(ledger, url, collection) as own,
        ):
            missing = compared(index, own, shard, check=check)
            components = tuple(index.schema.written)
        plan = Plan(
            url,
            collection,
            options or {},
            encoder,
            fingerprint(info),
            components,
            chunking,
            shard,
            wait_seconds,
        )
        run = _Run(ray, plan, sizes, _writers(url, writers), parts, read, origin, ledger)
        totals = _Totals()
        only: dict[int, frozenset[int]] | None = None
        while only is None or only:
            for told in run.rows(only):
                totals.add(told)
                part = parts[told.part]
                for record in told.skipped:
                    on_skipped(part, record)
                for id in told.repeated:
                    on_repeated(part, id)
                for refused in told.refused:
                    on_refused(refused)
                for cut in told.cut:
                    on_cut(cut, told.origin)
                counts = run.counts()
                progress(totals.progress(counts, time.monotonic() - began))
            only = run.next_pass()
            totals.told.read -= sum(map(len, only.values()))  # they are read a second time
        # A source in which nothing is found may be a folder that is not mounted.
        removed, kept = run.remove_gone(sync if totals.told.read else (), unread)
        counts = run.counts()
    return totals.report(
        counts, removed, kept, missing, run.writers, sizes.encoders, time.monotonic() - began
    )


class _Totals:
    """The sums of all rows."""

    def __init__(self) -> None:
        self.told = Told(0, Origin())
        self._cuts = Cuts()
        self._refused = 0
        self._repeated: dict[str, None] = {}

    def add(self, told: Told) -> None:
        for name in _SUMS:
            setattr(self.told, name, getattr(self.told, name) + getattr(told, name))
        for cut in told.cut:
            self._cuts.add(cut)
        self._refused += len(told.refused)
        self._repeated |= dict.fromkeys(told.repeated)

    def progress(self, counts: Counts, seconds: float) -> IngestProgress:
        told = self.told
        return IngestProgress(
            read=told.read,
            unchanged=counts.unchanged,
            documents=counts.documents,
            chunks=told.chunks,
            refused=self._refused,
            tokens=told.tokens,
            batches=told.batches,
            encoding_seconds=told.encoding_seconds,
            writing_seconds=told.writing_seconds,
            waited_seconds=told.waited_seconds,
            seconds=seconds,
        )

    def report(
        self,
        counts: Counts,
        removed: int,
        kept: list[str],
        missing: Verification | None,
        writers: int,
        encoders: int,
        seconds: float,
    ) -> IngestReport:
        told = self.told
        return IngestReport(
            read=told.read,
            unchanged=counts.unchanged,
            documents=counts.documents,
            chunks=told.chunks,
            replaced=counts.replaced,
            removed=removed,
            kept=tuple(kept),
            refused=self._refused,
            repeated_count=len(self._repeated),
            repeated=tuple(self._repeated)[:_MOST_NAMED],
            missing=missing,
            tokens=told.tokens,
            batches=told.batches,
            add=AddReport(
                written=told.chunks,
                truncated=self._cuts.count,
                lost_tokens=self._cuts.lost_tokens,
                cut=tuple(self._cuts.first),
                pooled=told.pooled,
                encoding_seconds=told.encoding_seconds / encoders,
            ),
            writing_seconds=told.writing_seconds / writers,
            waited_seconds=told.waited_seconds / writers,
            seconds=seconds,
        )


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """How many encoders there are, and which share of a machine each takes, as options of Ray.

    Something is left for the tasks that read: if actors have all processors, the tasks wait for ever.
    """

    encoders: int
    encoding: Mapping[str, Any]
    reading: Mapping[str, Any]

    @classmethod
    def of(cls, ray: Any, encoders: int | None) -> _Sizes:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = [machine["CPU"] for machine in machines if machine.get("CPU", 0) > 0]
        if gpus:
            encoders = encoders or gpus
            return cls(encoders, {"num_gpus": 1 / math.ceil(encoders / gpus)}, {"num_cpus": 1})
        encoders = encoders or max(len(cpus), 1)
        fewest = min(cpus, default=1)
        reading = min(1, fewest / 2)
        share = (fewest - reading) / math.ceil(encoders / max(len(cpus), 1))
        return cls(
            encoders,
            {"num_cpus": math.floor(share) if share >= 1 else math.floor(share * 100) / 100},
            {"num_cpus": reading},
        )


class _Run:
    def __init__(
        self,
        ray: Any,
        plan: Plan,
        sizes: _Sizes,
        writing: tuple[int, bool],
        parts: Sequence[Any],
        read: Callable[[Any], Iterable[object]],
        origin: Callable[[Any], Origin],
        ledger: Path,
    ) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray = ray
        self._plan = plan
        self._sizes = sizes
        self._read = read
        self._rows = [(i, origin(part), part) for i, part in enumerate(parts)]
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.writers, pinned = writing
        self._writing: dict[str, Any] = {"num_cpus": 0, **({"scheduling_strategy": here} if pinned else {})}
        keeper = ray.remote(LedgerKeeper).options(num_cpus=0, scheduling_strategy=here)
        self._keeper = keeper.remote(ledger)

    def rows(self, only: Mapping[int, frozenset[int]] | None) -> Iterator[Told]:
        """Run the stages, and yield each batch when it is acknowledged."""
        import ray.data
        from ray.data import ActorPoolStrategy

        rows = [row for row in self._rows if only is None or row[0] in only]
        if not rows:
            return
        blocks = [packed(*rows[i::_MOST_READ_TASKS]) for i in range(min(len(rows), _MOST_READ_TASKS))]
        common: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
        actor: dict[str, Any] = {**common, "fn_constructor_args": (self._plan, self._keeper)}
        with _configured():
            batches = (
                ray.data.from_arrow(blocks)
                .map_batches(
                    Reading(self._read, self._plan.shard, only).__call__, **common, **self._sizes.reading
                )
                .map_batches(
                    Encoding,
                    compute=ActorPoolStrategy(size=self._sizes.encoders),
                    **actor,
                    **self._sizes.encoding,
                )
                .map_batches(Writing, compute=ActorPoolStrategy(size=self.writers), **actor, **self._writing)
                .iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
            )
            with _errors():
                for batch in batches:
                    yield from unpacked(batch)

    def next_pass(self) -> dict[int, frozenset[int]]:
        """Return the positions by part of documents that waited for an earlier one with their id."""
        waiting = _run(self._ray, self._keeper.next_pass.remote())
        return {part: frozenset(positions) for part, positions in waiting.items()}

    def counts(self) -> Counts:
        counts: Counts = _run(self._ray, self._keeper.counts.remote())
        return counts

    def remove_gone(self, sources: Sequence[str], unread: Callable[[Version], bool]) -> tuple[int, list[str]]:
        """Remove the documents that their sources no longer have; return how many, and the ids of those kept."""
        gone: dict[str, list[str]] = {}
        kept: dict[str, None] = {}
        plan = self._plan
        for version, ids in _run(self._ray, self._keeper.gone.remote(list(sources), self._plan.shard)):
            if unread(version):
                kept[version.id] = None
            else:
                gone.setdefault(version.id, []).extend(ids)
        if gone:
            with connect_when_free(plan.url, plan.collection, plan.options) as index:
                delete(index, [stored for ids in gone.values() for stored in ids])
            _run(self._ray, self._keeper.forget.remote(list(gone)))
        return len(gone), list(kept)


class _Described:
    """The model of a collection that is created by a process which does not encode."""

    recommended_weights: Mapping[str, tuple[float, float, float]] = {}

    def __init__(self, info: ModelInfo) -> None:
        self.info = info


def _info_of(encoder: Callable[[], Encoder]) -> ModelInfo:
    return encoder().info


def _writers(url: str, writers: int) -> tuple[int, bool]:
    """Return how many processes write, and whether they must run on this machine."""
    store, url = store_for(url)
    embedded = store.takes_path and not url.partition(":")[2].startswith("//")
    return (1 if embedded else writers), embedded


def _check(encoders: int | None, writers: int) -> None:
    for name, number in (("encoders", encoders), ("writers", writers)):
        if number is not None and number < 1:
            raise InvalidInput(f"{name} is {number}.\n  Use at least 1, or leave it out.")


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Yield the module, connected to a cluster; what was connected here is disconnected, and ended if it was local."""
    if address is not None and address.startswith("ray://"):
        raise InvalidInput(
            f"{address} is an address of Ray Client, through which this process cannot keep the ledger.\n"
            "  Run it on a machine of the cluster with auto or HOST:PORT, for example with ray job submit."
        )
    # Nothing is reported to the makers of Ray unless the user wants it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingDependency("ray", "ray") from error
    if ray.is_initialized():
        if address is not None:
            raise InvalidInput(
                f"this process is connected to a Ray cluster, so it cannot connect to {address}.\n"
                "  Leave the address out, or call ray.shutdown() first."
            )
        yield ray
        return
    local: dict[str, Any] = {"include_dashboard": False} if address in (None, "local") else {}
    try:
        ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=False, **local)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InvalidInput(
            f"the Ray cluster {address} cannot be used: {str(error).splitlines()[0]}\n"
            "  Use HOST:PORT of its head, auto on one of its machines, or local to start one here."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _configured() -> Iterator[None]:
    """Configure Ray Data for rows that are few and large, and let it write nothing to the terminal."""
    from ray.data import DataContext

    context = DataContext.get_current()
    ours = {"target_max_block_size": _ROW_BYTES, "enable_progress_bars": False}
    before = {name: getattr(context, name) for name in ours}
    for name, value in ours.items():
        setattr(context, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)


def _run(ray: Any, reference: Any) -> Any:
    with _errors():
        return ray.get(reference)


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Raise the error of this package that another process raised, without what Ray wraps around it."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        _raise_cause(error)


def _raise_cause(error: BaseException) -> NoReturn:
    found: BaseException | None = error
    seen: set[int] = set()
    while isinstance(found, BaseException) and id(found) not in seen:  # Ray's may be their own cause
        seen.add(id(found))
        found = getattr(found, "cause", None) or found.__cause__
        if isinstance(found, M3Error):
            raise found from None
    raise error
