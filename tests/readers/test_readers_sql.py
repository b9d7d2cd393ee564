"""Rows of a database: types, missing columns, errors in the middle, and passwords that stay hidden."""

from __future__ import annotations

import datetime
import decimal
import re
import sqlite3
import tracemalloc
import uuid
from pathlib import Path
from typing import Any

import pytest
from reading import read

from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput, MissingDependency
from m3_connectors.readers import Fields, Url, check_sources
from m3_connectors.readers.sql import storable_value
from m3_connectors.readers.values import NotStorable


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "notes.db"
    with sqlite3.connect(path) as db:
        db.execute(
            "CREATE TABLE notes (id INTEGER PRIMARY KEY, title TEXT, body TEXT, n REAL, raw BLOB, day DATE)"
        )
        rows = [
            (1, "Fox", "in the 50 % :fog", 1.5, None, "2026-01-02"),
            (2, None, "lake", None, b"\0\1", None),
            (3, "Empty", None, 0.0, b"x", None),
        ]
        db.executemany("INSERT INTO notes VALUES (?, ?, ?, ?, ?, ?)", rows)
    db.close()
    return path


def rows(path: Path, query: str = "SELECT * FROM notes ORDER BY id", **fields: Any) -> Any:
    return read(Url(f"sqlite:///{path}", query), fields=Fields(fields.pop("text", "body"), **fields))


def test_rows_are_documents(database: Path) -> None:
    documents, letters = rows(database)
    assert documents == [
        Document("1", "Fox\nin the 50 % :fog", {"n": 1.5, "day": "2026-01-02"}),
        Document("2", "lake", {}),
    ]
    name = f"{Url(f'sqlite:///{database}', 'SELECT * FROM notes ORDER BY id')}"
    assert [(letter.file, letter.line, letter.reason) for letter in letters] == [
        (name, None, "the column 'raw' was left out where JSON has no bytes"),
        (name, 3, "body is NoneType, not a string"),
    ]


def test_a_query_is_passed_on_as_it_is(database: Path) -> None:
    documents, letters = rows(
        database, "SELECT id, '50 % :x 12:30' AS text FROM notes WHERE title LIKE 'F%'", text="text"
    )
    assert letters == []
    assert documents == [Document("1", "50 % :x 12:30")]


@pytest.mark.parametrize(
    ("query", "fields", "reason"),
    [
        ("SELECT id, bdy FROM notes", {}, "the database failed: no such column: bdy"),
        ("SELECT body FROM notes", {}, "no column id or _id, only ['body']: choose the id column with --id"),
        ("SELECT id, body FROM notes", {"text": "text"}, "no column 'text', only ['id', 'body']"),
        ("SELECT id, id, body FROM notes", {}, "two columns have the same name: ['id', 'id', 'body']"),
        ("SELECT id, body FROM notes", {"metadata": {"t": "titel"}}, "no column 'titel'"),
        ("SELECT id, title, body FROM notes", {"metadata": {"t": "titel"}}, "did you mean 'title'?"),
        ("DELETE FROM notes", {}, "the query begins with 'DELETE FROM notes', and not with SELECT"),
        ("-- all\n/* x */ DROP TABLE notes", {}, "and not with SELECT"),
    ],
)
def test_what_cannot_be_read_is_one_reason(
    database: Path, query: str, fields: dict[str, Any], reason: str
) -> None:
    documents, (letter,) = rows(database, query, **fields)
    assert documents == []
    assert reason in letter.reason
    assert len(rows(database, "-- all\nSELECT * FROM notes")[0]) == 2
    assert "no such file" in rows(database.with_name("new.db"))[1][0].reason
    assert not database.with_name("new.db").exists()


def test_an_error_in_the_middle_ends_the_source_with_a_reason(database: Path) -> None:
    # The third row is computed when it is fetched.
    query = "SELECT id, abs(CASE id WHEN 3 THEN -9223372036854775808 ELSE 1 END) || 'x' AS body FROM notes ORDER BY id"
    documents, (letter,) = rows(database, query)
    # Of the rows that were fetched together with the one that fails, none is known to be whole.
    assert [document.id for document in documents] == ["1", "2"][: len(documents)]
    assert letter.line == (len(documents) or None)
    assert letter.reason.startswith("the database failed: integer overflow")


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "big.db"
    series = "WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < 50000)"
    sqlite3.connect(path).close()
    query = f"{series} SELECT id, printf('%.2000c', 'x') AS body FROM n"
    from m3_connectors.readers import read_documents

    documents = read_documents(
        [Url(f"sqlite:///{path}", query)],
        fields=Fields("body"),
        on_dead_letter=lambda *_: pytest.fail("skipped"),
    )
    next(documents)
    tracemalloc.start()
    assert sum(1 for _ in documents) == 49_999
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**20  # 100 MB are read


def test_rows_whose_id_json_cannot_hold_get_no_id_from_their_position(database: Path) -> None:
    documents, letters = rows(
        database, "SELECT raw AS id, title AS text FROM notes WHERE n IS NULL", text="text"
    )
    assert documents == []
    assert [(letter.line, letter.stage) for letter in letters] == [(None, "column"), (1, "read")]
    assert "'id'" in letters[1].reason
    documents, _ = rows(database, "SELECT raw AS _id, id, body FROM notes WHERE id = 2")
    assert documents == [Document("2", "lake", {})]


def test_a_port_that_is_no_number_is_named_without_the_password() -> None:
    documents, (letter,) = read(Url("postgresql://me:geheim42@db:here/x", "SELECT 1"))
    assert documents == []
    assert "the URL cannot be used" in letter.reason
    assert "'here'" in letter.reason
    assert "geheim" not in str(letter)


def test_passwords_are_hidden() -> None:
    url = Url("postgresql+nodriver://me:geheim42@db/x?sslpassword=geheim43", "SELECT 1")
    _, (letter,) = read(url)
    assert letter.reason == "SQLAlchemy knows no database 'postgresql+nodriver': install its dialect"
    assert "geheim" not in str(letter) + repr(url)
    with pytest.raises(MissingDependency, match="psycopg is not installed") as raised:
        read(Url("postgresql+psycopg://me:geheim42@db/x", "SELECT 1"))
    assert "geheim" not in str(raised.value)


def test_a_database_needs_a_query_and_nothing_else_takes_one() -> None:
    with pytest.raises(InvalidInput, match=re.escape("postgresql://h/d is a database, and no query")):
        check_sources([Url("postgresql://u:pw@h/d")])
    with pytest.raises(InvalidInput, match="is no database"):
        check_sources([Url("s3://bucket/a", "SELECT 1")])
    check_sources([Url("snowflake://h/d", "SELECT 1")])


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (datetime.datetime(2026, 1, 2, 3, 4, 5), "2026-01-02T03:04:05"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (datetime.time(3, 4), "03:04:00"),
        (decimal.Decimal("12.50"), 12.5),
        (decimal.Decimal("12.00"), 12),
        (decimal.Decimal("0.12345678901234567890"), "0.12345678901234567890"),
        (decimal.Decimal("NaN"), "NaN"),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        ([1, (decimal.Decimal(2),)], [1, [2]]),
        ({"a": {1: datetime.date(2026, 1, 2)}}, {"a": {"1": "2026-01-02"}}),
        (None, None),
    ],
)
def test_values(value: Any, stored: Any) -> None:
    assert repr(storable_value(value)) == repr(stored)


@pytest.mark.parametrize("value", [b"x", datetime.timedelta(1), [memoryview(b"x")], object()])
def test_values_that_json_has_not(value: Any) -> None:
    with pytest.raises(NotStorable):
        storable_value(value)
