"""A whole benchmark: every store, size and load of a scenario, recorded in a folder."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import anyio.lowlevel

from m3_connectors.backends.base import Backend
from m3_connectors.backends.registry import backend_for
from m3_connectors.bench.disk import disk_bytes
from m3_connectors.bench.fill import fill
from m3_connectors.bench.folder import FORMAT, RECORD, BenchFolder, write_json
from m3_connectors.bench.load import Loader, Mix
from m3_connectors.bench.meter import Meter
from m3_connectors.bench.recall import compare
from m3_connectors.bench.rows import RecallRow, RequestRow, Sink, WriteRow
from m3_connectors.bench.scenario import CorpusSettings, Level, Queries, Scenario, Store
from m3_connectors.bench.synthetic import Corpus
from m3_connectors.bench.trips import observed
from m3_connectors.documents import Document, Hit, Scores
from m3_connectors.environment import environment
from m3_connectors.errors import InvalidInput
from m3_connectors.index import AsyncIndex

_PACKAGES = (
    "numpy",
    "anyio",
    "pyarrow",
    "qdrant-edge-py",
    "qdrant-client",
    "pymilvus",
    "milvus-lite",
    "elasticsearch",
)
_HARNESS_REQUESTS = 2000


@dataclasses.dataclass(frozen=True)
class Server:
    """Where a store of a scenario answers.

    Attributes:
        url: As ``connect`` takes it.
        options: The backend's own.
        session: Session id of its processes, where it was started for this run.
        directory: Where it keeps its data, likewise.
    """

    url: str
    options: Mapping[str, Any]
    session: int | None = None
    directory: Path | None = None


class Servers(Protocol):
    """Gives the server of a store for the time of its measurement."""

    def __call__(self, store: Store) -> contextlib.AbstractContextManager[Server]:
        """The server, started if need be."""


class Progress(Protocol):
    """Is told what goes on."""

    def __call__(self, store: str, documents: int, what: str, done: int | None = None) -> None:
        """``what`` is ``writing``, ``comparing`` or a load's name; ``done``: documents written so far."""


@contextlib.contextmanager
def named_servers(store: Store) -> Any:
    """The server that a scenario names by its URL.

    Raises:
        InvalidInput: The scenario wants it started.
    """
    if store.url is None:
        raise InvalidInput(f"store {store.name!r} has no url.\n  Start it with: m3 bench SCENARIO.toml")
    yield Server(store.url, store.options)


async def run(
    scenario: Scenario,
    out: Path,
    *,
    servers: Servers = named_servers,
    progress: Progress = lambda *_, **__: None,
) -> BenchFolder:
    """Measure everything that the scenario names; what was measured is on disk whenever this ends.

    Args:
        scenario: What to do.
        out: A folder that holds no benchmark yet; made if need be.
        servers: Where its stores are.
        progress: Is told what goes on.

    Raises:
        InvalidInput: The folder holds one, or a store's collection holds somebody's documents.
        BackendError: A store failed while it was filled; failed requests are rows.
    """
    if (out / RECORD).exists():
        raise InvalidInput(f"{out} holds a benchmark already.\n  Give another folder: --out DIR.")
    out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "format": FORMAT,
        "scenario": scenario.record(),
        "environment": environment(*_PACKAGES),
        "collections": [],
        "harness_seconds_per_request": await harness_seconds(scenario),
        "complete": False,
    }
    write_json(out / RECORD, record)
    with (
        Sink(out / "requests.parquet", RequestRow) as requests,
        Sink(out / "writes.parquet", WriteRow) as writes,
        Sink(out / "recall.parquet", RecallRow) as recall,
    ):
        running = _Run(scenario, Meter(), requests, writes, recall, progress)
        for store in scenario.stores:
            with servers(store) as server:
                for documents in scenario.corpus.documents:
                    noted = await running.collection(store, server, documents)
                    record["collections"].append(noted)
                    write_json(out / RECORD, record)
    record["complete"] = True
    write_json(out / RECORD, record)
    return BenchFolder(out)


@dataclasses.dataclass
class _Run:
    scenario: Scenario
    meter: Meter
    requests: Sink[RequestRow]
    writes: Sink[WriteRow]
    recall: Sink[RecallRow]
    progress: Progress

    async def collection(self, store: Store, server: Server, documents: int) -> dict[str, Any]:
        """Fill one collection and ask it everything; what is noted of it."""
        scenario = self.scenario
        corpus = Corpus(scenario.corpus, documents, scenario.seed)
        meter = self.meter.of(server.session)
        backend = backend_for(server.url, f"{store.collection}-{documents}", server.options)
        with observed(type(backend)):
            try:
                note = functools.partial(self.progress, store.name, documents, "writing")
                reused = await fill(backend, corpus, store, self.writes, meter, note)
                noted = {
                    "store": store.name,
                    "backend": backend.name,
                    "documents": documents,
                    "count": await backend.count(),
                    "reused": reused,
                    "disk_bytes": await disk_bytes(backend, server.directory),
                    "corpus": corpus.shape(),
                    "server": await _server_info(backend),
                }
                await self._ask(backend, corpus, store, meter)
                return noted | {"server_memory_bytes": meter.server_memory_bytes()}
            finally:
                with anyio.CancelScope(shield=True):
                    await backend.close()

    async def _ask(self, backend: Backend, corpus: Corpus, store: Store, meter: Meter) -> None:
        scenario, documents = self.scenario, len(corpus)
        mix = Mix(scenario.queries, corpus, scenario.seed)
        index = AsyncIndex(backend, None)
        if scenario.recall.queries and not scenario.queries.exact:
            self.progress(store.name, documents, "comparing")
            await compare(backend, mix, scenario.recall, self.recall, store=store.name, documents=documents)
        for level in scenario.levels():
            self.progress(store.name, documents, level.name)
            loader = Loader(
                index.search,
                mix,
                level,
                self.requests,
                meter,
                store=store.name,
                documents=documents,
                timeout_seconds=scenario.timeout_seconds,
                seed=scenario.seed,
                allow_errors=scenario.allow_errors,
            )
            await loader.run()


async def harness_seconds(scenario: Scenario) -> float:
    """CPU time that the harness adds to a request: the same loop, rows and clocks around a search that does nothing."""
    corpus = Corpus(CorpusSettings(dimension=8, vocabulary=100, topics=1), 100, scenario.seed)
    hits = [Hit(Document(f"d{i}", ""), 1.0, Scores(1.0, 1.0, 1.0)) for i in range(scenario.queries.k)]

    async def nothing(*_: Any, **__: Any) -> Sequence[Hit]:
        await anyio.lowlevel.checkpoint()
        return hits

    mix = Mix(Queries(count=10, k=scenario.queries.k), corpus, scenario.seed)
    level = Level(seconds=60, requests=_HARNESS_REQUESTS)
    meter = Meter()
    with tempfile.TemporaryDirectory() as directory, Sink(Path(directory) / "rows", RequestRow) as rows:
        loader = Loader(
            nothing, mix, level, rows, meter, store="", documents=100, timeout_seconds=60, seed=scenario.seed
        )
        # Not the time that passes: nothing is waited for, and what else the machine does is not the harness.
        start = meter.client_cpu_seconds()
        await loader.run()
        return (meter.client_cpu_seconds() - start) / _HARNESS_REQUESTS


async def _server_info(backend: Backend) -> dict[str, Any] | None:
    """What a server says about itself; None for an engine in this process."""
    ask = getattr(backend, "server", None)
    if ask is None:
        return None
    info = await ask()
    return {"version": info.version, **info.details}
