"""Vectors that are fetched and scored in this process: what is held together, and documents replaced meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio
import numpy as np
import pytest

from m3_connectors.backends.base import Schema, Storage
from m3_connectors.backends.blobs import pack_multivector
from m3_connectors.backends.fetching import Known, Row, VectorReader
from m3_connectors.backends.precision import FLOAT16, FLOAT32
from m3_connectors.documents import Document
from m3_connectors.embeddings import Component, Float32, M3Embeddings, ModelInfo, MultiVectors
from m3_connectors.errors import Corrupt, NotFound
from m3_connectors.testing.conformance import runs

WIDTH = 4
MODEL = ModelInfo("fetching", None, WIDTH, 50, "vocabulary")
QUERY = M3Embeddings(
    dense=np.eye(1, WIDTH, dtype=np.float32),
    multivectors=MultiVectors.from_list([np.eye(2, WIDTH, dtype=np.float32)], WIDTH),
    model=MODEL,
)


class Reader(VectorReader):
    """Documents in a dict, each with a number that is its dense vector and its rows, and with named parts."""

    backend = "dict"
    answer_bytes = 64
    answers_at_once = 4
    keys_at_once = 8_000

    def __init__(self, components: tuple[Component, ...] = ("dense",)) -> None:
        super().__init__(Schema(MODEL, Storage("float32", components=components)))
        self.rows: dict[str, dict[str, Any]] = {}
        self.parts: dict[str, list[bytes]] = {}
        self.reads: list[list[str]] = []
        self.used_at_once: list[int] = []
        self.before_parts: Callable[[], None] = lambda: None

    def add(self, key: str, value: float, parts: Sequence[str] = ()) -> None:
        blob = pack_multivector(np.full((1, WIDTH), value, dtype=np.float32), self.schema.precision)
        self.rows[key] = {"key": key, "value": value, "rows": 2, "parts": list(parts), "packed": [blob]}
        self.parts |= {name: [blob] for name in parts}

    async def stored(
        self, operation: str, keys: Sequence[str], components: Sequence[Component]
    ) -> dict[str, Row]:
        self.reads.append(list(keys))
        return {key: dict(self.rows[key]) for key in keys if key in self.rows}

    async def shown(
        self, components: Sequence[Component], query: M3Embeddings, keys: Sequence[str]
    ) -> tuple[Known, dict[str, Document]]:
        raise NotImplementedError

    def columns(self, rows: Sequence[Row], components: Sequence[Component]) -> M3Embeddings:
        self.used_at_once.append(len(rows))
        return M3Embeddings(
            dense=np.array([[row["value"]] * WIDTH for row in rows], dtype=np.float32), model=MODEL
        )

    def packed(self, row: Row) -> Sequence[bytes]:
        blobs: list[bytes] = row["packed"]
        return blobs

    def carries(self, component: Component, row: Row) -> bool:
        return True

    def document(self, row: Row) -> Document | None:
        return None

    async def _counted(self, operation: str, keys: Sequence[str]) -> dict[str, Row]:
        return {key: self.rows[key] for key in keys if key in self.rows}

    def _count(self, row: Row) -> int | None:
        return int(row["rows"])

    def _part_names(self, row: Row) -> Sequence[str]:
        return tuple(row["parts"])

    async def _parts(self, operation: str, names: Sequence[str]) -> dict[str, list[Any]]:
        before, self.before_parts = self.before_parts, lambda: None
        before()
        return {name: self.parts[name] for name in names if name in self.parts}

    def _joined(self, row: Row, packed: list[Any]) -> Row:
        return {**row, "packed": packed, "parts": []}


@runs
async def test_vectors_without_known_sizes_are_held_together_within_a_bound() -> None:
    reader = Reader()
    keys = [str(i) for i in range(25_000)]
    for key in keys:
        reader.add(key, float(key))
    scores = await reader.fetched_scores(["dense"], QUERY, keys)
    assert list(scores["dense"].values()) == [float(key) for key in keys]
    assert len(reader.reads) == 4, "the bound costs no request"
    assert max(reader.used_at_once) <= 10_000


@runs
async def test_only_the_document_that_was_replaced_is_read_again() -> None:
    reader = Reader(("dense", "multivector"))
    for i, key in enumerate("abcd"):
        reader.add(key, i + 1, [f"{key}.1", f"{key}.2"])

    def replace() -> None:
        reader.parts = {name: text for name, text in reader.parts.items() if not name.startswith("b")}
        reader.add("b", 9, ["b.3", "b.4", "b.5"])

    reader.before_parts = replace
    found = await reader.embeddings(list("abcd"))
    assert [rows[:, 0].tolist() for rows in found.multivectors] == [[1, 1], [9, 9, 9], [3, 3], [4, 4]]
    assert found.dense[:, 0].tolist() == [1, 9, 3, 4]
    assert reader.reads[-1] == ["b"]
    assert sum("a" in keys for keys in reader.reads) == 1


@runs
async def test_a_document_deleted_during_a_read_has_no_score_and_the_others_have_theirs() -> None:
    reader = Reader(("dense", "multivector"))
    for i, key in enumerate("abc"):
        reader.add(key, i + 1, [f"{key}.1"])

    def delete() -> None:
        del reader.rows["b"], reader.parts["b.1"]

    reader.before_parts = delete
    scores = await reader.fetched_scores(["multivector"], QUERY, list("abc"))
    assert scores["multivector"] == {"a": 1.0, "c": 3.0}
    with pytest.raises(NotFound, match="'b'"):
        await reader.embeddings(list("abc"))


@runs
async def test_a_document_whose_parts_stay_away_is_corrupt() -> None:
    reader = Reader(("dense", "multivector"))
    for key in "ab":
        reader.add(key, 1, [f"{key}.1"])
    del reader.parts["b.1"]
    with pytest.raises(Corrupt, match="document 'b'"):
        await reader.embeddings(["a", "b"])
    assert sum("b" in keys for keys in reader.reads) == 3


@runs
async def test_little_more_is_read_for_a_list_that_includes_an_unknown_id() -> None:
    reader = Reader(("dense", "multivector"))
    for i in range(25_000):
        reader.add(str(i), 1, [f"{i}.1"])
    reader.answer_bytes = 2**16  # type: ignore[misc]
    with pytest.raises(NotFound, match="'unknown'"):
        await reader.embeddings(["unknown", *reader.rows])
    assert len(reader.reads) <= 2 * reader.answers_at_once


@runs
async def test_answers_are_used_while_later_ones_arrive() -> None:
    """The second answer arrives only after the first one was scored."""
    first_scored = anyio.Event()

    class Slow(Reader):
        async def stored(
            self, operation: str, keys: Sequence[str], components: Sequence[Component]
        ) -> dict[str, Row]:
            rows = await super().stored(operation, keys, components)
            if "1" in keys:
                with anyio.fail_after(30):
                    await first_scored.wait()
            return rows

        async def scored(
            self, components: Sequence[Component], query: M3Embeddings, rows: Mapping[str, Row]
        ) -> dict[Component, Float32]:
            scores = await super().scored(components, query, rows)
            first_scored.set()
            return scores

    reader = Slow(("dense", "multivector"))
    reader.answer_bytes = 2 * 2 * WIDTH  # type: ignore[misc]
    for i in range(2):
        reader.add(str(i), i + 1)
    assert (await reader.fetched_scores(["multivector"], QUERY, ["0", "1"]))["multivector"] == {
        "0": 1.0,
        "1": 2.0,
    }


@pytest.mark.parametrize(
    ("blob", "says"),
    [
        (pack_multivector(np.ones((2, WIDTH), dtype=np.float32), FLOAT16), "float16 rows, not float32"),
        (pack_multivector(np.ones((2, WIDTH + 1), dtype=np.float32), FLOAT32), "width"),
        (pack_multivector(np.ones((2, WIDTH), dtype=np.float32), FLOAT32)[:-1], "full length"),
        (
            b"m3\x02" + pack_multivector(np.ones((2, WIDTH), dtype=np.float32), FLOAT32)[3:],
            "not a vector blob",
        ),
        (b"", "shorter"),
    ],
)
@runs
async def test_a_blob_of_another_form_is_named_with_its_document(blob: bytes, says: str) -> None:
    reader = Reader(("dense", "multivector"))
    for key in "ab":
        reader.add(key, 1)
    reader.rows["b"]["packed"] = [blob]
    for read in (reader.fetched_scores(["multivector"], QUERY, ["a", "b"]), reader.embeddings(["a", "b"])):
        with pytest.raises(Corrupt, match=f"(?s)document 'b'.*{says}.*Index the document again"):
            await read
