"""The table of readers, compressed files, missing packages, and files that are not what they seem."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from backports import zstd
from pyarrow import parquet
from reading import read, texts, write

from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput, MissingDependency
from m3_connectors.readers import (
    FORMATS,
    Fields,
    Input,
    Limits,
    Outcome,
    ReadOptions,
    ReadSettings,
    checked,
    is_records,
    read_documents,
)


class TestTable:
    def test_a_reader_of_ones_own_is_one_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def read_lines(file: Input, settings: ReadSettings) -> Iterator[Outcome]:
            with file.open_text(settings.codec) as text:
                for number, line in enumerate(text, 1):
                    yield checked(number, Document(f"{file.name}:{number}", line.strip() or "\ud800"))
            raise InvalidInput("no more of it")

        monkeypatch.setitem(FORMATS, ".lines", read_lines)
        write(tmp_path / "a.LINES.gz", gzip.compress(b"one\n\nthree"))
        documents, letters = read(tmp_path)
        assert [document.text for document in documents] == ["one", "three"]
        assert [(letter.line, letter.reason.split(" ")[0]) for letter in letters] == [(2, "text"), (3, "no")]
        assert is_records(tmp_path / "a.LINES.gz")

    def test_a_reader_that_fails_ends_its_file_only(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(file: Input, settings: ReadSettings) -> Iterator[Outcome]:
            yield checked(1, Document("one", "t"))
            raise ZeroDivisionError("of a library")

        monkeypatch.setitem(FORMATS, ".a", fail)
        write(tmp_path / "x.a", "")
        write(tmp_path / "y.txt", "y")
        documents, (letter,) = read(tmp_path)
        assert [document.id for document in documents] == ["one", "y.txt"]
        assert letter.line == 1
        assert letter.reason.endswith("because of a bug in its reader: ZeroDivisionError: of a library")

    def test_a_format_by_name(self, tmp_path: Path) -> None:
        file = io.BytesIO()
        parquet.write_table(pa.table({"id": ["a"], "text": ["t"]}), file)
        assert texts(write(tmp_path / "export", file.getvalue()), options=ReadOptions(format="parquet")) == {
            "a": "t"
        }
        for name in ("xlsx", "", ".csv"):
            with pytest.raises(InvalidInput, match="parquet, arrow, text, markdown, html, xhtml, pdf, docx"):
                ReadOptions(format=name)


class TestZstd:
    def test_records_and_pages(self, tmp_path: Path) -> None:
        write(
            tmp_path / "a.jsonl.zst",
            zstd.compress(b'{"id": "a", "text": "t"}\n') + zstd.compress(b'{"id": "b", "text": "u"}'),
        )
        write(tmp_path / "b.csv.zst", zstd.compress(b"id,text,n\nc,t,1\n"))
        write(tmp_path / "c.txt.ZST", zstd.compress(b"page"))
        documents, letters = read(tmp_path)
        assert letters == []
        assert documents == [
            *(Document("a", "t"), Document("b", "u"), Document("c", "t", {"n": 1})),
            Document("c.txt.ZST", "page"),
        ]

    @pytest.mark.parametrize("ending", [".zst", ".gz"])
    def test_a_cut_or_damaged_file_is_read_up_to_there(self, tmp_path: Path, ending: str) -> None:
        compress = zstd.compress if ending == ".zst" else gzip.compress
        lines = [b'{"text": "%s"}\n' % os.urandom(40).hex().encode() for _ in range(3000)]
        whole = compress(b"".join(lines))
        for length in (0, 3, len(whole) // 2, len(whole) - 1):
            documents, letters = read(write(tmp_path / f"a.jsonl{ending}", whole[:length]))
            assert [f'{{"text": "{document.text}"}}\n'.encode() for document in documents] == lines[
                : len(documents)
            ]
            assert letters or length == 0
            if length > 3:
                assert len(documents) > 0
                assert "the compressed file is damaged" in letters[-1].reason
        documents, letters = read(write(tmp_path / f"a.jsonl{ending}", b"not compressed"))
        assert documents == []
        assert "damaged" in letters[0].reason

    @pytest.mark.parametrize("ending", [".zst", ".gz"])
    def test_bombs(self, tmp_path: Path, ending: str) -> None:
        compress = zstd.compress if ending == ".zst" else gzip.compress
        bomb = compress(bytes(65 * 2**20).replace(b"\0", b"x"))
        assert len(bomb) < 2**20
        raised = ReadOptions(limits=Limits(expansion=10**6, expanded_bytes=2**20))
        for name, reason in [
            ("a.txt", "larger than 64 MiB"),
            ("a.jsonl", "a line of more than 64 Mi characters"),
            ("a.csv", "a line of more than 64 Mi characters"),
            ("a.pdf", "expands to more than"),
            ("a.docx", "expands to more than"),
            ("a.parquet", "expands to more than"),
        ]:
            path = write(tmp_path / (name + ending), bomb)
            documents, (letter,) = read(path, options=raised)
            assert documents == []
            assert reason in letter.reason, name
            documents, (letter,) = read(path)
            assert documents == []
            assert "expands to more than 200 times its size" in letter.reason, name


class TestMissingPackages:
    @pytest.mark.parametrize(
        ("name", "module", "extra"),
        [
            ("a.parquet", "pyarrow", "parquet"),
            ("a.arrow", "pyarrow", "parquet"),
            ("a.pdf", "pypdfium2", "pdf"),
            ("a.docx", "docx", "docx"),
            ("a.txt.zst", "backports", "zstd"),
            ("a.csv.zst", "backports", "zstd"),
        ],
    )
    def test_the_extra_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, extra: str
    ) -> None:
        for loaded in [m for m in sys.modules if m == module or m.startswith(f"{module}.")]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, module, None)
        path = write(tmp_path / name, b"")
        with pytest.raises(MissingDependency, match=rf"m3-connectors\[{extra}\]"):
            list(read_documents([path], on_dead_letter=lambda *_: None))
        write(tmp_path / "z.txt", "z")
        documents, (letter,) = read(tmp_path)
        assert [document.id for document in documents] == ["z.txt"]
        assert f'pip install "m3-connectors[{extra}]"' in letter.reason

    def test_nothing_is_imported_before_it_is_needed(self, tmp_path: Path) -> None:
        write(tmp_path / "a.txt", "a")
        write(tmp_path / "b.csv", "text\nb\n")
        program = (
            "import sys; from pathlib import Path; from m3_connectors.readers import read_documents\n"
            "packages = ['pyarrow', 'pypdfium2', 'docx', 'lxml', 'backports.zstd']\n"
            f"print(len(list(read_documents([Path({str(tmp_path)!r})], on_dead_letter=print))))\n"
            "print([name for name in packages if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout == "2\n[]\n"


class TestChangingFiles:
    @pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
    def test_a_file_that_grows_while_it_is_read_is_named(self, tmp_path: Path, name: str) -> None:
        line = b'{"text": "t"}\n'
        path = write(tmp_path / name, gzip.compress(line * 3) if name.endswith("gz") else line * 3)
        letters = []
        documents = read_documents([path], on_dead_letter=lambda _, letter: letters.append(letter))
        found = [next(documents)]
        with path.open("ab") as file:
            file.write(gzip.compress(line) if name.endswith("gz") else line)
        found += documents
        assert [document.text for document in found] == ["t"] * len(found)
        (letter,) = letters
        assert letter.reason.startswith("changed while it was read")
        assert letter.line == len(found)

    def test_a_page_that_changes_is_not_stored(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.txt", "old")
        file = Input(path, path, "a.txt", ".txt")

        def read_late() -> bytes:
            with file.open() as content:
                path.write_text("longer")
                return content.read()

        with pytest.raises(InvalidInput, match="changed while it was read"):
            read_late()

    def test_a_file_that_is_replaced_is_read_as_it_was(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", b'{"text": "old"}\n' * 3)
        documents = read_documents([path], on_dead_letter=lambda *_: pytest.fail("nothing is skipped"))
        next(documents)
        os.replace(write(tmp_path / "new", b'{"text": "new"}\n'), path)
        assert [document.text for document in documents] == ["old", "old"]


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "a")
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "up").symlink_to("..")
    documents, letters = read(tmp_path)
    assert [document.id for document in documents] == ["a.txt"]
    assert [letter.reason for letter in letters] == [
        "a broken link",
        "links to folders are not followed: give the folder itself",
    ]


def test_fields_of_every_kind_of_records(tmp_path: Path) -> None:
    file = io.BytesIO()
    parquet.write_table(pa.table({"key": ["a"], "body": ["t"]}), file)
    sources = {
        "a.parquet": file.getvalue(),
        "a.csv.zst": zstd.compress(b"key,body\na,t\n"),
        "a.jsonl": b'{"key": "a", "body": "t"}\n',
    }
    for name, content in sources.items():
        assert read(write(tmp_path / name, content), fields=Fields("body", "key")) == (
            [Document("a", "t")],
            [],
        )
