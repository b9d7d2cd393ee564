"""Hand-written Milvus client: direct calls of pymilvus that request everything at once."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pybase64
from pymilvus import DataType, MilvusClient

from handwritten import WEIGHTS, Found
from m3_connectors.documents import Document
from m3_connectors.embeddings import M3Embeddings

_PIECE = 49_149
_HEADER = 16
"""Number of bytes before the rows of a packed multi-vector."""


class Milvus:
    """Searches ``collection`` as the adapter stored it; writes into a separate collection."""

    def __init__(self, uri: str, collection: str, dimension: int) -> None:
        self._client = MilvusClient(uri)
        self._threads = ThreadPoolExecutor(4)
        self._collection = collection
        self._dimension = dimension
        fields = MilvusClient.create_schema(auto_id=False)
        fields.add_field("key", DataType.VARCHAR, max_length=1536, is_primary=True)
        fields.add_field("dense", DataType.FLOAT_VECTOR, dim=dimension)
        fields.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
        fields.add_field(
            "multivector", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=4096, max_length=65535
        )
        fields.add_field("text", DataType.VARCHAR, max_length=65535)
        fields.add_field("metadata", DataType.JSON)
        indexes = MilvusClient.prepare_index_params()
        indexes.add_index("dense", index_type="FLAT", metric_type="IP")
        indexes.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
        self._client.create_collection("handwritten", schema=fields, index_params=indexes)

    def write(self, documents: list[Document], embeddings: M3Embeddings) -> None:
        sparse = embeddings.sparse
        rows = []
        for i, document in enumerate(documents):
            start, stop = sparse.indptr[i], sparse.indptr[i + 1]
            blob = embeddings.multivectors[i].astype(np.float16).tobytes()
            rows.append(
                {
                    "key": document.id,
                    "dense": embeddings.dense[i],
                    "sparse": dict(
                        zip(
                            sparse.indices[start:stop].tolist(), sparse.data[start:stop].tolist(), strict=True
                        )
                    ),
                    "multivector": [
                        pybase64.b64encode_as_string(blob[at : at + _PIECE])
                        for at in range(0, len(blob), _PIECE)
                    ],
                    "text": document.text,
                    "metadata": document.metadata,
                }
            )
        for at in range(0, len(rows), 100):
            self._client.upsert("handwritten", rows[at : at + 100])

    def finish(self) -> None:
        self._client.flush("handwritten")

    def drop(self) -> None:
        self._client.drop_collection("handwritten")

    def search(self, query: M3Embeddings, method: str, k: int) -> list[Found]:
        if method == "dense_sparse":
            return self._dense_sparse(query, k)
        name = "sparse" if method == "sparse" else "dense"
        limit = k if method in ("dense", "sparse") else 200
        fields = ["key", "text", "metadata", *(part for part in query.components if part != name)]
        if limit == k:
            hits = self._list(query, name, limit, fields)
            rows = hits
        else:
            # The multi-vectors in pages, several at a time: in one response they take several times as long.
            hits = self._list(query, name, limit, [part for part in fields if part != "multivector"])
            rows = self._with_multivectors(hits)
        scores = self._scores(query, rows, fields) | {name: np.array([hit["distance"] for hit in hits])}
        if method == "multi_vec":
            fused = scores["multivector"]
        elif method == "all":
            fused = _fused(method, scores)
        else:
            fused = scores[name]
        best = np.argsort(-fused, kind="stable")[:k]
        return [self._found(hits[i], fused[i], {n: values[i] for n, values in scores.items()}) for i in best]

    def _dense_sparse(self, query: M3Embeddings, k: int) -> list[Found]:
        # Hits of the dense list contain the weights for s_lex; a search computes s_dense of all others.
        dense, sparse = self._threads.map(
            lambda ask: ask(),
            (
                lambda: self._list(query, "dense", 1000, ["key", "sparse"]),
                lambda: self._list(query, "sparse", 1000, ["key"]),
            ),
        )
        lex = dict(zip((hit["key"] for hit in dense), self._lex(query, dense), strict=True))
        known = [
            {hit["key"]: hit["distance"] for hit in dense},
            lex | {hit["key"]: hit["distance"] for hit in sparse},
        ]
        left = [key for key in known[1] if key not in known[0]]
        if left:
            within = "key in [" + ",".join(f'"{key}"' for key in left) + "]"
            hits = self._list(query, "dense", len(left), ["key"], within)
            known[0] |= {hit["key"]: hit["distance"] for hit in hits}
        keys = list(known[0])
        scores = {
            name: np.array([of[key] for key in keys])
            for name, of in zip(("dense", "sparse"), known, strict=True)
        }
        fused = _fused("dense_sparse", scores)
        best = np.argsort(-fused, kind="stable")[:k]
        within = "key in [" + ",".join(f'"{keys[i]}"' for i in best) + "]"
        fields = ["key", "text", "metadata", *(["multivector"] if "multivector" in query.components else [])]
        rows = {row["key"]: row for row in self._client.query(self._collection, within, fields)}
        winners = [rows[keys[i]] for i in best]
        own = {name: values[best] for name, values in scores.items()} | self._scores(query, winners, fields)
        return [
            self._found(winners[at], fused[i], {name: values[at] for name, values in own.items()})
            for at, i in enumerate(best)
        ]

    def close(self) -> None:
        self._client.close()

    def _with_multivectors(self, hits: list[Any]) -> list[dict[str, Any]]:
        def page(keys: list[str]) -> list[Any]:
            within = "key in [" + ",".join(f'"{key}"' for key in keys) + "]"
            return [dict(row) for row in self._client.query(self._collection, within, ["key", "multivector"])]

        keys = [hit["key"] for hit in hits]
        pages = self._threads.map(page, [keys[at : at + 25] for at in range(0, len(keys), 25)])
        found = {row["key"]: row["multivector"] for rows in pages for row in rows}
        return [{**hit["entity"], "multivector": found[hit["key"]]} for hit in hits]

    def _list(
        self, query: M3Embeddings, name: str, limit: int, fields: list[str], within: str = ""
    ) -> list[Any]:
        data = (
            query.dense[0]
            if name == "dense"
            else dict(zip(query.sparse.indices.tolist(), query.sparse.data.tolist(), strict=True))
        )
        return self._client.search(
            self._collection,
            [data],
            filter=within,
            limit=limit,
            output_fields=fields,
            search_params={"metric_type": "IP"},
            anns_field=name,
        )[0]

    def _lex(self, query: M3Embeddings, rows: list[Any]) -> list[float]:
        weights = dict(zip(query.sparse.indices.tolist(), query.sparse.data.tolist(), strict=True))
        return [
            sum(weight * row.get(token, 0.0) for token, weight in weights.items())
            for row in (hit["sparse"] for hit in rows)
        ]

    def _scores(self, query: M3Embeddings, rows: list[Any], fields: list[str]) -> dict[str, Any]:
        """Return scores of the components that the rows contain."""
        scores = {}
        if "dense" in fields:
            scores["dense"] = np.array([row["dense"] for row in rows], dtype=np.float32) @ query.dense[0]
        if "sparse" in fields:
            scores["sparse"] = np.array(self._lex(query, rows))
        if "multivector" in fields:
            blobs = [pybase64.b64decode("".join(row["multivector"]), validate=True) for row in rows]
            parts = [np.frombuffer(blob, np.float16, offset=_HEADER) for blob in blobs]
            counts = [len(part) // self._dimension for part in parts]
            joined = np.concatenate(parts).astype(np.float32).reshape(-1, self._dimension)
            asked = query.multivectors.rows.astype(np.float16).astype(np.float32)
            best = np.maximum.reduceat(joined @ asked.T, np.cumsum([0, *counts[:-1]]), axis=0)
            scores["multivector"] = best.mean(axis=1)
        return scores

    def _found(self, row: Any, score: float, scores: dict[str, float]) -> Found:
        return Found(
            row["key"],
            "".join(row["text"]),
            json.loads("".join(row["metadata"])),
            float(score),
            {name: float(value) for name, value in scores.items()},
        )


def _fused(method: str, scores: dict[str, Any]) -> Any:
    names = ("dense", "sparse", "multivector")
    return sum(w * scores[name] for name, w in zip(names, WEIGHTS[method], strict=True) if w)
