"""Searches for the stand-in server with the results of a real one: Qdrant's own segments, in this process.

qdrant-client's local mode accepts quantisation, graphs and thresholds but ignores them; Qdrant Edge is the server's own
code for one shard and applies them. The twin keeps the same points as the stand-in's local mode in an Edge shard and
answers searches from there, so that tests see the effect of an operator's settings on scores and lists.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import qdrant_edge as edge
from qdrant_client import models
from qdrant_client.http.models import QueryResponse

QUANTISATIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "int8": (
        edge.ScalarQuantizationConfig(edge.ScalarType.Int8),
        {"scalar": {"type": "int8"}},
    ),
    "product": (
        edge.ProductQuantizationConfig(edge.CompressionRatio.X16),
        {"product": {"compression": "x16"}},
    ),
    "binary": (edge.BinaryQuantizationConfig(), {"binary": {}}),
    "turbo": (
        edge.TurboQuantQuantizationConfig(bits=edge.TurboQuantBitSize.Bits4),
        {"turbo": {"bits": "bits4"}},
    ),
}
"""By a short name: the engine's object, and the server's description of it."""


@dataclasses.dataclass(frozen=True)
class Operator:
    """Settings of a server's operator for every collection.

    Attributes:
        quantisation: One of ``QUANTISATIONS``, or None.
        full_scan_threshold: Size in kB of vectors up to which a scan is used instead of the graph.
        m: Number of links per point in the graph; 0 for no graph.
    """

    quantisation: str | None = None
    full_scan_threshold: int = 10_000
    m: int = 16

    def as_said(self) -> dict[str, Any]:
        """Return parts of a collection's configuration as the server reports them."""
        quantised = None if self.quantisation is None else QUANTISATIONS[self.quantisation][1]
        return {
            "quantization_config": quantised,
            "hnsw_config": {
                "m": self.m,
                "ef_construct": 100,
                "full_scan_threshold": self.full_scan_threshold,
            },
        }


class Twin:
    """A copy of the collections of a stand-in, each in an Edge shard."""

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        self._directory = Path(tempfile.mkdtemp(prefix="qdrant-twin-"))
        self._shards: dict[str, edge.EdgeShard] = {}

    def create(self, name: str, asked: models.CreateCollection) -> None:
        operator = self.operator
        vectors: Any = asked.vectors
        sparse = {using: edge.EdgeSparseVectorParams() for using in asked.sparse_vectors or {}}
        quantisation = operator.quantisation and QUANTISATIONS[operator.quantisation][0]
        config = edge.EdgeConfig(
            {using: self._vector(params) for using, params in vectors.items()},
            sparse or None,
            quantization_config=quantisation or None,
            # A server optimises by itself; here every segment gets a graph, when ``optimise`` is called.
            optimizers=edge.EdgeOptimizersConfig(indexing_threshold=1),
        )
        path = Path(tempfile.mkdtemp(dir=self._directory))
        self._shards[name] = edge.EdgeShard.create(str(path), config)

    def _vector(self, params: models.VectorParams) -> edge.EdgeVectorParams:
        own = params.hnsw_config.m if params.hnsw_config is not None else None
        float16 = params.datatype == models.Datatype.FLOAT16
        several = edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim)
        return edge.EdgeVectorParams(
            params.size,
            edge.Distance.Dot,
            multivector_config=several if params.multivector_config is not None else None,
            datatype=edge.VectorStorageDatatype.Float16 if float16 else None,
            hnsw_config=edge.HnswIndexConfig(
                m=self.operator.m if own is None else own,
                ef_construct=100,
                full_scan_threshold=self.operator.full_scan_threshold,
                max_indexing_threads=1,  # the same graph every time
            ),
        )

    def drop(self, name: str) -> None:
        shard = self._shards.pop(name, None)
        if shard is not None:
            shard.close()

    def optimise(self, name: str) -> None:
        self._shards[name].optimize()

    def upsert(self, name: str, points: Sequence[models.PointStruct]) -> None:
        copies = [
            edge.Point(
                str(point.id),
                {using: _sent(vector) for using, vector in point.vector.items()},
                {"id": (point.payload or {}).get("id")},
            )
            for point in points
        ]
        self._shards[name].update(edge.UpdateOperation.upsert_points(copies))

    def delete(self, name: str, ids: Sequence[str]) -> None:
        if ids:
            self._shards[name].update(edge.UpdateOperation.delete_points(list(ids)))

    def search(self, name: str, request: models.QueryRequest, passing: Sequence[str] | None) -> QueryResponse:
        """Run one search; ``passing`` are the points that pass its filter (or that of its stage), None for all."""
        only = None if passing is None else edge.Filter(must=[edge.HasIdCondition(set(passing))])
        stages = stages_of(request)
        assert isinstance(request.query, models.NearestQuery)
        nearest = edge.Query.Nearest(_sent(request.query.nearest), using=request.using)
        hits = self._shards[name].query(
            edge.QueryRequest(
                limit=request.limit,
                query=nearest,
                filter=None if stages else only,
                params=params_of(request.params),
                prefetches=[edge.Prefetch(filter=only, limit=stage.limit) for stage in stages],
                with_payload=bool(request.with_payload),
            )
        )
        return QueryResponse(
            points=[
                models.ScoredPoint(id=str(hit.id), version=0, score=hit.score, payload=hit.payload or {})
                for hit in hits
            ]
        )

    def close(self) -> None:
        for name in list(self._shards):
            self.drop(name)
        shutil.rmtree(self._directory, ignore_errors=True)


def stages_of(request: models.QueryRequest) -> list[models.Prefetch]:
    """Return the stages before a query: REST sends a single one, gRPC a list."""
    prefetch = request.prefetch or []
    return prefetch if isinstance(prefetch, list) else [prefetch]


def params_of(asked: models.SearchParams | None) -> edge.SearchParams:
    """Convert search parameters to the engine's classes."""
    asked = asked or models.SearchParams()
    quantised = asked.quantization and edge.QuantizationSearchParams(
        ignore=bool(asked.quantization.ignore), rescore=asked.quantization.rescore
    )
    return edge.SearchParams(hnsw_ef=asked.hnsw_ef, exact=bool(asked.exact), quantization=quantised or None)


def _sent(vector: Any) -> Any:
    if isinstance(vector, models.SparseVector):
        return edge.SparseVector(vector.indices, vector.values)
    return vector
