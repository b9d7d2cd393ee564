"""Sources given by URL: folders, patterns and single files of fsspec, also in archives and on a web server."""

from __future__ import annotations

import functools
import gzip
import http.server
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from loopback import serving
from pyarrow import parquet
from reading import read, texts, write

from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput
from m3_connectors.readers import (
    SCHEMES,
    DeadLetter,
    DeadLetterFiles,
    Input,
    Limits,
    Outcome,
    ReadOptions,
    ReadSettings,
    Url,
    check_sources,
    checked,
    origin_name,
    read_documents,
    remote,
    source_of,
    whole,
)
from m3_connectors.readers.inputs import parents_of


@pytest.fixture
def memory() -> Iterator[Any]:
    """The file system of ``memory://``, empty."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


def filled(memory: Any) -> Any:
    files = {
        "/docs/a.md": b"# Fox",
        "/docs/sub/b.txt": b"lake",
        "/docs/sub/.hidden.txt": b"no",
        "/docs/rows.jsonl.gz": gzip.compress(b'{"id": "r1", "text": "one"}\n{"text": "two"}\n{broken\n'),
        "/docs/image.png": b"\x89PNG",
        "/docs/.git/config": b"no",
    }
    for name, content in files.items():
        memory.pipe(name, content)
    return memory


class TestFolders:
    def test_a_folder_is_read_like_one_of_this_machine(self, memory: Any, tmp_path: Path) -> None:
        filled(memory)
        for name in memory.find("/docs"):
            write(tmp_path / name.removeprefix("/"), memory.cat(name))
        documents, letters = read(Url("memory://docs"))
        local, named = read(tmp_path / "docs")
        assert documents == local
        assert [document.id for document in documents] == ["a.md", "r1", "rows.jsonl.gz:2", "sub/b.txt"]
        here = str(tmp_path / "docs")
        assert sorted(map(str, letters)) == sorted(
            str(letter).replace(here, "memory://docs") for letter in named
        )

    def test_exclude_patterns_and_several_sources(self, memory: Any) -> None:
        filled(memory)
        options = ReadOptions(exclude=("rows.*", ".git", ".*", "*.png"))
        assert list(texts(Url("memory://docs/"), options=options)) == ["a.md", "sub/b.txt"]
        assert list(texts(Url("memory://docs/**/*.txt"), options=options)) == ["sub/b.txt"]
        assert list(texts(Url("memory://docs/*.md"))) == ["a.md"]
        both = texts(Url("memory://docs/sub/b.txt"), Url("memory://docs/sub"), options=options)
        assert list(both) == ["b.txt"]  # one folder, so its files have the same ids as alone
        memory.pipe("/more/b.txt", b"pond")
        assert list(texts(Url("memory://docs/sub"), Url("memory://more"), options=options)) == [
            "sub/b.txt",
            "more/b.txt",
        ]

    def test_the_file_of_each_document_is_named_for_the_ledger(self, memory: Any) -> None:
        filled(memory)
        files: list[tuple[str, str]] = []
        documents = read_documents(
            [Url("memory://docs/sub")],
            on_dead_letter=lambda *_: None,
            on_file=lambda source, file: files.append((origin_name(source), origin_name(file))),
        )
        assert len(list(documents)) == 1
        assert files == [("memory://docs/sub", "memory://docs/sub/b.txt")]

    def test_what_is_not_there_is_refused_before_the_start(self, memory: Any) -> None:
        for url, says in [
            ("memory://nowhere", "does not exist"),
            ("nosuch://a", "unknown scheme"),
            ("htps://a", "Did you mean https:"),
            ("zip://*.txt::memory://no.zip", "does not exist"),
        ]:
            with pytest.raises((InvalidInput, FileNotFoundError), match=says):
                read(source_of(url))  # type: ignore[arg-type]


class TestArchives:
    def test_members_of_a_zip_file(self, tmp_path: Path, memory: Any) -> None:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("docs/a.txt", "one")
            archive.writestr("docs/sub/b.txt", "two")
            archive.writestr("c.csv", "id,text\n1,three\n")
            archive.writestr("../out.txt", "no")
        memory.pipe("/x/all.zip", file.getvalue())
        chain = Url("zip://::memory://x/all.zip")
        documents, letters = read(chain)
        assert [(document.id, document.text) for document in documents] == [
            ("1", "three"),
            ("docs/a.txt", "one"),
            ("docs/sub/b.txt", "two"),
        ]
        assert [letter.reason for letter in letters if "out" in letter.file] in (
            [],
            ["its path leads out of the folder"],
        )
        path = write(tmp_path / "all.zip", file.getvalue())
        assert texts(Url(f"zip://docs/*.txt::file://{path}")) == {"a.txt": "one"}
        assert texts(Url(f"zip://docs/a.txt::{path}")) == {"a.txt": "one"}

    def test_a_bomb_in_a_zip_file(self, memory: Any) -> None:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.parquet", bytes(2**22))
            archive.writestr("b.txt", b"x" * (65 * 2**20))
        memory.pipe("/bomb.zip", file.getvalue())
        options = ReadOptions(limits=Limits(expanded_bytes=2**20))
        documents, letters = read(Url("zip://::memory://bomb.zip"), options=options)
        assert documents == []
        assert [letter.reason.split(":")[0] for letter in letters] == [
            "expands to more than 0.000977 GiB",
            "larger than 64 MiB",
        ]


class TestWebServer:
    @pytest.fixture
    def site(self, tmp_path: Path) -> Iterator[str]:
        write(tmp_path / "www" / "index a.txt", "one")
        write(tmp_path / "www" / "sub" / "page.html", "<p>two</p>")
        table = io.BytesIO()
        parquet.write_table(pa.table({"id": ["p"], "text": ["three"]}), table)
        write(tmp_path / "www" / "t.parquet", table.getvalue())

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

        with serving(functools.partial(Handler, directory=str(tmp_path / "www"))) as address:
            yield address

    def test_a_folder_a_file_and_a_parquet_file(self, site: str) -> None:
        assert texts(Url(f"{site}/")) == {"index a.txt": "one", "p": "three", "sub/page.html": "two"}
        assert texts(Url(f"{site}/sub/page.html?token=secret")) == {"page.html": "two"}
        with pytest.raises((InvalidInput, FileNotFoundError), match="does not exist") as raised:
            read(Url(f"{site}/no.txt?token=secret99"))
        assert "secret" not in str(raised.value)

    def test_a_connection_that_ends_early_is_an_error(self, tmp_path: Path) -> None:
        class Cut(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "100")
                self.end_headers()

            def do_GET(self) -> None:
                self.do_HEAD()
                self.wfile.write(b'{"id": "a", "text": "t"}\n')
                self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        with serving(Cut) as address:
            _, (letter,) = read(Url(f"{address}/rows.jsonl?key=geheim42"))
        assert letter.file == f"{address}/rows.jsonl"
        assert "cannot be read" in letter.reason
        assert "geheim" not in str(letter)


class TestChange:
    def test_a_file_that_changes_while_it_is_read_is_named(self, memory: Any) -> None:
        memory.pipe("/rows.jsonl", b'{"id": "a", "text": "t"}\n' * 3)
        letters: list[DeadLetter] = []
        documents = read_documents(
            [Url("memory://rows.jsonl")], on_dead_letter=lambda _, letter: letters.append(letter)
        )
        next(documents)
        memory.pipe("/rows.jsonl", b'{"id": "a", "text": "t"}\n' * 4)
        list(documents)
        (letter,) = letters
        assert letter.reason.startswith("changed while it was read")
        assert letter.file == "memory://rows.jsonl"


def test_members_whose_names_have_marks_of_urls_keep_their_formats(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("docs/rows#1.jsonl", '{"id": "r1", "text": "one"}')
        archive.writestr("docs/what?.md", "# Fox")
        archive.writestr("docs/tool#.exe", "no text")
    found, (letter,) = read(Url(f"zip://docs/::{tmp_path / 'all.zip'}"))
    assert {document.id: document.text for document in found} == {"r1": "one", "what?.md": "# Fox"}
    assert letter.reason == "unsupported format (.exe)"
    assert origin_name(letter.file) == letter.file == f"zip://docs/tool%23.exe::{tmp_path / 'all.zip'}"


def test_a_pattern_without_a_file_is_named(memory: Any) -> None:
    filled(memory)
    found, (letter,) = read(Url("memory://docs/*.mdx"))
    assert found == []
    assert str(letter) == "memory://docs/*.mdx: no file matches this pattern"


def test_pages_without_an_extension_have_the_format_that_the_server_declares(
    memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe("/docs/intro", b"<title>Fox</title><p>in fog</p>")
    before = type(memory).info
    declared = {"mimetype": "text/html; charset=utf-8"}
    monkeypatch.setattr(type(memory), "info", lambda self, path, **how: before(self, path, **how) | declared)
    assert texts(Url("memory://docs/intro")) == {"intro": "Fox\nin fog"}
    assert texts(Url("memory://docs/")) == {"intro": "Fox\nin fog"}
    raw = {"intro": "<title>Fox</title><p>in fog</p>"}
    assert texts(Url("memory://docs/intro"), options=ReadOptions(format="text")) == raw


class TestNames:
    @pytest.mark.parametrize(
        ("text", "name"),
        [
            ("https://u:pass@h:80/x/y.html?token=abcdef#a", "https://h:80/x/y.html"),
            ("https://token1234@h/x", "https://h/x"),
            ("https://h/@scope/x.txt", "https://h/@scope/x.txt"),
            ("https://u:pa/ss@h/x", "https://h/x"),
            ("S3://bucket/a@b.txt", "s3://bucket/a@b.txt"),
            ("s3://AKIA:pa/ss@bucket/a.txt", "s3://bucket/a.txt"),
            ("s3://AKIA:pass@bucket/a@b.txt", "s3://bucket/a@b.txt"),
            ("https://u:pass::pw@h/x.zip", "https://h/x.zip"),
            ("github://me:notes@main/docs", "github://me:notes@main/docs"),
            ("oci://docs@mine/a.txt", "oci://docs@mine/a.txt"),
            ("file:///me@work/*.md", "file:///me@work/*.md"),
            ("zip://a::/x/me@home.zip", "zip://a::/x/me@home.zip"),
            ("postgresql://u:hunter2::pass@h/d#query=0123456789ab", "postgresql://h/d#query=0123456789ab"),
            (
                "postgresql+psycopg://me:se/cr@et?x@db:5432/x?sslpassword=hunter22",
                "postgresql+psycopg://db:5432/x",
            ),
            ("zip://*.txt::https://u:pw@h/a.zip?sig=ABCD", "zip://*.txt::https://h/a.zip"),
            ("hf://datasets/a/b?split=test", "hf://datasets/a/b?split=test"),
            ("sqlite:////tmp/a@b.db", "sqlite:////tmp/a@b.db"),
        ],
    )
    def test_names_have_no_credentials_and_stay_the_same(self, text: str, name: str) -> None:
        url = source_of(text)
        assert isinstance(url, Url)
        assert str(url) == name
        assert "hunter" not in url.name
        assert origin_name(url) == origin_name(name)
        for secret in ("pass", "se/cr", "hunter", "token1", "abcdef", "pw@", "ABCD"):
            assert secret not in repr(url)
            assert secret not in url.without_secrets(f"cannot open {text}") or secret == "pw@"

    def test_a_query_is_part_of_the_name_but_not_its_layout(self) -> None:
        one, other = Url("postgresql://u:p@h/d", "SELECT  1\n"), Url("postgresql://h/d", "SELECT 1")
        assert str(one) == str(other)
        assert str(one) != str(Url("postgresql://h/d", "SELECT 2"))
        assert str(one).startswith("postgresql://h/d#query=")
        # Dead letters and the ledger have the name: what was not read completely is found by it.
        assert origin_name(str(one)) == origin_name(one) == str(one)

    def test_files_of_this_machine_have_one_name_from_each_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Otherwise, --sync with an archive of one folder would remove what that of another one has."""
        monkeypatch.chdir(tmp_path)
        assert str(Url("zip://*.txt::all.zip")) == f"zip://*.txt::{tmp_path}/all.zip"
        assert str(Url("file://docs/*.md")) == f"file://{tmp_path}/docs/*.md"
        assert str(Url("simplecache::s3://b/a.txt")) == "simplecache::s3://b/a.txt"

    def test_secrets_are_hidden_as_clients_escape_them(self) -> None:
        url = Url("https://h/x?token=gehe im/42")
        assert "42" not in url.without_secrets("no access: https://h/x?token=gehe%20im/42")
        assert "42" not in url.without_secrets("no access: https://h/x?token=gehe%20im%2F42")

    def test_paths_are_no_urls(self, tmp_path: Path) -> None:
        for text in ("a.txt", "/x/a.txt", "C:/x", "C:\\x", "-", "notes:x"):
            assert source_of(text) == Path(text)
        path = write(tmp_path / "a b.txt", "x")
        assert source_of(f"file://{path}".replace(" ", "%20")) == path
        assert source_of(f"file://{path}") == path

    def test_parents(self) -> None:
        names = list(parents_of("zip://d/a.txt::https://h/x/a.zip"))
        assert {"zip://d::https://h/x/a.zip", "https://h/x/a.zip", "https://h/x", "https://h/"} <= {*names}
        assert "https://h/x/other.zip" not in names

    def test_two_that_differ_only_in_parameters_are_refused(self) -> None:
        with pytest.raises(InvalidInput, match="given twice"):
            check_sources([Url("https://h/export.csv?id=1"), Url("https://h/export.csv?id=2")])

    def test_reports_are_named_after_the_url(self, tmp_path: Path) -> None:
        with DeadLetterFiles(tmp_path) as dead:
            for url in (Url("hf://datasets/a/b?split=x"), Url("https://h/rows.jsonl?token=secret")):
                dead.begin(url)
                dead.add(url, DeadLetter(str(url), 1, "why"))
            assert [path.name for path in dead.paths] == ["b_split_x.dead.jsonl", "rows.dead.jsonl"]


