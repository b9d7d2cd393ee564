"""The Milvus backend: one collection of documents, exact scores, in milvus-lite or on a server."""

from __future__ import annotations

import functools
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import anyio.to_thread
import numpy as np

from m3_connectors.backends.base import Backend, Known, Ranking, Schema, ScoredId, answers
from m3_connectors.backends.capabilities import Capability, ServerInfo, refuse_unknown
from m3_connectors.backends.endpoint import Endpoint
from m3_connectors.backends.milvus import collection as collections
from m3_connectors.backends.milvus import layout as layouts
from m3_connectors.backends.milvus.client import Connection
from m3_connectors.backends.milvus.errors import BACKEND
from m3_connectors.backends.milvus.filters import EVERYTHING, expression
from m3_connectors.backends.milvus.naming import id_of, key_of
from m3_connectors.backends.milvus.reading import WHOLE, Reader, fields_of
from m3_connectors.backends.milvus.rows import document_of, entities
from m3_connectors.backends.milvus.searching import Searcher
from m3_connectors.backends.milvus.server import nothing_there, server_info
from m3_connectors.backends.milvus.writing import Writer
from m3_connectors.backends.retry import Patience
from m3_connectors.backends.together import Shared, together
from m3_connectors.backends.urls import shown
from m3_connectors.documents import Document
from m3_connectors.embeddings import Component, Float32, M3Embeddings
from m3_connectors.errors import InvalidInput, NotFound
from m3_connectors.filters import Filter
from m3_connectors.methods import Method, fuse, rank

_PORT = 19_530
_OPTIONS = ("index", "max_row_bytes", "batch_bytes")
_EMBEDDED = frozenset(
    {
        Capability.PERSISTENT,
        Capability.EXACT,
        Capability.DEADLINES,
        Capability.DENSE_INDEX,
    }
)
"""What it does in this process."""

_TEXTS = ["text", "metadata"]
_DOCUMENTS_AT_ONCE = 256
"""Whole texts in one answer."""

_FETCHED_RATHER_THAN_SEARCHED = 64
"""Up to so many missing scores it is faster to fetch the vectors than to search among the ids."""


