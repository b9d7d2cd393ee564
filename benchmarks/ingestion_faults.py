"""Break ``m3 ingest`` in every way that its users meet, run it again, and compare the store with the source.

    python benchmarks/ingestion_faults.py --model models/m3-tiny
    python benchmarks/ingestion_faults.py --cases kill --stores qdrant-edge --kills 30
    python benchmarks/ingestion_faults.py --report benchmarks/results/ingestion-faults-2025-01-31.jsonl

| case | what happens |
|---|---|
| kill | SIGKILL at a random moment, between the first change of the ledger and the end of the run; the source changes
from trial to trial, so that documents are new, changed, shorter, longer and gone |
| stopped | the server is stopped in the middle of a run and started again after ``--stopped-seconds`` |
| 429 | half of the bulk requests are refused as too many (Elasticsearch) |
| 413 | the first bulk requests are refused as too large (Elasticsearch) |
| reset | connections to the server are reset in the middle of answers |
| full-ledger | the disk of the ledger is full (a small tmpfs; needs root) |
| full-store | the disk of the store is full (Qdrant Edge on a small tmpfs; needs root) |

After each disturbed run, everything that the ledger lists as stored must be in the store. After the next run, the ids,
texts, metadata and scores of the store must be those of the source, which are computed here. A run is silent if it ends
with 0 although the store is not complete, or with another status and without a message. The exit status is 1 if
anything was lost, doubled or silent.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from fixtures import PACKAGES, RESULTS
from ingesting import Row, Rows, ids_of, log, read_rows, running, table

from m3_connectors import Document, M3Embeddings, M3Encoder, connect
from m3_connectors.environment import describe, environment
from m3_connectors.ingestion import Chunking
from m3_connectors.ingestion.chunking import chunk_ids
from m3_connectors.testing.faults import Fault, FaultProxy, Reply, Reset

CHUNKING = Chunking("tokens", 48, 6)
SERVERS = ("milvus", "elasticsearch")
CASES = ("kill", "stopped", "429", "413", "reset", "full-ledger", "full-store")
_TOLERANCE = 5e-3
"""In bfloat16, the scores of a text differ by up to 2e-3 between batches of other texts."""

_QUERIES = 10
_WORDS = [
    "fox",
    "lake",
    "wizard",
    "forest",
    "library",
    "table",
    "city",
    "river",
    "copper",
    "lantern",
    "violin",
    "harbour",
    "meadow",
    "engine",
    "letter",
    "winter",
    "signal",
    "market",
    "bridge",
    "garden",
]


class Source:
    """A folder of JSON Lines files whose documents change from trial to trial, and what the store must hold of it."""

    def __init__(self, folder: Path, encoder: M3Encoder, documents: int, seed: int) -> None:
        self.folder = folder
        self._encoder = encoder
        self._rng = random.Random(seed)
        self._next = 0
        self._embeddings: dict[str, M3Embeddings] = {}
        self.documents: dict[str, Document] = {}
        self.add(documents)

    def add(self, count: int) -> None:
        for _ in range(count):
            id = f"d{self._next:06d}"
            self._next += 1
            self.documents[id] = Document(
                id, self._text(), {"n": self._next, "kind": self._rng.choice("abc")}
            )

    def change(self, share: float) -> None:
        """Change this share of the documents, remove a tenth of it, and add as many."""
        ids = list(self.documents)
        for id in self._rng.sample(ids, int(share * len(ids))):
            self.documents[id] = dataclasses.replace(self.documents[id], text=self._text())
        gone = self._rng.sample(ids, int(share * len(ids) / 10))
        for id in gone:
            del self.documents[id]
        self.add(len(gone))

    def write(self) -> None:
        self.folder.mkdir(exist_ok=True)
        documents = list(self.documents.values())
        for part in range(3):
            lines = (
                json.dumps({"id": d.id, "text": d.text, **d.metadata}) + "\n" for d in documents[part::3]
            )
            (self.folder / f"part-{part}.jsonl").write_text("".join(lines))

    def expected(self) -> dict[str, Document]:
        spans = self._encoder.token_spans
        parts = (part for d in self.documents.values() for part in CHUNKING.chunks(d, spans))
        return {part.id: part for part in parts}

    def embeddings(self, documents: Sequence[Document]) -> M3Embeddings:
        missing = [d.text for d in documents if d.text not in self._embeddings]
        if missing:
            encoded = self._encoder.encode(missing)
            self._embeddings.update((text, encoded[i : i + 1]) for i, text in enumerate(missing))
        return M3Embeddings.concatenate([self._embeddings[d.text] for d in documents])

    def _text(self) -> str:
        length = self._rng.choice((8, 20, 20, 40, 40, 120))
        return " ".join(self._rng.choices(_WORDS, k=self._rng.randint(3, length)))


@dataclasses.dataclass
class Trial:
    """One collection, its ledger and its source."""

    url: str
    state: Path
    source: Source
    model: str
    direct_url: str = ""
    """The store without the proxy, if there is one."""

    @property
    def ledger(self) -> Path | None:
        found = sorted(self.state.rglob("*.sqlite"), key=lambda path: path.stat().st_mtime)
        return found[-1] if found else None

    def start(self, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "m3_connectors", "ingest", str(self.source.folder), "--to", self.url]
        command += ["--model", self.model, "--chunk", str(CHUNKING), "--sync", "--json", *more]
        environment = {**os.environ, "XDG_STATE_HOME": str(self.state)}
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=self.state.parent,
        )

    def run(self, *more: str) -> Row:
        return ended(self.start(*more), time.monotonic())

    def compare(self, encoder: M3Encoder) -> Row:
        """Return how the store differs from the source: ids, texts and metadata, scores."""
        expected = self.source.expected()
        documents = list(expected.values())
        with (
            connect(self.direct_url or self.url, encoder=encoder, create=False) as index,
            connect("memory:", encoder=encoder) as oracle,
        ):
            found = Counter(ids_of(index))
            different = 0
            for start in range(0, len(documents), 500):
                part = documents[start : start + 500]
                got = index.get([d.id for d in part])
                different += sum(a is not None and a != b for a, b in zip(got, part, strict=True))
            oracle.add(documents, embeddings=self.source.embeddings(documents))
            scores = 0
            for query in random.Random(len(documents)).sample(documents, _QUERIES):
                asked = self.source.embeddings([query])
                true = {hit.document.id: hit for hit in oracle.search(asked, k=len(documents))}
                hits = index.search(asked, k=10)
                scores += not hits or any(
                    hit.document.id not in true or abs(hit.score - true[hit.document.id].score) > _TOLERANCE
                    for hit in hits
                )
                scores += bool(hits) and abs(hits[0].score - max(t.score for t in true.values())) > _TOLERANCE
            return {
                "expected": len(expected),
                "found": sum(found.values()),
                "counted": index.count(),
                "lost": len(expected.keys() - found.keys()),
                "doubled": sum(found.values()) - len(found),
                "unknown": len(found.keys() - expected.keys()),
                "different": different,
                "scores_wrong": scores,
            }

    def listed(self) -> set[str]:
        """Return the ids that the ledger lists as stored; none without a ledger.

        Documents that the source no longer has are left out: a killed run may have removed them from the store already,
        and the next one removes them from the ledger.
        """
        if self.ledger is None:
            return set()
        try:
            with contextlib.closing(sqlite3.connect(self.ledger)) as ledger:
                rows = ledger.execute(
                    "SELECT id, chunks FROM documents WHERE acknowledged IS NOT NULL"
                ).fetchall()
        except sqlite3.Error:
            return set()
        kept = [(parent, chunks) for parent, chunks in rows if parent in self.source.documents]
        return {id for parent, chunks in kept for id in chunk_ids(parent, chunks)}

    def unfounded(self) -> int:
        """Return how many ids the ledger lists as stored that the store does not hold."""
        listed = self.listed()
        if not listed:
            return 0
        with connect(self.direct_url or self.url, create=False) as index:
            return len(listed - set(ids_of(index)))


def ended(process: subprocess.Popen[str], began: float) -> Row:
    out, err = process.communicate(timeout=600)
    err = re.sub(rf"{re.escape(tempfile.gettempdir())}/m3-faults-\w+", "DIRECTORY", err)
    said = [line.strip() for line in err.splitlines() if line.strip()]
    row: Row = {
        "status": process.returncode,
        "seconds": round(time.monotonic() - began, 2),
        "stderr": said[-12:],
    }
    if process.returncode == 0:
        report = json.loads(out)
        names = ("documents", "chunks", "unchanged", "replaced", "removed")
        row["report"] = {name: report[name] for name in names if name in report}
    return row


def wait_for_work(trial: Trial, process: subprocess.Popen[str]) -> float:
    """Wait until the run changes its ledger, and return when."""
    before = _written(trial)
    while process.poll() is None and _written(trial) == before:
        time.sleep(0.002)
    return time.monotonic()


def _written(trial: Trial) -> dict[str, int]:
    sizes = {}
    for path in trial.state.rglob("*.sqlite-wal"):
        with contextlib.suppress(OSError):
            sizes[str(path)] = path.stat().st_size and path.stat().st_mtime_ns
    return sizes


# -- the cases; each yields rows


class Suite:
    """Runs cases on stores."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._model = str(options.model.resolve())
        self._encoder = M3Encoder(self._model)

    def run(self) -> Iterator[Row]:
        for store in self._options.stores:
            cases: list[tuple[str, Callable[..., Iterator[Row]]]] = [("kill", self._kill)]
            if store in SERVERS:
                cases += [("stopped", self._stopped), ("reset", self._reset)]
            if store == "elasticsearch":
                cases += [("429", self._too_many), ("413", self._too_large)]
            if store == "qdrant-edge":
                cases += [("full-ledger", self._full_ledger), ("full-store", self._full_store)]
            for name, case in cases:
                if name not in self._options.cases:
                    continue
                with tempfile.TemporaryDirectory(prefix="m3-faults-", dir=self._options.directory) as folder:
                    for row in case(store, Path(folder)):
                        yield {"kind": "trial", "case": name, "store": store, **row}

    def _trial(self, folder: Path, url: str, documents: int) -> Trial:
        source = Source(folder / "source", self._encoder, documents, seed=self._options.seed)
        source.write()
        (folder / "state").mkdir(exist_ok=True)
        return Trial(url, folder / "state", source, self._model)

    def _checked(self, trial: Trial, disturbed: Row, /, **more: object) -> Row:
        """Check the store after a disturbed run; run again unless it was complete; compare."""
        row: Row = {**more, "disturbed": disturbed, "listed_but_not_stored": trial.unfounded()}
        if disturbed["status"] == 0:
            row["after"] = trial.compare(self._encoder)
        else:
            row["again"] = trial.run()
            row["after"] = trial.compare(self._encoder)
        return row

    def _kill(self, store: str, folder: Path) -> Iterator[Row]:
        rng = random.Random(self._options.seed)
        with contextlib.ExitStack() as stack:
            url = f"qdrant:{folder}/data"
            if store in SERVERS:
                url = stack.enter_context(running(store)).url
            trial = self._trial(folder, url, self._options.documents)
            process = trial.start()
            began = wait_for_work(trial, process)
            first = ended(process, began)
            yield {"trial": 0, "disturbed": first, "after": trial.compare(self._encoder), "killed": False}
            work_seconds = first["seconds"]
            kills = number = 0
            # A run that ends before its moment is no kill; it counts as a trial, and another follows.
            while kills < self._options.kills and number < 2 * self._options.kills:
                number += 1
                trial.source.change(0.6)
                trial.source.write()
                process = trial.start()
                began = wait_for_work(trial, process)
                moment = rng.uniform(0, 0.8 * work_seconds)
                time.sleep(moment)
                process.send_signal(signal.SIGKILL)
                disturbed = ended(process, began)
                killed = disturbed["status"] == -signal.SIGKILL
                kills += killed
                if not killed:
                    work_seconds = disturbed["seconds"]
                yield self._checked(trial, disturbed, trial=number, killed=killed, moment=round(moment, 3))

    def _stopped(self, store: str, folder: Path) -> Iterator[Row]:
        with running(store) as server:
            assert server.server is not None
            trial = self._trial(folder, server.url, self._options.documents * 4)
            process = trial.start()
            began = wait_for_work(trial, process)
            # Only then is the collection open: what is down at the start is an error.
            while process.poll() is None and not trial.listed():
                time.sleep(0.05)
            server.server.stop()
            log(f"{store}: stopped; the run {'goes on' if process.poll() is None else 'has ended'}")
            time.sleep(self._options.stopped_seconds)
            server.server.start()
            yield self._checked(trial, ended(process, began), stopped_seconds=self._options.stopped_seconds)

    def _behind_proxy(
        self, store: str, folder: Path, fault: Fault, documents: int, **more: object
    ) -> Iterator[Row]:
        with running(store) as server:
            parts = urlsplit(server.url)
            assert parts.port is not None
            with FaultProxy(parts.port, seed=self._options.seed) as proxy:
                trial = self._trial(folder, f"{parts.scheme}://127.0.0.1:{proxy.port}", documents)
                trial.direct_url = server.url
                process = trial.start()
                began = wait_for_work(trial, process)
                proxy.fault = fault
                disturbed = ended(process, began)
                faults = proxy.faults
                proxy.fault = None
                yield self._checked(trial, disturbed, faults=faults, **more)

    def _too_many(self, store: str, folder: Path) -> Iterator[Row]:
        body = b'{"error":{"type":"es_rejected_execution_exception","reason":"rejected"},"status":429}'
        headers = {"Content-Type": "application/json"}
        storm = Reply(429, body, headers, to="_bulk", probability=0.5)
        yield from self._behind_proxy(store, folder, storm, self._options.documents)

    def _too_large(self, store: str, folder: Path) -> Iterator[Row]:
        yield from self._behind_proxy(store, folder, Reply(413, to="_bulk", times=5), self._options.documents)

    def _reset(self, store: str, folder: Path) -> Iterator[Row]:
        fault = Reset(after_bytes=20, probability=0.1)
        yield from self._behind_proxy(store, folder, fault, self._options.documents)

    def _full_ledger(self, store: str, folder: Path) -> Iterator[Row]:
        for number, size_kib in enumerate(self._options.ledger_kib):
            inner = folder / str(number)
            inner.mkdir()
            with _small_disk(inner / "state", size_kib) as grow:
                trial = self._trial(inner, f"qdrant:{inner}/data", self._options.documents)
                disturbed = trial.run()
                grow()
                yield self._checked(trial, disturbed, disk_kib=size_kib)

    def _full_store(self, store: str, folder: Path) -> Iterator[Row]:
        for number, size_kib in enumerate(self._options.store_kib):
            inner = folder / str(number)
            (inner / "disk").mkdir(parents=True)
            with _small_disk(inner / "disk", size_kib) as grow:
                trial = self._trial(inner, f"qdrant:{inner}/disk/data", self._options.documents)
                disturbed = trial.run()
                grow()
                yield self._checked(trial, disturbed, disk_kib=size_kib)


