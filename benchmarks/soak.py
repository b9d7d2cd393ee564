"""Run searches, deletions and additions on a store for some minutes; record errors, wrong answers and resources.

    python benchmarks/soak.py                                             # Qdrant Edge, 10 minutes
    python benchmarks/soak.py --stores elasticsearch milvus --minutes 1   # two others, a minute each
    python benchmarks/soak.py --stores qdrant+http://localhost:6333       # a running server
    python benchmarks/soak.py --report benchmarks/results/soak-2025-01-31.jsonl.gz

Eight threads search without a pause with all five methods. One thread deletes documents by id and by filter, adds
them again with other texts and vectors, and replaces others in place. All random numbers are seeded. Searches are
checked while they run: no call may raise, every hit must be a version of a document that was stored at some time during
the search, with the true scores of such a version, and a document that was stored throughout and ranks high enough must
be among the hits (sparse search, and dense search with ``exact``). At the end, the count, the documents and the results
of every method are compared with those of the memory store.

The rows have latency, memory and disk use. One row per second is written to a compressed JSON Lines file, after a
record of the machine; the table and the plot (a PNG file beside it) are generated from that file. The exit status is 1
if anything was wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import gzip
import json
import math
import os
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fixtures import EMBEDDED, PACKAGES, RESULTS, SERVERS, Corpus, Fixed, Place, place_of

from m3_connectors import Document, Hit, Index, M3Embeddings, connect
from m3_connectors.backends.capabilities import Capability
from m3_connectors.backends.precision import FLOAT16
from m3_connectors.bench.meter import Meter
from m3_connectors.embeddings import COMPONENTS, Component, Float32
from m3_connectors.environment import describe, environment
from m3_connectors.files import allocated_bytes_below
from m3_connectors.methods import METHODS
from m3_connectors.scoring import score

Row = dict[str, Any]

_GROUP = 30
"""Number of documents in one write; a filter selects the same group."""

_FAULTS_KEPT = 20
_TOLERANCE = 1e-4
_CORPUS_BLOCK = 250


@dataclasses.dataclass
class Life:
    """One version of a document; the times are those of the calls that stored and removed it.

    Attributes:
        version: Determines the text and the vectors.
        begun, stored: When its ``add`` was called and when it returned.
        doomed, gone: When the call that removed or replaced it began and when that returned.
    """

    version: int
    begun: float
    stored: float = math.inf
    doomed: float = math.inf
    gone: float = math.inf


class Truth:
    """The documents that are stored at any time, and their true scores."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.count = options.documents
        corpus = Corpus(options.documents, options.rows, options.dimension)
        self.model = corpus.model
        self.bank = M3Embeddings.concatenate([embeddings for _, embeddings in corpus.blocks()])
        self.queries = corpus.queries(options.queries, options.query_rows)
        rounded, asked = FLOAT16.rounded(self.bank), FLOAT16.rounded(self.queries)
        self.scores: dict[Component, Float32] = {
            name: np.stack([score(name, asked[i : i + 1], rounded) for i in range(len(asked))])
            for name in COMPONENTS
        }
        self.lives: list[deque[Life]] = [deque(maxlen=16) for _ in range(self.count)]
        self._lock = threading.Lock()

    def place(self, number: int, version: int) -> int:
        """Return the row of the bank that holds this version's vectors."""
        return (number + 7 * version) % self.count

    def document(self, number: int, version: int) -> Document:
        text = f"Document {number} in version {version}, about topic {self.place(number, version)}."
        return Document(f"document-{number:06d}", text, {"version": version, "group": number // _GROUP})

    def embeddings(self, numbers: Sequence[int], versions: Sequence[int]) -> M3Embeddings:
        places = [self.place(n, v) for n, v in zip(numbers, versions, strict=True)]
        return M3Embeddings.concatenate([self.bank[i] for i in places])

    def current(self, number: int) -> Life | None:
        """Return the version that is stored, if any; called by the writing thread."""
        lives = self.lives[number]
        return lives[-1] if lives and lives[-1].gone == math.inf else None

    def next_version(self, number: int) -> int:
        return self.lives[number][-1].version + 1 if self.lives[number] else 0

    def begin(self, numbers: Sequence[int], versions: Sequence[int] | None) -> None:
        """Record the start of a call that removes these documents, or stores these versions of them."""
        with self._lock:
            now = time.perf_counter()
            for i, number in enumerate(numbers):
                if (life := self.current(number)) is not None:
                    life.doomed = now
                if versions is not None:
                    self.lives[number].append(Life(versions[i], now))

    def end(self, numbers: Sequence[int]) -> None:
        """Record that the call returned."""
        with self._lock:
            now = time.perf_counter()
            for number in numbers:
                for life in self.lives[number]:
                    if life.doomed < math.inf:
                        life.gone = min(life.gone, now)
                    else:
                        life.stored = min(life.stored, now)

    def between(self, start: float, end: float) -> list[list[tuple[int, bool]]]:
        """Return the visible versions of each document, and whether each was stored throughout."""
        with self._lock:
            return [
                [
                    (life.version, life.stored <= start and life.doomed >= end)
                    for life in lives
                    if life.begun <= end and life.gone >= start
                ]
                for lives in self.lives
            ]

    def wrong(self, query: int, method: str, k: int, exact: bool, hits: list[Hit], seen: Any) -> str | None:
        """Describe what is wrong with an answer, if anything."""
        chosen = METHODS[method]
        ids = [hit.document.id for hit in hits]
        if len(set(ids)) < len(ids) or len(ids) > k:
            return f"{len(ids)} hits, {len(set(ids))} of them different, for k={k}"
        if [(-hit.score, hit.document.id) for hit in hits] != sorted(
            (-hit.score, hit.document.id) for hit in hits
        ):
            return "hits are not in the order of their scores"
        for hit in hits:
            number = int(hit.document.id.rpartition("-")[2])
            versions = [version for version, _ in seen[number]]
            version = hit.document.metadata["version"]
            if version not in versions or hit.document != self.document(number, version):
                return f"{hit.document} was not stored during the search; versions that were: {versions}"
            places = [self.place(number, version) for version in versions]
            shown = {name: getattr(hit.scores, name) for name in COMPONENTS}
            for name, value in shown.items():
                true = [float(self.scores[name][query, place]) for place in places]
                if value is None or min(abs(value - other) for other in true) > _TOLERANCE:
                    return f"{name} of {hit.document.id} is {value}; true of its versions: {true}"
            fused = sum(
                getattr(chosen.weights, name) * shown[name]
                for name in chosen.scored
                if shown[name] is not None
            )
            if abs(fused - hit.score) > 10 * _TOLERANCE:
                return f"{hit.document.id} has {hit.score}, its scores fuse to {fused}"
        if method == "sparse" or (method == "dense" and exact):
            return self._missing(query, "sparse" if method == "sparse" else "dense", k, set(ids), seen)
        return None

    def _missing(self, query: int, name: Component, k: int, found: set[str], seen: Any) -> str | None:
        """Find a missing document that was stored throughout and that fewer than k others can have outranked."""
        scores = self.scores[name][query]
        best = np.full(self.count, -np.inf)
        throughout = np.zeros(self.count, dtype=bool)
        for number, versions in enumerate(seen):
            if versions:
                best[number] = max(scores[self.place(number, version)] for version, _ in versions)
                throughout[number] = len(versions) == 1 and versions[0][1]
        order = np.argsort(-best)
        for number in order[:k].tolist():
            rivals = int((best >= best[number] - _TOLERANCE).sum()) - 1
            answers = throughout[number] and (name == "dense" or best[number] > _TOLERANCE)
            id = f"document-{number:06d}"
            if answers and rivals < k and id not in found:
                return f"{id} is missing: {name} {best[number]:.6f}, outranked by {rivals} at most, k={k}"
        return None


class Tally:
    """Counters since the last row, shared by all threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.latencies: list[float] = []
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []

    def search(self, seconds: float) -> None:
        with self.lock:
            self.latencies.append(round(1e3 * seconds, 2))

    def count(self, what: str, number: int = 1) -> None:
        with self.lock:
            self.counts[what] += number

    def fault(self, what: str, message: str) -> None:
        with self.lock:
            self.counts[what] += 1
            self.faults.append(f"{what}: {message}")

    def row(self) -> Row:
        """Return everything counted since the last call."""
        with self.lock:
            latencies, self.latencies = self.latencies, []
            counts, self.counts = self.counts, Counter()
        names = ("errors", "wrong", "deleted", "added", "replaced")
        return {"latencies_ms": latencies, **{name: counts[name] for name in names}}


class Soak:
    """The run of one store."""

    def __init__(self, index: Index, place: Place, truth: Truth, options: argparse.Namespace) -> None:
        self._index, self._place, self._truth, self._options = index, place, truth, options
        self._tally = Tally()
        self._over = threading.Event()
        self._exact = Capability.EXACT in index._index._backend.capabilities

    def run(self) -> Iterator[Row]:
        """Yield one row per second, and the result of the comparison at the end."""
        self._store(list(range(self._truth.count)))
        threads = [
            threading.Thread(target=self._guarded, args=(self._search, i), name=f"search-{i}")
            for i in range(self._options.threads)
        ]
        threads.append(
            threading.Thread(target=self._guarded, args=(self._write, self._options.threads), name="write")
        )
        self._tally.row()
        meter = Meter(self._place.session)
        for thread in threads:
            thread.start()
        try:
            end = meter.now() + 60 * self._options.minutes
            while (now := meter.now()) < end:
                self._over.wait(1.0 - now % 1.0)
                yield {
                    "kind": "second",
                    "at": round(meter.now(), 2),
                    **self._tally.row(),
                    **self._size(meter),
                }
        finally:
            self._over.set()
            for thread in threads:
                thread.join()
        yield {"kind": "second", "at": round(meter.now(), 2), **self._tally.row(), **self._size(meter)}
        wrong = self._compared()
        yield {"kind": "end", "wrong_at_the_end": wrong, "faults": self._tally.faults[:_FAULTS_KEPT]}

    def _guarded(self, work: Any, number: int) -> None:
        try:
            work(np.random.default_rng([self._options.seed, number]))
        except Exception:  # noqa: BLE001 (a thread that ended silently would look like an idle store)
            self._tally.fault("wrong", traceback.format_exc())

    def _search(self, rng: np.random.Generator) -> None:
        truth, k = self._truth, self._options.k
        while not self._over.is_set():
            method = str(rng.choice(list(METHODS)))
            query = int(rng.integers(len(truth.queries)))
            exact = self._exact and bool(rng.integers(2))
            start = time.perf_counter()
            try:
                hits = self._index.search(truth.queries[query : query + 1], method=method, k=k, exact=exact)
            except Exception as error:  # noqa: BLE001 (each is a row)
                self._tally.fault("errors", f"search by {method}: {type(error).__name__}: {error}")
                continue
            end = time.perf_counter()
            self._tally.search(end - start)
            if wrong := truth.wrong(query, method, k, exact, hits, truth.between(start, end)):
                self._tally.fault("wrong", f"search by {method}, query {query}, exact={exact}: {wrong}")

    def _write(self, rng: np.random.Generator) -> None:
        groups = math.ceil(self._truth.count / _GROUP)
        while not self._over.is_set():
            group = int(rng.integers(groups))
            members = list(range(group * _GROUP, min((group + 1) * _GROUP, self._truth.count)))
            try:
                match rng.integers(3):
                    case 0:
                        chosen = rng.choice(self._truth.count, size=len(members), replace=False).tolist()
                        self._remove(chosen, by_filter=None)
                        self._store(chosen)
                    case 1:
                        self._remove(members, by_filter=group)
                        self._store(members)
                    case _:
                        self._store(members)
            except Exception as error:
                self._tally.fault("errors", f"writing: {type(error).__name__}: {error}")
                raise  # from here on it is unknown what is stored
            self._over.wait(self._options.pause)

    def _remove(self, numbers: list[int], *, by_filter: int | None) -> None:
        self._truth.begin(numbers, None)
        if by_filter is None:
            removed = self._index.delete([self._truth.document(n, 0).id for n in numbers])
        else:
            removed = self._index.delete(filter={"group": by_filter})
        self._truth.end(numbers)
        self._tally.count("deleted", removed)
        if removed != len(numbers):
            self._tally.fault("wrong", f"{removed} of {len(numbers)} documents removed")

    def _store(self, numbers: list[int]) -> None:
        truth = self._truth
        for start in range(0, len(numbers), _CORPUS_BLOCK):
            block = numbers[start : start + _CORPUS_BLOCK]
            replaced = sum(truth.current(n) is not None for n in block)
            versions = [truth.next_version(n) for n in block]
            documents = [truth.document(n, v) for n, v in zip(block, versions, strict=True)]
            embeddings = truth.embeddings(block, versions)
            truth.begin(block, versions)
            self._index.add(documents, embeddings=embeddings)
            truth.end(block)
            self._tally.count("replaced", replaced)
            self._tally.count("added", len(block) - replaced)

    def _size(self, meter: Meter) -> Row:
        server = meter.server_memory_bytes()
        disk = self._place.directory and allocated_bytes_below(self._place.directory)
        return {
            "memory_mib": _own_memory_mib(),
            "server_memory_mib": server and round(server / 2**20, 1),
            "disk_mib": disk and round(disk / 2**20, 1),
        }

    def _compared(self) -> list[str]:
        """List how the store differs from a memory store with the documents that it should contain."""
        truth, index = self._truth, self._index
        numbers = list(range(truth.count))
        lives = [truth.current(n) for n in numbers]
        if None in lives:
            return ["the writing thread ended between a deletion and its addition"]
        versions = [life.version for life in lives if life is not None]
        documents = [truth.document(n, v) for n, v in zip(numbers, versions, strict=True)]
        found = []
        if (count := index.count()) != len(documents):
            found.append(f"{count} documents instead of {len(documents)}")
        stored = [
            one
            for i in range(0, truth.count, 500)
            for one in index.get([d.id for d in documents[i : i + 500]])
        ]
        different = [d.id for d, got in zip(documents, stored, strict=True) if got != d]
        if different:
            found.append(f"{len(different)} documents are missing or different, such as {different[0]}")
        with connect("memory:", encoder=Fixed(truth.model)) as oracle:
            oracle.add(documents, embeddings=truth.embeddings(numbers, versions))
            for query in range(len(truth.queries)):
                for method in METHODS:
                    asked = truth.queries[query : query + 1]
                    got = index.search(asked, method=method, k=self._options.k, exact=self._exact)
                    want = oracle.search(asked, method=method, k=self._options.k, exact=True)
                    # A dense list that may be approximate can be compared only if the store supports exact search.
                    if not self._exact and "dense" in METHODS[method].candidates:
                        continue
                    if not _same(got, want):
                        found.append(f"query {query} by {method}: hits differ from those of the memory store")
        return found


def _same(got: list[Hit], want: list[Hit]) -> bool:
    if len(got) != len(want):
        return False
    # Documents with nearly equal scores may be in a different order.
    return all(abs(a.score - b.score) <= 10 * _TOLERANCE for a, b in zip(got, want, strict=True))


def _own_memory_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def run(options: argparse.Namespace) -> Iterator[Row]:
    """Yield all rows of a run."""
    names = ("minutes", "documents", "dimension", "rows", "query_rows", "threads", "k", "pause", "seed")
    yield environment(*PACKAGES, **{name: getattr(options, name) for name in names})
    for store in options.stores:
        truth = Truth(options)
        with place_of(store, options.directory) as place:
            collection = f"soak-{os.getpid()}"
            with connect(place.url, collection, encoder=Fixed(truth.model), **place.options) as index:
                try:
                    for row in Soak(index, place, truth, options).run():
                        yield {"store": store, **row}
                finally:
                    index.drop()


# -- the report


def read(paths: Sequence[Path]) -> tuple[list[Row], dict[str, list[Row]]]:
    """Return the machines, and the rows of each store."""
    machines, stores = [], {}
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                if row["kind"] == "environment":
                    machines.append(row)
                else:
                    stores.setdefault(row["store"], []).append(row)
    return machines, stores


def report(paths: Sequence[Path]) -> tuple[str, bool]:
    """Return the table in Markdown, and whether there were no errors."""
    machines, stores = read(paths)
    machine = machines[0]
    lines = [
        f"{machine['minutes']:g} minutes a store, {machine['documents']:,} documents of {machine['rows']} rows of "
        f"{machine['dimension']:,}; {machine['threads']} threads search, one writes; {describe(machine)}; load average "
        f"{machine['load_average'][0]:.1f}.",
        "",
        "| store | searches | errors | wrong | p50 ms | p99 ms | longest ms | deleted | added | replaced "
        "| memory MiB, 2nd → last fifth | server's | disk MiB |",
        "|---" * 13 + "|",
    ]
    well = True
    for store, rows in stores.items():
        seconds = [row for row in rows if row["kind"] == "second"]
        ends = [row for row in rows if row["kind"] == "end"]
        latencies = np.array([ms for row in seconds for ms in row["latencies_ms"]] or [np.nan])
        total = {
            name: sum(row[name] for row in seconds)
            for name in ("errors", "wrong", "deleted", "added", "replaced")
        }
        at_the_end = [fault for row in ends for fault in row["wrong_at_the_end"]]
        well = well and bool(ends) and not total["errors"] and not total["wrong"] and not at_the_end
        cells = [
            store,
            f"{latencies.size:,}",
            f"{total['errors']}",
            f"{total['wrong'] + len(at_the_end)}{'' if ends else ' (not finished)'}",
            *(f"{value:,.1f}" for value in (*np.percentile(latencies, [50, 99]), latencies.max())),
            *(f"{total[name]:,}" for name in ("deleted", "added", "replaced")),
            *(_change(seconds, name) for name in ("memory_mib", "server_memory_mib", "disk_mib")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
        faults = [fault for row in ends for fault in row["faults"]] + at_the_end
        lines += [f"  {store}: {fault}" for fault in faults[:_FAULTS_KEPT]]
    return "\n".join(lines), well


def _change(rows: list[Row], name: str) -> str:
    """Format the medians of the second and the last fifth of a run (the first is the warm-up) and its maximum."""
    values = [row[name] for row in rows if row[name] is not None]
    if not values:
        return "–"
    fifth = max(1, len(values) // 5)
    before, after = np.median(values[fifth : 2 * fifth] or values), np.median(values[-fifth:])
    return f"{before:,.0f} → {after:,.0f} (most {max(values):,.0f})"


def draw(paths: Sequence[Path], out: Path) -> None:
    """Plot searches, latency, memory and disk over time, with a line for each store."""
    from m3_connectors.report.style import drawing, finish, legend, look

    machines, stores = read(paths)
    looks = look(stores)
    with drawing() as figure:
        picture = figure(width_inches=10.0, height_inches=6.4)
        panels = picture.subplots(2, 2, sharex=True)
        for store, rows in stores.items():
            seconds = [row for row in rows if row["kind"] == "second"]
            minutes = [row["at"] / 60 for row in seconds]
            style: Any = {"color": looks[store].colour, "linestyle": looks[store].line, "linewidth": 1.2}
            spans = np.diff([0.0, *(row["at"] for row in seconds)])
            rates = [len(row["latencies_ms"]) for row in seconds] / np.maximum(spans, 1e-3)
            panels[0, 0].plot(minutes, _smooth(rates), label=store, **style)
            p95 = [
                np.percentile(row["latencies_ms"], 95) if row["latencies_ms"] else np.nan for row in seconds
            ]
            panels[0, 1].plot(minutes, p95, label=store, **style)
            memory = [row["memory_mib"] + (row["server_memory_mib"] or 0.0) for row in seconds]
            panels[1, 0].plot(minutes, memory, label=store, **style)
            if any(row["disk_mib"] is not None for row in seconds):
                disk = [row["disk_mib"] if row["disk_mib"] is not None else np.nan for row in seconds]
                panels[1, 1].plot(minutes, disk, label=store, **style)
        panels[0, 1].set_yscale("log")
        titles = ("searches a second", "p95 latency, ms", "memory with the server, MiB", "disk, MiB")
        for axes, title in zip(panels.flat, titles, strict=True):
            axes.set_title(title)
            if title != "p95 latency, ms":
                axes.set_ylim(bottom=0)
        for axes in panels[1]:
            axes.set_xlabel("minutes")
        legend(picture, stores)
        out.write_bytes(finish(picture, "soak", "Soak", describe(machines[0])).png)


def _smooth(values: Any, width: int = 5) -> Any:
    """Average over some seconds, so that the lines of several stores can be distinguished."""
    width = min(width, len(values))
    counts = np.convolve(np.ones(len(values)), np.ones(width), "same")
    return np.convolve(values, np.ones(width), "same") / counts


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    today = datetime.datetime.now(datetime.UTC).date()
    parser.add_argument(
        "--stores",
        nargs="+",
        default=["qdrant-edge"],
        help=f"any of {', '.join([*EMBEDDED, *SERVERS])}, or a URL for connect",
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="duration per store")
    parser.add_argument("--threads", type=int, default=8, help="number of searching threads")
    parser.add_argument("--documents", type=int, default=1_500)
    parser.add_argument("--rows", type=int, default=32, help="multi-vector rows per document")
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--query-rows", type=int, default=16)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two writes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", help="folder for the data of embedded stores during the run")
    parser.add_argument("--out", type=Path, default=RESULTS / f"soak-{today}.jsonl.gz")
    parser.add_argument(
        "--report",
        type=Path,
        nargs="+",
        help="print the table and write the plot of earlier runs (of one date) without measuring",
    )
    options = parser.parse_args()
    paths = options.report or [options.out]
    if options.report is None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(options.out, "wt", encoding="utf-8") as file:
            for row in run(options):
                print(json.dumps(row), file=file)
    picture = paths[0].with_name(paths[0].name.removesuffix(".jsonl.gz") + ".png")
    draw(paths, picture)
    table, well = report(paths)
    print(f"{table}\n\n{picture}")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
