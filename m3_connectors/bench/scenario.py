"""What a benchmark does, read from TOML: which stores, which corpora, which requests, how fast and for how long.

Every key has a default but ``name``, ``stores`` and ``loads``; an unknown key is an error. See docs/benchmarks.md.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from m3_connectors.backends.schema import LongDocuments, Storage
from m3_connectors.backends.urls import shown
from m3_connectors.errors import InvalidInput
from m3_connectors.methods import METHODS

FORMAT = 1

MOST_DOCUMENTS = 1_000_000
"""Of one corpus."""

MOST_CONCURRENT = 64

MOST_TOKENS = 2**24
"""Of a vocabulary: its frequencies are in memory, 8 bytes each, several times while they are made."""

MOST_QUERY_BYTES = 2 * 10**9
"""Of all queries' vectors, which are in memory while they are asked."""

_SECRET = re.compile(r"key|password|token|secret|authorization|credential", re.IGNORECASE)

Share = Annotated[float, Field(gt=0, le=1)]


def _as_tuple(value: object) -> object:
    """``8`` and ``[1, 8]`` are both a list of values."""
    return value if isinstance(value, tuple) else (value,)


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Rows(_Table):
    """Multi-vector rows of a document, a log-normal number.

    Attributes:
        mean: Of the rows.
        spread: Standard deviation over mean; 0 for the same number everywhere.
        most: Longer documents are cut here.
    """

    mean: float = Field(default=64.0, ge=1, le=8191)
    spread: float = Field(default=0.5, ge=0, le=3)
    most: int = Field(default=8191, ge=1, le=8191)


class StorageSettings(_Table):
    """How collections keep vectors: the keys of ``Storage``, and what each means, are its own."""

    multivector_dtype: Literal["float16", "float32"] = "float16"
    long_documents: LongDocuments = "split"
    pool_factor: int = Storage.pool_factor
    pool_from_rows: int = Storage.pool_from_rows

    @model_validator(mode="after")
    def _possible(self) -> StorageSettings:
        _ = self.chosen
        return self

    @property
    def chosen(self) -> Storage:
        """It as a collection records it."""
        return Storage(**self.model_dump())


class CorpusSettings(_Table):
    """Documents to make; see ``bench.synthetic``.

    Attributes:
        documents: Sizes; each is a collection of its own, and the smaller one is the beginning of the larger.
        dimension: Of dense vectors and rows; BGE-M3's is 1,024.
        rows: Of a document's multi-vector.
        query_rows: Of a query's multi-vector.
        vocabulary: Token ids; BGE-M3's are 250,002.
        topics: Clusters of the dense vectors.
        storage: How they are kept.
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
    """Where to measure: a URL, or a server to be started on this machine for the time of the run.

    Attributes:
        name: In tables; different for each store.
        url: As ``connect`` takes it.
        start: Instead of a URL: a local server of ``m3_connectors.testing.servers``.
        collection: Prefix of the collections' names; the number of documents follows.
        options: The backend's own.
        optimize: Have the store build its indexes after writing, and measure that.
        batch_bytes: Vectors and text in one call of ``upsert``.
    """

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")
    url: str | None = None
    start: Literal["qdrant", "milvus", "elasticsearch"] | None = None
    collection: str = "bench"
    options: Mapping[str, Any] = {}
    optimize: bool = True
    batch_bytes: int = Field(default=8 * 2**20, ge=1024, le=2**30)

    @model_validator(mode="after")
    def _one_place(self) -> Store:
        if (self.url is None) == (self.start is None):
            raise ValueError('give url = "…" or start = "milvus", one of the two')
        return self


class Filtered(_Table):
    """Requests with a filter.

    Attributes:
        share: Of all requests.
        selectivity: Of the documents pass.
    """

    share: Share
    selectivity: Share


class Queries(_Table):
    """The mix of requests.

    Attributes:
        count: Different queries; they take turns.
        k: Hits asked for.
        exact: No approximate list in the store.
        methods: Share of the requests by method; shares are scaled to 1.
        filters: The rest of the requests has none.
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
                raise ValueError(f"methods: {name!r} is none of {', '.join(METHODS)}")
        if sum(filtered.share for filtered in self.filters) > 1 + 1e-9:
            raise ValueError("filters: their shares add up to more than 1")
        return self


class Load(_Table):
    """One way of asking; with several concurrencies or rates it is repeated for each.

    Attributes:
        kind: ``closed``: each of so many clients asks, waits for the answer, asks again. ``open``: requests come at
            their own times, however slow the store is, and latency counts from the time that was intended.
        concurrency: Clients of a closed loop (default 1); most requests under way at a time of an open one (64).
        requests_per_second: Of an open loop.
        arrivals: Of an open loop: ``poisson`` (as of independent users) or ``constant``.
        warm_up_seconds: Of the same load before it counts.
        seconds: Longest measured time.
        requests: Most measured requests.
        most_waiting: Of an open loop: requests that wait to be sent; one more, and it ends as saturated.
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
            raise ValueError("an open loop has requests_per_second, and a closed one has none")
        return self

    def levels(self) -> list[Level]:
        """Each combination by itself."""
        shared = {name: getattr(self, name) for name in _SHARED}
        most = 1 if self.kind == "closed" else MOST_CONCURRENT
        return [
            Level(concurrency=concurrency, requests_per_second=rate, **shared)
            for rate in self.requests_per_second or (None,)
            for concurrency in self.concurrency or (most,)
        ]


class Level(_Table):
    """One load: attributes as ``Load``'s, each a single value."""

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
        """Such as ``closed-8`` or ``open-20-at-64``."""
        if self.requests_per_second is None:
            return f"closed-{self.concurrency}"
        return f"open-{self.requests_per_second:g}-at-{self.concurrency}"


