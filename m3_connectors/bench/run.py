"""Run a benchmark: every store, size and load of a scenario, recorded in a folder."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import anyio.lowlevel

from m3_connectors.backends.base import Backend
from m3_connectors.backends.registry import backend_for
from m3_connectors.backends.stores import STORES, store_of
from m3_connectors.bench.fill import Rows, Unrecorded, fill
from m3_connectors.bench.folder import BenchFolder
from m3_connectors.bench.load import Loader, Mix
from m3_connectors.bench.meter import Meter
from m3_connectors.bench.preflight import preflight
from m3_connectors.bench.recall import compare
from m3_connectors.bench.records import Collection, CorpusShape
from m3_connectors.bench.rows import RecallRow, RequestRow, Sink, WriteRow
from m3_connectors.bench.scenario import CorpusSettings, Level, Queries, Scenario, Store
from m3_connectors.bench.session import Session
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
    *(package for store in STORES for package in store.packages.values()),
)
_HARNESS_REQUESTS, _HARNESS_WARM_UP = 2000, 50


@dataclasses.dataclass(frozen=True)
class Server:
    """The server of a store in a scenario.

    Attributes:
        url: The URL, as for ``connect``.
        options: The options of the backend.
        session: The session id of its processes, if it was started for this run.
        directory: Its data directory, if it was started for this run.
    """

    url: str
    options: Mapping[str, Any]
    session: int | None = None
    directory: Path | None = None


class Servers(Protocol):
    """Provides the server of a store during its measurement."""

    def __call__(self, store: Store) -> contextlib.AbstractContextManager[Server]:
        """Return the server, and start it if necessary."""


class Progress(Protocol):
    """Progress callback."""

    def __call__(self, store: str, documents: int, what: str, done: int | None = None) -> None:
        """Called with ``writing``, ``comparing`` or a load's name, and with the documents written so far."""


@contextlib.contextmanager
def named_servers(store: Store) -> Any:
    """Yield the server at the URL in a scenario.

    Raises:
        InvalidInput: The scenario has no URL for it.
    """
    if store.url is None:
        raise InvalidInput(
            f"store {store.name!r} has no url.\n  To have it started, run: m3 bench SCENARIO.toml"
        )
    yield Server(store.url, store.options)


async def run(
    scenario: Scenario,
    out: Path,
    *,
    servers: Servers = named_servers,
    progress: Progress = lambda *_, **__: None,
    where: str = "the scenario",
) -> BenchFolder:
    """Measure everything in the scenario; each finished load is on disk, whatever happens later.

    If the folder contains the beginning of the same scenario, the run continues after the last finished load.

    Args:
        scenario: The scenario.
        out: A folder without a complete benchmark; created if it does not exist.
        servers: Provides the servers of the stores.
        progress: The progress callback.
        where: The path of the scenario file, for error messages.

    Raises:
        InvalidInput: The folder contains a complete benchmark, a store's settings are not valid, or its
            collection contains documents that are not from a benchmark.
        BackendError: A store did not respond, or failed while it was filled; failed requests are recorded as
            rows.
    """
    await preflight(scenario, where)
    with Session(out, scenario.record(), environment(*_PACKAGES)) as session:
        harness = await harness_seconds(scenario)
        session.record.sessions[-1].harness_seconds_per_request = harness
        session.record.harness_seconds_per_request = session.record.harness_seconds_per_request or harness
        session.save()
        running = _Run(scenario, session, Meter(), progress)
        for place, store in enumerate(scenario.stores):
            sizes = {
                place * len(scenario.corpus.documents) + i: documents
                for i, documents in enumerate(scenario.corpus.documents)
            }
            if all(running.is_done(number) for number in sizes):
                continue
            with servers(store) as server:
                for number, documents in sizes.items():
                    if not running.is_done(number):
                        await running.collection(number, store, server, documents)
        session.complete()
    return BenchFolder(out)


