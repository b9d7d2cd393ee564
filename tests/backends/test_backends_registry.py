"""From a URL to a backend."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from m3_connectors import connect
from m3_connectors.backends.memory import MemoryBackend
from m3_connectors.backends.qdrant.edge.backend import EdgeBackend
from m3_connectors.backends.registry import backend_for
from m3_connectors.errors import InvalidInput


def test_urls_name_their_backend(tmp_path: Path) -> None:
    assert isinstance(backend_for("memory:"), MemoryBackend)
    edge = backend_for(f"qdrant:{tmp_path}/data", "notes")
    assert isinstance(edge, EdgeBackend)
    assert (edge.directory, edge.collection) == (tmp_path / "data", "notes")
    assert not edge.directory.exists()
    home = backend_for("qdrant:~/data")
    assert isinstance(home, EdgeBackend)
    assert home.directory == Path.home() / "data"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("./data", "does not name a store"),
        ("sqlite:./data", "memory:, qdrant:"),
        ("", "does not name a store"),
        (None, "does not name a store"),
        ("qdrant:", "qdrant:DIRECTORY"),
        ("qdrant://localhost:6333", "qdrant:DIRECTORY"),
        (
            "http://me:secret@h:1/p",
            r"^http://h:1/p does .*\n  Use qdrant\+http://h:1/p, milvus\+http://h:1/p or elasticsearch\+http://h:1/p\.$",
        ),
        ("https://h", r"qdrant\+https://h, milvus\+https://h or elasticsearch\+https://h\.$"),
    ],
)
def test_other_urls_are_refused(url: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        backend_for(url)


@pytest.mark.parametrize("url", ["memory:", "qdrant:./data"])
def test_unknown_options_are_refused_by_name(url: str) -> None:
    with pytest.raises(InvalidInput, match="colour"):
        backend_for(url, "c", {"colour": "red"})


@pytest.mark.parametrize("name", ["a", "A-1_b.c", "x" * 200, "2024"])
def test_collection_names(name: str) -> None:
    assert backend_for("memory:", name).collection == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "-a", "a.", "é", "a b", "x" * 201, "a\n", None, 7]
)
def test_names_that_are_no_directory_are_refused(name: Any) -> None:
    with pytest.raises(InvalidInput, match="collection name"):
        backend_for("qdrant:./data", name)


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [("qdrant:./data", "qdrant_edge", "qdrant"), ("milvus:./data.db", "pymilvus", "milvus")],
)
def test_a_missing_client_names_the_command_that_installs_it(url: str, module: str, extra: str) -> None:
    # In a process of its own: adapters imported twice would not be those that other tests hold.
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from m3_connectors.backends.registry import backend_for\n"
        "from m3_connectors.errors import MissingDependency\n"
        f"try: backend_for({url!r})\n"
        "except MissingDependency as error: print(error)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert module.replace("_", "-") in ended.stdout.replace("_", "-")
    assert f'pip install "m3-connectors[{extra}]"' in ended.stdout


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("qdrant:http://localhost:6333", "qdrant+http://localhost:6333"),
        ("qdrant:https://cloud.example:6333/", "qdrant+https://cloud.example:6333/"),
        ("QDRANT:HTTP://localhost:6333", "qdrant+http://localhost:6333"),
        ("qdrant:http:/localhost:6333", "qdrant+http://localhost:6333"),
        ("qdrant:grpc://localhost:6334", "qdrant+http://localhost:6334"),
        ("qdrant:localhost:6333", "qdrant+http://localhost:6333"),
        ("qdrant:[::1]:6333", "qdrant+http://[::1]:6333"),
        ("qdrant://localhost:6333", "qdrant+http://localhost:6333"),
        ("qdrant+localhost:6333", "qdrant+http://localhost:6333"),
        ("qdrant+grpc://localhost:6334", "qdrant+http://localhost:6334"),
        ("qdrant", "qdrant+http://HOST"),
        ("qdrant://", "qdrant+http://HOST"),
        ("milvus:https://host", "milvus+https://host"),
        ("milvus:localhost:19530", "milvus+http://localhost:19530"),
        ("milvus://localhost:19530", "milvus+http://localhost:19530"),
        ("elasticsearch:http://localhost:9200", "elasticsearch+http://localhost:9200"),
        ("elasticsearch://localhost:9200", "elasticsearch+http://localhost:9200"),
        ("elasticsearch:localhost:9200", "elasticsearch+http://localhost:9200"),
        ("HTTP://localhost:6333", "qdrant+http://localhost:6333, milvus+http://localhost:6333 or"),
        ("localhost:6333", "qdrant+http://localhost:6333, milvus+http://localhost:6333 or"),
        ("grpc://localhost:6334", "qdrant+http://localhost:6334, milvus+http://localhost:6334 or"),
        ("qdrant:http://me:secret@localhost:6333", "qdrant+http://localhost:6333"),
        ("qdrant:me:secret@localhost:6333", "qdrant+http://localhost:6333"),
    ],
)
def test_a_server_in_another_spelling_is_refused_with_the_right_one(
    url: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput) as caught:
        backend_for(url)
    assert f" {server}" in str(caught.value)
    assert "secret" not in str(caught.value)
    with pytest.raises(InvalidInput):
        connect(url, create=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url", ["qdrant:s3://bucket/x", "milvus:file:///data", "qdrant:/", "milvus://", "qdrant:///"]
)
def test_what_is_no_directory_is_refused_too(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"such as (qdrant:\./data|milvus:\./data)"):
        backend_for(url)


@pytest.mark.parametrize(
    ("url", "directory"),
    [
        ("QDRANT:./data", "data"),
        ("qdrant:./localhost:6333", "localhost:6333"),
        ("qdrant:./http://localhost:6333", "http:/localhost:6333"),
        ("qdrant:notes: of 2024", "notes: of 2024"),
        ("qdrant:a:b", "a:b"),
        ("qdrant:2024", "2024"),
        ("qdrant:C:\\data", "C:\\data"),
        ("qdrant:C:/data", "C:/data"),
        ("qdrant:/srv/data:6333", "/srv/data:6333"),
        ("qdrant:me@home", "me@home"),
    ],
)
def test_directories_with_colons_are_directories(url: str, directory: str) -> None:
    edge = backend_for(url)
    assert isinstance(edge, EdgeBackend)
    assert edge.directory == Path(directory)


def test_a_directory_that_is_there_may_look_like_a_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes:2024").mkdir()
    edge = backend_for("qdrant:notes:2024")
    assert isinstance(edge, EdgeBackend)
    (tmp_path / "http:" / "localhost:6333").mkdir(parents=True)
    # It was made by a version that took the address for a directory: its data can still be had.
    with pytest.raises(InvalidInput, match=r"A directory of that name is qdrant:\./http://localhost:6333\."):
        backend_for("qdrant:http://localhost:6333")