class TestTable:
    def test_a_scheme_of_ones_own_is_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def read_mailbox(mailbox: Input, settings: ReadSettings) -> Iterator[Outcome]:
            yield checked(1, Document(f"{mailbox.name}:1", json.dumps(str(mailbox.path))))
            raise InvalidInput("the mailbox has closed: user:secret99 left")

        monkeypatch.setitem(SCHEMES, "imap", whole(read_mailbox))
        documents, (letter,) = read(Url("imap://user:secret99@host/box"))
        assert documents == [Document("box:1", '"imap://host/box"')]
        assert letter == DeadLetter("imap://host/box", 1, "the mailbox has closed: *** left")

    def test_a_missing_package_is_named(self) -> None:
        with pytest.raises(ImportError, match="pip install"):
            read(Url("dropbox://x/a.txt"))

    def test_an_opener_that_fails_later_is_a_dead_letter(
        self, memory: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        filled(memory)
        begun = []
        opened = remote._opened

        def fail_at_second(url: Url) -> Any:
            begun.append(url)
            if len(begun) > 1:
                raise InvalidInput(f"{url} cannot be opened: the network is down.\n  Try again.")
            return opened(url)

        monkeypatch.setattr(remote, "_opened", fail_at_second)
        documents, (letter,) = read(Url("memory://docs"))
        assert documents == []
        assert letter.file == "memory://docs"
        assert "the network is down" in letter.reason
