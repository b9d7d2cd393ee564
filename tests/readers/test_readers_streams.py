"""Standard input and pipes, files of no known ending, and ids that come twice."""

from __future__ import annotations

import os
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from reading import read, texts, write

from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput
from m3_connectors.readers import DeadLetterFiles, ReadOptions, check_sources, read_documents


@pytest.fixture
def stdin() -> Iterator[Callable[[bytes], None]]:
    """Puts bytes on standard input."""
    kept = os.dup(0)

    def put(content: bytes) -> None:
        reading, writing = os.pipe()
        os.write(writing, content)
        os.close(writing)
        os.dup2(reading, 0)
        os.close(reading)

    yield put
    os.dup2(kept, 0)
    os.close(kept)


class TestStreams:
    @pytest.mark.parametrize(
        ("format", "content", "ids"),
        [
            (None, b'{"id": "a", "text": "t"}\n{"text": "u"}', ["a", "stdin:2"]),
            ("csv", b"id,text,v\na,t,01\nb,u,1\n", ["a", "b"]),
            ("tsv", b"text\nt\nu\n", ["stdin:2", "stdin:3"]),
            ("json", b'[{"text": "t"}]', ["stdin:1"]),
            ("text", b"a page", ["stdin"]),
            ("html", b"<p>a page", ["stdin"]),
        ],
    )
    def test_standard_input(
        self, stdin: Callable[[bytes], None], format: str | None, content: bytes, ids: list[str]
    ) -> None:
        stdin(content)
        documents, letters = read(Path("-"), options=ReadOptions(format=format))
        assert ([document.id for document in documents], letters) == (ids, [])
        if format == "csv":  # it is read twice
            assert [document.metadata for document in documents] == [{"v": "01"}, {"v": "1"}]

    def test_a_bad_line_of_standard_input_is_named(
        self, stdin: Callable[[bytes], None], tmp_path: Path
    ) -> None:
        stdin(b"{broken\n")
        with DeadLetterFiles(tmp_path) as dead:
            assert list(read_documents([Path("-")], on_dead_letter=dead.add)) == []
            assert [path.name for path in dead.paths] == ["stdin.dead.jsonl"]
        assert str(dead.first).startswith("stdin:1: not JSON")

    def test_a_pipe_by_name(self, tmp_path: Path) -> None:
        pipe = tmp_path / "pipe.csv"
        os.mkfifo(pipe)
        writer = threading.Thread(target=pipe.write_bytes, args=[b"id,text,v\na,t,1\n"])
        writer.start()
        (document,), letters = read(pipe)
        writer.join()
        assert (document, letters) == (Document("a", "t", {"v": 1}), [])

    def test_a_stream_cannot_be_given_twice(self) -> None:
        with pytest.raises(InvalidInput, match="given twice"):
            check_sources([Path("-"), Path("-")])

    def test_a_format_for_a_file_without_a_known_ending(self, tmp_path: Path) -> None:
        records = write(tmp_path / "export", '{"id": "a", "text": "t"}\n')
        table = write(tmp_path / "export.dat", "id,text\nb,u\n")
        with pytest.raises(InvalidInput, match="--format"):
            check_sources([table])
        assert texts(records, options=ReadOptions(format="jsonl")) == {"a": "t"}
        assert texts(table, options=ReadOptions(format="csv")) == {"b": "u"}


class TestRepeats:
    def test_a_record_that_a_later_one_replaces_is_named(self, tmp_path: Path) -> None:
        one = write(tmp_path / "a.csv", "id,text\n1,a\n2,b\n1,c\n")
        two = write(tmp_path / "b.csv", "id,text\n2,d\n")
        replaced: list[tuple[Path, str]] = []
        documents = read_documents(
            [one, two],
            on_dead_letter=lambda *_: pytest.fail("nothing is skipped"),
            on_replaced=lambda source, letter: replaced.append((source, str(letter))),
        )
        assert [document.text for document in documents] == ["a", "b", "c", "d"]
        to_keep = "(to keep both, use different ids)"
        assert replaced == [
            (one, f"{one}:2: replaced: {one}:4 has the same id '1' {to_keep}"),
            (one, f"{one}:3: replaced: {two}:2 has the same id '2' {to_keep}"),
        ]

    def test_the_same_file_twice_replaces_nothing(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.txt", "a")
        documents = read_documents(
            [tmp_path, path],
            on_dead_letter=lambda *_: pytest.fail("nothing is skipped"),
            on_replaced=lambda *_: pytest.fail("nothing is replaced"),
        )
        assert [document.id for document in documents] == ["a.txt", "a.txt"]

    def test_memory_does_not_grow_with_the_ids(self, tmp_path: Path) -> None:
        path = tmp_path / "c.jsonl"
        with path.open("w") as file:
            file.writelines(f'{{"id": "{i}", "text": "{"x" * 200}"}}\n' for i in range(40_000))
        tracemalloc.start()
        documents = read_documents([path], on_dead_letter=lambda *_: None, on_replaced=lambda *_: None)
        count = sum(1 for _ in documents)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == 40_000
        assert peak_bytes < path.stat().st_size / 10
