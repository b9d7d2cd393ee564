"""Stores that a test may break, and the record of what a caller got; for the files test_faults_*.py.

Elasticsearch and Milvus are real servers behind proxies (tests/conftest.py starts them); Qdrant is the fake of
qdrant_fake.py. With ``M3_FAULT_ROWS=FILE`` each case adds its rows to that file; benchmarks/faults.py runs the cases in
this way and generates a table of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import ssl
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
from live_servers import own
from qdrant_fake import FakeQdrant

from m3_connectors.backends.base import Backend
from m3_connectors.backends.registry import backend_for
from m3_connectors.documents import Document
from m3_connectors.errors import M3Error
from m3_connectors.methods import ALL
from m3_connectors.testing.faults import Fault, FaultProxy
from m3_connectors.testing.worlds import World

STORES = ("qdrant-grpc", "qdrant-rest", "milvus", "elasticsearch")

PATIENCE = {"timeout_seconds": 4.0, "attempts": 3, "total_seconds": 6.0}
HASTE = {"timeout_seconds": 1.0, "attempts": 2, "total_seconds": 2.0}
FOR_A_RESTART = {"timeout_seconds": 60.0, "attempts": 100, "total_seconds": 300.0}

BUSY_SECONDS = 8.0
"""Seconds by which a call may exceed its timeout on a busy machine."""


@dataclasses.dataclass
class Target:
    """One collection of a store behind proxies, one for each port of the store."""

    name: str
    host: str
    ports: list[int]
    options: dict[str, Any]
    restart: Callable[[], None] | None = None
    fake: FakeQdrant | None = None
    proxies: list[FaultProxy] = dataclasses.field(default_factory=list)
    scheme_end: str = ""
    collection: str = dataclasses.field(default_factory=lambda: own(f"faults-{uuid.uuid4().hex[:12]}"))

    @property
    def store(self) -> str:
        return self.name.partition("-")[0]

    @property
    def url(self) -> str:
        """The URL of the store without the proxies."""
        return f"{self.store}+http://{self.host}:{self.ports[0]}"

    def backend(self, **options: Any) -> Backend:
        first, *others = self.proxies
        more = {"grpc_port": others[0].port} if others else {}
        url = f"{self.store}+http{self.scheme_end}://127.0.0.1:{first.port}"
        return backend_for(url, self.collection, {**PATIENCE, **self.options, **more, **options})

    def direct(self, **options: Any) -> Backend:
        """Return a backend for the same collection without proxies."""
        more = {"grpc_port": self.ports[1]} if self.ports[1:] else {}
        return backend_for(self.url, self.collection, {**self.options, **more, **options})

    @contextlib.contextmanager
    def proxied(self, tls: Callable[[bool], ssl.SSLContext] | None = None) -> Iterator[Target]:
        """Put a proxy before each port. With ``tls``, they use TLS; its argument tells whether the port uses gRPC."""
        with contextlib.ExitStack() as proxies:
            for i, port in enumerate(self.ports):
                context = tls(i == 1 or self.store == "milvus") if tls else None
                self.proxies.append(proxies.enter_context(FaultProxy(port, self.host, seed=7, tls=context)))
            self.scheme_end = "s" if tls else ""
            yield self

    def set(self, fault: Fault | None) -> None:
        for proxy in self.proxies:
            proxy.fault = fault

    @property
    def faults(self) -> int:
        return sum(proxy.faults for proxy in self.proxies)

    @contextlib.asynccontextmanager
    async def stored(self, world: World, **options: Any) -> AsyncIterator[Backend]:
        """Yield the collection with the first half of a world; it is created and dropped without the proxies."""
        patient, backend = self.direct(), self.backend(**options)
        half = len(world.documents) // 2
        try:
            await patient.create(world.schema)
            await patient.upsert(world.documents[:half], world.embeddings[:half])
            await backend.open()
            yield backend
        finally:
            with anyio.CancelScope(shield=True):
                await backend.close()
                await patient.drop()
                await patient.close()


def target_of(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Yield the store named by a fixture's parameter, without its proxies."""
    name: str = request.param
    if name.startswith("qdrant"):
        transport = name.partition("-")[2]
        with FakeQdrant(grpc_open=transport == "grpc") as fake:

            def again() -> None:
                fake.stop()
                fake.start()

            ports = [fake.port, fake.grpc_port] if transport == "grpc" else [fake.port]
            yield Target(name, "127.0.0.1", ports, {"transport": transport}, again, fake)
        return
    running = request.getfixturevalue(f"{name}_store")
    parts = urlsplit(running.url)
    assert parts.hostname is not None
    assert parts.port is not None
    restart = None
    if running.server is not None:

        def restart() -> None:
            running.server.stop(kill=True)
            running.server.start()

    options = {"replicas": 0} if name == "elasticsearch" else {}
    yield Target(name, parts.hostname, [parts.port], options, restart)


