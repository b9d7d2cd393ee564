"""The in-memory store: plain numpy over all documents, and the reference for all other backends.

The data exists as long as the backend object. Each ``connect("memory:")`` makes a new, empty store, and
``close`` deletes its content.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from m3_connectors.backends.base import Backend, Schema
from m3_connectors.backends.capabilities import Capability, refuse_unknown, require
from m3_connectors.backends.checks import check_found, reduced
from m3_connectors.backends.listing import CollectionInfo
from m3_connectors.backends.store import Store
from m3_connectors.documents import Document, canonical_metadata
from m3_connectors.embeddings import Component, Float32, M3Embeddings
from m3_connectors.errors import AlreadyExists, CollectionNotFound
from m3_connectors.filters import Filter, matches
from m3_connectors.methods import rank
from m3_connectors.scoring import multivector_scores_of_pairs, score
from m3_connectors.search import Candidates, Key, Lists

STORE = Store(
    name="memory",
    schemes=("memory",),
    adapter="m3_connectors.backends.memory:MemoryBackend",
    examples={"memory:": "memory:"},
)


class MemoryBackend(Backend):
    """Documents and embeddings in dictionaries; every search scores all of them."""

    name: ClassVar[str] = "memory"
    capabilities = frozenset({Capability.EXACT, Capability.COMPACT, Capability.ADD_COMPONENT})
    settles_ties = True

    def __init__(self, collection: str = "documents") -> None:
        self.collection = collection
        self._created: Schema | None = None
        self._documents: dict[str, Document] = {}
        self._embeddings: dict[str, M3Embeddings] = {}
        self._columns: M3Embeddings | None = None
        """Dense and sparse of ``_embeddings`` in their order; computed on first use, discarded on a write."""

    @classmethod
    def from_url(cls, url: str, collection: str, options: Mapping[str, Any]) -> MemoryBackend:
        """Return the backend of ``memory:``, which takes no options.

        Raises:
            Unsupported: The URL has a path, or the option belongs to other stores.
            InvalidInput: No store has the option.
        """
        if url != "memory:":
            require("memory:", cls.capabilities, [Capability.PERSISTENT])
        refuse_unknown("memory:", cls.capabilities, options)
        return cls(collection)

    async def collections(self) -> list[CollectionInfo]:
        return [] if self._created is None else [CollectionInfo(self.collection, self._created)]

    async def _create(self, schema: Schema) -> None:
        if self._created is not None:
            raise AlreadyExists(
                f'collection "{self.collection}" already exists.\n  Open it, or choose another name.',
                backend=self.name,
                operation="create",
            )
        self._created = schema

    async def _open(self) -> Schema:
        if self._created is None:
            raise CollectionNotFound(
                f'there is no collection "{self.collection}".\n'
                "  Create it; a memory: store keeps nothing after close().",
                backend=self.name,
                operation="open",
            )
        return self._created

    async def _drop(self) -> None:
        self._created = None
        self._documents.clear()
        self._embeddings.clear()
        self._columns = None

    async def close(self) -> None:
        await self._drop()
        self._schema = None

    async def _upsert(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        for document, row in zip(documents, self.schema.precision.rounded(embeddings), strict=True):
            metadata = canonical_metadata(document.metadata)
            self._documents[document.id] = Document(document.id, document.text, metadata)
            self._embeddings[document.id] = row
        self._columns = None

    async def _record(self, schema: Schema) -> None:
        self._created = schema
        self._columns = None

    async def _lacking(self, component: Component, limit: int) -> list[Document]:
        without = (id for id, row in self._embeddings.items() if component not in row.components)
        found = await self._fetch(list(itertools.islice(without, limit)))
        return [document for document in found if document is not None]

    async def _rewrite(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        stored = await self._fetch([document.id for document in documents])
        same = [i for i, there in enumerate(stored) if there == documents[i]]
        if same:
            kept = M3Embeddings.concatenate([embeddings[i] for i in same])
            await self._upsert([documents[i] for i in same], kept)

    async def _delete(self, ids: Sequence[str]) -> int:
        there = [id for id in dict.fromkeys(ids) if id in self._documents]
        for id in there:
            del self._documents[id], self._embeddings[id]
        self._columns = None
        return len(there)

    async def _delete_where(self, filter: Filter) -> int:
        passing = self._passing(filter)
        return await self._delete(passing)

    async def _fetch(self, ids: Sequence[str]) -> list[Document | None]:
        found = (self._documents.get(id) for id in ids)
        return [d and Document(d.id, d.text, canonical_metadata(d.metadata)) for d in found]

    async def _present(self, ids: Sequence[str]) -> set[str]:
        return {id for id in ids if id in self._documents}

    async def _vectors(self, ids: Sequence[str]) -> M3Embeddings:
        check_found(ids, ids, self._embeddings, self.name, "vectors")
        return self._joined([self._embeddings[id] for id in ids])

    async def _count(self, filter: Filter | None) -> int:
        return len(self._passing(filter))

    async def scan_ids(self) -> AsyncIterator[str]:
        self._check_open()
        for id in list(self._documents):
            yield id

    async def _passing_ids(self, filter: Filter) -> AsyncIterator[str]:
        for id in self._passing(filter):
            yield id

    async def lists(self, ask: Lists) -> Candidates:
        passing = self._passing(ask.filter)
        found: dict[Component, tuple[list[str], Float32]] = {}
        for component, depth in ask.depths.items():
            ids = passing
            if component == "sparse":
                sharing = self._sharing_a_token(ask.query)
                ids = [id for id in passing if id in sharing]
            scores = self._scores(component, ask.query, ids)
            best = rank(ids, scores, depth)
            found[component] = [ids[i] for i in best], scores[best]
        return Candidates.union(found)

    async def complete(
        self,
        query: M3Embeddings,
        found: Candidates,
        components: Sequence[Component],
        *,
        documents: bool = False,
    ) -> None:
        for component in components:
            stored = [id for id in found.missing(component) if id in self._embeddings]
            found.learn(component, stored, self._scores(component, query, stored))

    async def _score_many(
        self, component: Component, queries: M3Embeddings, ids: Sequence[Sequence[str]]
    ) -> list[Float32]:
        if component != "multivector":
            return await super()._score_many(component, queries, ids)
        for wanted in ids:
            check_found(wanted, wanted, self._embeddings, self.name, "score")
        return self._multivector_scores(queries, ids)

    def _multivector_scores(self, queries: M3Embeddings, ids: Sequence[Sequence[Key]]) -> list[Float32]:
        position: dict[Key, int] = {}
        wanted = [[position.setdefault(id, len(position)) for id in each] for each in ids]
        rows = [self._embeddings[str(id)].multivectors.rows for id in position]
        rounded = self.schema.precision.rounded_query(queries)
        return multivector_scores_of_pairs(list(rounded.multivectors), rows, wanted)

    def _scores(self, component: Component, query: M3Embeddings, ids: Sequence[Key]) -> Float32:
        if not ids:
            return np.empty(0, dtype=np.float32)
        if component == "multivector":
            return self._multivector_scores(query, [ids])[0]
        all_scores = score(component, query, self._all())
        position: dict[Key, int] = {id: i for i, id in enumerate(self._embeddings)}
        return all_scores[[position[id] for id in ids]]

    def _all(self) -> M3Embeddings:
        if self._columns is None:
            rows = [row.replace(multivectors=None) for row in self._embeddings.values()]
            self._columns = self._joined(rows)
        return self._columns

    def _joined(self, rows: Sequence[M3Embeddings]) -> M3Embeddings:
        # Some have a component that is still being added.
        return M3Embeddings.concatenate([reduced(row, self.schema.components) for row in rows])

    def _sharing_a_token(self, query: M3Embeddings) -> set[str]:
        if not self._embeddings:
            return set()
        documents = self._all().sparse
        shared = (documents != 0).astype(np.int64) @ (query.sparse != 0).astype(np.int64).T
        return {id for id, count in zip(self._embeddings, shared.toarray().reshape(-1), strict=True) if count}

    def _passing(self, filter: Filter | None) -> list[str]:
        self._check_open()
        return [id for id, document in self._documents.items() if matches(filter, document.metadata)]
