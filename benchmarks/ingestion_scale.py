"""Ingest many synthetic documents into each store; record rate and memory over time, and compare all ids at the end.

    python benchmarks/ingestion_scale.py --documents 200000
    python benchmarks/ingestion_scale.py --stores qdrant-edge --documents 1000000
    python benchmarks/ingestion_scale.py --report benchmarks/results/ingestion-scale-2025-01-31.jsonl.gz

The encoder is a placeholder (dense, sparse and four rows of 256 dimensions), so the store decides the rate. The run of
each store is a process of its own that calls ``ingest`` with a ledger; it writes its memory twice a second.
Afterwards another process counts the documents of the store and compares every id with those that were given. With
``--seconds``, a run gives no more documents after this time. The exit status is 1 if anything is missing or doubled.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fixtures import EMBEDDED, PACKAGES, RESULTS, SERVERS, Place, place_of
from ingesting import MemoryTrace, PlaceholderEncoder, Row, Rows, ids_of, log, read_rows, synthetic, table

from m3_connectors import Document, connect
from m3_connectors.bench.meter import Meter
from m3_connectors.environment import describe, environment
from m3_connectors.files import allocated_bytes_below
from m3_connectors.ingestion import Ledger, ingest


def work(options: argparse.Namespace) -> None:
    """Ingest into one store, in a process of its own; rows go to standard output."""
    lock = threading.Lock()
    given = stored = 0

    def say(row: Row) -> None:
        with lock:
            print(json.dumps(row), flush=True)

    deadline = time.monotonic() + options.seconds

    def documents() -> Iterator[Document]:
        nonlocal given
        for number in range(options.documents):
            if number % 512 == 0 and time.monotonic() > deadline:
                return
            given = number + 1
            yield synthetic(number)

    def progress(*counts: Any) -> None:
        nonlocal stored
        stored = counts[0] if isinstance(counts[0], int) else counts[0].documents

    with (
        connect(options.worker, "scale", encoder=PlaceholderEncoder()) as index,
        Ledger(Path(options.ledger), options.worker, "scale") as ledger,
        MemoryTrace(
            lambda at, memory: say({"kind": "sample", "at": round(at, 2), "stored": stored, **memory})
        ),
    ):
        began = time.monotonic()
        report = ingest(documents(), index, ledger=ledger, progress=progress)
        seconds = time.monotonic() - began
    say(
        {
            "kind": "run",
            "given": given,
            "reported": report.documents,
            "seconds": round(seconds, 2),
            "encoder_busy_share": round(report.encoder_busy_share, 3),
        }
    )


def check(options: argparse.Namespace) -> None:
    """Compare the ids of the store with those that were given, and a sample of texts."""
    with connect(options.check, "scale", encoder=PlaceholderEncoder(), create=False) as index:
        counted = index.count()
        began = time.monotonic()
        found = Counter(ids_of(index))
        seconds = time.monotonic() - began
        expected = {synthetic(n).id for n in range(options.documents)}
        numbers = np.random.default_rng(0).choice(
            options.documents, min(2000, options.documents), replace=False
        )
        sample = [synthetic(int(n)) for n in numbers]
        different = 0
        for start in range(0, len(sample), 500):
            part = sample[start : start + 500]
            different += sum(a != b for a, b in zip(part, index.get([d.id for d in part]), strict=True))
    row = {
        "kind": "check",
        "counted": counted,
        "scanned": sum(found.values()),
        "scan_seconds": round(seconds, 2),
        "lost": len(expected - found.keys()),
        "doubled": sum(found.values()) - len(found),
        "unknown": len(found.keys() - expected),
        "texts_compared": len(sample),
        "texts_different": different,
    }
    print(json.dumps(row))


def run(options: argparse.Namespace, rows: Rows) -> None:
    names = ("documents", "seconds")
    rows.write(environment(*PACKAGES, **{name: getattr(options, name) for name in names}))
    for store in options.stores:
        with place_of(store, options.directory) as place, tempfile.TemporaryDirectory() as state:
            log(f"{store}: {options.documents:,} documents")
            given = _worker(options, rows, store, place, f"{state}/ledger.sqlite")
            log(f"{store}: comparing")
            command = [sys.executable, __file__, "--check", place.url, "--documents", str(given)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            row = rows.write({"store": store, **json.loads(done.stdout)})
            log(f"{store}: {row}")


def _worker(options: argparse.Namespace, rows: Rows, store: str, place: Place, ledger: str) -> int:
    """Run a worker to its end, add the server's memory and the disk's to its samples; return how many it was given."""
    meter = Meter(place.session)
    command = [sys.executable, __file__, "--worker", place.url, "--ledger", ledger]
    command += ["--documents", str(options.documents), "--seconds", str(options.seconds)]
    given, listed = 0, 0.0
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    disk = None
    for line in process.stdout:
        row = json.loads(line)
        if row["kind"] == "sample":
            server = meter.server_memory_bytes()
            if place.directory and time.monotonic() - listed > 5:
                listed, disk = time.monotonic(), round(allocated_bytes_below(place.directory) / 2**20, 1)
            row |= {"server_memory_mib": server and round(server / 2**20, 1), "disk_mib": disk}
        else:
            given = row["given"]
            row["disk_mib"] = place.directory and round(allocated_bytes_below(place.directory) / 2**20, 1)
            log(f"{store}: {row}")
        rows.write({"store": store, **row})
    if process.wait():
        raise SystemExit(f"the run on {store} failed with {process.returncode}")
    return given


def report(path: Path) -> tuple[str, bool]:
    """Return the table in Markdown, and whether every document was found once."""
    machine, *rows = read_rows(path)
    lines, well = [], True
    for store in dict.fromkeys(row["store"] for row in rows):
        own = [row for row in rows if row["store"] == store]
        samples = [row for row in own if row["kind"] == "sample"]
        (one,) = (row for row in own if row["kind"] == "run")
        (compared,) = (row for row in own if row["kind"] == "check")
        faults = [compared[name] for name in ("lost", "doubled", "unknown", "texts_different")]
        well = well and not any(faults) and compared["counted"] == one["given"] == one["reported"]
        lines.append(
            [
                store,
                f"{one['given']:,}",
                f"{one['seconds']:,.0f}",
                f"{one['given'] / one['seconds']:,.0f}",
                _change(samples, "memory_mib"),
                _change(samples, "allocated_mib"),
                _change(samples, "server_memory_mib"),
                "–" if one["disk_mib"] is None else f"{one['disk_mib']:,.0f}",
                f"{compared['counted']:,}",
                f"{compared['scanned']:,} ({compared['scan_seconds']:.1f} s)",
                " / ".join(map(str, faults[:2])),
                f"{compared['texts_different']} of {compared['texts_compared']:,}",
            ]
        )
    header = [
        "store",
        "documents",
        "seconds",
        "documents/s",
        "resident MiB, 2nd → last fifth",
        "of it allocated",
    ]
    header += ["server's", "disk MiB", "counted", "ids scanned", "lost / doubled", "texts different"]
    return (
        f"{describe(machine)}; load average {machine['load_average'][0]:.1f}.\n\n{table(header, lines)}",
        well,
    )


def _change(rows: list[Row], name: str) -> str:
    values = [row[name] for row in rows if row.get(name) is not None]
    if not values:
        return "–"
    fifth = max(1, len(values) // 5)
    before, after = np.median(values[fifth : 2 * fifth] or values), np.median(values[-fifth:])
    return f"{before:,.0f} → {after:,.0f} (most {max(values):,.0f})"


def draw(path: Path, out: Path) -> None:
    """Plot memory and stored documents over time, with a line for each store."""
    from m3_connectors.report.style import drawing, finish, legend, look

    machine, *rows = read_rows(path)
    samples = [row for row in rows if row["kind"] == "sample"]
    stores = list(dict.fromkeys(row["store"] for row in samples))
    looks = look(stores)
    with drawing() as figure:
        picture = figure(width_inches=10.0, height_inches=3.6)
        panels = picture.subplots(1, 2)
        for store in stores:
            own = [row for row in samples if row["store"] == store]
            style: Any = {"color": looks[store].colour, "linestyle": looks[store].line, "linewidth": 1.2}
            stored = [row["stored"] / 1e3 for row in own]
            panels[0].plot(
                stored, [row.get("allocated_mib", row["memory_mib"]) for row in own], label=store, **style
            )
            panels[1].plot([row["at"] for row in own], stored, label=store, **style)
        panels[0].set_title("memory of the ingesting process without mapped files, MiB")
        panels[0].set_xlabel("thousand documents stored")
        panels[1].set_title("thousand documents stored")
        panels[1].set_xlabel("seconds")
        for axes in panels:
            axes.set_ylim(bottom=0)
        legend(picture, stores)
        out.write_bytes(finish(picture, "ingestion-scale", "Ingestion", describe(machine)).png)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    today = datetime.datetime.now(datetime.UTC).date()
    parser.add_argument(
        "--stores",
        nargs="+",
        default=["qdrant-edge", "milvus", "elasticsearch"],
        help=f"any of {', '.join([*EMBEDDED, *SERVERS])}, or a URL for connect",
    )
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--seconds", type=float, default=480.0, help="stop giving documents after this time")
    parser.add_argument("--directory", help="folder for the data of embedded stores during the run")
    parser.add_argument("--out", type=Path, default=RESULTS / f"ingestion-scale-{today}.jsonl.gz")
    parser.add_argument("--report", type=Path, help="print the table and draw the plot of this file")
    for name in ("--worker", "--check", "--ledger"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return 0
    if options.check:
        check(options)
        return 0
    path = options.report or options.out
    if options.report is None:
        with Rows(path) as rows:
            run(options, rows)
    picture = path.with_name(path.name.partition(".jsonl")[0] + ".png")
    draw(path, picture)
    text, well = report(path)
    print(f"{text}\n\n{picture.name}")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
