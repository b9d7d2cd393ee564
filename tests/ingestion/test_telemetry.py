"""Spans and metrics of a run, by the names of OpenTelemetry's semantic conventions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from stub_encoder import STORAGE, StubEncoder

from m3_connectors import Document, connect
from m3_connectors.backends.memory import MemoryBackend
from m3_connectors.errors import Rejected, StorageFull
from m3_connectors.ingestion import IngestReport, Ledger, ingest
from m3_connectors.ingestion.failures import TolerantWriter
from m3_connectors.ingestion.telemetry import OpenTelemetry, Telemetry, telemetry_of

COLLECTION = {"db.system.name": "memory", "db.collection.name": "documents"}
MODEL = {
    "gen_ai.operation.name": "embeddings",
    "gen_ai.provider.name": "m3_connectors",
    "gen_ai.request.model": "tests/stub",
}


class Exported:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._spans = InMemorySpanExporter()
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self._metrics = InMemoryMetricReader()
        meters = MeterProvider([self._metrics])
        monkeypatch.setattr(trace, "get_tracer", tracers.get_tracer)
        monkeypatch.setattr(metrics, "get_meter", meters.get_meter)

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._spans.get_finished_spans() if span.name == name]

    def points(self, name: str) -> list[Any]:
        data = self._metrics.get_metrics_data()
        assert data is not None
        found = [
            point
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]
        assert found
        return found


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Exported:
    return Exported(monkeypatch)


def run(documents: list[Document], ledger: Ledger, **options: Any) -> IngestReport:
    with connect("memory:", encoder=StubEncoder(), storage=STORAGE) as index:
        return ingest(iter(documents), index, ledger=ledger, **options)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger(None) as ledger:
        yield ledger


DOCUMENTS = [Document(f"d{i}", f"text number {i}") for i in range(700)]


def test_calls_of_encoder_and_store_are_spans_below_the_run(exported: Exported, ledger: Ledger) -> None:
    run(DOCUMENTS, ledger)
    (whole,) = exported.spans("ingest")
    assert dict(whole.attributes or {}) == {**COLLECTION, "m3.documents": 700, "m3.chunks": 700}
    encoded, stored = exported.spans("embeddings tests/stub"), exported.spans("upsert documents")
    assert len(encoded) == len(stored) == 2
    for span in encoded:
        attributes = dict(span.attributes or {})
        assert attributes.pop("gen_ai.embeddings.dimension.count") == 8
        attributes.pop("gen_ai.usage.input_tokens", None)
        assert attributes == MODEL
        assert span.kind == SpanKind.INTERNAL
    assert sum((span.attributes or {})["m3.documents"] for span in stored) == 700  # type: ignore[misc]
    for span in stored:
        assert span.kind == SpanKind.CLIENT
        assert {**COLLECTION, "db.operation.name": "upsert"}.items() <= (span.attributes or {}).items()
    for span in [*encoded, *stored]:
        assert span.parent is not None
        assert span.parent.span_id == whole.context.span_id
        assert span.status.status_code == StatusCode.UNSET


def test_metrics_have_the_names_and_units_of_the_conventions(exported: Exported, ledger: Ledger) -> None:
    report = run(DOCUMENTS, ledger)
    (durations,) = exported.points("gen_ai.client.operation.duration")
    assert isinstance(durations, HistogramDataPoint)
    assert durations.attributes == MODEL
    assert durations.count == 2
    assert 0 < durations.sum <= report.add.encoding_seconds + 0.1
    assert durations.explicit_bounds[:2] == (0.01, 0.02)
    (durations,) = exported.points("db.client.operation.duration")
    assert durations.attributes == {**COLLECTION, "db.operation.name": "upsert"}
    assert durations.count == 2
    assert durations.explicit_bounds[:2] == (0.001, 0.005)
    (documents,) = exported.points("m3.ingest.documents")
    assert (documents.value, documents.attributes) == (700, {**COLLECTION, "m3.outcome": "stored"})
    (chunks,) = exported.points("m3.ingest.chunks")
    assert chunks.value == 700


def test_unchanged_documents_and_deletions(exported: Exported, tmp_path: Path) -> None:
    url = f"qdrant:{tmp_path / 'data'}"
    for documents in (DOCUMENTS, DOCUMENTS[:690]):
        with (
            connect(url, encoder=StubEncoder(), storage=STORAGE) as index,
            Ledger(tmp_path / "ledger") as ledger,
        ):
            ingest(iter(documents), index, ledger=ledger, sync=[""])
    counts = {point.attributes["m3.outcome"]: point.value for point in exported.points("m3.ingest.documents")}
    assert counts == {"stored": 700, "unchanged": 690}
    (deleted,) = exported.spans("delete documents")
    assert (deleted.attributes or {})["m3.documents"] == 10


def test_a_refused_document_and_each_failed_call_are_seen(
    exported: Exported, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    upsert = MemoryBackend.upsert

    async def refusing(self: MemoryBackend, documents: Any, embeddings: Any) -> None:
        if any(document.id == "d5" for document in documents):
            raise Rejected("no", backend="memory", operation="upsert")
        await upsert(self, documents, embeddings)

    monkeypatch.setattr(MemoryBackend, "upsert", refusing)
    assert run(DOCUMENTS[:8], ledger).refused == 1
    failed = [
        span for span in exported.spans("upsert documents") if span.status.status_code == StatusCode.ERROR
    ]
    assert [(span.attributes or {})["m3.documents"] for span in failed] == [8, 4, 2, 1]
    assert {(span.attributes or {})["error.type"] for span in failed} == {"Rejected"}
    points = {
        point.attributes.get("error.type"): point.count
        for point in exported.points("db.client.operation.duration")
    }
    assert points == {"Rejected": 4, None: 3}
    counts = {point.attributes["m3.outcome"]: point.value for point in exported.points("m3.ingest.documents")}
    assert counts == {"stored": 7, "refused": 1}


def test_a_run_that_fails_is_a_failed_span(
    exported: Exported, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: Any) -> None:
        raise StorageFull("no space", backend="memory", operation="upsert")

    monkeypatch.setattr(MemoryBackend, "upsert", full)
    with pytest.raises(StorageFull):
        run(DOCUMENTS, ledger)
    (whole,) = exported.spans("ingest")
    assert whole.status.status_code == StatusCode.ERROR
    assert (whole.attributes or {})["m3.documents"] == 0


def test_the_run_is_below_the_span_of_the_caller(exported: Exported, ledger: Ledger) -> None:
    with trace.get_tracer("caller").start_as_current_span("nightly"):
        run(DOCUMENTS[:3], ledger)
    (caller,), (whole,) = exported.spans("nightly"), exported.spans("ingest")
    assert whole.parent is not None
    assert whole.parent.span_id == caller.context.span_id


def test_without_the_package_the_writer_is_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, ledger: Ledger
) -> None:
    assert isinstance(telemetry_of("m"), OpenTelemetry)
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.setitem(sys.modules, name, None)
    off = telemetry_of("m")
    assert type(off) is Telemetry
    writer = off.writer(MemoryBackend("documents"), None, wait_seconds=1, on_wait=print)  # type: ignore[arg-type]
    assert type(writer) is TolerantWriter
    assert run(DOCUMENTS[:3], ledger).documents == 3
