"""Stores that keep vectors as bytes: vectors are fetched within a bound, and scored in this process.

A document whose multi-vector is too large for one row is stored in versioned parts. A new version writes its parts
under new names before the row that names them, and only then removes the old parts, so a reader that finds a part
missing reads the row again.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Awaitable, Callable, Container, Hashable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import anyio
import anyio.to_thread
import numpy as np

from m3_connectors.backends.base import Backend, Candidates, Lists, Schema
from m3_connectors.backends.blobs import multivector_bytes
from m3_connectors.backends.checks import check_found
from m3_connectors.backends.chunks import by_bytes, by_count
from m3_connectors.backends.together import together
from m3_connectors.cores import usable_cores
from m3_connectors.documents import Document
from m3_connectors.embeddings import Component, Float32, M3Embeddings
from m3_connectors.errors import Corrupt
from m3_connectors.maxsim import one_core
from m3_connectors.scoring import score

T = TypeVar("T")

Row = Mapping[str, Any]
"""What a store returns for one document: its fields, or a hit with them."""

Known = Mapping[Component, Mapping[str, float | np.float32]]
"""Scores by component and key, of the documents that are stored."""

ORPHANED_SECONDS = 3600.0
"""Parts of this age that no document refers to come from a failed call; younger ones may belong to a running
call."""

WHOLE = 16
"""Up to this number, documents are read with their texts and vectors in one response, whatever their size."""

_HELD_BYTES = 48 * 2**20
"""Packed vectors that are held in memory together, in responses that arrive or are used."""

_KEYS_TOGETHER = 10_000
"""Keys whose rows are held together, where the sizes of other vectors than multi-vectors are not known."""

_MOST_HINTS = 200_000


class VectorReader(abc.ABC):
    """Reads the vectors of one collection and scores them; each store says how its rows are read."""

    backend: ClassVar[str]
    answer_bytes: ClassVar[int]
    """Packed vectors in one response."""
    answers_at_once: ClassVar[int]
    keys_at_once: ClassVar[int]
    row_base_bytes: ClassVar[int] = 0
    """The assumed size of a document's other values in a response."""
    unplanned: ClassVar[int] = 0
    """Up to this number of documents of unknown size are read without asking for their sizes first."""
    pauses_seconds: ClassVar[tuple[float, ...]] = (0.0, 0.0)
    """The pauses before a document with missing parts is read again."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.most_rows = 0
        # Each uses one core; more at the same time would only wait for each other.
        self._scoring = anyio.CapacityLimiter(usable_cores())
        self._counts: dict[str, int] = {}
        """The number of multi-vector rows by key, where known; it only helps to plan responses and may be
        outdated."""

    # -- the store's part

    @abc.abstractmethod
    async def stored(
        self, operation: str, keys: Sequence[str], components: Sequence[Component]
    ) -> dict[str, Row]:
        """Return the rows of the keys that are stored, with the vectors of these components, in one response."""

    @abc.abstractmethod
    async def shown(
        self, components: Sequence[Component], query: M3Embeddings, keys: Sequence[str]
    ) -> tuple[Known, dict[str, Document]]:
        """Return scores and documents of at most ``WHOLE`` keys, in one request where that is possible."""

    @abc.abstractmethod
    def columns(self, rows: Sequence[Row], components: Sequence[Component]) -> M3Embeddings:
        """Return the vectors of rows, dense or sparse or both. Raises Corrupt."""

    @abc.abstractmethod
    def packed(self, row: Row) -> Sequence[bytes]:
        """Return the blobs of a complete row's multi-vector, in order. Raises KeyError and ValueError."""

    @abc.abstractmethod
    def carries(self, component: Component, row: Row) -> bool:
        """Whether a row of a list includes the vectors of a component."""

    @abc.abstractmethod
    def document(self, row: Row) -> Document | None:
        """Return the document of a row of a list, if it is included."""

    @abc.abstractmethod
    async def _counted(self, operation: str, keys: Sequence[str]) -> dict[str, Row]:
        """Return rows with the number of their multi-vector rows only."""

    @abc.abstractmethod
    def _count(self, row: Row) -> int | None:
        """Return the number of multi-vector rows, if the row includes it."""

    @abc.abstractmethod
    def _part_names(self, row: Row) -> Sequence[str]:
        """Return the names of the parts of a row; usually none."""

    @abc.abstractmethod
    async def _parts(self, operation: str, names: Sequence[str]) -> dict[str, list[Any]]:
        """Return the packed vectors of the parts that are stored, by name."""

    @abc.abstractmethod
    def _joined(self, row: Row, packed: list[Any]) -> Row:
        """Return the row with the packed vectors of its parts, which ``_part_names`` then no longer names."""

    def id_of(self, key: str) -> str:
        """Return the id of a key."""
        return key

    # -- vectors and scores

    async def embeddings(self, keys: Sequence[str]) -> M3Embeddings:
        """Return all stored vectors of these keys, in their order; keys may repeat.

        Raises:
            DocumentNotFound: A key is not stored.
        """
        components, distinct = self.schema.components, list(dict.fromkeys(keys))

        async def each(rows: Mapping[str, Row]) -> dict[str, M3Embeddings]:
            vectors = await anyio.to_thread.run_sync(self._decoded, rows, components)
            return {key: vectors[i] for i, key in enumerate(rows)}

        answers = await self._answers("vectors", distinct, components, each, all_stored=True)
        found = {key: vectors for answer in answers for key, vectors in answer.items()}
        self._check_found(keys, found)
        return M3Embeddings.concatenate([found[key] for key in keys])

    def _check_found(self, keys: Sequence[str], found: Container[Hashable]) -> None:
        check_found([self.id_of(key) for key in keys], keys, found, self.backend, "vectors")

    async def fetched_scores(
        self, components: Sequence[Component], query: M3Embeddings, keys: Sequence[str]
    ) -> Known:
        """Return the scores of distinct keys, with one read of their vectors for all components."""
        return await self._scores("score", components, query, keys)

    async def scores_of(
        self, operation: str, components: Sequence[Component], query: M3Embeddings, rows: Mapping[str, Row]
    ) -> Known:
        """Return the scores of rows that ``carry`` these components; long documents are read from their parts."""
        self.note_rows(rows)
        return await self._scores(operation, components, query, list(rows), rows) if components else {}

    async def _scores(
        self,
        operation: str,
        components: Sequence[Component],
        query: M3Embeddings,
        keys: Sequence[str],
        there: Mapping[str, Row] | None = None,
    ) -> Known:
        async def scored(rows: Mapping[str, Row]) -> Known:
            scores = await self.scored(components, query, rows)
            return {name: dict(zip(rows, scores[name], strict=True)) for name in components}

        answers = await self._answers(operation, keys, components, scored, there)
        return {
            name: {key: value for answer in answers for key, value in answer[name].items()}
            for name in components
        }

    async def scored(
        self, components: Sequence[Component], query: M3Embeddings, rows: Mapping[str, Row]
    ) -> dict[Component, Float32]:
        """Return the scores of complete rows, float32 ``[rows]``."""

        def scores(name: Component) -> Float32:
            if name == "multivector":
                with one_core():
                    return self.schema.precision.scores(query.multivectors.rows, self._encoded(rows))
            return score(name, query, self.columns(list(rows.values()), [name]))

        limiter = self._scoring if "multivector" in components else None
        return await anyio.to_thread.run_sync(
            lambda: {name: scores(name) for name in components}, limiter=limiter
        )

    def _decoded(self, rows: Mapping[str, Row], components: Sequence[Component]) -> M3Embeddings:
        vectors = self.columns(list(rows.values()), [name for name in components if name != "multivector"])
        if "multivector" not in components:
            return vectors
        schema = self.schema
        rows_of_all = schema.precision.decode_documents(self._encoded(rows), schema.model.dimension)
        return vectors.replace(multivectors=rows_of_all)

    def _encoded(self, rows: Mapping[str, Row]) -> list[bytes | memoryview]:
        """Return the encoded multi-vectors of complete rows.

        Raises:
            Corrupt: One cannot be read, or is of another precision or width than the collection's.
        """
        found: list[bytes | memoryview] = []
        for key, row in rows.items():
            try:
                parts = multivector_bytes(
                    self.packed(row), self.schema.precision, self.schema.model.dimension
                )
            except (KeyError, ValueError) as error:
                raise Corrupt(
                    f"the multi-vector of document {self.id_of(key)!r} cannot be read: {error}.\n"
                    "  Another program may have written it. Index the document again.",
                    backend=self.backend,
                    operation="read",
                ) from error
            found.append(parts[0] if len(parts) == 1 else b"".join(parts))
        return found

    # -- answers

    async def _answers(
        self,
        operation: str,
        keys: Sequence[str],
        components: Sequence[Component],
        use: Callable[[Mapping[str, Row]], Awaitable[T]],
        there: Mapping[str, Row] | None = None,
        *,
        all_stored: bool = False,
    ) -> list[T]:
        """Use the rows of distinct keys response by response, while later ones arrive; return the results in order.

        Args:
            operation: The operation, for errors.
            keys: The keys.
            components: The components whose vectors are used.
            use: Receives complete rows by key, without those of documents that are not stored.
            there: The rows, if they need not be read.
            all_stored: Whether a key that is not stored is an error; nothing more is read then.
        """
        runs = await self.runs(operation, keys, components)

        async def stored(some: Sequence[str]) -> Mapping[str, Row]:
            return await self.stored(operation, some, components)

        async def one(run: Sequence[str]) -> T:
            rows = await stored(run) if there is None else {key: there[key] for key in run}
            if all_stored:
                self._check_found(run, rows)
            self.note_rows(rows)
            return await use(await self.whole(operation, rows, stored))

        largest = max((self._held_bytes(components, run) for run in runs), default=1)
        at_once = max(1, min(self.answers_at_once, _HELD_BYTES // largest))
        return await together([functools.partial(one, run) for run in runs], at_once)

    async def runs(
        self, operation: str, keys: Sequence[str], components: Sequence[Component]
    ) -> list[Sequence[str]]:
        """Return distinct keys in runs that are one response each."""
        if "multivector" in components:
            unknown = [key for key in keys if key not in self._counts]
            if len(unknown) > self.unplanned:
                self.note_rows(await self._counted(operation, unknown))
        size = functools.partial(self._size, components)
        runs = by_bytes(keys, size, self.answer_bytes)
        return [some for run in runs for some in by_count(run, self.keys_at_once)]

    def _size(self, components: Sequence[Component], key: str) -> int:
        rows = self._counts.get(key, 0) if "multivector" in components else 0
        return self.row_base_bytes + self.rows_bytes(rows)

    def rows_bytes(self, rows: int) -> int:
        """Return the size of a document's encoded rows."""
        return self.schema.precision.encoded_bytes(rows, self.schema.model.dimension)

    def _held_bytes(self, components: Sequence[Component], run: Sequence[str]) -> int:
        """Return the assumed size of the vectors of one response; those of small components are not known."""
        return max(
            sum(self._size(components, key) for key in run), len(run) * _HELD_BYTES // _KEYS_TOGETHER, 1
        )

    def note_rows(self, rows: Mapping[str, Row]) -> None:
        """Store the numbers of multi-vector rows, where these rows include them."""
        if len(self._counts) > _MOST_HINTS:
            self._counts.clear()
        seen = {key: count for key, row in rows.items() if (count := self._count(row)) is not None}
        self._counts |= seen
        self.most_rows = max(self.most_rows, *seen.values(), 0)

    async def whole(
        self,
        operation: str,
        rows: Mapping[str, Row],
        again: Callable[[Sequence[str]], Awaitable[Mapping[str, Row]]],
    ) -> Mapping[str, Row]:
        """Return rows together with their parts, without documents that were deleted during the read.

        Args:
            operation: The operation, for errors.
            rows: The rows.
            again: Reads the rows of these keys, and possibly others, again.

        Raises:
            Corrupt: Parts are missing, and not only because they were replaced during the read.
        """
        for pause in (*self.pauses_seconds, None):
            names = {key: some for key, row in rows.items() if (some := self._part_names(row))}
            if not names:
                return rows
            parts = await self._parts(operation, [name for some in names.values() for name in some])
            joined = {
                key: self._joined(rows[key], [text for name in some for text in parts[name]])
                for key, some in names.items()
                if parts.keys() >= set(some)
            }
            rows = {**rows, **joined}
            torn = [key for key in names if key not in joined]
            if not torn:
                return rows
            if pause is not None:
                # The documents were replaced between the two requests: their new versions have other parts.
                await anyio.sleep(pause)
                read = await again(torn)
                new = {key: read.get(key) for key in torn}
                rows = {key: row for key, old in rows.items() if (row := new.get(key, old)) is not None}
        raise Corrupt(
            f"parts of the multi-vectors of document {self.id_of(torn[0])!r} are missing.\n"
            "  Index the document again.",
            backend=self.backend,
            operation=operation,
        )


class FetchingBackend(Backend):
    """A store whose lists bring vectors, and whose missing scores are computed from fetched vectors."""

    @property
    @abc.abstractmethod
    def _reads(self) -> VectorReader:
        """The reader of the open collection."""

    @abc.abstractmethod
    async def _list(
        self, ask: Lists, component: Component
    ) -> tuple[Mapping[str, Row], Sequence[float] | Float32]:
        """Return one list: rows by key, best first, with the fields that the next requests need, and scores."""

    @abc.abstractmethod
    async def _scores(self, missing: Mapping[Component, Sequence[str]], query: M3Embeddings) -> Known:
        """Return the missing scores of the documents that are stored."""

    async def lists(self, ask: Lists) -> Candidates:
        lists = await together([functools.partial(self._list, ask, name) for name in ask.depths])
        by_name = dict(zip(ask.depths, lists, strict=True))
        found = Candidates.union({name: (list(rows), scores) for name, (rows, scores) in by_name.items()})
        for component, (rows, _) in by_name.items():
            if rows:
                await self._learn_rows(ask, component, rows, found)
        return found

    async def _learn_rows(
        self, ask: Lists, component: Component, rows: Mapping[str, Row], found: Candidates
    ) -> None:
        """Add what the rows of a list contain: scores, documents, and the sizes of multi-vectors."""
        reads = self._reads
        reads.note_rows(rows)
        documents = {
            key: document for key, row in rows.items() if (document := reads.document(row)) is not None
        }
        if len(documents) == len(rows):
            found.bring(documents)
        carried = [
            name
            for name in ask.welcome
            if name != component and all(reads.carries(name, row) for row in rows.values())
        ]
        for name, known in (await reads.scores_of("search", carried, ask.query, rows)).items():
            found.learn(name, list(known), list(known.values()))

    async def complete(
        self,
        query: M3Embeddings,
        found: Candidates,
        components: Sequence[Component],
        *,
        documents: bool = False,
    ) -> None:
        missing = {name: keys for name in components if (keys := found.missing(name))}
        if documents and len(found) <= WHOLE and any(key not in found.documents for key in found.keys):
            # For few documents, everything that is missing is read in one request.
            scores, there = await self._reads.shown(list(missing), query, found.keys)
            found.bring(there)
        else:
            scores = await self._scores(missing, query) if missing else {}
        for name, known in scores.items():
            found.learn(name, list(known), list(known.values()))
