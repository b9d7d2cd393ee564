"""Readers: every record becomes a document or a dead letter with its place and reason."""

from __future__ import annotations

import gzip
import json
import os
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from reading import read, texts, write

from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput
from m3_connectors.readers import (
    DeadLetter,
    DeadLetterFiles,
    Fields,
    ReadOptions,
    check_sources,
    files_of,
    read_documents,
)


class TestJsonLines:
    def test_id_title_text_and_metadata(self, tmp_path: Path) -> None:
        lines = [
            {"id": "a", "title": "Rain", "text": "falls", "year": 2020, "tags": ["x"]},
            {"_id": 7, "text": "number as id", "metadata": {"lang": "en", "year": 1}, "year": 2},
            {"text": "no id"},
        ]
        path = write(tmp_path / "c.jsonl", "\n".join(map(json.dumps, lines)))
        documents, letters = read(path)
        assert documents == [
            Document("a", "Rain\nfalls", {"year": 2020, "tags": ["x"]}),
            Document("7", "number as id", {"lang": "en", "year": 2}),
            Document("c.jsonl:3", "no id", {}),
        ]
        assert letters == []

    def test_named_fields(self, tmp_path: Path) -> None:
        path = write(
            tmp_path / "c.jsonl", '{"key": "k", "body": "b", "id": 1}\n{"body": "b"}\n{"key": "z"}\n'
        )
        documents, letters = read(path, fields=Fields("body", "key"))
        assert documents == [Document("k", "b", {"id": 1})]
        assert [letter.line for letter in letters] == [2, 3]
        assert "--id" in letters[0].reason
        assert "--text" in letters[1].reason

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b"{not json", "not JSON"),
            (b'["a"]', "array"),
            (b"null", "null"),
            (b'{"id": "a"}', "no field 'text'"),
            (b'{"id": "a", "text": null}', "text is NoneType"),
            (b'{"id": "a", "text": 3}', "text is int"),
            (b'{"id": "", "text": "t"}', "id is empty"),
            (b'{"id": "' + b"x" * 513 + b'", "text": "t"}', "513 bytes"),
            (b'{"id": true, "text": "t"}', "id is bool"),
            (b'{"id": "a", "text": "\\ud800"}', "lone surrogate"),
            (b'{"id": "a", "text": "t", "v": NaN}', "nan"),
            (b'{"id": "a", "text": "t", "v": 99999999999999999999}', "64 bits"),
            (b'{"id": "a", "text": "\xff"}', "not UTF-8"),
            (b"[" * 100_000, "nested too deeply"),
        ],
    )
    def test_a_bad_line_is_named_and_the_rest_is_read(self, tmp_path: Path, line: bytes, reason: str) -> None:
        good = b'{"id": "good", "text": "read"}'
        path = write(tmp_path / "c.jsonl", b"\n".join([good, b"", line, good.replace(b"good", b"last")]))
        documents, letters = read(path)
        assert [document.id for document in documents] == ["good", "last"]
        (letter,) = letters
        assert (letter.file, letter.line) == (str(path), 3)
        assert reason in letter.reason
        assert "\n" not in letter.reason

    def test_gzip_and_byte_order_mark(self, tmp_path: Path) -> None:
        path = write(tmp_path / "c.jsonl.gz", gzip.compress(b'\xef\xbb\xbf{"id": "a", "text": "t"}\n'))
        assert read(path) == ([Document("a", "t")], [])

    def test_a_truncated_gzip_file_is_read_up_to_the_damage(self, tmp_path: Path) -> None:
        lines = b"".join(
            b'{"id": "%d", "text": "%s"}\n' % (i, os.urandom(40).hex().encode()) for i in range(500)
        )
        path = write(tmp_path / "c.jsonl.gz", gzip.compress(lines)[:-4000])
        documents, letters = read(path)
        there = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(path.read_bytes())
        assert 0 < len(documents) == there.count(b"\n") < 500
        assert "damaged" in letters[-1].reason

    def test_memory_does_not_grow_with_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "c.jsonl"
        with path.open("w") as file:
            for i in range(40_000):
                file.write(f'{{"id": "{i}", "text": "{"x" * 200}"}}\n')
        tracemalloc.start()
        count = sum(1 for _ in read_documents([path], on_dead_letter=lambda *_: None))
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == 40_000
        assert peak_bytes < path.stat().st_size / 10


