"""The scenario of a benchmark, read from TOML: stores, corpora, requests, rates and durations.

Every key except ``name``, ``stores`` and ``loads`` has a default; an unknown key is an error. See
docs/benchmarks.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from m3_connectors.backends.precision import PrecisionName
from m3_connectors.backends.registry import is_persistent
from m3_connectors.backends.schema import LongDocuments, Storage
from m3_connectors.backends.stores import stores_with
from m3_connectors.backends.urls import redacted
from m3_connectors.embeddings import COMPONENTS, Component
from m3_connectors.methods import METHODS
from m3_connectors.records import read_settings, read_toml

FORMAT = 1

MOST_DOCUMENTS = 1_000_000
"""The maximum size of one corpus."""

MOST_CONCURRENT = 64

MOST_TOKENS = 2**24
"""The maximum size of a vocabulary: its frequencies are in memory, 8 bytes each, several times at first."""

MOST_QUERY_BYTES = 2 * 10**9
"""The maximum size of the vectors of all queries, which are in memory during a load."""

_REMEDY = "See docs/benchmarks.md, which lists all keys."

_SECRET = re.compile(r"key|password|token|secret|authorization|credential", re.IGNORECASE)

Share = Annotated[float, Field(gt=0, le=1)]


def _as_tuple(value: object) -> object:
    """Accept both ``8`` and ``[1, 8]`` as a list of values."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _can_start(store: str) -> str:
    if store not in (known := stores_with("server", "ports")):
        raise ValueError(f"no server of that name can be started; choose from {', '.join(known)}")
    return store


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Rows(_Table):
    """The number of multi-vector rows of a document, which is log-normally distributed.

    Attributes:
        mean: The mean number of rows.
        spread: The standard deviation divided by the mean; 0 gives all documents the same number.
        most: The maximum; longer documents are truncated.
    """

    mean: float = Field(default=64.0, ge=1, le=8191)
    spread: float = Field(default=0.5, ge=0, le=3)
    most: int = Field(default=8191, ge=1, le=8191)


class StorageSettings(_Table):
    """How collections store vectors; the keys are those of ``Storage``."""

    multivector_dtype: PrecisionName = "float16"
    long_documents: LongDocuments = "split"
    pool_factor: int = Storage.pool_factor
    pool_from_rows: int = Storage.pool_from_rows
    components: tuple[Component, ...] = COMPONENTS

    @model_validator(mode="after")
    def _possible(self) -> StorageSettings:
        _ = self.chosen
        return self

    @property
    def chosen(self) -> Storage:
        """The settings as a ``Storage``, as a collection records them."""
        return Storage(**self.model_dump())


class CorpusSettings(_Table):
    """The documents to generate; see ``bench.synthetic``.

    Attributes:
        documents: The numbers of documents; each is a separate collection, and a smaller one is the start of
            a larger one.
        dimension: The dimension of dense vectors and rows; that of BGE-M3 is 1,024.
        rows: The number of rows of a document's multi-vector.
        query_rows: The number of rows of a query's multi-vector.
        vocabulary: The number of token ids; BGE-M3 has 250,002.
        topics: The number of clusters of the dense vectors.
        storage: How the vectors are stored.
    """

    documents: Annotated[
        tuple[Annotated[int, Field(ge=1, le=MOST_DOCUMENTS)], ...],
        BeforeValidator(_as_tuple),
        Field(min_length=1),
    ] = (10_000,)
    dimension: int = Field(default=1024, ge=8, le=4096)
    rows: Rows = Rows()
    query_rows: int = Field(default=16, ge=1, le=512)
    vocabulary: int = Field(default=250_002, ge=100, le=MOST_TOKENS)
    topics: int = Field(default=200, ge=1, le=100_000)
    storage: StorageSettings = StorageSettings()


class Store(_Table):
    """The store to measure: a URL, or a server that is started on this machine during the run.

    Attributes:
        name: The name in tables, unique among the stores.
        url: The URL, as for ``connect``.
        start: Instead of a URL, the local server of ``m3_connectors.testing.servers`` to start.
        collection: The prefix of the collection names, which is followed by the number of documents.
        options: The options of the backend.
        optimize: Whether the store builds its indexes after writing, which is measured.
        batch_bytes: The size of vectors and text in one call of ``upsert``.
    """

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")
    url: str | None = None
    start: Annotated[str, AfterValidator(_can_start)] | None = None
    collection: str = "bench"
    options: Mapping[str, Any] = {}
    optimize: bool = True
    batch_bytes: int = Field(default=8 * 2**20, ge=1024, le=2**30)

    @model_validator(mode="after")
    def _one_place(self) -> Store:
        if (self.url is None) == (self.start is None):
            raise ValueError('give either url = "…" or start = "STORE"')
        return self


