"""Hand-written Qdrant Edge client: direct calls of the engine on the shard that the adapter filled."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

import qdrant_edge as engine

from handwritten.qdrant import Ask, Qdrant
from m3_connectors.documents import Document
from m3_connectors.embeddings import M3Embeddings

_EXACT = engine.SearchParams(exact=True)


class QdrantEdge(Qdrant):
    """Searches ``shard``; writes into a separate shard in ``directory``."""

    def __init__(self, shard: engine.EdgeShard, directory: Path, dimension: int) -> None:
        self._shard = shard
        directory.mkdir()
        self._directory = directory
        dense = engine.EdgeVectorParams(dimension, engine.Distance.Dot)
        rows = engine.EdgeVectorParams(
            dimension,
            engine.Distance.Dot,
            multivector_config=engine.MultiVectorConfig(engine.MultiVectorComparator.MaxSim),
            datatype=engine.VectorStorageDatatype.Float16,
            hnsw_config=engine.HnswIndexConfig(m=0, ef_construct=4, full_scan_threshold=1),
            memory=engine.Memory.Cold,
        )
        config = engine.EdgeConfig(
            {"dense": dense, "multi_0": rows}, {"sparse": engine.EdgeSparseVectorParams()}, wal_enabled=True
        )
        self._own = engine.EdgeShard.create(str(directory), config)

    def write(self, documents: list[Document], embeddings: M3Embeddings) -> None:
        for start in range(0, len(documents), 32):
            points = [
                engine.Point(
                    uuid.uuid5(uuid.NAMESPACE_OID, documents[i].id),
                    {
                        "dense": embeddings.dense[i].tolist(),
                        "sparse": _sparse(embeddings, i),
                        "multi_0": embeddings.multivectors[i].tolist(),
                    },
                    {"id": documents[i].id, "text": documents[i].text, "metadata": documents[i].metadata},
                )
                for i in range(start, min(start + 32, len(documents)))
            ]
            self._own.update(engine.UpdateOperation.upsert_points(points))

    def finish(self) -> None:
        self._own.flush()

    def drop(self) -> None:
        self._own.close()
        shutil.rmtree(self._directory)

    def close(self) -> None:
        """Nothing to close: the shard belongs to the adapter."""

    def _vectors(self, query: M3Embeddings) -> dict[str, Any]:
        asked: dict[str, Any] = {}
        if "dense" in query.components:
            asked["dense"] = query.dense[0].tolist()
        if "sparse" in query.components:
            asked["sparse"] = _sparse(query, 0)
        if "multivector" in query.components:
            asked["multivector"] = query.multivectors[0].tolist()
        return asked

    def _ask(self, asks: list[Ask]) -> list[list[tuple[Any, float]]]:
        answers = self._shard.query_batch(engine.QueryBatchRequest([_request(ask) for ask in asks]))
        return [[(point.id, point.score) for point in answer] for answer in answers]

    def _payloads(self, ids: list[Any]) -> dict[Any, dict[str, Any]]:
        return {record.id: record.payload for record in self._shard.retrieve(ids, True, False)}


def _request(ask: Ask) -> engine.QueryRequest:
    query = engine.Query.Nearest(ask.vector, using=ask.using)
    if ask.ids is None:
        return engine.QueryRequest(limit=ask.limit, query=query)
    only = engine.Filter(must=[engine.HasIdCondition(set(ask.ids))])
    return engine.QueryRequest(limit=ask.limit, query=query, filter=only, params=_EXACT)


def _sparse(embeddings: M3Embeddings, i: int) -> engine.SparseVector:
    row = embeddings.sparse[[i]]
    return engine.SparseVector(row.indices.tolist(), row.data.tolist())