@dataclasses.dataclass
class _Run:
    scenario: Scenario
    session: Session
    meter: Meter
    progress: Progress

    @property
    def _compares(self) -> bool:
        return self.scenario.recall.queries > 0 and not self.scenario.queries.exact

    def _loads(self, number: int) -> list[tuple[int, Level]]:
        """Return the loads of a collection with the numbers of their parts."""
        levels = self.scenario.levels()
        return list(enumerate(levels, number * len(levels)))

    def is_done(self, number: int) -> bool:
        """Return whether the measurement of a collection, given by its number, is finished."""
        compared = not self._compares or self.session.has(RecallRow, number)
        return compared and all(self.session.has(RequestRow, part) for part, _ in self._loads(number))

    async def collection(self, number: int, store: Store, server: Server, documents: int) -> None:
        """Fill one collection and run the loads that are not finished yet."""
        scenario, session = self.scenario, self.session
        corpus = Corpus(scenario.corpus, documents, scenario.seed)
        meter = self.meter.of(server.session)
        backend = backend_for(server.url, f"{store.collection}-{documents}", server.options)
        with observed(type(backend)):
            try:
                note = functools.partial(self.progress, store.name, documents, "writing")
                # An earlier session may have written it, and been killed before this was recorded.
                written = session.has(WriteRow, number)
                recorded: contextlib.AbstractContextManager[Rows] = (
                    contextlib.nullcontext(Unrecorded()) if written else session.rows(WriteRow, number)
                )
                with recorded as rows:
                    reused = await fill(backend, corpus, store, rows, meter, note)
                noted = session.collection(store.name, documents)
                if noted is not None:
                    noted.filled_again = not reused
                else:
                    noted = Collection(
                        store=store.name,
                        backend=backend.name,
                        documents=documents,
                        count=await backend.count(),
                        reused=reused and not written,
                        disk_bytes=await disk_bytes(backend, server.directory),
                        corpus=CorpusShape(**corpus.shape()),
                        server=await _server_info(backend),
                        server_memory_bytes=meter.server_memory_bytes(),
                    )
                    session.record.collections.append(noted)
                session.save()
                await self._ask(number, backend, corpus, store, meter)
                noted.server_memory_bytes = meter.server_memory_bytes()
                session.save()
            finally:
                with anyio.CancelScope(shield=True):
                    await backend.close()

    async def _ask(self, number: int, backend: Backend, corpus: Corpus, store: Store, meter: Meter) -> None:
        scenario, session, documents = self.scenario, self.session, len(corpus)
        mix = Mix(scenario.queries, corpus, scenario.seed)
        index = AsyncIndex(backend, None)
        timeout_seconds = scenario.timeout_seconds
        if self._compares and not session.has(RecallRow, number):
            self.progress(store.name, documents, "comparing")
            with session.rows(RecallRow, number) as compared:
                await compare(
                    backend,
                    mix,
                    scenario.recall,
                    compared,
                    store=store.name,
                    documents=documents,
                    timeout_seconds=timeout_seconds,
                )
        for part, level in self._loads(number):
            if session.has(RequestRow, part):
                continue
            self.progress(store.name, documents, level.name)
            with session.rows(RequestRow, part) as rows:
                loader = Loader(
                    index.search,
                    mix,
                    level,
                    rows,
                    meter,
                    store=store.name,
                    documents=documents,
                    timeout_seconds=timeout_seconds,
                    seed=scenario.seed,
                    allow_errors=scenario.allow_errors,
                )
                await loader.run()


async def harness_seconds(scenario: Scenario) -> float:
    """Measure the CPU time that the harness adds to a request, with a search that does nothing.

    It consists of the loop, the clocks, the rows and their writing, and the reading of a server's CPU time
    (here, the processes of this session are read instead).
    """
    corpus = Corpus(CorpusSettings(dimension=8, vocabulary=100, topics=1), 100, scenario.seed)
    hits = [Hit(Document(f"d{i}", ""), 1.0, Scores(1.0, 1.0, 1.0)) for i in range(scenario.queries.k)]

    async def nothing(*_: Any, **__: Any) -> Sequence[Hit]:
        await anyio.lowlevel.checkpoint()
        return hits

    mix = Mix(Queries(count=10, k=scenario.queries.k), corpus, scenario.seed)
    meter = Meter(os.getsid(0) if hasattr(os, "getsid") else None)
    spent = 0.0
    # The first iteration is a warm-up: pyarrow imports modules on first use, which is not a cost per request.
    for requests in (_HARNESS_WARM_UP, _HARNESS_REQUESTS):
        level = Level(seconds=60, requests=requests)
        # CPU time, not wall time: nothing is waited for, and other work on the machine does not count.
        start = meter.client_cpu_seconds()
        with (
            tempfile.TemporaryDirectory() as directory,
            Sink(Path(directory) / "rows", RequestRow) as rows,
        ):
            loader = Loader(
                nothing,
                mix,
                level,
                rows,
                meter,
                store="",
                documents=100,
                timeout_seconds=60,
                seed=scenario.seed,
            )
            await loader.run()
        spent = meter.client_cpu_seconds() - start
    return spent / _HARNESS_REQUESTS


async def disk_bytes(backend: Backend, directory: Path | None) -> dict[str, int] | None:
    """Return the bytes on disk by component, or None if the store does not report them.

    Args:
        backend: The open collection.
        directory: The data directory of a server that was started here.
    """
    store = store_of(type(backend))
    measure = store and store.offered("disk")
    found: dict[str, int] | None = await measure(backend, directory) if measure else None
    return found


async def _server_info(backend: Backend) -> dict[str, Any]:
    """Return the version and details of a server, or of the engine in this process."""
    info = await backend.server()
    return {"version": info.version, **info.details}
