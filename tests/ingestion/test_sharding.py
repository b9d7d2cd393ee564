"""Runs of several shards store what one run stores: on servers at the same moment, on Edge one after the other."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_servers import drop, own
from same_collection import assert_same
from stub_encoder import STORAGE, StubEncoder
from test_ingest import TOKENS, Place, corpus, text

from m3_connectors import Document, connect
from m3_connectors.errors import InvalidInput
from m3_connectors.ingestion import Ledger, Origin, Shard, ingest, verify
from m3_connectors.testing.servers.start import Running

PROGRAM = Path(__file__).with_name("sharded_run.py")
HERE: dict[str, Any] = {"origin": lambda: Origin("source", "file"), "sync": ["source"]}


def shards(count: int) -> list[Shard]:
    return [Shard(number + 1, count) for number in range(count)]


@given(st.text(), st.integers(1, 40))
def test_every_id_is_in_exactly_one_shard(id: str, count: int) -> None:
    assert sum(shard.has(id) for shard in shards(count)) == 1


def test_shards_are_equal_parts_and_the_same_on_every_machine_and_day() -> None:
    for shard in shards(7):
        assert sum(shard.has(f"d{i}") for i in range(70_000)) == pytest.approx(10_000, rel=0.05)
    assert [next(s.number for s in shards(5) if s.has(id)) for id in ("a", "b", "docs/ä.md", "")] == [
        1,
        2,
        3,
        3,
    ]


@pytest.mark.parametrize(
    "bad", ["0/4", "5/4", "a/b", "1", "1/", "/2", "-1/2", "1/2/3", "1/0", " 1/2", "１/２", ""]
)
def test_bad_shards_are_refused(bad: str) -> None:
    with pytest.raises(InvalidInput, match="1/2 and 2/2"):
        Shard.parse(bad)


def test_a_shard_says_what_parse_reads() -> None:
    assert [str(Shard.parse(str(shard))) for shard in shards(3)] == ["1/3", "2/3", "3/3"]


def test_on_edge_one_after_the_other_is_one_run(tmp_path: Path) -> None:
    documents = corpus(300)
    whole, parts = Place(tmp_path / "whole"), Place(tmp_path / "parts")
    whole.run(documents)
    reports = [parts.run(documents, shard=shard)[0] for shard in shards(3)]
    assert sum(report.documents for report in reports) == sum(report.read for report in reports) == 300
    parts.assert_holds(documents)
    with parts.open() as index, whole.open() as other:
        assert_same(index, other)


def test_sync_removes_only_documents_of_the_own_shard(tmp_path: Path) -> None:
    place = Place(tmp_path)
    documents = corpus(100)
    place.run(documents, **HERE)
    left = documents[:60]
    gone = documents[60:]
    report, _ = place.run(left, shard=Shard(1, 2), **HERE)
    own_gone = [d for d in gone if Shard(1, 2).has(d.id)]
    assert (report.removed, report.kept) == (len(own_gone), ())
    place.assert_holds([d for d in documents if d not in own_gone])
    place.run(left, shard=Shard(2, 2), **HERE)
    place.assert_holds(left)


def test_a_lost_document_is_found_though_other_shards_stored_more(tmp_path: Path) -> None:
    """The ledger of a shard's machine knows that shard only; the count of the store says nothing about it."""
    documents = corpus(100)
    machines = [Place(tmp_path) for _ in range(2)]
    for number, machine in enumerate(machines, 1):
        machine.ledger = tmp_path / f"machine-{number}.sqlite"
        machine.run(documents, shard=Shard(number, 2), **HERE)
    lost = next(d.id for d in documents if Shard(1, 2).has(d.id))
    with machines[0].open() as index:
        index.delete([f"{lost}#0"])
    report, _ = machines[1].run(documents, shard=Shard(2, 2), **HERE)
    assert report.missing is not None
    assert (report.missing.missing, report.documents, report.removed) == (0, 0, 0)
    report, _ = machines[0].run(documents, shard=Shard(1, 2), **HERE)
    assert report.missing is not None
    assert (report.missing.missing_ids, report.missing.stale, report.documents) == ((lost,), 0, 1)
    report, _ = machines[0].run(documents, shard=Shard(1, 2), **HERE)
    assert report.unchanged == report.read


def test_a_comparison_leaves_the_other_shards_of_the_ledger_alone(tmp_path: Path) -> None:
    place = Place(tmp_path)
    documents = corpus(50)
    place.run(documents)
    with place.open() as index:
        index.delete([f"{document.id}#0" for document in documents])
        with Ledger(place.ledger) as ledger:
            found = verify(index, ledger, Shard(1, 2))
            mine = [document.id for document in documents if Shard(1, 2).has(document.id)]
            assert (found.documents, sorted(found.missing_ids)) == (len(mine), sorted(mine))
            known = ledger.look_up([document.id for document in documents])
            assert sorted(id for id, version in known.items() if version is None) == sorted(mine)