class MilvusBackend(Backend):
    """One collection in Milvus.

    Args:
        where: A server's endpoint, or the data directory of the embedded milvus-lite.
        collection: Its name.
        index: Dense index of a new collection. ``FLAT`` looks at every vector (exact, and what milvus-lite is given
            by default), ``HNSW`` is approximate in who is found (servers' default).
        max_row_bytes: Largest entity that the server takes; one row must fit a message of its log, 2 MiB with
            Pulsar. A longer document's multi-vector is stored in parts.
        batch_bytes: Largest request of a write.
    """

    name: ClassVar[str] = BACKEND
    capabilities = _EMBEDDED | {Capability.KEY, Capability.PASSWORD, Capability.AUTHORITY}

    def __init__(
        self,
        where: Endpoint | Path,
        collection: str = "documents",
        *,
        index: str | None = None,
        max_row_bytes: int = 1_500_000,
        batch_bytes: int = 16 * 2**20,
        patience: Patience | None = None,
    ) -> None:
        if index not in (None, *layouts.DENSE_INDEXES):
            raise InvalidInput(f"index is {index!r}: use one of {', '.join(layouts.DENSE_INDEXES)}.")
        for name, value in (("max_row_bytes", max_row_bytes), ("batch_bytes", batch_bytes)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 2**17:
                raise InvalidInput(f"{name} is {value!r}: give at least {2**17}.")
        self.collection = collection
        if isinstance(where, Path):
            self.capabilities = _EMBEDDED
        self._where = where
        self._index = index
        self._max_row_bytes = max_row_bytes
        self._batch_bytes = batch_bytes
        self._patience = patience or Patience()
        self._connected: Connection | None = None
        self._connecting: Shared[Connection] = Shared()
        self._reader: Reader | None = None
        self._searcher: Searcher | None = None
        self._writer: Writer | None = None

    @classmethod
    def from_url(cls, url: str, collection: str, options: Mapping[str, Any]) -> MilvusBackend:
        """The backend of ``milvus:PATH`` (embedded) or ``milvus+http(s)://HOST[:PORT][/DATABASE]``.

        Raises:
            InvalidInput: An unusable URL, or an unknown option.
            Unsupported: An option that only other stores take.
        """
        if urlsplit(url).scheme == "milvus":
            path = url.removeprefix("milvus:")
            if not path or path.startswith("//"):
                raise InvalidInput(
                    f"{shown(url)!r} names no data directory: use milvus:./data.db.\n"
                    f"  A server is milvus+http://HOST:{_PORT}."
                )
            left = dict(options)
            default = Patience()
            patience = Patience(
                left.pop("timeout_seconds", default.timeout_seconds),
                left.pop("attempts", default.attempts),
                left.pop("total_seconds", default.total_seconds),
            )
            refuse_unknown("milvus:FILE", _EMBEDDED, left, _OPTIONS)
            return cls(Path(path).expanduser(), collection, **left, patience=patience)
        endpoint, left = Endpoint.parse(
            url,
            options,
            default_port=_PORT,
            environment=os.environ,
            declared=cls.capabilities,
            own=_OPTIONS,
        )
        return cls(endpoint, collection, **left, patience=endpoint.patience)

    async def server(self) -> ServerInfo:
        if self._is_nowhere():
            return nothing_there(self._where)
        return await server_info(await self._connection(), self._where, self.collection)

    # -- the collection

    async def _create(self, schema: Schema) -> None:
        connection = await self._connection()
        await collections.create(connection, self.collection, schema, self._new_index(connection))
        # Read back: milvus-lite drops what it does not know without a word.
        await self._open()

    async def _open(self) -> Schema:
        if self._is_nowhere():
            # Only a creation makes a data directory: a mistyped path is left as it is.
            raise NotFound(f'no collection "{self.collection}".', backend=self.name, operation="open")
        connection = await self._connection()
        layout = await collections.opened(connection, self.collection, self._new_index(connection))
        self._reader = Reader(connection, layout)
        self._searcher = Searcher(connection, self._reader)
        self._writer = Writer(connection, layout, self._reader, self._batch_bytes)
        return layout.schema

    def _new_index(self, connection: Connection) -> str:
        return self._index or ("FLAT" if connection.is_lite else "HNSW")

    async def _drop(self) -> None:
        await collections.drop(await self._connection(), self.collection)
        self._reader = self._searcher = self._writer = None

    async def close(self) -> None:
        connection, self._connected = self._connected, None
        writer, self._writer = self._writer, None
        self._reader = self._searcher = self._schema = None
        if connection is not None:
            try:
                if writer is not None:
                    await writer.settle()
            finally:
                await connection.close()

    async def _connection(self) -> Connection:
        return self._connected or await self._connecting.of(self._connect)

    async def _connect(self) -> Connection:
        if isinstance(self._where, Endpoint):
            self._connected = await Connection.to(self._where)
        else:
            self._connected = await Connection.embedded(self._where, self._patience)
        return self._connected

    def _is_nowhere(self) -> bool:
        """Whether the data directory of the embedded engine is not there."""
        return self._connected is None and isinstance(self._where, Path) and not self._where.exists()

    @property
    def _reads(self) -> Reader:
        self._check_open()
        assert self._reader is not None
        return self._reader

    @property
    def _searches(self) -> Searcher:
        self._check_open()
        assert self._searcher is not None
        return self._searcher

    @property
    def _writes(self) -> Writer:
        self._check_open()
        assert self._writer is not None
        return self._writer

    # -- writing

    async def _upsert(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        layout = self._reads.layout
        packed = await anyio.to_thread.run_sync(entities, layout, documents, embeddings, self._max_row_bytes)
        await self._writes.upsert(packed)

    async def _delete(self, ids: Sequence[str]) -> int:
        return await self._writes.delete(list(dict.fromkeys(map(key_of, ids))))

    async def _delete_where(self, filter: Filter) -> int:
        return await self._writes.delete_where(self._expression(filter))

    async def optimize(self) -> None:
        """Flush, wait until a server's indexes hold everything, and remove parts that no document names."""
        await self._writes.optimize()

    # -- reading

    async def _fetch(self, ids: Sequence[str]) -> list[Document | None]:
        keys = [key_of(id) for id in ids]
        rows = await self._reads.rows("fetch", keys, _TEXTS, at_once=_DOCUMENTS_AT_ONCE)
        found = {key: document_of(row) for key, row in rows.items()}
        return [found.get(key) for key in keys]

    async def _vectors(self, ids: Sequence[str]) -> M3Embeddings:
        return await self._reads.embeddings("vectors", [key_of(id) for id in ids], self.schema.components)

    async def _count(self, filter: Filter | None) -> int:
        return await self._reads.count(self._expression(filter))

    async def scan_ids(self) -> AsyncIterator[str]:
        async for page in self._reads.pages("scan", EVERYTHING, ["key"]):
            for row in page:
                yield id_of(row["key"])

    # -- ranking

    async def _candidates(
        self, component: Component, query: M3Embeddings, limit: int, filter: Filter | None, exact: bool
    ) -> Ranking:
        reads = self._reads
        whole = limit > self._searches.most_results or (
            component == "dense" and exact and not reads.layout.exact_dense
        )
        find = self._searches.scan_for if whole else self._searches.search
        found = await find(component, query, limit, self._expression(filter))
        ids = [id_of(key) for key in found]
        scores = np.fromiter(found.values(), dtype=np.float32, count=len(found))
        best = rank(ids, scores, limit)
        return Ranking([ids[i] for i in best], scores[best])

    async def _score(self, component: Component, query: M3Embeddings, ids: Sequence[str]) -> Float32:
        scores = (await self._scores({component: ids}, query))[component]
        return np.array([scores[id] for id in ids], dtype=np.float32)

    async def _search(
        self, query: M3Embeddings, method: Method, k: int, filter: Filter | None, exact: bool
    ) -> list[ScoredId]:
        if k <= WHOLE and method.is_one_list:
            scans = exact and "dense" in method.candidates and not self._reads.layout.exact_dense
            found = None if scans else await self._head(query, method, k, filter)
            if found is not None:
                return found
        return await super()._search(query, method, k, filter, exact)

    async def _head(
        self, query: M3Embeddings, method: Method, k: int, filter: Filter | None
    ) -> list[ScoredId] | None:
        """The answer of one list that is ranked by its own score: its first k, with all that a hit shows.

        One request; None where the cut goes through equal scores, so that ids decide among more than these.
        """
        reads = self._reads
        ((component, depth),) = method.candidates.items()
        rest = self._uncounted(query, method)
        hits = await self._searches.hits(
            component, query, k + 1, self._expression(filter), [*_TEXTS, *fields_of(rest)], depth
        )
        if len(hits) > k and hits[k - 1]["distance"] == hits[k]["distance"]:
            return None
        rows = {hit["key"]: hit for hit in hits[:k]}
        scores = await reads.scores_of("search", rest, query, rows)
        scores[component] = np.array([row["distance"] for row in rows.values()], dtype=np.float32)
        documents = {id_of(key): document_of(row) for key, row in rows.items()}
        ids, fused = list(documents), fuse(scores, method.weights)
        best = rank(ids, fused, k)
        shown = {name: values[best] for name, values in scores.items()}
        return answers([ids[i] for i in best], fused[best], shown, documents)

    async def _propose(
        self, query: M3Embeddings, method: Method, filter: Filter | None, exact: bool
    ) -> tuple[list[str], Known]:
        """The dense list's hits bring their sparse vectors, and how large their multi-vectors are."""
        scans = exact and not self._reads.layout.exact_dense
        if scans or max(method.candidates.values()) > self._searches.most_results:
            return await super()._propose(query, method, filter, exact)
        fields = {"dense": ["sparse"] if "sparse" in method.scored else [], "sparse": []}
        if "multivector" in method.scored:
            fields = {name: [*own, "rows"] for name, own in fields.items()}

        async def listed(component: Component) -> list[dict[str, Any]]:
            depth, expression = method.candidates[component], self._expression(filter)
            return await self._searches.hits(component, query, depth, expression, fields[component])

        components = list(method.candidates)
        lists = await together([functools.partial(listed, name) for name in components])
        known: Known = {}
        for component, hits in zip(components, lists, strict=True):
            ids = [id_of(hit["key"]) for hit in hits]
            distances = np.array([hit["distance"] for hit in hits], dtype=np.float32)
            known.setdefault(component, {}).update(zip(ids, distances, strict=True))
            if "rows" in fields[component]:
                self._reads.note_rows(hits)
            if "sparse" in fields[component]:
                rows = {hit["key"]: hit for hit in hits}
                exact_scores = (await self._reads.scores_of("search", ["sparse"], query, rows))["sparse"]
                known.setdefault("sparse", {}).update(zip(ids, exact_scores, strict=True))
        return list(dict.fromkeys(id for scores in known.values() for id in scores)), known

    async def _inform(
        self, components: Sequence[Component], query: M3Embeddings, ids: Sequence[str], known: Known
    ) -> tuple[dict[Component, Float32], Mapping[str, Document]]:
        """Of few hits, what is missing and their documents in one request."""
        missing = [name for name in components if any(id not in known.get(name, {}) for id in ids)]
        if not 0 < len(ids) <= WHOLE:
            return await super()._inform(components, query, ids, known)
        rows = await self._reads.existing(
            "search", [key_of(id) for id in ids], [*_TEXTS, *fields_of(missing)]
        )
        found = await self._reads.scores_of("search", missing, query, rows)
        known = known | {name: dict(zip(ids, scores, strict=True)) for name, scores in found.items()}
        documents = {id: document_of(row) for id, row in zip(ids, rows.values(), strict=True)}
        return await self._complete(components, query, ids, known), documents

    async def _complete(
        self, components: Sequence[Component], query: M3Embeddings, ids: Sequence[str], known: Known
    ) -> dict[Component, Float32]:
        missing = {name: [id for id in ids if id not in known.get(name, {})] for name in components}
        found = await self._scores({name: left for name, left in missing.items() if left}, query)

        def column(name: Component) -> Float32:
            scores = {**known.get(name, {}), **found.get(name, {})}
            return np.array([scores[id] for id in ids], dtype=np.float32)

        return {name: column(name) for name in components}

    async def _scores(
        self, missing: Mapping[Component, Sequence[str]], query: M3Embeddings
    ) -> dict[Component, dict[str, np.float32]]:
        """Scores by id of the ids that each component misses.

        Multi-vectors must be fetched, and of few documents everything is fetched: with all that is missing in one
        request. Else the store is asked to search among the ids.
        """
        reads = self._reads
        union = list(dict.fromkeys(id for ids in missing.values() for id in ids))
        if "multivector" in missing or len(union) <= _FETCHED_RATHER_THAN_SEARCHED:
            fetched = await reads.fetched_scores(list(missing), query, [key_of(id) for id in union])
            return {name: dict(zip(union, scores, strict=True)) for name, scores in fetched.items()}

        async def searched(name: Component) -> Float32:
            return await self._searches.searched_scores(name, query, [key_of(id) for id in missing[name]])

        scores = await together([functools.partial(searched, name) for name in missing])
        return {
            name: dict(zip(missing[name], part, strict=True))
            for name, part in zip(missing, scores, strict=True)
        }

    def _expression(self, filter: Filter | None) -> str:
        return expression(filter, terms_as_array=self._reads.layout.terms_as_array)
