"""Reads of one collection: rows by key, counts, pages, searches, exact scores."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

import anyio.to_thread
import numpy as np

from m3_connectors.backends.chunks import by_bytes, by_count
from m3_connectors.backends.milvus.client import Connection
from m3_connectors.backends.milvus.errors import BACKEND
from m3_connectors.backends.milvus.filters import EVERYTHING
from m3_connectors.backends.milvus.layout import Layout
from m3_connectors.backends.milvus.naming import id_of, keys_in
from m3_connectors.backends.milvus.rows import embeddings_of, part_keys, sparse_of, unpack
from m3_connectors.embeddings import Component, Float32, M3Embeddings, MultiVectors
from m3_connectors.errors import Corrupt, NotFound
from m3_connectors.methods import rank
from m3_connectors.scoring import as_float16, score

_MOST_RESULTS = 16_384
"""Of one search or query, on servers."""

_KEYS_AT_ONCE = 8_192
_ANSWER_BYTES = 32 * 2**20
"""Packed vectors asked for at once; servers answer at most 100 MB."""

_FETCHED_WHOLE = 16
"""So many entities are asked for at once whatever their size: each holds a megabyte or two at most."""

_PACKED = ["multivector", "version", "parts"]
_PAGE = 1_000
_MOST_EF = 32_768

Row = Mapping[str, Any]


class Reader:
    """Reads what a layout describes; all expressions come from ``filters`` and ``naming``."""

    def __init__(self, connection: Connection, layout: Layout) -> None:
        self.layout = layout
        self._connection = connection

    @property
    def most_results(self) -> float:
        """Longest list that one search answers."""
        return math.inf if self._connection.is_lite else _MOST_RESULTS

    # -- rows

    async def rows(
        self, operation: str, keys: Iterable[str], fields: Sequence[str], collection: str | None = None
    ) -> dict[str, Row]:
        """The stored ones of these keys, with ``key`` and the fields."""
        found: dict[str, Row] = {}
        for some in by_count(list(dict.fromkeys(keys)), _KEYS_AT_ONCE):
            found |= await self._connection.call(
                operation,
                "query",
                collection or self.layout.name,
                filter=keys_in(some),
                output_fields=["key", *fields],
                limit=len(some),
                consistency_level="Strong",
                then=lambda answer: {row["key"]: row for row in map(dict, answer)},
            )
        return found

    async def pages(
        self, operation: str, expression: str, fields: Sequence[str]
    ) -> AsyncIterator[Sequence[Row]]:
        """All rows that an expression finds, a thousand at a time, in the order of their keys; ``key`` is a field.

        pymilvus' own iterator waits for ever on a server that hangs, and cannot go on where one request failed.
        """
        after = ""
        while True:
            page: list[Row] = await self._connection.call(
                operation,
                "query",
                self.layout.name,
                filter=f'key > "{after}" and ({expression})',
                output_fields=list(fields),
                limit=_PAGE,
                # As that iterator does: by these the server answers with the first keys, in their order.
                iterator="True",
                reduce_stop_for_best="True",
                consistency_level="Strong",
                then=lambda answer: list(map(dict, answer)),
            )
            if not page:
                return
            yield page
            after = page[-1]["key"]

    async def count(self, expression: str) -> int:
        """How many rows an expression finds; all for an empty one."""
        if expression and self._connection.is_lite:
            # milvus-lite counts by reading every field of what it finds; the keys alone are cheaper.
            found = await self._connection.call(
                "count", "query", self.layout.name, filter=expression, output_fields=["key"]
            )
            return len(found)
        answer = await self._connection.call(
            "count",
            "query",
            self.layout.name,
            filter=expression,
            output_fields=["count(*)"],
            consistency_level="Strong",
        )
        return int(answer[0]["count(*)"])

    # -- vectors

    async def embeddings(
        self, operation: str, keys: Sequence[str], components: Sequence[Component]
    ) -> M3Embeddings:
        """What is stored for these keys, in their order; keys may repeat.

        Raises:
            NotFound: A key is not stored.
        """
        columns, rows = await self._columns(operation, keys, components)
        multivectors = None
        if "multivector" in components:
            unpacked: dict[str, Float32] = {}
            async for some, matrices in self._multivectors(operation, rows):
                unpacked |= dict(zip(some, matrices, strict=True))
            dimension = self.layout.schema.model.dimension
            multivectors = MultiVectors.from_list([unpacked[key] for key in keys], dimension)
        return embeddings_of(self.layout, [rows[key] for key in keys], columns, multivectors)

    async def _columns(
        self, operation: str, keys: Sequence[str], components: Sequence[Component]
    ) -> tuple[list[Component], dict[str, Row]]:
        """The components that are fields of a row, and rows with them and what ``_multivectors`` needs."""
        columns: list[Component] = [name for name in components if name != "multivector"]
        fields: list[str] = list(columns)
        if "multivector" in components:
            # Few entities come whole; of many it must be known first how large they are.
            fields += ["rows", *(_PACKED if len(keys) <= _FETCHED_WHOLE else ())]
        rows = await self.rows(operation, keys, fields)
        _check_found(keys, rows, operation)
        return columns, rows

    async def _multivectors(
        self, operation: str, rows: Mapping[str, Row]
    ) -> AsyncIterator[tuple[list[str], MultiVectors]]:
        """The multi-vectors of rows from ``_columns``, in answers of bounded size.

        Raises:
            NotFound: A key is not stored any more.
            Corrupt: What is stored is no multi-vector.
        """
        schema = self.layout.schema
        width = schema.model.dimension * (2 if schema.storage.multivector_dtype == "float16" else 4)

        def answer_bytes(key: str) -> int:
            return int(rows[key]["rows"]) * width * 4 // 3

        for some in by_bytes(list(rows), answer_bytes, _ANSWER_BYTES):
            whole = all("parts" in rows[key] for key in some)
            packed = await self._packed(operation, some, {key: rows[key] for key in some} if whole else None)
            pieces = [packed[key] for key in some]
            try:
                multivectors = await anyio.to_thread.run_sync(unpack, pieces, schema.model.dimension)
            except ValueError as error:
                raise _corrupt(some[0], f"or one beside it: {error}", operation) from error
            yield some, multivectors

    async def _packed(
        self, operation: str, keys: Sequence[str], rows: Mapping[str, Row] | None
    ) -> dict[str, list[str]]:
        """The elements of each key's multi-vector; ``rows`` may hold the fields ``_PACKED`` already."""
        for _ in range(3):
            if rows is None:
                rows = await self.rows(operation, keys, _PACKED)
            _check_found(keys, rows, operation)
            wanted = [part for row in rows.values() for part in part_keys(row)]
            parts = (
                await self.rows(operation, wanted, ["multivector"], self.layout.parts_name) if wanted else {}
            )
            if len(parts) == len(wanted):
                return {
                    key: [
                        *row["multivector"],
                        *(piece for part in part_keys(row) for piece in parts[part]["multivector"]),
                    ]
                    for key, row in rows.items()
                }
            # Replaced between the two requests: its new version has other parts.
            rows = None
        raise _corrupt(next(iter(keys)), "parts of its multi-vector are missing", operation)

    # -- searches

    async def search(
        self, component: Component, query: M3Embeddings, limit: int, expression: str
    ) -> dict[str, float]:
        """Scores by key, best first, of the best that an expression finds; dense may be approximate in who."""
        if component == "sparse":
            assert query.sparse is not None
            data: Any = sparse_of(query.sparse, 0)
            if not data:
                return {}
        else:
            assert query.dense is not None
            data = query.dense[0]
        params: dict[str, Any] = {"metric_type": "IP"}
        if component == "dense" and self.layout.dense_index == "HNSW":
            params["params"] = {"ef": min(max(2 * limit, 128), _MOST_EF)}
        found: dict[str, float] = await self._connection.call(
            "search",
            "search",
            self.layout.name,
            data=[data],
            anns_field=component,
            filter=expression,
            limit=limit,
            search_params=params,
            output_fields=["key"],
            consistency_level="Strong",
            then=lambda answer: {hit["key"]: hit["distance"] for hit in answer[0]},
        )
        return found

    async def scan_for(
        self, component: Component, query: M3Embeddings, limit: int, expression: str
    ) -> dict[str, float]:
        """The same from every stored vector, read page by page: exact where the index is not, and slow."""
        found: dict[str, float] = {}
        async for page in self.pages("search", expression or EVERYTHING, ["key", component]):
            scores = score(component, query, embeddings_of(self.layout, page, [component]))
            found |= {
                row["key"]: float(value)
                for row, value in zip(page, scores, strict=True)
                if component == "dense" or value > 0
            }
            keys = list(found)
            best = rank([id_of(key) for key in keys], list(found.values()), limit)
            found = {keys[i]: found[keys[i]] for i in best}
        return found

    async def searched_scores(
        self, component: Component, query: M3Embeddings, keys: Sequence[str]
    ) -> Float32:
        """One component's score of each key, from the store's own search among these keys.

        Raises:
            NotFound: A key is not stored.
        """
        found: dict[str, float] = {}
        for some in by_count(list(dict.fromkeys(keys)), _KEYS_AT_ONCE):
            found |= await self.search(component, query, len(some), keys_in(some))
        left = [key for key in dict.fromkeys(keys) if key not in found]
        if left and component == "dense":
            # An approximate index may miss some even among so few.
            scores = await self.fetched_scores(["dense"], query, left)
            found |= dict(zip(left, scores["dense"].tolist(), strict=True))
        elif left:
            # No shared token, or not stored.
            _check_found(left, await self.rows("score", left, []), "score")
        return np.array([found.get(key, 0.0) for key in keys], dtype=np.float32)

    async def fetched_scores(
        self, components: Sequence[Component], query: M3Embeddings, keys: Sequence[str]
    ) -> dict[Component, Float32]:
        """Scores of each key from its fetched vectors.

        Raises:
            NotFound: A key is not stored.
        """
        columns, rows = await self._columns("score", keys, components)
        position = {key: i for i, key in enumerate(rows)}
        order = [position[key] for key in keys]
        result: dict[Component, Float32] = {}
        if columns:

            def score_columns() -> dict[Component, Float32]:
                stored = embeddings_of(self.layout, list(rows.values()), columns)
                return {name: score(name, query, stored)[order] for name in columns}

            result = await anyio.to_thread.run_sync(score_columns)
        if "multivector" in components:
            if self.layout.schema.storage.multivector_dtype == "float16":
                query = as_float16(query)
            scores = np.empty(len(rows), dtype=np.float32)
            async for some, multivectors in self._multivectors("score", rows):
                documents = M3Embeddings(multivectors=multivectors)
                part = await anyio.to_thread.run_sync(score, "multivector", query, documents)
                scores[[position[key] for key in some]] = part
            result["multivector"] = scores[order]
        return result


def _check_found(keys: Sequence[str], found: Mapping[str, object], operation: str) -> None:
    for key in keys:
        if key not in found:
            raise NotFound(f"no document {id_of(key)!r}.", backend=BACKEND, operation=operation)


def _corrupt(key: str, why: str, operation: str) -> Corrupt:
    return Corrupt(
        f"document {id_of(key)!r}: {why}.\n  Index it again.", backend=BACKEND, operation=operation
    )
