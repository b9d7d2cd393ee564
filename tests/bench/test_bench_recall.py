"""Recall: both ways in turns, warm, apart by filter; a store that fails is a result and not the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m3_connectors.backends.memory import MemoryBackend
from m3_connectors.bench import run as running
from m3_connectors.bench.load import Mix
from m3_connectors.bench.recall import MOST_ERRORS, compare
from m3_connectors.bench.rows import RecallRow, Sink
from m3_connectors.bench.scenario import CorpusSettings, Filtered, Queries, Recall, Rows, read_scenario
from m3_connectors.bench.synthetic import Corpus
from m3_connectors.errors import Unavailable

CORPUS = Corpus(CorpusSettings(dimension=16, vocabulary=500, rows=Rows(mean=4)), 60, seed=1)


class Asked(MemoryBackend):
    """Remembers how it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[bool] = []

    async def _search(self, query: Any, method: Any, k: int, filter: Any, exact: bool) -> Any:
        self.asked.append(exact)
        return await super()._search(query, method, k, filter, exact)


class Failing(MemoryBackend):
    async def _search(self, *_: Any) -> Any:
        raise Unavailable("gone\n  more", backend="memory", operation="search")


class Hanging(MemoryBackend):
    async def _search(self, *_: Any) -> Any:
        await anyio.sleep(60)


def compared(tmp_path: Path, backend: MemoryBackend, queries: int) -> pa.Table:
    path = tmp_path / "recall.parquet"
    mix = Mix(Queries(count=8, k=5, filters=(Filtered(share=0.5, selectivity=0.2),)), CORPUS, 1)

    async def run() -> None:
        await backend.create(CORPUS.schema)
        await backend.upsert(*CORPUS.batch(0, 60))
        with Sink(path, RecallRow) as rows:
            settings = Recall(queries=queries, depth=20)
            await compare(backend, mix, settings, rows, store="s", documents=60, timeout_seconds=0.5)

    anyio.run(run)
    return pq.read_table(path)


def test_which_way_is_asked_first_takes_turns_once_the_store_is_warm(tmp_path: Path) -> None:
    backend = Asked()
    rows = compared(tmp_path, backend, 4).to_pylist()
    warm_up = 3 * [False, True]
    assert backend.asked == [*warm_up, False, True, True, False, False, True, True, False]
    assert [row["exact_first"] for row in rows if row["kind"] == "search"] == [False, True, False, True]
    assert all(row["found"] == row["expected"] > 0 for row in rows)
    assert {row["selectivity"] for row in rows} == {None, 0.2}


@pytest.mark.parametrize(
    ("backend", "error"),
    [(Failing(), "Unavailable: memory search: gone"), (Hanging(), "TimedOut: no response within 0.5 s")],
)
def test_a_question_that_fails_is_a_row_and_many_are_enough(
    tmp_path: Path, backend: MemoryBackend, error: str
) -> None:
    rows = compared(tmp_path, backend, 100).to_pylist()
    failed = [row for row in rows if row["kind"] == "search"]
    assert len(failed) == MOST_ERRORS
    assert all(row["error"] == error and row["approximate_seconds"] is None for row in failed)
    assert all(row["error"] is None for row in rows if row["kind"] == "list")


def test_after_a_store_that_fails_the_next_one_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends = iter([Failing(), MemoryBackend()])
    monkeypatch.setattr(running, "backend_for", lambda *_: next(backends))
    raw = {
        "name": "two",
        "stores": [{"name": "broken", "url": "memory:"}, {"name": "whole", "url": "memory:"}],
        "corpus": {"documents": 60, "dimension": 16, "vocabulary": 500, "rows": {"mean": 4}},
        "queries": {"count": 5, "k": 5},
        "recall": {"queries": 3},
        "loads": [{"warm_up_seconds": 0, "requests": 5}],
    }
    folder = anyio.run(running.run, read_scenario(raw, "two"), tmp_path / "out")
    summary = folder.summary()
    assert summary.complete
    assert summary.void
    broken, whole = ([item for item in summary.recall if item.store == name] for name in ("broken", "whole"))
    search = next(item for item in broken if item.kind == "search")
    assert search.void == ("3 of its queries failed (Unavailable: memory search: gone)",)
    assert search.recall is None
    assert all(item.recall == 1.0 and not item.void for item in whole)
    assert [load.void == () for load in summary.loads if load.method is None] == [False, True]
