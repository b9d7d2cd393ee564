"""The JSON files of a benchmark: what is recorded about a run, and the numbers computed from its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from m3_connectors.backends.precision import PrecisionName
from m3_connectors.backends.schema import LongDocuments
from m3_connectors.embeddings import COMPONENTS, Component
from m3_connectors.records import read_record

FORMAT: Literal[1] = 1


class _Recorded(BaseModel):
    """Part of ``bench.json``; keys that are not read here stay in the file."""

    model_config = ConfigDict(strict=True, extra="allow")


class Rows(_Recorded):
    """The numbers of rows of the documents."""

    mean: float


class Storage(_Recorded):
    """The settings of the collections, those of ``Storage`` on which planned bytes depend."""

    multivector_dtype: PrecisionName
    long_documents: LongDocuments = "split"
    components: tuple[Component, ...] = COMPONENTS


class Corpus(_Recorded):
    """The synthetic documents."""

    dimension: int = Field(ge=1)
    rows: Rows
    query_rows: int
    storage: Storage


class Queries(_Recorded):
    """The queries; ``k`` hits are requested."""

    k: int


class Store(_Recorded):
    """A store of the scenario; without a URL, it was started for the run."""

    name: str
    url: str | None


class Scenario(_Recorded):
    """The keys of a recorded scenario that are read again."""

    name: str
    stores: tuple[Store, ...]
    corpus: Corpus
    queries: Queries
    allow_errors: bool


class Machine(_Recorded):
    """The result of ``environment.environment``."""

    date: str
    commit: str | None
    processor: str
    cores: int | None
    memory_gib: float | None
    load_average: tuple[float, ...] | None


class SessionRecord(_Recorded):
    """One session of a run."""

    environment: Machine
    harness_seconds_per_request: float | None = None


class CorpusShape(_Recorded):
    """Means over the documents of one collection."""

    rows: float = Field(ge=1, allow_inf_nan=False)
    distinct_tokens: float = Field(ge=0, allow_inf_nan=False)
    text_bytes: float = Field(ge=0, allow_inf_nan=False)


class Collection(_Recorded):
    """One filled collection; ``disk_bytes`` are by component, ``reused`` if an earlier run wrote it."""

    store: str
    backend: str
    documents: int = Field(ge=1)
    count: int
    reused: bool
    disk_bytes: dict[str, int] | None
    corpus: CorpusShape
    server: dict[str, Any] | None = None
    server_memory_bytes: int | None
    filled_again: bool = False


class BenchRecord(_Recorded):
    """``bench.json``. In folders of earlier versions, ``sessions`` and ``finished`` (names of parts) are empty."""

    format: Literal[1] = FORMAT
    scenario: Scenario
    environment: Machine
    sessions: list[SessionRecord] = Field(default_factory=list)
    collections: list[Collection]
    finished: list[str] = Field(default_factory=list)
    harness_seconds_per_request: float | None
    complete: bool

    @classmethod
    def read(cls, path: Path) -> BenchRecord:
        """Read a file.

        Raises:
            InvalidInput: The file is not JSON, or a key is missing or has a wrong type. The message names the
                first such key and its value.
            FileNotFoundError: The file does not exist.
        """
        return read_record(cls, path.read_bytes(), path, "Restore the file, or run the benchmark again.")


class _Computed(BaseModel):
    """Part of ``summary.json``."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class _Result(_Computed):
    store: str
    documents: int
    void: tuple[str, ...]


class Fill(_Result):
    """The rate of writing a collection, the time for its index, and its size.

    ``comparable_bytes_per_document`` are without components that ``planned_bytes_per_document`` excludes.
    With a reason in ``void``, the numbers must not be used.
    """

    store: str
    documents: int
    count: int
    reused: bool
    documents_per_second: float | None
    megabytes_per_second: float | None
    optimize_seconds: float | None
    client_cpu_share: float | None
    server_cpu_share: float | None
    round_trips_per_batch: float | None
    disk_bytes_per_document: float | None
    component_bytes_per_document: dict[str, float] | None
    planned_bytes_per_document: dict[str, float] | None
    comparable_bytes_per_document: float | None
    server_memory_bytes: int | None
    void: tuple[str, ...]


class Latency(_Computed):
    """Latency in seconds, measured from the intended start; None with too few requests for a quantile."""

    p50: float | None
    p95: float | None
    p99: float | None
    p99_9: float | None = Field(alias="p99.9")
    mean: float | None
    max: float | None


class Load(_Result):
    """One load, or one method of it. CPU times are per request; a share is relative to one core.

    With a reason in ``void``, the numbers must not be used; with one in ``noted``, they do not describe the
    store alone.
    """

    store: str
    documents: int
    load: str
    method: str | None
    requests: int
    answered: int
    errors: dict[str, int]
    latency_seconds: Latency
    waited_to_be_sent_seconds: float | None
    requests_per_second: float | None
    round_trips: float | None
    store_share: float | None
    client_cpu_seconds: float | None
    client_cpu_share: float | None
    server_cpu_seconds: float | None
    server_cpu_share: float | None
    void: tuple[str, ...]
    noted: tuple[str, ...]


class Recall(_Result):
    """The share of the exact results that one method's approximate lists contain, under one filter."""

    store: str
    documents: int
    kind: str
    method: str
    depth: int | None
    selectivity: float | None
    queries: int
    recall: float | None
    worst: float | None
    approximate_p50_seconds: float | None
    exact_p50_seconds: float | None
    errors: dict[str, int]
    void: tuple[str, ...]


class Summary(_Computed):
    """``summary.json``: all numbers of a run.

    Attributes:
        name: The name of the scenario.
        complete: Whether the run is finished.
        sessions: The number of sessions.
        void: Whether any of the numbers must not be used.
        harness_seconds_per_request: The CPU time that the harness adds to a request.
        fills: One for each collection.
        loads: One for each level, with the method None, and one for each of its methods.
        recall: One for each method and filter.
    """

    format: Literal[1] = FORMAT
    name: str
    complete: bool
    sessions: int
    void: bool
    harness_seconds_per_request: float | None
    fills: tuple[Fill, ...]
    loads: tuple[Load, ...]
    recall: tuple[Recall, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``summary.json``."""
        return self.model_dump(mode="json", by_alias=True)