class TestCsv:
    def test_cells(self, tmp_path: Path) -> None:
        content = 'id,title,text,year,code,empty\n1,T,"two\nlines, one cell",2020,007,\n2,,x,1.5,1.10,\n'
        documents, letters = read(write(tmp_path / "c.csv", content))
        assert documents == [
            Document("1", "T\ntwo\nlines, one cell", {"year": 2020, "code": "007"}),
            Document("2", "x", {"year": 1.5, "code": "1.10"}),
        ]
        assert letters == []

    def test_tabs_and_long_cells(self, tmp_path: Path) -> None:
        long = "x" * 200_000
        documents, _ = read(write(tmp_path / "c.tsv", f"id\ttext\na\t{long}\n"))
        assert documents == [Document("a", long)]

    def test_bad_rows_are_named(self, tmp_path: Path) -> None:
        content = b'id,text\n1,"a\nb"\n2\n3,\xff\n4,fine\n'
        documents, letters = read(write(tmp_path / "c.csv", content))
        assert [document.id for document in documents] == ["1", "4"]
        assert [(letter.line, letter.reason[:7]) for letter in letters] == [(4, "1 cells"), (5, "not UTF")]

    @pytest.mark.parametrize(
        ("content", "reason"),
        [("", "header"), ("id,body\n1,x\n", "--text"), ("id,text,text\n1,a,b\n", "the same name")],
    )
    def test_a_useless_header_skips_the_file(self, tmp_path: Path, content: str, reason: str) -> None:
        documents, (letter,) = read(write(tmp_path / "c.csv", content))
        assert documents == []
        assert letter.line is None
        assert reason in letter.reason


