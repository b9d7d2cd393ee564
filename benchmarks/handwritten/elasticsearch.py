"""Hand-written Elasticsearch client: direct calls of elasticsearch-py that request everything at once."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import elasticsearch
import numpy as np
import orjson
import pybase64

from handwritten import WEIGHTS, Found
from m3_connectors.documents import Document
from m3_connectors.embeddings import M3Embeddings

_HEADER = 16
"""Number of bytes before the values of a blob."""

_ROUNDED = (1 + 1e-4) / (1 - 2**-8)
_BATCH_BYTES = 8 * 2**20


class Elasticsearch:
    """Searches ``index`` as the adapter stored it; writes into a separate index."""

    def __init__(self, url: str, index: str, dimension: int) -> None:
        self._client = elasticsearch.Elasticsearch(
            url, serializer=elasticsearch.OrjsonSerializer(), request_timeout=120
        )
        self._threads = ThreadPoolExecutor(3)
        self._index = index
        self._dimension = dimension
        text = {"type": "keyword", "index": False, "doc_values": False}
        vector = {
            "type": "dense_vector",
            "dims": dimension,
            "similarity": "max_inner_product",
            "index_options": {"type": "hnsw"},
        }
        blob = {"type": "binary", "doc_values": True}
        self._client.indices.create(
            index="handwritten",
            mappings={
                "_source": {"excludes": ["sparse", "sparse_blob", "multivector_blob"]},
                "properties": {
                    "text": text,
                    "metadata": {"type": "object"},
                    "dense": vector,
                    "sparse": {"type": "sparse_vector"},
                    "sparse_blob": blob,
                    "multivector_blob": blob,
                },
            },
        )

    def write(self, documents: list[Document], embeddings: M3Embeddings) -> None:
        sparse = embeddings.sparse
        bodies: list[list[bytes]] = [[]]
        size = 0
        for i, document in enumerate(documents):
            start, stop = sparse.indptr[i], sparse.indptr[i + 1]
            tokens, weights = sparse.indices[start:stop], sparse.data[start:stop]
            source = {
                "text": document.text,
                "metadata": document.metadata,
                "dense": embeddings.dense[i],
                "sparse": dict(zip(map(str, tokens.tolist()), weights, strict=True)),
                "sparse_blob": pybase64.b64encode_as_string(
                    tokens.astype(np.uint32).tobytes() + weights.tobytes()
                ),
                "multivector_blob": pybase64.b64encode_as_string(
                    embeddings.multivectors[i].astype(np.float16).tobytes()
                ),
            }
            line = orjson.dumps(source, option=orjson.OPT_SERIALIZE_NUMPY)
            if size + len(line) > _BATCH_BYTES:
                bodies.append([])
                size = 0
            bodies[-1] += [orjson.dumps({"index": {"_id": document.id}}), line]
            size += len(line)
        list(self._threads.map(self._bulk, bodies))
        self._client.indices.refresh(index="handwritten")

    def finish(self) -> None:
        """Nothing to do: documents are searchable after each write."""

    def drop(self) -> None:
        self._client.indices.delete(index="handwritten")

    def search(self, query: M3Embeddings, method: str, k: int) -> list[Found]:
        extra = [name for name in ("sparse_blob", "multivector_blob") if _of(query, name)]
        if method == "dense_sparse":
            return self._dense_sparse(query, k)
        if method == "sparse":
            hits = self._sparse(query, k, extra, source=True)
        elif method == "dense":
            hits = self._dense(query, k, extra, source=True)
        else:
            hits = self._dense(query, 200, [name for name in extra if name == "sparse_blob"])
            self._add_multivectors(hits)
        scores = self._scores(query, hits)
        if method == "sparse":
            if "dense" in query.components:
                among = {"ids": {"values": [hit["_id"] for hit in hits]}}
                dense = {hit["_id"]: hit for hit in self._dense(query, len(hits), [], filter=among)}
                scores["dense"] = _dense_scores([dense[hit["_id"]] for hit in hits])
            fused = scores["sparse"]
        else:
            scores["dense"] = _dense_scores(hits)
            fused = {
                "dense": lambda: scores["dense"],
                "multi_vec": lambda: scores["multivector"],
                "all": lambda: _fused(method, scores),
            }[method]()
        best = np.argsort(-fused, kind="stable")[:k]
        winners = [hits[i] for i in best]
        return self._found(winners, fused[best], {name: values[best] for name, values in scores.items()})

    def _dense_sparse(self, query: M3Embeddings, k: int) -> list[Found]:
        lists = list(
            self._threads.map(
                lambda ask: ask(),
                (
                    lambda: self._dense(query, 1000, ["sparse_blob"]),
                    lambda: self._sparse(query, 1000, ["sparse_blob"]),
                ),
            )
        )
        known = {
            hit["_id"]: [dense, lex]
            for hit, dense, lex in zip(
                lists[0], _dense_scores(lists[0]), self._scores(query, lists[0])["sparse"], strict=True
            )
        }
        lacking = [
            (hit["_id"], lex)
            for hit, lex in zip(lists[1][:1000], self._scores(query, lists[1])["sparse"], strict=False)
            if hit["_id"] not in known
        ]
        among = {"ids": {"values": [id for id, _ in lacking]}}
        lex_of = dict(lacking)
        hits = self._dense(query, len(lacking), [], filter=among) if lacking else []
        known |= {
            hit["_id"]: [dense, lex_of[hit["_id"]]]
            for hit, dense in zip(hits, _dense_scores(hits), strict=True)
        }
        ids = list(known)
        dense, lex = np.array(list(known.values())).T
        scores = {"dense": dense, "sparse": lex}
        fused = _fused("dense_sparse", scores)
        best = np.argsort(-fused, kind="stable")[:k]
        body = {
            "size": k,
            "query": {"ids": {"values": [ids[i] for i in best]}},
            "_source": ["text", "metadata"],
            "docvalue_fields": ["multivector_blob"] if "multivector" in query.components else [],
        }
        hits = {hit["_id"]: hit for hit in self._search(body)}
        winners = [hits[ids[i]] for i in best]
        own = {name: values[best] for name, values in scores.items()}
        if "multivector" in query.components:
            own["multivector"] = self._scores(query, winners)["multivector"]
        return self._found(winners, fused[best], own)

    def close(self) -> None:
        self._client.close()

    def _add_multivectors(self, hits: list[Any]) -> None:
        # In pages, several at a time: faster than with the list itself, where server and client wait for each other.
        def page(ids: list[str]) -> list[Any]:
            body = {
                "size": len(ids),
                "query": {"ids": {"values": ids}},
                "sort": ["_doc"],
                "_source": False,
                "docvalue_fields": ["multivector_blob"],
            }
            return self._search(body)

        ids = [hit["_id"] for hit in hits]
        pages = self._threads.map(page, [ids[at : at + 50] for at in range(0, len(ids), 50)])
        found = {hit["_id"]: hit["fields"] for hits in pages for hit in hits}
        for hit in hits:
            hit["fields"] = hit.get("fields", {}) | found[hit["_id"]]

    def _bulk(self, lines: list[bytes]) -> None:
        answer = self._client.bulk(index="handwritten", operations=lines, filter_path="errors")
        assert not answer["errors"]

    def _dense(
        self, query: M3Embeddings, limit: int, blobs: list[str], source: bool = False, filter: Any = None
    ) -> list[Any]:
        knn = {"field": "dense", "query_vector": query.dense[0], "k": limit}
        knn["num_candidates"] = max(limit, 1000) if limit < 1000 else 2000
        if filter is not None:
            knn |= {"filter": filter, "num_candidates": limit}
        return self._search(
            {
                "size": limit,
                "knn": knn,
                "_source": ["text", "metadata"] if source else False,
                "docvalue_fields": blobs,
            }
        )

    def _sparse(self, query: M3Embeddings, limit: int, blobs: list[str], source: bool = False) -> list[Any]:
        """Return the true list: the server rounds weights, so some more hits are ranked by the exact weights."""
        vector = dict(zip(map(str, query.sparse.indices.tolist()), query.sparse.data, strict=True))
        asked = limit + max(limit // 10, 16)
        while True:
            hits = self._search(
                {
                    "size": asked,
                    "query": {"sparse_vector": {"field": "sparse", "query_vector": vector, "prune": False}},
                    "_source": ["text", "metadata"] if source else False,
                    "docvalue_fields": blobs,
                }
            )
            exact = self._scores(query, hits, only="sparse")["sparse"]
            order = np.argsort(-exact, kind="stable")[:limit]
            if len(hits) < asked or hits[-1]["_score"] * _ROUNDED < exact[order[-1]]:
                return [hits[i] for i in order]
            asked *= 2

    def _search(self, body: dict[str, Any]) -> list[Any]:
        answer = self._client.perform_request(
            "POST",
            f"/{self._index}/_search",
            headers={"content-type": "application/json", "accept": "application/json"},
            body=orjson.dumps({**body, "track_total_hits": False}, option=orjson.OPT_SERIALIZE_NUMPY),
        )
        return answer.body["hits"]["hits"]

    def _scores(self, query: M3Embeddings, hits: list[Any], only: str = "") -> dict[str, Any]:
        """Return scores of the components whose blobs the hits contain."""
        scores = {}
        fields = hits[0].get("fields", {}) if hits else {}
        if "sparse_blob" in fields and only in ("", "sparse"):
            weights = np.zeros(query.sparse.shape[1], dtype=np.float32)
            weights[query.sparse.indices] = query.sparse.data
            blobs = [pybase64.b64decode(hit["fields"]["sparse_blob"][0], validate=True) for hit in hits]
            scores["sparse"] = np.array(
                [
                    weights[np.frombuffer(blob, np.uint32, (len(blob) - _HEADER) // 8, _HEADER)]
                    @ np.frombuffer(blob, np.float32, offset=_HEADER + (len(blob) - _HEADER) // 2)
                    for blob in blobs
                ]
            )
        if "multivector_blob" in fields and only in ("", "multivector"):
            blobs = [pybase64.b64decode(hit["fields"]["multivector_blob"][0], validate=True) for hit in hits]
            parts = [np.frombuffer(blob, np.float16, offset=_HEADER) for blob in blobs]
            counts = [len(part) // self._dimension for part in parts]
            joined = np.concatenate(parts).astype(np.float32).reshape(-1, self._dimension)
            asked = query.multivectors.rows.astype(np.float16).astype(np.float32)
            best = np.maximum.reduceat(joined @ asked.T, np.cumsum([0, *counts[:-1]]), axis=0)
            scores["multivector"] = best.mean(axis=1)
        return scores

    def _found(self, hits: list[Any], fused: Any, scores: dict[str, Any]) -> list[Found]:
        if hits and "_source" not in hits[0]:
            answer = self._client.mget(
                index=self._index, ids=[hit["_id"] for hit in hits], source_includes=["text", "metadata"]
            )
            hits = answer.body["docs"]
        return [
            Found(
                hit["_id"],
                hit["_source"]["text"],
                json.loads(hit["_source"]["metadata"]),
                float(fused[i]),
                {name: float(values[i]) for name, values in scores.items()},
            )
            for i, hit in enumerate(hits)
        ]


def _of(query: M3Embeddings, blob: str) -> bool:
    return ("sparse" if blob == "sparse_blob" else "multivector") in query.components


def _dense_scores(hits: list[Any]) -> Any:
    scores = np.array([hit["_score"] for hit in hits])
    return np.where(scores >= 1, scores - 1, 1 - 1 / np.maximum(scores, 1e-30))


def _fused(method: str, scores: dict[str, Any]) -> Any:
    names = ("dense", "sparse", "multivector")
    return sum(w * scores[name] for name, w in zip(names, WEIGHTS[method], strict=True) if w)
