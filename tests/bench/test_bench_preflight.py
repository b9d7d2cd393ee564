"""Before anything is measured every store is tried, and the key of the one that cannot be used is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from m3_connectors.backends.base import Schema
from m3_connectors.backends.qdrant.edge.backend import EdgeBackend
from m3_connectors.bench.run import run
from m3_connectors.bench.scenario import read_scenario
from m3_connectors.cli.app import main
from m3_connectors.embeddings import ModelInfo
from m3_connectors.errors import InvalidInput, Unavailable

FAST = {"timeout_seconds": 0.2, "attempts": 1}


def measure(tmp_path: Path, second: dict[str, Any]) -> None:
    raw = {
        "name": "s",
        "stores": [{"name": "first", "url": f"qdrant:{tmp_path / 'first'}"}, {"name": "second"} | second],
        "corpus": {"documents": 20, "dimension": 16, "vocabulary": 500, "rows": {"mean": 4}},
        "loads": [{"warm_up_seconds": 0, "requests": 1}],
    }

    async def measured() -> None:
        await run(read_scenario(raw, "two.toml"), tmp_path / "out", where="two.toml")

    anyio.run(measured)


@pytest.mark.parametrize(
    ("second", "named"),
    [
        ({"url": "qdrnt:./x"}, "two.toml: stores[1].url: 'qdrnt:./x' does not name a store"),
        (
            {"url": "memory:", "options": {"colour": 1}},
            "two.toml: stores[1].options: 'colour' is not an option of ",
        ),
        (
            {"start": "milvus", "options": {"colour": 1}},
            "two.toml: stores[1].options: 'colour' is not an option of ",
        ),
        ({"url": "memory:", "collection": "a b"}, "two.toml: stores[1].collection: collection name 'a b-20'"),
    ],
)
def test_the_second_store_is_tried_before_the_first_is_measured(
    tmp_path: Path, second: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidInput) as raised:
        measure(tmp_path, second)
    assert named in str(raised.value)
    assert not (tmp_path / "first").exists()
    assert not (tmp_path / "out").exists()


def test_a_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as raised:
        measure(tmp_path, {"url": "elasticsearch+http://127.0.0.1:1", "options": FAST})
    assert "  Check two.toml: stores[1].url, which refers to this store." in raised.value.__notes__
    assert not (tmp_path / "first").exists()


def test_whose_documents_a_collection_holds_is_looked_at_first(tmp_path: Path) -> None:
    async def index() -> None:
        backend = EdgeBackend(tmp_path / "theirs", "bench-20")
        await backend.create(Schema(ModelInfo("BAAI/bge-m3", None, 16, 500, "v")))
        await backend.close()

    anyio.run(index)
    with pytest.raises(InvalidInput, match=r"two\.toml: stores\[1\]\.collection: .*bge-m3"):
        measure(tmp_path, {"url": f"qdrant:{tmp_path / 'theirs'}"})
    assert not (tmp_path / "first").exists()


def test_the_command_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.toml").write_text('name = "s"\n[[stores]]\nname = "a"\nurl = "qdrnt:./x"\n[[loads]]\n')
    assert main(["bench", "s.toml", "--out", "out"]) == 1
    said = capsys.readouterr().err
    assert "s.toml: stores[0].url: 'qdrnt:./x'" in said
    assert "the measurements so far are in" not in said
