"""Spans and metrics of a run, through OpenTelemetry's API, by its semantic conventions for databases and GenAI.

They exist if ``opentelemetry-api`` is installed and the program (or ``opentelemetry-instrument``) has set up an SDK.
Without the package nothing of it is imported, and the writer is the plain one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from m3_connectors.backends.base import Backend
from m3_connectors.documents import Document
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.ingestion.failures import OnWait, TolerantWriter
from m3_connectors.ingestion.progress import IngestProgress
from m3_connectors.writing import Encode

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_PROVIDER = "m3_connectors"
"""The conventions' name for who runs the model: here this process."""

_DURATIONS_OF_MODELS = (
    0.01,
    0.02,
    0.04,
    0.08,
    0.16,
    0.32,
    0.64,
    1.28,
    2.56,
    5.12,
    10.24,
    20.48,
    40.96,
    81.92,
)
_DURATIONS_OF_DATABASES = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
_TOKENS = tuple(4**n for n in range(14))
"""The bounds of histograms that the conventions ask for, in seconds and in tokens."""


class Telemetry:
    """What a run does without OpenTelemetry: nothing, and its writer is the plain one."""

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """The span of the run."""
        yield

    def writer(
        self,
        backend: Backend,
        encode: Encode,
        *,
        wait_seconds: float,
        on_wait: OnWait,
        as_they_are: bool = False,
    ) -> TolerantWriter:
        """Return the writer of the run; its arguments are those of ``TolerantWriter``."""
        return TolerantWriter(backend, encode, wait_seconds, on_wait, as_they_are=as_they_are)

    def progress(self, now: IngestProgress) -> None:
        """Count what has been done since the last call."""