class TestFolders:
    def test_what_is_read_and_what_is_skipped(self, tmp_path: Path) -> None:
        root = tmp_path / "notes"
        write(root / "b.txt", "plain")
        write(root / "sub" / "a.md", "# Mark")
        write(root / "sub" / "page.HTML", "<title>T</title><p>P")
        write(root / "data.jsonl", '{"id": "record", "text": "r"}')
        write(root / ".hidden" / "x.txt", "no")
        write(root / ".x.txt", "no")
        write(root / "binary.txt", b"\0\1\2")
        write(root / "latin.txt", b"caf\xe9")
        write(root / "empty.md", " \n")
        write(root / "photo.png", b"png")
        (root / "gone.txt").symlink_to(root / "nowhere")
        documents, letters = read(root)
        assert {document.id: document.text for document in documents} == {
            "b.txt": "plain",
            "record": "r",
            "sub/a.md": "# Mark",
            "sub/page.HTML": "T\nP",
        }
        reasons = {Path(letter.file).name: letter.reason for letter in letters}
        assert reasons == {
            ".hidden": "a hidden folder",
            ".x.txt": "a hidden file",
            "binary.txt": "binary (or UTF-16 without a byte order mark: give it with --encoding)",
            "latin.txt": "not UTF-8 at byte 3: give its encoding with --encoding, such as windows-1252",
            "empty.md": "empty",
            "photo.png": "unsupported format (.png)",
            "gone.txt": "a broken link",
        }

    def test_order_is_the_same_each_time(self, tmp_path: Path) -> None:
        for name in ("c.txt", "a.txt", "z/a.txt", "b/a.txt"):
            write(tmp_path / name, name)
        assert [d.id for d in read(tmp_path)[0]] == ["a.txt", "c.txt", "b/a.txt", "z/a.txt"]

    def test_the_stores_own_folder_and_dead_letters_are_left_out(self, tmp_path: Path) -> None:
        write(tmp_path / "a.txt", "a")
        write(tmp_path / "store" / "segment.txt", "engine's")
        write(tmp_path / "notes.dead.jsonl", '{"file": "x"}')
        documents = read_documents(
            [tmp_path], on_dead_letter=lambda *_: pytest.fail("nothing to skip"), without=tmp_path / "store"
        )
        assert [document.id for document in documents] == ["a.txt"]

    def test_an_unreadable_file_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / "a.txt", "a")
        write(tmp_path / "b.csv", "id,text\n")
        write(tmp_path / "c.txt", "c")
        real = open

        def refuse(file: Any, *arguments: Any) -> Any:
            if str(file).endswith(("a.txt", "b.csv")):
                raise PermissionError(13, "Permission denied", str(file))
            return real(file, *arguments)

        monkeypatch.setattr("builtins.open", refuse)
        documents, letters = read(tmp_path)
        assert [document.id for document in documents] == ["c.txt"]
        assert [letter.reason for letter in letters] == ["cannot be read: Permission denied"] * 2

    @pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
    def test_a_name_that_is_not_utf_8_is_reported(self, tmp_path: Path) -> None:
        write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")), "t")
        documents, letters = read(tmp_path)
        assert documents == []
        assert ["rename the file" in letter.reason for letter in letters] == [True]

    def test_a_file_that_vanishes_is_named(self, tmp_path: Path) -> None:
        write(tmp_path / "a.txt", "a")
        vanishing = [write(tmp_path / name, "id,text\n1,x\n") for name in ("b.csv", "c.jsonl", "d.html")]
        letters: list[DeadLetter] = []
        documents = read_documents([tmp_path], on_dead_letter=lambda _, letter: letters.append(letter))
        assert next(documents).id == "a.txt"
        for path in vanishing:
            path.unlink()
        assert list(documents) == []
        assert [Path(letter.file).name for letter in letters] == ["b.csv", "c.jsonl", "d.html"]

    def test_pipes_and_links_in_a_folder_are_named(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.jsonl")
        (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
        (tmp_path / "up").symlink_to(tmp_path)
        (tmp_path / "b.txt").write_text("b")
        (tmp_path / "link.txt").symlink_to(tmp_path / "b.txt")
        documents, letters = read(tmp_path)
        assert [document.id for document in documents] == ["b.txt", "link.txt"]
        assert {Path(letter.file).name: letter.reason for letter in letters} == {
            "pipe.jsonl": "not a regular file",
            "loop.txt": "a broken link",
            "up": "links to folders are not followed: give the folder itself",
        }

    def test_a_bug_in_a_reader_affects_only_its_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path / "a.html", "<p>a")
        write(tmp_path / "b.txt", "b")

        def fail(*_: object) -> str:
            raise OverflowError("of a library\nsecond line")

        monkeypatch.setattr("m3_connectors.readers.html.html_to_text", fail)
        documents, (letter,) = read(tmp_path)
        assert [document.id for document in documents] == ["b.txt"]
        assert letter.reason == "cannot be read because of a bug in its reader: OverflowError: of a library"

    def test_errors_of_the_caller_are_not_caught(self, tmp_path: Path) -> None:
        write(tmp_path / "a.jsonl", "{broken\n")

        def refuse(*_: object) -> None:
            raise ValueError("no dead letters here")

        with pytest.raises(ValueError, match="no dead letters here"):
            list(read_documents([tmp_path], on_dead_letter=refuse))

    def test_equal_names_below_several_folders_are_several_ids(self, tmp_path: Path) -> None:
        one, two = tmp_path / "one", tmp_path / "two"
        write(one / "a.md", "first")
        write(two / "a.md", "second")
        assert {d.id: d.text for d in read(one, two)[0]} == {"one/a.md": "first", "two/a.md": "second"}
        write(tmp_path / "other" / "one" / "a.md", "third")
        assert len({d.id for d in read(one, tmp_path / "other" / "one")[0]}) == 2
        alone = write(tmp_path / "x.txt", "x")
        assert [d.id for d in read(one, alone)[0]] == ["a.md", "x.txt"]

    def test_endings(self, tmp_path: Path) -> None:
        write(tmp_path / "A.TSV", "id\ttext\nt\ta,b\n")
        write(tmp_path / "B.JSONL.GZ", gzip.compress(b'{"id": "j", "text": "lines"}'))
        for name, content in {
            "C.TXT.GZ": "text",
            "d.md.gz": "---\ntitle: T\n---\nmark",
            "e.Html.gz": "<p>html",
            "f.XHTML": "<html><p>xml</p></html>",
            "README": "no ending",
            "g.gz": "compressed, no ending",
        }.items():
            raw = content.encode()
            write(tmp_path / name, gzip.compress(raw) if name.lower().endswith(".gz") else raw)
        assert texts(tmp_path) == {
            "t": "a,b",
            "j": "lines",
            "C.TXT.GZ": "text",
            "d.md.gz": "T\nmark",
            "e.Html.gz": "html",
            "f.XHTML": "xml",
            "README": "no ending",
            "g.gz": "compressed, no ending",
        }

    @pytest.mark.parametrize(
        "name", ["a.csv.gz", "a.jsonl.gz", "a.json.gz", "a.txt.gz", "a.md.gz", "a.html.gz"]
    )
    def test_what_is_not_gzip_or_is_cut_is_named(self, tmp_path: Path, name: str) -> None:
        write(tmp_path / "z.txt", "last")
        for content in (b"no gzip", gzip.compress(os.urandom(5000))[:-20], gzip.compress(b"x")[:5]):
            write(tmp_path / name, content)
            documents, letters = read(tmp_path)
            assert [document.id for document in documents] == ["z.txt"]
            assert letters
            assert not any("fault" in letter.reason for letter in letters)

    def test_exclude(self, tmp_path: Path) -> None:
        for name in ("a.txt", "a.md", "drafts/b.txt", "sub/drafts/c.txt", "sub/old/d.txt", "sub/e.txt"):
            write(tmp_path / name, name)

        def left(*patterns: str) -> list[str]:
            return list(texts(tmp_path, options=ReadOptions(exclude=patterns)))

        assert left("*.md", "drafts") == ["a.txt", "sub/e.txt", "sub/old/d.txt"]
        assert left("sub/*") == ["a.md", "a.txt", "drafts/b.txt"]
        assert left("sub/old/", "[ab].*") == ["sub/e.txt", "sub/drafts/c.txt"]

    def test_files_of_one_name_are_several_ids(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        one, two = write(Path("one/a.md"), "first"), write(Path("two/a.md"), "second")
        write(Path("three/t.csv"), "text\nx\n")
        write(Path("four/t.csv"), "text\ny\n")
        assert texts(one, two) == {"one/a.md": "first", "two/a.md": "second"}
        assert texts(Path("three/t.csv"), Path("four/t.csv")) == {"three/t.csv:2": "x", "four/t.csv:2": "y"}

    def test_sources_that_cannot_be_read_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="does not exist"):
            check_sources([tmp_path / "nothing"])
        with pytest.raises(InvalidInput, match=r"x\.xlsx has an unsupported format \(\.xlsx\)"):
            check_sources([write(tmp_path / "x.xlsx", "PK")])


class TestDeadLetterFiles:
    def test_a_letter_with_a_document_of_any_length_is_known_again(self, tmp_path: Path) -> None:
        with DeadLetterFiles(tmp_path) as dead:
            letter = DeadLetter(
                "a", None, "refused", "write", id="a", metadata={"n": 1}, text="x" * 3_000_000
            )
            dead.add(Path("a.jsonl"), letter)
        assert list(files_of([tmp_path], ReadOptions(), None)) == []

    def test_written_per_source_and_replaced_by_the_next_run(self, tmp_path: Path) -> None:
        source = tmp_path / "corpus.jsonl.gz"
        letter = DeadLetter(str(source), 3, "not JSON")
        with DeadLetterFiles(tmp_path) as dead:
            dead.begin(source)
            dead.add(source, letter)
            dead.add(source, letter)
        assert (dead.count, dead.first) == (2, letter)
        (path,) = dead.paths
        assert path.name == "corpus.dead.jsonl"
        written = [json.loads(line) for line in path.read_text().splitlines()]
        assert written == [{"file": str(source), "line": 3, "reason": "not JSON", "stage": "read"}] * 2
        with DeadLetterFiles(tmp_path) as dead:
            dead.begin(source)
        assert not path.exists()
