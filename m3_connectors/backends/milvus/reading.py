"""Read from one collection: rows by key, counts, pages, vectors and their exact scores."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import anyio
import anyio.to_thread
import numpy as np

from m3_connectors.backends.chunks import by_bytes, by_count
from m3_connectors.backends.milvus.connection import Connection
from m3_connectors.backends.milvus.errors import BACKEND, TooLarge
from m3_connectors.backends.milvus.layout import Layout
from m3_connectors.backends.milvus.naming import id_of, keys_in
from m3_connectors.backends.milvus.rows import embeddings_of, part_keys, unpack
from m3_connectors.backends.together import together
from m3_connectors.embeddings import Component, Float32, M3Embeddings
from m3_connectors.errors import Corrupt, DocumentNotFound
from m3_connectors.scoring import score

KEYS_AT_ONCE = 8_192
_ANSWER_BYTES = 4 * 2**20
"""Packed vectors in one response: 35 MB in eight responses took 60 ms, in one response 300 ms (milvus-lite
3.2.2)."""

_ANSWERS_AT_ONCE = 4
_SCORED_BYTES = 48 * 2**20
"""Packed vectors that are unpacked and scored together; one product per response would make the cores
wait."""

WHOLE = 16
"""This number of entities is read in one response whatever their size: each has at most a megabyte or two."""

_PACKED = ("rows", "multivector", "version", "parts")
_MOST_HINTS = 200_000
_PAGE = 1_000

Row = Mapping[str, Any]


class Reader:
    """Reads from the collection of a layout; all expressions come from ``filters`` and ``naming``."""

    def __init__(self, connection: Connection, layout: Layout) -> None:
        self.layout = layout
        self._connection = connection
        # One matrix product at a time: each uses all cores, and concurrent ones spend half of their time
        # waiting.
        self._scoring = anyio.CapacityLimiter(1)
        self._counts: dict[str, int] = {}

    # -- rows

    async def rows(
        self,
        operation: str,
        keys: Iterable[str],
        fields: Sequence[str],
        collection: str | None = None,
        at_once: int = KEYS_AT_ONCE,
    ) -> dict[str, Row]:
        """Return the stored rows of these keys, with ``key`` and the fields, ``at_once`` in one response."""
        found: dict[str, Row] = {}
        for some in by_count(list(dict.fromkeys(keys)), at_once):
            try:
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
            except TooLarge:
                if len(some) == 1:
                    raise
                found |= await self.rows(operation, some, fields, collection, (len(some) + 1) // 2)
        return found

    async def pages(
        self, operation: str, expression: str, fields: Sequence[str], collection: str | None = None
    ) -> AsyncIterator[Sequence[Row]]:
        """Yield all rows that an expression finds, a thousand at a time, in the order of their keys.

        The fields must include ``key``. pymilvus' own iterator waits forever for a server that hangs, and
        cannot continue after a failed request.
        """
        after, size = "", _PAGE
        while True:
            try:
                page: list[Row] = await self._connection.call(
                    operation,
                    "query",
                    collection or self.layout.name,
                    filter=f'key > "{after}" and ({expression})',
                    output_fields=list(fields),
                    limit=size,
                    # Like that iterator: these options make the server return the first keys, in order.
                    iterator="True",
                    reduce_stop_for_best="True",
                    consistency_level="Strong",
                    then=lambda answer: list(map(dict, answer)),
                )
            except TooLarge:
                if size == 1:
                    raise
                size = (size + 1) // 2
                continue
            if not page:
                return
            yield page
            after = page[-1]["key"]

    async def count(self, expression: str) -> int:
        """Return the number of rows that an expression finds; all rows for an empty one."""
        if expression and self._connection.is_lite:
            # milvus-lite counts by reading every field of the rows that it finds; reading the keys is
            # cheaper.
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
        """Return the stored vectors of these keys, in their order; keys may repeat.

        Raises:
            DocumentNotFound: A key is not stored.
        """
        found: dict[str, M3Embeddings] = {}
        for wave in await self._planned(operation, keys, components):
            for run in self._answers(wave):
                rows = await self.existing(operation, run, fields_of(components))
                async for some, vectors in self._vectors(operation, rows, components):
                    found.update((key, vectors[i]) for i, key in enumerate(some))
        return M3Embeddings.concatenate([found[key] for key in keys])

    async def fetched_scores(
        self, components: Sequence[Component], query: M3Embeddings, keys: Sequence[str]
    ) -> dict[Component, dict[str, np.float32]]:
        """Return scores by key from the fetched vectors, for the keys that are stored."""
        found: dict[Component, dict[str, np.float32]] = {name: {} for name in components}
        for wave in await self._planned("score", keys, components):
            answers = self._answers(wave) if "multivector" in components else [wave]
            rows: dict[str, Row] = {}

            async def part(keys: Sequence[str], rows: dict[str, Row] = rows) -> None:
                rows |= await self.rows("score", keys, fields_of(components))

            await together([functools.partial(part, run) for run in answers], _ANSWERS_AT_ONCE)
            for name, scores in (await self.scores_of("score", components, query, rows)).items():
                found[name].update(zip(rows, scores, strict=True))
        return found

    async def scores_of(
        self, operation: str, components: Sequence[Component], query: M3Embeddings, rows: Mapping[str, Row]
    ) -> dict[Component, Float32]:
        """Return the scores of rows that have the fields of these components, in the order of the rows."""
        query = self.layout.schema.storage.precision.rounded_query(query)
        parts: list[dict[Component, Float32]] = [{name: np.empty(0, np.float32) for name in components}]
        if components:
            async for _, vectors in self._vectors(operation, rows, components):
                parts.append(
                    await anyio.to_thread.run_sync(_scores, components, query, vectors, limiter=self._scoring)
                )
        return {name: np.concatenate([part[name] for part in parts]) for name in components}

    async def existing(self, operation: str, keys: Sequence[str], fields: Sequence[str]) -> dict[str, Row]:
        """Return the rows of keys that must be stored, in their order.

        Raises:
            DocumentNotFound: A key is not stored.
        """
        rows = await self.rows(operation, keys, fields)
        check_found(keys, rows, operation)
        return {key: rows[key] for key in keys}

    def note_rows(self, rows: Iterable[Row]) -> None:
        """Store the numbers of multi-vector rows; they only help to plan responses and may be outdated."""
        if len(self._counts) > _MOST_HINTS:
            self._counts.clear()
        self._counts.update((row["key"], int(row["rows"])) for row in rows)

    async def _planned(
        self, operation: str, keys: Sequence[str], components: Sequence[Component]
    ) -> list[Sequence[str]]:
        """Return the distinct keys in runs whose vectors are held in memory together."""
        distinct = list(dict.fromkeys(keys))
        if "multivector" not in components:
            return list(by_count(distinct, KEYS_AT_ONCE))
        unknown = [key for key in distinct if key not in self._counts]
        if len(unknown) > WHOLE:
            self.note_rows((await self.rows(operation, unknown, ["rows"])).values())
        return list(by_bytes(distinct, self._answer_bytes, _SCORED_BYTES))

    def _answers(self, keys: Sequence[str]) -> Iterator[Sequence[str]]:
        """Return the same in runs that are one response each."""
        return by_bytes(keys, self._answer_bytes, _ANSWER_BYTES)

    def _answer_bytes(self, key: str) -> int:
        schema = self.layout.schema
        row_bytes = schema.storage.precision.row_bytes(schema.model.dimension)
        return self._counts.get(key, 0) * row_bytes * 4 // 3

    async def _vectors(
        self, operation: str, rows: Mapping[str, Row], components: Sequence[Component]
    ) -> AsyncIterator[tuple[list[str], M3Embeddings]]:
        """Yield the vectors of rows with the fields of these components, in order, in pieces of limited size.

        Raises:
            DocumentNotFound: The document of a row is no longer stored.
            Corrupt: What is stored is not a multi-vector.
        """
        columns = [name for name in components if name != "multivector"]
        if "multivector" not in components:
            yield list(rows), embeddings_of(self.layout, list(rows.values()), columns)
            return
        self.note_rows(rows.values())
        for some in by_bytes(list(rows), self._answer_bytes, _SCORED_BYTES):
            chosen = [rows[key] for key in some]
            packed = await self._packed(operation, {key: rows[key] for key in some})

            def read(chosen: Any = chosen, packed: Any = packed) -> M3Embeddings:
                multivectors = unpack(packed, self.layout.schema.model.dimension)
                return embeddings_of(self.layout, chosen, columns, multivectors)

            try:
                yield some, await anyio.to_thread.run_sync(read)
            except ValueError as error:
                raise _corrupt(
                    some[0], f"its vectors, or those of a neighbour, are damaged: {error}", operation
                ) from error

    async def _packed(self, operation: str, rows: Mapping[str, Row]) -> list[list[str]]:
        """Return the elements of each row's multi-vector; long documents are read from their parts."""
        keys = list(rows)
        torn = ""
        for _ in range(3):
            wanted = [part for row in rows.values() for part in part_keys(row)]
            parts = (
                await self.rows(operation, wanted, ["multivector"], self.layout.parts_name) if wanted else {}
            )
            if len(parts) == len(wanted):
                return [
                    [
                        *row["multivector"],
                        *(piece for part in part_keys(row) for piece in parts[part]["multivector"]),
                    ]
                    for row in rows.values()
                ]
            torn = next(key for key, row in rows.items() if not parts.keys() >= set(part_keys(row)))
            # The document was replaced between the two requests: its new version has other parts.
            rows = await self.existing(operation, keys, _PACKED)
        raise _corrupt(torn, "parts of its multi-vector are missing", operation)


def fields_of(components: Sequence[Component]) -> list[str]:
    """Return the fields that the vectors of these components are stored in."""
    columns = [name for name in components if name != "multivector"]
    return [*columns, *(_PACKED if "multivector" in components else ())]


def _scores(
    components: Sequence[Component], query: M3Embeddings, vectors: M3Embeddings
) -> dict[Component, Float32]:
    return {name: score(name, query, vectors) for name in components}


def check_found(keys: Sequence[str], found: Mapping[str, object], operation: str) -> None:
    """Raise DocumentNotFound for the first key that was not found."""
    for key in keys:
        if key not in found:
            raise DocumentNotFound(
                f"there is no document {id_of(key)!r}.\n  Check the id, or add the document first.",
                backend=BACKEND,
                operation=operation,
            )


def _corrupt(key: str, why: str, operation: str) -> Corrupt:
    return Corrupt(
        f"document {id_of(key)!r} cannot be read: {why}.\n  Index it again.",
        backend=BACKEND,
        operation=operation,
    )
