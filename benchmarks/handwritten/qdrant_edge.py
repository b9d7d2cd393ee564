"""Qdrant Edge by hand: the engine's own calls on the shard that the adapter filled."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as engine

from handwritten import WEIGHTS, Found
from m3_connectors.documents import Document
from m3_connectors.embeddings import M3Embeddings

_EXACT = engine.SearchParams(exact=True)


class QdrantEdge:
    """Searches ``shard``; writes into a shard of its own in ``directory``."""

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

    def search(self, query: M3Embeddings, method: str, k: int) -> list[Found]:
        asked: dict[str, Any] = {}
        if query.dense is not None:
            asked["dense"] = engine.Query.Nearest(query.dense[0].tolist(), using="dense")
        if query.sparse is not None:
            asked["sparse"] = engine.Query.Nearest(_sparse(query, 0), using="sparse")
        if query.multivectors is not None:
            asked["multivector"] = engine.Query.Nearest(query.multivectors[0].tolist(), using="multi_0")
        self._rows = len(query.multivectors.rows) if query.multivectors is not None else 1
        if method in ("dense", "sparse"):
            (found,) = self._ask([_list(asked[method], k)])
            scores = {method: {point.id: point.score for point in found}}
            best = [(point.id, point.score) for point in found]
        elif method == "multi_vec":
            (found,) = self._ask([_list(asked["dense"], 200)])
            scores = {"dense": {point.id: point.score for point in found}}
            scores |= self._among(asked, ["multivector"], {"multivector": list(scores["dense"])})
            best = sorted(scores["multivector"].items(), key=lambda pair: -pair[1])[:k]
        else:
            if method == "all":
                (found,) = self._ask([_list(asked["dense"], 200)])
                scores = {"dense": {point.id: point.score for point in found}}
                ids = list(scores["dense"])
                scores |= self._among(asked, ["sparse", "multivector"], dict.fromkeys(asked, ids))
            else:
                dense, sparse = self._ask([_list(asked["dense"], 1000), _list(asked["sparse"], 1000)])
                scores = {
                    "dense": {point.id: point.score for point in dense},
                    "sparse": {point.id: point.score for point in sparse},
                }
                ids = list(scores["dense"] | scores["sparse"])
                missing = {name: [id for id in ids if id not in scores[name]] for name in scores}
                for name, found in self._among(asked, list(scores), missing).items():
                    scores[name] |= found
            names = ("dense", "sparse", "multivector")
            fused = sum(
                weight * np.array([scores[name].get(id, 0.0) for id in ids])
                for name, weight in zip(names, WEIGHTS[method], strict=True)
                if weight
            )
            best = [(ids[i], fused[i]) for i in np.argsort(-fused, kind="stable")[:k]]
        winners = [id for id, _ in best]
        missing = {name: [id for id in winners if id not in scores.get(name, {})] for name in asked}
        more = self._among(asked, [name for name in asked if missing[name]], missing)
        scores = {name: scores.get(name, {}) | more.get(name, {}) for name in asked}
        payloads = {record.id: record.payload for record in self._shard.retrieve(winners, True, False)}
        return [
            Found(
                payloads[id]["id"],
                payloads[id]["text"],
                payloads[id]["metadata"],
                score,
                {name: values.get(id, 0.0) for name, values in scores.items()},
            )
            for id, score in best
        ]

    def close(self) -> None:
        """The shard is the adapter's."""

    def _among(
        self, asked: dict[str, Any], names: list[str], ids: dict[str, list[Any]]
    ) -> dict[str, dict[Any, float]]:
        requests = [
            engine.QueryRequest(
                limit=len(ids[name]),
                query=asked[name],
                filter=engine.Filter(must=[engine.HasIdCondition(set(ids[name]))]),
                params=_EXACT,
            )
            for name in names
        ]
        answers = self._ask(requests) if requests else []
        return {
            name: {point.id: point.score / (self._rows if name == "multivector" else 1) for point in answer}
            for name, answer in zip(names, answers, strict=True)
        }

    def _ask(self, requests: list[engine.QueryRequest]) -> list[list[engine.ScoredPoint]]:
        return self._shard.query_batch(engine.QueryBatchRequest(requests))


def _list(query: Any, limit: int) -> engine.QueryRequest:
    return engine.QueryRequest(limit=limit, query=query)


def _sparse(embeddings: M3Embeddings, i: int) -> engine.SparseVector:
    row = embeddings.sparse[[i]]
    return engine.SparseVector(row.indices.tolist(), row.data.tolist())
