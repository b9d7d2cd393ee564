"""What the service counts, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The counters of one service. Labels are routes, methods and statuses: never what a client sent."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "m3_requests", "Requests answered.", ("method", "route", "status"), registry=self._registry
        )
        self.request_seconds = Histogram(
            "m3_request_seconds",
            "Time from the first byte of a request to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.abandoned = Counter(
            "m3_requests_abandoned", "Requests whose client went away.", registry=self._registry
        )
        self.in_progress = Gauge("m3_requests_in_progress", "Requests in progress.", registry=self._registry)
        self.batches = Counter("m3_batches", "Batches that the encoder ran.", registry=self._registry)
        self.batch_texts = Histogram(
            "m3_batch_texts",
            "Texts in a batch.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
            registry=self._registry,
        )
        self.encoded_tokens = Counter(
            "m3_encoded_tokens", "Tokens that the encoder read.", registry=self._registry
        )
        self.encoding_seconds = Counter(
            "m3_encoding_seconds", "Time that the encoder ran.", registry=self._registry
        )
        self.waiting_tokens = Gauge(
            "m3_waiting_tokens", "Tokens that wait for the encoder, estimated.", registry=self._registry
        )

    def text(self) -> bytes:
        """Return all values in the text format of Prometheus."""
        return generate_latest(self._registry)
