"""Parquet and Arrow: types, columns that JSON cannot hold, and damage."""

from __future__ import annotations

import datetime
import decimal
import io
import tracemalloc
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pyarrow as pa
import pytest
from pyarrow import parquet
from reading import read, write

from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput
from m3_connectors.readers import Fields, read_documents

KINDS = ["table.parquet", "file.arrow", "stream.arrow"]


def content_of(kind: str, table: pa.Table, rows: int = 10) -> bytes:
    """The bytes of a table, with batches (or row groups) of so many rows."""
    file = io.BytesIO()
    if kind.endswith(".parquet"):
        parquet.write_table(table, file, row_group_size=rows, write_page_checksum=True)
    else:
        writer = pa.ipc.new_file if kind.startswith("file") else pa.ipc.new_stream
        with writer(file, table.schema) as sink:
            sink.write_table(table, max_chunksize=rows)
    return file.getvalue()


@pytest.mark.parametrize("kind", KINDS)
class TestValues:
    def test_types_are_kept_and_empty_cells_left_out(self, tmp_path: Path, kind: str) -> None:
        when = datetime.datetime(2024, 1, 2, 3, 4, 5)
        table = pa.table(
            {
                "id": [7, 8],
                "title": ["T", None],
                "text": pa.array(["eins", "zwei"]).dictionary_encode(),
                "n": [2**62, None],
                "share": [0.5, 1.0],
                "flag": [True, False],
                "when": pa.array([when, None], pa.timestamp("ns", "UTC")),
                "day": [when.date(), when.date()],
                "price": pa.array([decimal.Decimal("1.50"), None], pa.decimal128(6, 2)),
                "long": pa.array([decimal.Decimal("1.50"), None], pa.decimal128(38, 2)),
                "tags": [["x", "y"], []],
                "who": [{"name": "A", "born": [when.date()]}, None],
                "pairs": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
            }
        )
        documents, letters = read(write(tmp_path / kind, content_of(kind, table)))
        assert letters == []
        assert documents == [
            Document(
                "7",
                "T\neins",
                {
                    "n": 2**62,
                    "share": 0.5,
                    "flag": True,
                    "when": "2024-01-02 03:04:05.000000000Z",
                    "day": "2024-01-02",
                    "price": 1.5,
                    "long": "1.50",
                    "tags": ["x", "y"],
                    "who": {"name": "A", "born": ["2024-01-02"]},
                    "pairs": {"k": 1},
                },
            ),
            Document(
                "8", "zwei", {"share": 1.0, "flag": False, "day": "2024-01-02", "tags": [], "pairs": {}}
            ),
        ]

    def test_columns_that_json_cannot_hold_are_named(self, tmp_path: Path, kind: str) -> None:
        table = pa.table(
            {
                "text": ["t"],
                "image": [b"\x89PNG"],
                "took": pa.array([1], pa.duration("s")),
                "deep": [[{"raw": b"1"}]],
                "v": [1],
            }
        )
        documents, letters = read(write(tmp_path / kind, content_of(kind, table)))
        assert documents == [Document(f"{kind}:1", "t", {"v": 1})]
        assert [(letter.line, letter.reason.split(" was ")[0]) for letter in letters] == [
            (None, "the column 'image'"),
            (None, "the column 'took'"),
            (None, "the column 'deep'"),
        ]

    def test_other_columns_can_be_the_text_and_the_id(self, tmp_path: Path, kind: str) -> None:
        table = pa.table({"body": ["b"], "key": ["k"], "id": [1]})
        path = write(tmp_path / kind, content_of(kind, table))
        assert read(path, fields=Fields("body", "key")) == ([Document("k", "b", {"id": 1})], [])
        documents, (letter,) = read(path)
        reason = "no column 'text', only ['body', 'key', 'id']: choose the text column with --text"
        assert (documents, letter.line, letter.reason) == ([], None, reason)
        with pytest.raises(InvalidInput, match="no source has a column 'no', which --id"):
            read(path, fields=Fields("body", "no"))

    def test_rows_that_are_no_documents_are_named(self, tmp_path: Path, kind: str) -> None:
        table = pa.table(
            {"id": ["a", None, "c", "d"], "text": ["t", "t", None, "t"], "v": [1.0, 1.0, 1.0, float("nan")]}
        )
        documents, letters = read(write(tmp_path / kind, content_of(kind, table, rows=3)))
        assert [document.id for document in documents] == ["a"]
        assert [letter.line for letter in letters] == [2, 3, 4]
        assert "id is NoneType" in letters[0].reason
        assert "text is NoneType" in letters[1].reason
        assert "nan" in letters[2].reason

    def test_text_that_is_not_unicode_loses_its_row_only(self, tmp_path: Path, kind: str) -> None:
        texts = pa.array([b"a", b"\xff", b"c"], pa.binary())
        table = pa.table({"text": pa.StringArray.from_buffers(3, *texts.buffers()[1:])})
        documents, letters = read(write(tmp_path / kind, content_of(kind, table)))
        assert [document.text for document in documents] == ["a", "c"]
        assert [letter.line for letter in letters] == [2]