_SHARED = ("kind", "arrivals", "warm_up_seconds", "seconds", "requests", "most_waiting")


class Recall(_Table):
    """What approximate lists miss.

    Attributes:
        queries: Requests of the mix that are asked both ways; 0 for none.
        depth: Of the dense list; the paper re-ranks 200.
    """

    queries: int = Field(default=50, ge=0, le=10_000)
    depth: int = Field(default=200, ge=1, le=10_000)


class Scenario(_Table):
    """A whole benchmark.

    Attributes:
        name: In the report.
        stores: Measured one after the other.
        loads: Each asked of every store and size, in this order.
        corpus: What is stored.
        queries: What is asked.
        recall: What is asked twice.
        seed: Of everything drawn.
        timeout_seconds: A request that takes longer is an error.
        allow_errors: Failed requests are listed and left out; without it they make a result void.
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
    def _distinct(self) -> Scenario:
        for what, names in (
            ("stores: two have the name", [store.name for store in self.stores]),
            ("loads: two are", [level.name for level in self.levels()]),
            ("corpus.documents: twice", [f"{size}" for size in self.corpus.documents]),
        ):
            repeated = next((name for name in names if names.count(name) > 1), None)
            if repeated is not None:
                raise ValueError(f"{what} {repeated!r}")
        return self

    @model_validator(mode="after")
    def _apart(self) -> Scenario:
        """A second store would find the first one's collection and be measured on its settings."""
        there: dict[tuple[str | None, str], Store] = {}
        for store in self.stores:
            place = ((store.url or "").rstrip("/") or store.start, store.collection)
            first = there.setdefault(place, store)
            same = dict(first.options) == dict(store.options) and first.optimize == store.optimize
            if not same and store.url != "memory:":
                raise ValueError(
                    f"stores: {first.name!r} and {store.name!r} are one collection with different settings, and the "
                    'second would be measured on the first one\'s.\n  Give one of them another collection = "…"'
                )
        return self

    @model_validator(mode="after")
    def _fits(self) -> Scenario:
        size_bytes = 4 * self.queries.count * (self.corpus.query_rows + 1) * self.corpus.dimension
        if size_bytes > MOST_QUERY_BYTES:
            raise ValueError(
                f"queries.count: {self.queries.count:,} queries of {self.corpus.query_rows} rows of "
                f"{self.corpus.dimension:,} dimensions take {size_bytes / 1e9:,.1f} GB of memory, more than "
                f"{MOST_QUERY_BYTES / 1e9:g} GB.\n  Ask fewer different ones: they take turns"
            )
        return self

    def levels(self) -> list[Level]:
        """All loads in their order."""
        return [level for load in self.loads for level in load.levels()]

    def record(self) -> dict[str, Any]:
        """As JSON, without keys and passwords."""
        raw = self.model_dump(mode="json")
        for store in raw["stores"]:
            store["options"] = _masked(store["options"])
            store["url"] = store["url"] and shown(store["url"])
        return raw


def load_scenario(path: Path) -> Scenario:
    """Read a scenario file.

    Raises:
        InvalidInput: No such file, no TOML, or a key that is unknown, missing or has a value that cannot be.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInput(
            f"{path} does not exist.\n  Give a scenario (TOML), see docs/benchmarks.md."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} is not TOML: {error}\n  Mend the file.") from None
    if raw.get("format", FORMAT) != FORMAT:
        raise InvalidInput(
            f"{path}: format is {raw['format']!r}, not {FORMAT}.\n  Was it written for a later m3-connectors?"
        )
    return read_scenario(raw, str(path))


def read_scenario(raw: Mapping[str, Any], where: str) -> Scenario:
    """A scenario from what TOML gave; ``where`` stands first in errors.

    Raises:
        InvalidInput: Names the first key that is wrong, and its value.
    """
    for key in ("stores", "loads"):
        if isinstance(raw.get(key), Mapping):
            raise InvalidInput(
                f"{where}: [{key}] is one table, and {key} is a list of them.\n  Write [[{key}]], with two brackets."
            )
    try:
        return Scenario.model_validate(_lists_as_tuples(dict(raw)))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = _key(first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        if first["type"] == "missing":
            raise InvalidInput(
                f"{where} lacks the key {key}.\n  Add it; docs/benchmarks.md lists all."
            ) from None
        if first["type"] == "extra_forbidden":
            raise InvalidInput(
                f"{where} has an unknown key {key}.\n  Is it misspelt? docs/benchmarks.md lists all keys."
            ) from None
        value = "" if isinstance(first["input"], Mapping | BaseModel) else f" is {first['input']!r}"
        if "\n" not in what:
            what += ".\n  Mend it; docs/benchmarks.md lists all keys."
        raise InvalidInput(f"{where}: {key}{value}: {what}") from None


def _key(location: tuple[int | str, ...]) -> str:
    key = ""
    for part in location:
        key += f"[{part}]" if isinstance(part, int) else f"{'.' if key else ''}{part}"
    return key or "the scenario"


def _lists_as_tuples(value: Any) -> Any:
    """Strict tables take tuples, TOML gives lists; options stay as they are."""
    if isinstance(value, dict):
        return {key: item if key == "options" else _lists_as_tuples(item) for key, item in value.items()}
    return tuple(map(_lists_as_tuples, value)) if isinstance(value, list) else value


def _masked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with ``***`` for texts that are secrets by their name."""
    return {
        name: _masked(value)
        if isinstance(value, Mapping)
        else "***"
        if isinstance(value, str) and _SECRET.search(name)
        else value
        for name, value in options.items()
    }