class Filtered(_Table):
    """Requests with a filter.

    Attributes:
        share: The share of all requests.
        selectivity: The share of the documents that match.
    """

    share: Share
    selectivity: Share


class Queries(_Table):
    """The mix of requests.

    Attributes:
        count: The number of different queries, which are used in turn.
        k: The requested number of hits.
        exact: Whether approximate lists are disabled.
        methods: The share of the requests by method; shares are scaled to a sum of 1.
        filters: The requests with filters; the others have none.
    """

    count: int = Field(default=200, ge=1, le=100_000)
    k: int = Field(default=10, ge=1, le=10_000)
    exact: bool = False
    methods: Mapping[str, Annotated[float, Field(gt=0)]] = Field(default={"all": 1.0}, min_length=1)
    filters: tuple[Filtered, ...] = ()

    @model_validator(mode="after")
    def _known(self) -> Queries:
        for name in self.methods:
            if name not in METHODS:
                raise ValueError(f"methods: {name!r} is not valid; choose from {', '.join(METHODS)}")
        if sum(filtered.share for filtered in self.filters) > 1 + 1e-9:
            raise ValueError("filters: the sum of the shares is more than 1")
        return self


class Load(_Table):
    """One load; with several concurrencies or rates it is repeated for each.

    Attributes:
        kind: With ``closed``, each client sends a request, waits for the response, and sends the next one.
            With ``open``, requests start at a given rate, however slow the store is, and the latency is
            measured from the intended start.
        concurrency: The number of clients of a closed loop (default 1), or the maximum number of requests in
            progress of an open loop (default 64).
        requests_per_second: The rate of an open loop.
        arrivals: The arrivals of an open loop: ``poisson`` (like independent users) or ``constant``.
        warm_up_seconds: The duration of the same load before the measurement.
        seconds: The maximum measured time.
        requests: The maximum number of measured requests.
        most_waiting: The maximum number of requests of an open loop that wait to be sent; when it is
            exceeded, the load ends as saturated.
    """

    kind: Literal["closed", "open"] = "closed"
    concurrency: Annotated[
        tuple[Annotated[int, Field(ge=1, le=MOST_CONCURRENT)], ...],
        BeforeValidator(_as_tuple),
    ] = ()
    requests_per_second: Annotated[
        tuple[Annotated[float, Field(gt=0, le=100_000)], ...], BeforeValidator(_as_tuple)
    ] = ()
    arrivals: Literal["poisson", "constant"] = "poisson"
    warm_up_seconds: float = Field(default=2.0, ge=0, le=3600)
    seconds: float = Field(default=15.0, gt=0, le=86_400)
    requests: int = Field(default=100_000, ge=1, le=10_000_000)
    most_waiting: int = Field(default=1000, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _rate(self) -> Load:
        if (self.kind == "open") != bool(self.requests_per_second):
            raise ValueError("an open loop needs requests_per_second, and a closed loop must not have it")
        return self

    def levels(self) -> list[Level]:
        """Return the load for each combination of concurrency and rate."""
        shared = {name: getattr(self, name) for name in _SHARED}
        most = 1 if self.kind == "closed" else MOST_CONCURRENT
        return [
            Level(concurrency=concurrency, requests_per_second=rate, **shared)
            for rate in self.requests_per_second or (None,)
            for concurrency in self.concurrency or (most,)
        ]


class Level(_Table):
    """One load with single values; the attributes are those of ``Load``."""

    kind: Literal["closed", "open"] = "closed"
    concurrency: int = 1
    requests_per_second: float | None = None
    arrivals: Literal["poisson", "constant"] = "poisson"
    warm_up_seconds: float = 0.0
    seconds: float = 15.0
    requests: int = 100_000
    most_waiting: int = 1000

    @property
    def name(self) -> str:
        """The name, such as ``closed-8`` or ``open-20-at-64``."""
        if self.requests_per_second is None:
            return f"closed-{self.concurrency}"
        return f"open-{self.requests_per_second:g}-at-{self.concurrency}"


_SHARED = ("kind", "arrivals", "warm_up_seconds", "seconds", "requests", "most_waiting")


class Recall(_Table):
    """The comparison of approximate and exact results.

    Attributes:
        queries: The number of requests of the mix that run both ways; 0 disables the comparison.
        depth: The depth of the dense list; the paper re-ranks 200.
    """

    queries: int = Field(default=50, ge=0, le=10_000)
    depth: int = Field(default=200, ge=1, le=10_000)


class Scenario(_Table):
    """A whole benchmark.

    Attributes:
        name: The name in the report.
        stores: The stores, measured one after the other.
        loads: The loads, each applied to every store and size, in this order.
        corpus: The documents.
        queries: The requests.
        recall: The comparison of approximate and exact results.
        seed: The seed of everything random.
        timeout_seconds: A request that takes longer is an error.
        allow_errors: Whether failed requests are listed and excluded; otherwise they make a result void.
    """

    format: Literal[1] = 1
    name: str = Field(min_length=1)
    stores: tuple[Store, ...] = Field(min_length=1)
    loads: tuple[Load, ...] = Field(min_length=1)
    corpus: CorpusSettings = CorpusSettings()
    queries: Queries = Queries()
    recall: Recall = Recall()
    seed: int = Field(default=0, ge=0, lt=2**32)
    timeout_seconds: float = Field(default=60.0, gt=0, le=3600)
    allow_errors: bool = False

    @model_validator(mode="after")
    def _stored(self) -> Scenario:
        stored = self.corpus.storage.components
        for name in self.queries.methods:
            missing = [part for part in METHODS[name].components if part not in stored]
            if missing:
                raise ValueError(
                    f"queries.methods: {name!r} needs {', '.join(missing)}, which corpus.storage.components leaves out"
                )
        return self

    @model_validator(mode="after")
    def _distinct(self) -> Scenario:
        for what, names in (
            ("stores: more than one has the name", [store.name for store in self.stores]),
            ("loads: more than one is", [level.name for level in self.levels()]),
            ("corpus.documents: repeated value", [f"{size}" for size in self.corpus.documents]),
        ):
            repeated = next((name for name in names if names.count(name) > 1), None)
            if repeated is not None:
                raise ValueError(f"{what} {repeated!r}")
        return self

    @model_validator(mode="after")
    def _apart(self) -> Scenario:
        """Refuse a shared collection: the second store would be measured with the first one's settings."""
        there: dict[tuple[str | None, str], Store] = {}
        for store in self.stores:
            place = ((store.url or "").rstrip("/") or store.start, store.collection)
            first = there.setdefault(place, store)
            same = dict(first.options) == dict(store.options) and first.optimize == store.optimize
            if not same and (store.url is None or is_persistent(store.url)):
                raise ValueError(
                    f"stores: {first.name!r} and {store.name!r} share a collection but not their settings, "
                    "so the second would be measured with those of the first.\n"
                    '  Give one of them another collection = "…"'
                )
        return self

    @model_validator(mode="after")
    def _fits(self) -> Scenario:
        size_bytes = 4 * self.queries.count * (self.corpus.query_rows + 1) * self.corpus.dimension
        if size_bytes > MOST_QUERY_BYTES:
            raise ValueError(
                f"queries.count: {self.queries.count:,} queries of {self.corpus.query_rows} rows of "
                f"{self.corpus.dimension:,} dimensions take {size_bytes / 1e9:,.1f} GB of memory, more than "
                f"{MOST_QUERY_BYTES / 1e9:g} GB.\n  Reduce queries.count; queries are used in turn"
            )
        return self

    def levels(self) -> list[Level]:
        """Return all loads in order."""
        return [level for load in self.loads for level in load.levels()]

    def record(self) -> dict[str, Any]:
        """Return the scenario as JSON with API keys and passwords redacted."""
        raw = self.model_dump(mode="json")
        for store in raw["stores"]:
            store["options"] = _masked(store["options"])
            store["url"] = store["url"] and redacted(store["url"])
        return raw


def load_scenario(path: Path) -> Scenario:
    """Read a scenario file.

    Raises:
        InvalidInput: The file does not exist or is not TOML, or a key is unknown, missing or not valid.
    """
    return read_toml(Scenario, path, _REMEDY)


def read_scenario(raw: Mapping[str, Any], where: str) -> Scenario:
    """Validate a scenario parsed from TOML; error messages begin with ``where``.

    Raises:
        InvalidInput: A key is not valid. The message names the first such key and its value.
    """
    return read_settings(Scenario, raw, where, _REMEDY)


def _masked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Replace texts whose option name indicates a secret by ``***``."""
    return {
        name: _masked(value)
        if isinstance(value, Mapping)
        else "***"
        if isinstance(value, str) and _SECRET.search(name)
        else value
        for name, value in options.items()
    }
