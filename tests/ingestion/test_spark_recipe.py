"""The function of the recipe for Spark, called as Spark calls it: with an iterator of pandas frames per partition."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from same_collection import documents_of

from m3_connectors import Document, connect

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "ingestion-many-machines.md"


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"__name__": "recipe"}
    exec(compile(code, str(PAGE), "exec"), names)
    names["URL"] = f"qdrant:{tmp_path / 'data'}"
    names["MODEL"] = str(ROOT / "models" / "m3-tiny")
    return names


def test_two_partitions_are_stored_and_again_change_nothing(recipe: dict[str, Any]) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed: the recipe for Spark needs it")
    rows = [{"id": f"d{i}", "text": f"the fox number {i}", "language": "en"} for i in range(40)]
    partitions = [
        [pandas.DataFrame(rows[start : start + 10]) for start in begins] for begins in ((0, 10), (20, 30))
    ]
    for _ in range(2):  # Spark may run a task again
        stored = [id for frames in partitions for out in recipe["store"](iter(frames)) for id in out["id"]]
        assert stored == [row["id"] for row in rows]
    with connect(recipe["URL"], "documents", create=False) as index:
        expected = {row["id"]: Document(row["id"], row["text"], {"language": "en"}) for row in rows}
        assert documents_of(index) == expected
    with connect(recipe["URL"], "documents", encoder=recipe["encoder"]()) as index:
        assert index.search("the fox number 7", k=1)