class OpenTelemetry(Telemetry):
    """The spans and metrics of one run.

    Spans: ``ingest`` for the run; below it ``embeddings MODEL`` for each call of the encoder, and ``upsert COLLECTION``
    and ``delete COLLECTION`` for each call of the store, also for those that failed.

    Metrics: ``gen_ai.client.operation.duration`` and ``gen_ai.client.token.usage`` of the encoder,
    ``db.client.operation.duration`` of the store, and the counters ``m3.ingest.documents`` (by ``m3.outcome``: stored,
    unchanged or refused) and ``m3.ingest.chunks``.

    Args:
        model: The name of the model.

    Raises:
        ImportError: ``opentelemetry-api`` is not installed.
    """

    def __init__(self, model: str) -> None:
        from opentelemetry import metrics, trace

        self._trace = trace
        self._tracer = trace.get_tracer("m3_connectors")
        meter = metrics.get_meter("m3_connectors")
        self._model_seconds = meter.create_histogram(
            "gen_ai.client.operation.duration",
            "s",
            "GenAI operation duration.",
            explicit_bucket_boundaries_advisory=_DURATIONS_OF_MODELS,
        )
        self._token_usage = meter.create_histogram(
            "gen_ai.client.token.usage",
            "{token}",
            "Number of input tokens used.",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )
        self._store_seconds = meter.create_histogram(
            "db.client.operation.duration",
            "s",
            "Duration of database client operations.",
            explicit_bucket_boundaries_advisory=_DURATIONS_OF_DATABASES,
        )
        self._documents = meter.create_counter("m3.ingest.documents", "{document}", "Documents, by outcome.")
        self._chunks = meter.create_counter("m3.ingest.chunks", "{chunk}", "Chunks that were stored.")
        self._collection = {"db.system.name": "", "db.collection.name": ""}
        self._model = {
            "gen_ai.operation.name": "embeddings",
            "gen_ai.provider.name": _PROVIDER,
            "gen_ai.request.model": model,
        }
        self._before = IngestProgress()
        self._run: Any = None

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """The span of the run: what happens within it is below it, in every thread."""
        with self._tracer.start_as_current_span("ingest") as span:
            self._run = self._trace.set_span_in_context(span)
            try:
                yield
            finally:
                span.set_attributes(self._collection)
                span.set_attribute("m3.documents", self._before.documents)
                span.set_attribute("m3.chunks", self._before.chunks)

    def writer(
        self,
        backend: Backend,
        encode: Encode,
        *,
        wait_seconds: float,
        on_wait: OnWait,
        as_they_are: bool = False,
    ) -> TolerantWriter:
        """Return a writer whose calls of encoder and store have spans."""
        self._collection = {"db.system.name": backend.name, "db.collection.name": backend.collection}
        return _TracedWriter(self, backend, encode, wait_seconds, on_wait, as_they_are=as_they_are)

    def progress(self, now: IngestProgress) -> None:
        """Count what has been done since the last call."""
        before, self._before = self._before, now
        counts = {
            "stored": now.documents - before.documents,
            "unchanged": now.unchanged - before.unchanged,
            "refused": now.refused - before.refused,
        }
        for outcome, more in counts.items():
            if more:
                self._documents.add(more, {"m3.outcome": outcome, **self._collection})
        if more := now.chunks - before.chunks:
            self._chunks.add(more, self._collection)

    @contextlib.contextmanager
    def encoding(self) -> Iterator[Span]:
        """The span and the duration of one call of the encoder."""
        model = self._model["gen_ai.request.model"]
        with self._timed(f"embeddings {model}", "INTERNAL", self._model, self._model_seconds) as span:
            yield span

    def encoded(self, span: Span, embeddings: M3Embeddings) -> None:
        """Note what the encoder returned."""
        if "dense" in embeddings.components:
            span.set_attribute("gen_ai.embeddings.dimension.count", int(embeddings.dense.shape[1]))
        if embeddings.kept_token_counts is not None:
            tokens = int(embeddings.kept_token_counts.sum())
            span.set_attribute("gen_ai.usage.input_tokens", tokens)
            self._token_usage.record(tokens, {**self._model, "gen_ai.token.type": "input"})

    @contextlib.contextmanager
    def storing(self, operation: str, count: int) -> Iterator[None]:
        """The span and the duration of one call of the store with a number of documents or ids."""
        attributes = {**self._collection, "db.operation.name": operation}
        name = f"{operation} {self._collection['db.collection.name']}"
        with self._timed(name, "CLIENT", attributes, self._store_seconds) as span:
            # Not db.operation.batch.size: one call that takes many documents is one operation.
            span.set_attribute("m3.documents", count)
            yield

    @contextlib.contextmanager
    def _timed(self, name: str, kind: str, attributes: Mapping[str, str], seconds: Any) -> Iterator[Span]:
        labels = dict(attributes)
        began = time.perf_counter()
        with self._tracer.start_as_current_span(
            name, self._run, kind=self._trace.SpanKind[kind], attributes=labels
        ) as span:
            try:
                yield span
            except BaseException as error:
                labels["error.type"] = type(error).__qualname__
                span.set_attribute("error.type", labels["error.type"])
                raise
            finally:
                seconds.record(time.perf_counter() - began, labels)


class _TracedWriter(TolerantWriter):
    def __init__(
        self,
        telemetry: OpenTelemetry,
        backend: Backend,
        encode: Encode,
        wait_seconds: float,
        on_wait: OnWait,
        *,
        as_they_are: bool,
    ) -> None:
        super().__init__(backend, encode, wait_seconds, on_wait, as_they_are=as_they_are)
        self._telemetry = telemetry
        self._put_into_store, self._write = self._write, self._traced

    async def _timed(self, documents: Sequence[Document]) -> M3Embeddings:
        with self._telemetry.encoding() as span:
            embeddings = await super()._timed(documents)
            self._telemetry.encoded(span, embeddings)
            return embeddings

    async def _traced(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        with self._telemetry.storing("upsert", len(documents)):
            await self._put_into_store(documents, embeddings)

    async def delete(self, ids: Sequence[str]) -> int:
        """Remove documents by id; return how many were stored."""
        with self._telemetry.storing("delete", len(ids)):
            return await super().delete(ids)


def telemetry_of(model: str) -> Telemetry:
    """Return the telemetry of a run with a model."""
    try:
        return OpenTelemetry(model)
    except ImportError:
        return Telemetry()