@contextlib.contextmanager
def _small_disk(folder: Path, size_kib: int) -> Iterator[Callable[[], object]]:
    """Mount a small file system for the block, and yield what makes it large."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o"]
    subprocess.run([*mount, f"size={size_kib}k", "tmpfs", str(folder)], check=True)
    try:
        yield lambda: subprocess.run([*mount, "remount,size=2g", "tmpfs", str(folder)], check=True)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# -- the report


def wrong(row: Row) -> dict[str, int]:
    """Return what is wrong with a trial, by kind."""
    last = row.get("again", row["disturbed"])
    after = row["after"]
    lost = after["lost"] + (row.get("listed_but_not_stored") or 0)
    off = (
        after["different"]
        + after["scores_wrong"]
        + after["unknown"]
        + (after["counted"] != after["expected"])
    )
    ended = [row["disturbed"], *([row["again"]] if "again" in row else [])]
    mute = sum(not one["stderr"] for one in ended if one["status"] not in (0, -signal.SIGKILL))
    unsaid = last["status"] == 0 and (
        after["lost"] or after["doubled"] or after["unknown"] or after["different"]
    )
    return {"lost": lost, "doubled": after["doubled"], "different": off, "silent": mute + bool(unsaid)}


def report(path: Path) -> tuple[str, bool]:
    machine, *rows = read_rows(path)
    lines, well = [], True
    for case, store in dict.fromkeys((row["case"], row["store"]) for row in rows):
        own = [row for row in rows if (row["case"], row["store"]) == (case, store)]
        sums = {
            name: sum(wrong(row)[name] for row in own) for name in ("lost", "doubled", "different", "silent")
        }
        well = well and not any(sums.values()) and all(_last(row)["status"] == 0 for row in own)
        statuses = Counter(_status(row["disturbed"]["status"]) for row in own if row.get("trial") != 0)
        again = Counter(_status(row["again"]["status"]) for row in own if "again" in row)
        said = [
            row["disturbed"]["stderr"]
            for row in own
            if row["disturbed"]["status"] not in (0, -signal.SIGKILL)
        ]
        lines.append(
            [
                case,
                store,
                sum(row.get("trial") != 0 for row in own),
                ", ".join(f"{count} × {name}" for name, count in statuses.items()),
                ", ".join(f"{count} × {name}" for name, count in again.items()) or "–",
                f"{sum(row['after']['found'] for row in own):,} of {sum(row['after']['expected'] for row in own):,}",
                *(f"{value:,}" for value in sums.values()),
                next((line for line in said[0] if ":" in line), said[0][0])[:110] if said and said[0] else "",
            ]
        )
    header = [
        "case",
        "store",
        "times",
        "disturbed run",
        "next run",
        "chunks found",
        "lost",
        "doubled",
        "different",
    ]
    header += ["silent", "first message"]
    return f"{describe(machine)}; {machine['documents']:,} documents.\n\n{table(header, lines)}", well


def _last(row: Row) -> Row:
    last: Row = row.get("again", row["disturbed"])
    return last


def _status(status: int) -> str:
    return {0: "complete", -signal.SIGKILL: "killed"}.get(status, f"status {status}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    today = datetime.datetime.now(datetime.UTC).date()
    parser.add_argument("--model", type=Path, default=Path("models/m3-tiny"))
    parser.add_argument(
        "--stores", nargs="+", default=["qdrant-edge", *SERVERS], choices=["qdrant-edge", *SERVERS]
    )
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--documents", type=int, default=2_000)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--stopped-seconds", type=float, default=60.0)
    parser.add_argument("--ledger-kib", type=int, nargs="+", default=[64, 256, 400])
    parser.add_argument("--store-kib", type=int, nargs="+", default=[50_000, 99_000, 105_000, 112_000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", help="folder for sources and embedded stores during the run")
    parser.add_argument("--out", type=Path, default=RESULTS / f"ingestion-faults-{today}.jsonl")
    parser.add_argument("--report", type=Path, help="only print the table of this file")
    options = parser.parse_args()
    if options.report is None:
        with Rows(options.out) as rows:
            rows.write(environment(*PACKAGES, documents=options.documents, seed=options.seed))
            for row in Suite(options).run():
                rows.write(row)
                log(
                    f"{row['case']} on {row['store']}: {wrong(row)} {row['disturbed']['status']} {row['after']}"
                )
    text, well = report(options.report or options.out)
    print(text)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
