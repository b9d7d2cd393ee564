"""Ingestion on Ray with two encoding processes: the same collection as of one process, also when one is killed."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import random
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from live_servers import drop, own
from same_collection import assert_same
from stub_encoder import STORAGE, StubEncoder
from test_ingest import TOKENS, corpus, text

from m3_connectors import Document, Index, connect
from m3_connectors.errors import InvalidInput
from m3_connectors.ingestion import Ledger, Origin, ingest, ingest_on_ray, verify
from m3_connectors.testing.servers.start import Running

PROGRAM = Path(__file__).with_name("ray_run.py")

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason='Ray is not installed: pip install "m3-connectors[ray]"'
)


class OnRay:
    """A collection that runs on Ray fill, and beside it one that ``ingest`` fills with the same documents."""

    def __init__(self, folder: Path, url: str, collection: str, options: dict[str, Any]) -> None:
        self.folder = folder
        self.url = url
        self.collection = collection
        self.options = options
        self.ledger = folder / "ledger.sqlite"

    def run(self, parts: Sequence[Sequence[Document | str]], **more: Any) -> dict[str, Any]:
        """Store the documents of parts, and check that a single process stores the same."""
        report = self.on_ray(parts, **more)
        documents = [document for part in parts for document in part if isinstance(document, Document)]
        with (
            connect(f"qdrant:{self.folder / 'one'}", encoder=StubEncoder(), storage=STORAGE) as one,
            Ledger(self.folder / "one.sqlite") as ledger,
        ):
            ingest(documents, one, ledger=ledger, chunking=TOKENS, origin=lambda: Origin("s"), sync=["s"])
            with self.open() as index:
                assert_same(index, one)
                with Ledger(self.ledger) as both:
                    found = verify(index, both)
        assert (found.missing, found.stale, found.unknown) == (0, 0, 0)
        assert found.documents == len({document.id for document in documents})
        return report

    def on_ray(
        self, parts: Sequence[Sequence[Document | str]], *, fails: bool = False, **more: Any
    ) -> dict[str, Any]:
        run = self.folder / uuid.uuid4().hex
        run.mkdir()
        files = []
        for i, part in enumerate(parts):
            file = self.folder / f"part-{i}.jsonl"
            lines = [row if isinstance(row, str) else json.dumps(dataclasses.asdict(row)) for row in part]
            file.write_text("".join(f"{line}\n" for line in lines))
            files.append(str(file))
        request = {
            "parts": files,
            "url": self.url,
            "collection": self.collection,
            "options": self.options,
            "ledger": str(self.ledger),
            "folder": str(run),
            **more,
        }
        (run / "request.json").write_text(json.dumps(request))
        paths = os.pathsep.join([str(PROGRAM.parents[1]), *sys.path])
        ended = subprocess.run(
            [sys.executable, str(PROGRAM), str(run / "request.json")],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=300,
        )
        if fails:
            assert ended.returncode != 0, ended.stdout
            return {"error": ended.stderr}
        assert ended.returncode == 0, ended.stderr
        report: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
        report["by_process"] = [
            [json.loads(line) for line in file.read_text().splitlines()]
            for file in sorted(run.glob("encoded-*.jsonl"))
        ]
        report["encoded"] = [line for lines in report["by_process"] for line in lines]
        return report

    def open(self) -> Index:
        return connect(self.url, self.collection, create=False, **self.options)


def parts_of(documents: Sequence[Document], count: int) -> list[list[Document]]:
    size = -(-len(documents) // count)
    return [list(documents[start : start + size]) for start in range(0, len(documents), size)]


@pytest.fixture(params=["edge", "elasticsearch"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OnRay]:
    if request.param == "edge":
        yield OnRay(tmp_path, f"qdrant:{tmp_path / 'data'}", "documents", {})
        return
    running: Running = request.getfixturevalue(f"{request.param}_store")
    yield OnRay(tmp_path, running.url, own("on-ray"), dict(running.options))
    anyio.run(lambda: drop(running.url, own("on-ray"), **running.options))


@pytest.fixture
def edge(tmp_path: Path) -> OnRay:
    return OnRay(tmp_path, f"qdrant:{tmp_path / 'data'}", "documents", {})


@needs_ray
def test_two_encoders_store_what_one_process_stores_and_again_only_what_changed(place: OnRay) -> None:
    documents = [Document(f"d{i}", f"{text(1 + i % 400)} of {i}", {"n": i}) for i in range(1500)]
    report = place.run(parts_of(documents, 5))
    assert (report["read"], report["documents"], report["unchanged"]) == (1500, 1500, 0)
    assert report["chunks"] == len(report["encoded"])
    assert len(report["by_process"]) == 2
    later = [
        Document(d.id, f"new {d.id}", d.metadata) if i % 100 == 0 else d
        for i, d in enumerate(documents)
        if i % 100 != 50
    ]
    report = place.run(parts_of(later, 5))
    assert sorted(report["encoded"]) == sorted(f"new d{i}" for i in range(0, 1500, 100))
    counts = [report[name] for name in ("read", "documents", "replaced", "removed", "unchanged")]
    assert counts == [1485, 15, 15, 15, 1470]


@needs_ray
@pytest.mark.parametrize("stage", ["Encoding", "Writing"])
def test_the_batch_of_a_killed_process_is_stored_again_and_nothing_is_doubled(
    edge: OnRay, stage: str
) -> None:
    documents = [Document(f"d{i}", f"{text(1 + i % 400)} of {i}", {"n": i}) for i in range(1500)]
    report = edge.run(parts_of(documents, 5), kill=stage)
    assert report["killed"] == [stage]
    assert report["documents"] == 1500


@needs_ray
def test_of_a_repeated_id_the_last_in_the_order_of_the_parts_remains(edge: OnRay) -> None:
    rng = random.Random(0)
    parts = [
        [Document(f"d{rng.randrange(60)}", text(rng.randint(1, 100), f"part{part}"), {}) for _ in range(100)]
        for part in range(6)
    ]
    report = edge.run(parts)
    assert set(report["repeated"]) == {f"d{i}" for i in range(60)}
    assert report["read"] == 600
    assert edge.run(parts)["documents"] <= 60


@needs_ray
def test_what_cannot_be_read_is_named_and_a_shard_stores_its_part(edge: OnRay) -> None:
    documents = corpus(90)
    parts: list[list[Document | str]] = [[*documents[:40], "no row"], ["{}"], [*documents[40:]]]
    first, second = (edge.on_ray(parts, shard=shard) for shard in ("1/2", "2/2"))
    expected = [[str(edge.folder / "part-0.jsonl"), 41], [str(edge.folder / "part-1.jsonl"), 1]]
    assert sorted(first["skipped"]) == sorted(second["skipped"]) == expected
    assert first["documents"] + second["documents"] == 90
    assert edge.run(parts)["unchanged"] == 90


@needs_ray
def test_what_cannot_be_encoded_is_named_and_the_rest_stored(edge: OnRay) -> None:
    documents = corpus(300)
    bad = Document("bad", f"{text(20)} poison {text(20)}")
    own = Document("own", "text", {"chunk": 1})
    report = edge.on_ray([documents[:150], [bad, own], documents[150:]])
    file = str(edge.folder / "part-1.jsonl")
    assert sorted(report["refusals"])[0] == ["bad", "encode", "chunk 2 of 3: ValueError: no vector", file]
    assert sorted(report["refusals"])[1][:2] == ["own", "cut"]
    assert (report["documents"], report["refused"]) == (300, 2)
    # The next run tries again what was refused, and what was stored of it is replaced.
    good = Document("bad", text(5))
    assert edge.run([documents[:150], [good], documents[150:]])["documents"] == 1


@needs_ray
def test_an_error_in_another_process_is_raised_as_in_this_one_and_the_next_run_continues(edge: OnRay) -> None:
    documents = [Document(f"d{i}", f"{text(1 + i % 400)} of {i}") for i in range(1000)]
    said = edge.on_ray([*parts_of(documents, 4), [Document("z", "damaged")]], fails=True)["error"]
    assert "m3_connectors.errors.ModelFormat: the weights are damaged." in said
    report = edge.run(parts_of(documents, 4))
    assert report["documents"] + report["unchanged"] == 1000


def nothing(part: str) -> Iterator[object]:
    return iter(())


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"encoders": 0}, "encoders is 0"),
        ({"writers": 0}, "writers is 0"),
        ({"address": "ray://127.0.0.1:10001"}, "Ray Client"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, more: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        ingest_on_ray(
            [""], nothing, f"qdrant:{tmp_path}", encoder=StubEncoder, ledger=tmp_path / "ledger", **more
        )
