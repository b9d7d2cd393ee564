"""A whole benchmark on stores of this machine: its folder, its refusals, and its command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from live_servers import drop, own

from m3_connectors.backends.base import Schema, ScoredId
from m3_connectors.backends.memory import MemoryBackend
from m3_connectors.backends.qdrant.edge.backend import EdgeBackend
from m3_connectors.bench import run as running
from m3_connectors.bench.folder import BenchFolder, find_folders
from m3_connectors.bench.rows import RecallRow, RequestRow, WriteRow
from m3_connectors.bench.scenario import Scenario, read_scenario
from m3_connectors.cli.app import main
from m3_connectors.cli.bench import fills_table
from m3_connectors.documents import Document
from m3_connectors.embeddings import M3Embeddings, ModelInfo
from m3_connectors.errors import InvalidInput, Unavailable
from m3_connectors.testing.servers.start import Running

TINY: dict[str, Any] = {
    "name": "tiny",
    "corpus": {
        "documents": 120,
        "dimension": 16,
        "vocabulary": 500,
        "topics": 5,
        "rows": {"mean": 4},
        "query_rows": 3,
    },
    "queries": {
        "count": 7,
        "k": 5,
        "methods": {"all": 2, "sparse": 1},
        "filters": [{"share": 0.3, "selectivity": 0.2}],
    },
    "recall": {"queries": 4, "depth": 20},
    "loads": [{"concurrency": [1, 3], "warm_up_seconds": 0, "requests": 30}],
}


def tiny(url: str, **changes: Any) -> Scenario:
    raw = TINY | {"stores": [{"name": "s", "url": url}]} | changes
    return read_scenario(raw, "tiny")


def measure(scenario: Scenario, out: Path) -> BenchFolder:
    return anyio.run(running.run, scenario, out)


def test_a_run_leaves_rows_and_numbers(tmp_path: Path) -> None:
    folder = measure(tiny(f"qdrant:{tmp_path / 'data'}"), tmp_path / "out")
    requests, writes, recall = folder.requests(), folder.writes(), folder.recall()
    assert requests.column_names == list(RequestRow._fields)
    assert writes.column_names == list(WriteRow._fields)
    assert recall.column_names == list(RecallRow._fields)
    assert requests.num_rows == 60
    assert sum(writes["written"].to_pylist()) == 120
    assert writes["kind"].to_pylist()[-1] == "optimize"
    assert min(requests["round_trips"].to_pylist()) >= 1  # the engine's calls are seen
    assert all(
        0 < row["store_seconds"] <= row["end_seconds"] - row["start_seconds"] for row in requests.to_pylist()
    )
    assert folder.record.complete
    assert folder.record.environment.model_dump()["versions"]["numpy"]
    assert folder.record.scenario.model_dump()["corpus"]["documents"] == [120]
    (collection,) = folder.record.collections
    assert collection.disk_bytes["dense"] >= 120 * 16 * 4
    assert collection.corpus.rows == pytest.approx(4, rel=0.3)
    summary = folder.write_summary()
    assert not summary.void
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary.to_json()
    assert {load.load for load in summary.loads} == {"closed-1", "closed-3"}
    assert {item.recall for item in summary.recall} == {1.0}
    assert [found.path for found in find_folders(tmp_path)] == [tmp_path / "out"]


def test_a_filled_collection_is_used_again_and_another_corpus_replaces_it(tmp_path: Path) -> None:
    url = f"qdrant:{tmp_path / 'data'}"
    assert not measure(tiny(url), tmp_path / "1").record.collections[0].reused
    again = measure(tiny(url), tmp_path / "2")
    assert again.record.collections[0].reused
    assert again.writes().num_rows == 0
    assert again.summary().fills[0].documents_per_second is None
    other = measure(tiny(url, seed=5), tmp_path / "3")
    assert not other.record.collections[0].reused
    assert not other.summary().void


def test_the_corpus_is_kept_as_the_scenario_says(tmp_path: Path) -> None:
    corpus = TINY["corpus"] | {
        "rows": {"mean": 12, "spread": 0},
        "storage": {"long_documents": "pool", "pool_factor": 3, "pool_from_rows": 4},
    }
    folder = measure(tiny(f"qdrant:{tmp_path / 'data'}", corpus=corpus), tmp_path / "out")
    (collection,) = folder.record.collections
    assert collection.corpus.rows == 4

    async def stored_rows() -> int:
        backend = EdgeBackend(tmp_path / "data", "bench-120")
        assert (await backend.open()).storage.pool_factor == 3
        vectors = await backend.vectors(["d0000007"])
        await backend.close()
        assert vectors.multivectors is not None
        return len(vectors.multivectors.rows)

    assert anyio.run(stored_rows) == 4


def test_an_interrupted_fill_is_begun_again(tmp_path: Path) -> None:
    scenario = tiny(f"qdrant:{tmp_path / 'data'}")

    async def begin() -> None:
        corpus = running.Corpus(scenario.corpus, 120, scenario.seed)
        backend = EdgeBackend(tmp_path / "data", "bench-120")
        await backend.create(corpus.schema)
        await backend.upsert(*corpus.batch(0, 50))
        await backend.close()

    anyio.run(begin)
    folder = measure(scenario, tmp_path / "out")
    assert not folder.record.collections[0].reused
    assert folder.record.collections[0].count == 120


def test_a_collection_that_is_there_is_optimised_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"qdrant:{tmp_path / 'data'}"
    measure(tiny(url, stores=[{"name": "s", "url": url, "optimize": False}]), tmp_path / "without")
    optimised = []

    async def note(self: EdgeBackend) -> None:
        optimised.append(self.collection)

    monkeypatch.setattr(EdgeBackend, "optimize", note)
    folder = measure(tiny(url), tmp_path / "with")
    assert folder.record.collections[0].reused
    assert optimised == ["bench-120"]


def test_somebodys_documents_are_left_alone(tmp_path: Path) -> None:
    async def index() -> None:
        backend = EdgeBackend(tmp_path / "data", "bench-120")
        await backend.create(Schema(ModelInfo("BAAI/bge-m3", None, 16, 500, "v")))
        await backend.close()

    anyio.run(index)
    with pytest.raises(InvalidInput, match="bge-m3"):
        measure(tiny(f"qdrant:{tmp_path / 'data'}"), tmp_path / "out")


def test_a_folder_that_holds_a_benchmark_is_not_written_over(tmp_path: Path) -> None:
    measure(tiny("memory:"), tmp_path / "out")
    before = (tmp_path / "out" / "requests.parquet").read_bytes()
    with pytest.raises(InvalidInput, match="already contains a benchmark"):
        measure(tiny("memory:"), tmp_path / "out")
    assert (tmp_path / "out" / "requests.parquet").read_bytes() == before


def test_what_is_no_benchmark_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"contains no benchmark: bench\.json is missing"):
        BenchFolder(tmp_path)
    (tmp_path / "bench.json").write_text('{"format": 99}')
    with pytest.raises(InvalidInput, match="format 99, not 1"):
        BenchFolder(tmp_path)


class Dying(MemoryBackend):
    """Goes away while it is filled."""

    async def _upsert(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        raise Unavailable("gone", backend="memory", operation="upsert")


def test_what_was_measured_before_a_store_died_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends = iter([MemoryBackend(), Dying()])
    monkeypatch.setattr(running, "backend_for", lambda *_: next(backends))  # preflight has its own
    stores = [{"name": "first", "url": "memory:"}, {"name": "second", "url": "memory:"}]
    with pytest.raises(Unavailable):
        measure(tiny("memory:", stores=stores), tmp_path / "out")
    folder = BenchFolder(tmp_path / "out")
    assert not folder.summary().complete
    assert set(folder.requests()["store"].to_pylist()) == {"first"}
    assert folder.requests().num_rows == 60


def test_the_command_says_where_the_measured_rows_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(SCENARIO.format(k=5))
    monkeypatch.setattr(running, "backend_for", lambda *_: Dying())
    assert main(["bench", "tiny.toml", "--out", "out"]) == 1
    assert (
        "  the measurements so far are in out; show them with: m3 report out"
        in capsys.readouterr().err.splitlines()
    )

    async def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "harness_seconds", stopped)
    assert main(["bench", "tiny.toml", "--out", "other"]) == 130
    assert "the measurements so far are in other" in capsys.readouterr().err


class Forgetful(MemoryBackend):
    """Loses a document of every write."""

    async def _upsert(self, documents: Sequence[Document], embeddings: M3Embeddings) -> None:
        await super()._upsert(documents[1:], embeddings[1:])


class Answering(MemoryBackend):
    """Changes every answer to a search without a filter by the sparse method or by all."""

    def changed(self, found: list[ScoredId]) -> list[ScoredId]:
        raise NotImplementedError

    async def _search(self, query: Any, method: Any, k: int, filter: Any, exact: bool) -> list[ScoredId]:
        return self.changed(await super()._search(query, method, k, filter, exact))


class Empty(Answering):
    def changed(self, found: list[ScoredId]) -> list[ScoredId]:
        return []


class Short(Answering):
    def changed(self, found: list[ScoredId]) -> list[ScoredId]:
        return found[:3]


class Repeating(Answering):
    def changed(self, found: list[ScoredId]) -> list[ScoredId]:
        return [found[0], *found[:-1]] if found else found


class Failing(Answering):
    def changed(self, found: list[ScoredId]) -> list[ScoredId]:
        raise Unavailable("gone", backend="memory", operation="search")


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (Forgetful, "the collection contains"),
        (Empty, "no hits"),
        (Short, "fewer hits than expected"),
        (Repeating, "the same document twice"),
        (Failing, "failed (Unavailable"),
    ],
)
def test_a_broken_store_makes_the_result_void(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: type[MemoryBackend], reason: str
) -> None:
    monkeypatch.setattr(running, "backend_for", lambda *_: backend())
    summary = measure(tiny("memory:"), tmp_path / "out").summary()
    assert summary.void
    assert all(any(reason in void for void in load.void) for load in summary.loads)


def test_a_store_that_is_as_it_should_be_is_not_void(tmp_path: Path) -> None:
    assert not measure(tiny("memory:"), tmp_path / "out").summary().void


SCENARIO = """
name = "tiny"
[[stores]]
name = "memory"
url = "memory:"
[corpus]
documents = 100
dimension = 16
vocabulary = 500
rows = {{ mean = 4 }}
[queries]
count = 5
k = {k}
[recall]
queries = 2
[[loads]]
warm_up_seconds = 0
requests = 20
"""


def test_the_command_prints_a_table_and_leaves_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(SCENARIO.format(k=5))
    assert main(["bench", "tiny.toml", "--out", "out"]) == 0
    printed = capsys.readouterr()
    assert "closed-1" in printed.out
    assert "the harness itself takes" in printed.out
    assert (tmp_path / "out" / "summary.json").is_file()
    assert main(["bench", "run", "tiny.toml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "tiny"
    assert main(["bench", "tiny.toml", "--out", "out"]) == 1
    assert "already contains a benchmark" in capsys.readouterr().err
    assert main(["bench", "absent.toml"]) == 1
    assert "absent.toml does not exist" in capsys.readouterr().err


def test_bytes_stand_under_their_own_headings(tmp_path: Path) -> None:
    summary = measure(tiny(f"qdrant:{tmp_path / 'data'}"), tmp_path / "out").summary()
    table = fills_table(summary.fills)
    shown = {str(column.header): next(iter(column.cells)) for column in table.columns}
    (fill,) = summary.fills
    assert shown["bytes planned"] == f"{sum(fill.planned_bytes_per_document.values()):,.0f}"
    assert str(shown["bytes per document"]).startswith(f"{fill.disk_bytes_per_document:,.0f}: ")
    assert "" not in shown
    log = fill.component_bytes_per_document["log"]
    assert shown["measured"] == f"{fill.disk_bytes_per_document - log:,.0f}"


def test_a_store_that_builds_nothing_has_no_time_for_it(tmp_path: Path) -> None:
    (without,) = measure(tiny("memory:"), tmp_path / "memory").summary().fills
    (built,) = measure(tiny(f"qdrant:{tmp_path / 'data'}"), tmp_path / "edge").summary().fills
    assert without.optimize_seconds is None
    assert built.optimize_seconds > 0


def test_recall_and_the_share_of_a_core_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    filtered = "k = {k}\nfilters = [{{ share = 0.5, selectivity = 0.1 }}]"
    Path("tiny.toml").write_text(SCENARIO.replace("k = {k}", filtered).format(k=5))
    assert main(["bench", "tiny.toml", "--out", "out"]) == 0
    lines = capsys.readouterr().out.splitlines()
    loads = next(line for line in lines if "p99.9" in line).split()
    assert loads[-6:] == ["client", "CPU", "client", "ms", "server", "ms"]
    recall = next(i for i, line in enumerate(lines) if "filter" in line)
    assert {line.split()[3] for line in lines[recall + 1 :] if "all" in line} <= {"–", "0.1"}


def test_a_void_result_has_an_exit_code_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(running, "backend_for", lambda *_: Short())
    (tmp_path / "tiny.toml").write_text(SCENARIO.format(k=10))
    assert main(["bench", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "out")]) == 3
    printed = capsys.readouterr()
    assert "VOID" in printed.out
    assert "fewer hits than expected" in printed.err


def test_milvus_is_measured(milvus_store: Running, tmp_path: Path) -> None:
    _live(milvus_store, tmp_path)


def test_elasticsearch_is_measured(elasticsearch_store: Running, tmp_path: Path) -> None:
    _live(elasticsearch_store, tmp_path)


def test_a_qdrant_server_is_measured(qdrant_store: Running, tmp_path: Path) -> None:
    _live(qdrant_store, tmp_path)


def _live(store: Running, tmp_path: Path) -> None:
    local = store.server
    collection = own("bench")
    stores = [
        {"name": "s", "url": store.url, "options": dict(store.options), "collection": collection},
    ]
    scenario = read_scenario(TINY | {"stores": stores}, "tiny")

    @running.contextlib.contextmanager
    def servers(_: Any) -> Any:
        session, directory = (local.pid, local.directory) if local else (None, None)
        yield running.Server(store.url, store.options, session, directory)

    async def run() -> BenchFolder:
        try:
            return await running.run(scenario, tmp_path / "out", servers=servers)
        finally:
            await drop(store.url, f"{collection}-120", **store.options)

    folder = anyio.run(run)
    summary = folder.summary()
    assert not summary.void
    rows = folder.requests().to_pylist()
    assert all(row["round_trips"] >= 1 for row in rows)
    assert all(row["store_seconds"] > 0 for row in rows)
    assert summary.fills[0].documents_per_second > 0
    if local:
        assert summary.fills[0].server_memory_bytes > 1e7
        # So few documents may still lie in the store's log.
        assert summary.fills[0].disk_bytes_per_document > 4 * 16 + 2 * 16 * 4
