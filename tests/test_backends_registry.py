"""From a URL to a backend."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from m3_connectors.backends.memory import MemoryBackend
from m3_connectors.backends.qdrant.edge import EdgeBackend
from m3_connectors.backends.registry import backend_for
from m3_connectors.errors import InvalidInput, MissingDependency


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
        ("./data", "names no store"),
        ("sqlite:./data", "memory:, qdrant:"),
        ("", "names no store"),
        (None, "names no store"),
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


def test_a_missing_client_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in list(sys.modules):
        if module.startswith("m3_connectors.backends.qdrant"):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "qdrant_edge", None)
    with pytest.raises(MissingDependency, match=r'pip install "m3-connectors\[qdrant\]"'):
        backend_for("qdrant:./data")
