"""Small files in the formats of the hub, and a hub on loopback that serves them."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import json
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loopback import serving

from m3_connectors.evaluation.datasets.catalogue import CATALOGUE
from m3_connectors.evaluation.datasets.sizes import SIZES, Size

SIZES_HERE = {
    ("miracl", "yo", "dev"): Size(3, 3, 3),
    ("mldr", "de", "test"): Size(2, 4),
    ("mkqa", "fr", "test"): Size(3, 2),
    ("narrativeqa", None, "test"): Size(3, 2),
}
"""The number of documents and queries that the functions below write."""


@pytest.fixture
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the sizes of the datasets those that the functions below write."""
    for task, size in SIZES_HERE.items():
        monkeypatch.setitem(SIZES, task, size)


def write_lines(path: Path, *records: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def write_miracl(root: Path, language: str = "yo") -> Path:
    base = root / f"miracl-v1.0-{language}"
    for folder, lines in (
        ("topics", "3\tKí ni òjò?\n7\tTa ni ó kọ Faust?\n9\tUnjudged\n"),
        ("qrels", "3\tQ0\t12#0\t1\n3\tQ0\t12#1\t0\n7\tQ0\t99#3\t1\n"),
    ):
        path = base / folder / f"{folder}.miracl-v1.0-{language}-dev.tsv"
        path.parent.mkdir(parents=True)
        path.write_text(lines, encoding="utf-8")
    corpus = root / f"miracl-corpus-v1.0-{language}"
    write_lines(corpus / "docs-1.jsonl.gz", {"docid": "12#1", "title": "Òjò", "text": "Omi ni."})
    write_lines(corpus / "docs-2.jsonl.gz", {"docid": "3", "title": "", "text": "Its id is a query's."})
    write_lines(corpus / "docs-0.jsonl.gz", {"docid": "12#0", "title": "Òjò", "text": "Òjò ń rọ̀."})
    return root


def write_mldr(root: Path, language: str = "de") -> Path:
    base = root / f"mldr-v1.0-{language}"
    passages = [{"docid": f"doc-de-{i}", "text": f"Langer Text {i}."} for i in range(4)]
    write_lines(base / "corpus.jsonl.gz", *passages)
    write_lines(
        base / "test.jsonl.gz",
        {
            "query_id": "q-de-0",
            "query": "Welcher?",
            "positive_passages": passages[:1],
            "negative_passages": passages[2:3],
        },
        {
            "query_id": "q-de-1",
            "query": "Was?",
            "positive_passages": passages[1:2],
            "negative_passages": [],
        },
    )
    return root


def write_mkqa(root: Path, language: str = "fr") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    questions = [
        {"id": "-12", "question": "Qui a écrit Faust ?", "answers": ["Goethe", "Johann Wolfgang"]},
        {"id": 7, "question": "Combien ?", "answers": ["3,000", " "]},
        {"id": "none", "question": "Vide ?", "answers": []},
    ]
    with zipfile.ZipFile(root / "MKQA_test-data.zip", "w") as archive:
        archive.writestr(f"{language}.jsonl", "".join(json.dumps(line) + "\n" for line in questions))
    passages = [
        {"_id": "doc0", "title": "Faust", "text": "A play by “Goethe”."},
        {"_id": "doc1", "title": "Numbers", "text": "About 3,000 – not more…"},
    ]
    (root / "corpus").mkdir()
    pq.write_table(pa.Table.from_pylist(passages), root / "corpus" / "corpus-00000-of-00001.parquet")
    return root


def write_narrativeqa(root: Path) -> Path:
    (root / "data").mkdir(parents=True)
    stories = [
        {"id": "book-b", "text": "Once upon a time."},
        {"id": "book-a", "text": "It was a dark night."},
    ]
    rows = [(0, "Who?"), (0, "When?"), (1, "How dark?")]
    table = pa.table(
        {
            "document": [{**stories[story], "kind": "gutenberg"} for story, _ in rows],
            "question": [{"text": text, "tokens": text.split()} for _, text in rows],
        }
    )
    pq.write_table(table.slice(0, 2), root / "data" / "test-00000-of-00002.parquet")
    pq.write_table(table.slice(2), root / "data" / "test-00001-of-00002.parquet")
    return root


@contextlib.contextmanager
def hub(repositories: Mapping[str, Path], gated: Collection[str] = ()) -> Iterator[tuple[str, list[str]]]:
    """Run a hub that has the repositories of the catalogue, each at its pinned commit only.

    Args:
        repositories: Folder with the files of each repository, by its name.
        gated: Repositories whose files need a login; their lists do not.

    Yields:
        The address of the hub, and a list to which each served file is added.
    """
    pinned = {r.name: r.revision for entry in CATALOGUE.values() for r in entry.repositories}
    given: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = unquote(self.path.partition("?")[0])
            for name, folder in repositories.items():
                revision = pinned[name]
                if path == f"/api/datasets/{name}/revision/{revision}":
                    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
                    siblings = [
                        {"rfilename": file.relative_to(folder).as_posix(), "size": file.stat().st_size}
                        for file in files
                    ]
                    return self._send(
                        json.dumps({"id": name, "sha": revision, "siblings": siblings}).encode(), {}, body
                    )
                if path == f"/api/datasets/{name}/tree/{revision}":
                    tree = [
                        {
                            "type": "file",
                            "path": file.relative_to(folder).as_posix(),
                            "size": file.stat().st_size,
                            "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
                        }
                        for file in sorted(folder.rglob("*"))
                        if file.is_file()
                    ]
                    return self._send(json.dumps(tree).encode(), {}, body)
                start = f"/datasets/{name}/resolve/{revision}/"
                if path.startswith(start) and name in gated:
                    return self._refuse(401, "GatedRepo")
                if path.startswith(start) and (file := folder / path.removeprefix(start)).is_file():
                    content = file.read_bytes()
                    if body:
                        given.append(f"{name}/{path.removeprefix(start)}")
                    headers = {
                        "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                        "X-Repo-Commit": revision,
                    }
                    return self._send(content, headers, body)
            return self._refuse(404, "RepoNotFound")

        def _refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _send(self, content: bytes, headers: Mapping[str, str], body: bool) -> None:
            self.send_response(200)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(Handler) as url:
        yield url, given