_TEXTS = st.lists(st.none() | st.text(max_size=8), min_size=1, max_size=30)
_VALUES = st.none() | st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize("kind", KINDS)
@hypothesis.given(texts=_TEXTS, value=_VALUES, rows=st.integers(1, 9), cut=st.floats(0, 1))
@hypothesis.settings(
    max_examples=60, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_every_row_is_read_or_named_and_a_cut_file_says_so(
    tmp_path: Path, kind: str, texts: list[str | None], value: int | None, rows: int, cut: float
) -> None:
    table = pa.table({"text": pa.array(texts, pa.string()), "v": pa.array([value] * len(texts), pa.int64())})
    content = content_of(kind, table, rows)
    documents, letters = read(write(tmp_path / kind, content))
    assert [document.text for document in documents] == [text for text in texts if text is not None]
    assert [letter.line for letter in letters] == [i for i, text in enumerate(texts, 1) if text is None]
    assert all(document.metadata == ({} if value is None else {"v": value}) for document in documents)
    part, more_letters = read(write(tmp_path / kind, content[: int(cut * (len(content) - 1))]))
    assert part == documents[: len(part)]
    assert len(more_letters) > sum(text is None for text in texts[: len(part)]) or len(part) == 0 < len(
        more_letters
    )


def test_a_column_name_that_is_not_unicode(tmp_path: Path) -> None:
    content = content_of("stream.arrow", pa.table({"text": ["a"], "column": ["b"]}))
    _, (letter,) = read(write(tmp_path / "s.arrow", content.replace(b"column", b"colu\xffn")))
    assert letter.reason == "damaged: the name of a column is not UTF-8"


def test_a_damaged_row_group_loses_its_rows_only(tmp_path: Path) -> None:
    table = pa.table({"text": [f"text {i} {'x' * i}" for i in range(30)]})
    file = io.BytesIO()
    parquet.write_table(
        table, file, row_group_size=10, compression="none", use_dictionary=False, write_page_checksum=True
    )
    content = bytearray(file.getvalue())
    begin = content.index(b"text 15 ")
    content[begin : begin + 4] = b"TEXT"
    documents, letters = read(write(tmp_path / "t.parquet", bytes(content)))
    assert [document.id for document in documents] == [
        f"t.parquet:{i}" for i in [*range(1, 11), *range(21, 31)]
    ]
    (letter,) = letters
    assert letter.line == 11
    assert letter.reason.startswith("rows 11 to 20: damaged: ")


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    schema = pa.schema([("text", pa.string())])
    with parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for group in range(40):
            writer.write_table(pa.table({"text": [f"{group} {i} {'x' * 1000}" for i in range(1000)]}, schema))

    def peaks() -> tuple[int, int]:
        pool = pa.default_memory_pool()
        before, peak = pool.bytes_allocated(), 0
        tracemalloc.start()
        for count, _ in enumerate(read_documents([path], on_dead_letter=lambda *_: None), 1):
            if count % 500 == 0:
                peak = max(peak, pool.bytes_allocated() - before)
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == 40_000
        return peak, held

    assert sum(peaks()) < path.stat().st_size / 5


def test_text_must_be_text(tmp_path: Path) -> None:
    table: Any = pa.table({"text": [b"bytes"]})
    documents, (letter,) = read(write(tmp_path / "t.parquet", content_of("t.parquet", table)))
    assert documents == []
    assert letter.reason == "the column 'text' is binary: text and ids must be strings"