class Case:
    """One case on one store: calls that must end in time and with the expected error, then a check of the data."""

    def __init__(self, store: str, name: str) -> None:
        self.rows: list[dict[str, Any]] = []
        self.error: M3Error | None = None
        self._about = {"store": store, "case": name}

    @contextlib.contextmanager
    def call(
        self, name: str, *errors: type[M3Error], match: str = "", patience: dict[str, float] = PATIENCE
    ) -> Iterator[None]:
        """Check that a call ends in time, with one of the errors, or without an error if none is given."""
        self.error = None
        started = time.monotonic()
        try:
            yield
        except errors as error:
            self.error = error
        seconds = time.monotonic() - started
        self.saw(name, _public_name(self.error) if self.error else None, str(self.error or ""), seconds)
        assert bool(errors) == (self.error is not None), f"{name} raised nothing; {errors} must be raised"
        assert re.search(match, str(self.error)), f"{match!r} is not in {str(self.error)!r}"
        # The last attempt may begin shortly before the end of the total timeout.
        limit = patience["total_seconds"] + patience["timeout_seconds"] + BUSY_SECONDS
        assert seconds < limit, f"{name} took {seconds:.1f} s; {limit} were allowed"

    def saw(self, call: str, error: str | None, message: str, seconds: float) -> None:
        """Record a call: the name of its error, or None, and the first line of its message."""
        said = {"error": error, "message": _public(message.partition("\n")[0])}
        self.rows.append({**self._about, "call": call, **said, "seconds": round(seconds, 2)})

    async def account(self, backend: Backend, world: World, acknowledged: Sequence[Document]) -> None:
        """Count lost and duplicated documents, then write the complete world, like a user who repeats the call."""
        found = await backend.fetch([document.id for document in acknowledged])
        lost = sum(there != document for there, document in zip(found, acknowledged, strict=True))
        await backend.upsert(world.documents, world.embeddings)
        ids = [id async for id in backend.scan_ids()]
        doubled = len(ids) - len(set(ids))
        self.record(lost=lost, doubled=doubled)
        assert (lost, doubled) == (0, 0), "documents lost and doubled"
        assert sorted(ids) == sorted(document.id for document in world.documents)
        assert await backend.count() == len(ids)
        assert await backend.fetch([document.id for document in world.documents]) == world.documents
        assert len(await backend.search(world.queries[0], ALL, 10)) == min(10, len(ids))

    def record(self, **more: Any) -> None:
        """Write the rows, each with ``more``, if a file for them is given."""
        if path := os.environ.get("M3_FAULT_ROWS"):
            with Path(path).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({**row, **more}, ensure_ascii=False) + "\n" for row in self.rows)
        self.rows.clear()


def _public_name(error: M3Error) -> str:
    """Return the public class of an error; an adapter may raise its own subclasses."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == M3Error.__module__)


def _public(message: str) -> str:
    """Return the message without names that differ from run to run: temporary directories, collections, ports."""
    message = re.sub(rf"{re.escape(tempfile.gettempdir())}/[^\s:'\"]*", "DIRECTORY", message)
    return re.sub(
        r"(127\.0\.0\.1|localhost):\d+",
        r"\1:PORT",
        re.sub(r"[0-9a-f]{12}-faults-[0-9a-f]{12}", "notes", message),
    )