class AtOnce:
    """Runs of several shards in processes of their own, which begin at the same moment."""

    def __init__(self, folder: Path, url: str, collection: str, options: dict[str, Any]) -> None:
        self._folder = folder
        self._asked = {"url": url, "collection": collection, "options": options}

    def run(self, documents: Sequence[Document], count: int) -> list[dict[str, Any]]:
        file = self._folder / "documents.json"
        file.write_text(json.dumps([dataclasses.asdict(document) for document in documents]))
        paths = os.pathsep.join([str(PROGRAM.parents[1]), *sys.path])
        with contextlib.ExitStack() as stack:
            processes = [
                stack.enter_context(
                    subprocess.Popen(
                        [sys.executable, str(PROGRAM)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        text=True,
                        env={**os.environ, "PYTHONPATH": paths},
                    )
                )
                for _ in range(count)
            ]
            for process, shard in zip(processes, shards(count), strict=True):
                asked = {
                    **self._asked,
                    "ledger": str(self._folder / "ledger.sqlite"),
                    "documents": str(file),
                    "shard": str(shard),
                }
                assert process.stdin is not None
                process.stdin.write(json.dumps(asked) + "\n")
                process.stdin.flush()
            for process in processes:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            answers = [process.communicate(timeout=300) for process in processes]
        assert [process.returncode for process in processes] == [0] * count, answers
        return [json.loads(out) for out, _ in answers]


@pytest.fixture(params=["milvus", "elasticsearch"])
def server(request: pytest.FixtureRequest) -> Iterator[Running]:
    running: Running = request.getfixturevalue(f"{request.param}_store")
    yield running
    anyio.run(lambda: drop(running.url, own("shards"), **running.options))


@pytest.mark.live
def test_two_runs_at_once_create_the_collection_and_are_one_run(server: Running, tmp_path: Path) -> None:
    documents = [Document(f"d{i}", f"{text(1 + i % 40)} of {i}", {"n": i}) for i in range(2000)]
    at_once = AtOnce(tmp_path, server.url, own("shards"), dict(server.options))
    encoder = StubEncoder()
    with connect("memory:", encoder=encoder, storage=STORAGE) as other:
        with Ledger(tmp_path / "other.sqlite") as ledger:
            ingest(documents, other, ledger=ledger, chunking=TOKENS)
        first = at_once.run(documents, 2)
        assert sum(run["documents"] for run in first) == 2000
        assert sorted(text for run in first for text in run["texts"]) == sorted(encoder.texts)
        with connect(server.url, own("shards"), create=False, **server.options) as index:
            assert_same(index, other)
            index.delete(["d7#0", "d8#0"])
        # Some are changed, some have gone, two were deleted behind their backs: each run mends what is its own.
        later = [
            Document(d.id, f"new {d.id}", d.metadata) if i % 100 == 0 else d
            for i, d in enumerate(documents)
            if i % 100 != 50
        ]
        with Ledger(tmp_path / "other.sqlite") as ledger:
            ingest(later, other, ledger=ledger, chunking=TOKENS, sync=[""])
        second = at_once.run(later, 2)
        assert sum(run["removed"] for run in second) == 20
        assert sum(run["documents"] for run in second) == 22
        assert sum(run["missing"] for run in second) == 2
        with (
            connect(server.url, own("shards"), create=False, **server.options) as index,
            Ledger(tmp_path / "ledger.sqlite") as both,
        ):
            assert_same(index, other)
            found = verify(index, both)
    assert (found.documents, found.missing, found.stale, found.unknown) == (1980, 0, 0, 0)


_OPEN_AT_ONCE = """
import sys
from pathlib import Path
from m3_connectors.ingestion import Ledger
from m3_connectors.ingestion.ledger import Version
number = sys.argv[1]
print("ready", flush=True)
for folder in iter(sys.stdin.readline, ""):
    with Ledger(Path(folder.strip()) / "ledger.sqlite", "qdrant:./data", "c") as ledger:
        versions = [Version(f"{number}-{i}", 0, "", "", "", "", "none") for i in range(20)]
        for version in versions:
            ledger.begin([version])
            ledger.acknowledge([version])
    print("done", flush=True)
"""


def test_a_new_ledger_can_be_opened_and_written_by_several_processes_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _OPEN_AT_ONCE]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [*command, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            for number in range(4)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for turn in range(15):
            folder = tmp_path / str(turn)
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(f"{folder}\n")
                process.stdin.flush()
            for process in processes:
                assert process.stdout is not None
                assert process.stdout.readline() == "done\n"
            with Ledger(folder / "ledger.sqlite") as ledger:
                assert ledger.document_count() == 80
        for process in processes:
            process.communicate(timeout=60)
        assert [process.returncode for process in processes] == [0] * 4
