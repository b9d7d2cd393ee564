"""JSON files: arrays, objects and JSON Lines under another name."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from reading import read, texts, write

from m3_connectors.readers import json_file, read_documents


@pytest.mark.parametrize(
    "content",
    [
        '[{"text": "a"}, {"text": "b"}]',
        '[\n {"text": "a"},\n {"text": "b"}\n]\n',
        '\ufeff [ {"text":"a"},{"text":"b"} ] ',
        '{"text": "a"}\n{"text": "b"}\n',
        '{\n "text": "a"\n}\n{\n "text": "b"\n}',
    ],
)
def test_what_a_file_may_hold(tmp_path: Path, content: str) -> None:
    assert texts(write(tmp_path / "c.json", content)) == {"c.json:1": "a", "c.json:2": "b"}


def test_one_object_is_one_document(tmp_path: Path) -> None:
    for indent in (None, 2):
        path = write(
            tmp_path / "c.json", json.dumps({"id": "x", "text": "t", "v": [1, {"a": "]"}]}, indent=indent)
        )
        (document,), letters = read(path)
        assert (document.id, document.metadata, letters) == ("x", {"v": [1, {"a": "]"}]}, [])


def test_an_invalid_record_skips_only_itself(tmp_path: Path) -> None:
    records = [1, None, [2], {"id": "a"}, {"text": "x"}, "s", {"text": "y"}]
    documents, letters = read(write(tmp_path / "c.json", json.dumps(records, indent=0)))
    assert {d.id: d.text for d in documents} == {"c.json:5": "x", "c.json:7": "y"}
    assert [letter.line for letter in letters] == [2, 3, 4, 7, 13]


@pytest.mark.parametrize(
    ("rest", "line", "reason"),
    [
        (',\n{"text": ', 3, "not JSON"),
        (",", 2, "not closed"),
        ("", 2, "not closed"),
        (",\n]", 3, "not JSON"),
        ('\n{"text": "b"}]', 3, "no comma"),
        ('\n]\n{"text": "b"}', 4, "after the end of the array"),
        (",\n" + "[" * 100_000, 3, "nested too deeply"),
        (',\n{"n": ' + "9" * 5000 + "}]", 3, "number is too long"),
    ],
)
def test_where_reading_ends_is_named(tmp_path: Path, rest: str, line: int, reason: str) -> None:
    documents, (letter,) = read(write(tmp_path / "c.json", '[\n{"text": "a"}' + rest))
    assert ([d.text for d in documents], letter.line) == (["a"], line)
    assert reason in letter.reason


def test_json_lines_under_another_name_go_on_after_a_bad_line(tmp_path: Path) -> None:
    documents, (letter,) = read(write(tmp_path / "c.json", '{"text": "a"}\n{broken\n{"text": "c"}\n'))
    assert ([d.text for d in documents], letter.line) == (["a", "c"], 2)


def test_a_duplicate_name_is_reported(tmp_path: Path) -> None:
    documents, letters = read(
        write(
            tmp_path / "c.json",
            '[{"text": "a", "text": "b"}, {"text": "c", "v": [{"w": 1, "w": 2}]}, {"text": "d"}]',
        )
    )
    assert [d.text for d in documents] == ["d"]
    assert [letter.reason for letter in letters] == [
        "the field 'text' occurs twice in one object",
        "the field 'w' occurs twice in one object",
    ]


def test_records_across_the_parts_that_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_file, "_CHUNK_CHARACTERS", 3)
    values = ["a", "b" * 50, 'quote " and \\ back', "\u2028", "日本"]
    path = write(tmp_path / "c.json", json.dumps([{"text": value} for value in values], ensure_ascii=False))
    assert list(texts(path).values()) == values
    documents, letters = read(write(tmp_path / "n.json", "[123456789, 12.5e10, true]"))
    assert (documents, [letter.reason for letter in letters]) == (
        [],
        ["a JSON int, not an object", "a JSON float, not an object", "a JSON bool, not an object"],
    )


def test_memory_does_not_grow_with_the_array(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    with path.open("w") as file:
        file.write("[")
        file.writelines(f'{{"id": "{i}", "text": "{"x" * 400}"}},' for i in range(30_000))
        file.write('{"id": "last", "text": "t"}]')
    tracemalloc.start()
    count = sum(1 for _ in read_documents([path], on_dead_letter=lambda *_: None))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 30_001
    assert peak_bytes < path.stat().st_size / 10


@pytest.mark.parametrize("content", ["", " \n\n", "\ufeff"])
def test_an_empty_file_is_named_and_an_empty_array_is_not(tmp_path: Path, content: str) -> None:
    documents, letters = read(write(tmp_path / "a.json", content))
    assert documents == []
    assert [letter.reason for letter in letters] == [
        "empty, which is not JSON: the file may be cut (no records are [])"
    ]
    assert read(write(tmp_path / "b.json", " [ ] ")) == ([], [])
