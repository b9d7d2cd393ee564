"""Hand-written Qdrant server client: qdrant-client for collections, its gRPC stub for points, vectors as raw bytes."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as pb
from qdrant_client.conversions.conversion import grpc_to_payload, payload_to_grpc

from handwritten.qdrant import Ask, Qdrant
from m3_connectors.documents import Document
from m3_connectors.embeddings import M3Embeddings

_BATCH = 40
"""Number of documents per message: with 64 rows of 1,024 it has 10 MB."""


class QdrantServer(Qdrant):
    """Searches ``collection`` of the server; writes into a separate collection."""

    def __init__(
        self, url: str, grpc_port: int, collection: str, dimension: int, api_key: str | None = None
    ) -> None:
        self._client = QdrantClient(
            url, api_key=api_key, grpc_port=grpc_port, timeout=60, check_compatibility=False
        )
        self._collection = collection
        self._own = f"{collection}-by-hand"
        row = pb.DenseVector(data=[0.0] * dimension)
        self._dense_prefix = row.SerializeToString()[: -4 * dimension]
        self._row_prefix = pb.MultiDenseVector(vectors=[row]).SerializeToString()[: -4 * dimension]
        maximum = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
        self._client.create_collection(
            self._own,
            vectors_config={
                "dense": models.VectorParams(size=dimension, distance=models.Distance.DOT),
                "multi_0": models.VectorParams(
                    size=dimension,
                    distance=models.Distance.DOT,
                    datatype=models.Datatype.FLOAT16,
                    on_disk=True,
                    multivector_config=maximum,
                    hnsw_config=models.HnswConfigDiff(m=0),
                ),
            },
            sparse_vectors_config={"sparse": models.SparseVectorParams()},
        )

    def write(self, documents: list[Document], embeddings: M3Embeddings) -> None:
        for start in range(0, len(documents), _BATCH):
            points = [
                self._point(documents[i], embeddings, i)
                for i in range(start, min(start + _BATCH, len(documents)))
            ]
            self._client.grpc_points.Upsert(
                pb.UpsertPoints(collection_name=self._own, wait=True, points=points)
            )

    def finish(self) -> None:
        """Nothing to do: the server builds its graph by itself."""

    def drop(self) -> None:
        self._client.delete_collection(self._own)

    def close(self) -> None:
        self._client.close()

    def _point(self, document: Document, embeddings: M3Embeddings, i: int) -> pb.PointStruct:
        payload = {"id": document.id, "text": document.text, "metadata": document.metadata}
        point = pb.PointStruct(
            id=pb.PointId(uuid=str(uuid.uuid5(uuid.NAMESPACE_OID, document.id))),
            payload=payload_to_grpc(payload),
        )
        vectors = point.vectors.vectors.vectors
        self._fill(vectors["dense"], embeddings.dense[i])
        self._fill(vectors["sparse"], embeddings.sparse[[i]])
        self._fill(vectors["multi_0"], embeddings.multivectors[i])
        return point

    def _fill(self, message: Any, vector: Any) -> None:
        if not isinstance(vector, np.ndarray):
            message.sparse.indices.extend(vector.indices.tolist())
            message.sparse.values.extend(vector.data.tolist())
        elif vector.ndim == 1:
            message.dense.MergeFromString(self._dense_prefix + vector.tobytes())
        else:
            message.multi_dense.MergeFromString(b"".join(self._row_prefix + row.tobytes() for row in vector))

    def _vectors(self, query: M3Embeddings) -> dict[str, Any]:
        asked: dict[str, Any] = {}
        if "dense" in query.components:
            asked["dense"] = query.dense[0]
        if "sparse" in query.components:
            asked["sparse"] = query.sparse[[0]]
        if "multivector" in query.components:
            asked["multivector"] = query.multivectors[0]
        return asked

    def _ask(self, asks: list[Ask]) -> list[list[tuple[Any, float]]]:
        requests = []
        for ask in asks:
            request = pb.QueryPoints(collection_name=self._collection, using=ask.using, limit=ask.limit)
            self._fill(request.query.nearest, ask.vector)
            if ask.ids is not None:
                request.params.exact = True
                has_id = request.filter.must.add().has_id.has_id
                has_id.extend([pb.PointId(uuid=id) for id in ask.ids])
            requests.append(request)
        batch = pb.QueryBatchPoints(collection_name=self._collection, query_points=requests)
        answers = self._client.grpc_points.QueryBatch(batch).result
        return [[(hit.id.uuid, hit.score) for hit in answer.result] for answer in answers]

    def _payloads(self, ids: list[Any]) -> dict[Any, dict[str, Any]]:
        request = pb.GetPoints(
            collection_name=self._collection,
            ids=[pb.PointId(uuid=id) for id in ids],
            with_payload=pb.WithPayloadSelector(enable=True),
        )
        return {
            record.id.uuid: grpc_to_payload(record.payload)
            for record in self._client.grpc_points.Get(request).result
        }
