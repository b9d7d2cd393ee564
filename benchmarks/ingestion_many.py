"""Ingest one folder in one process, in two shards, and on Ray with two workers, and compare the three collections.

    python benchmarks/ingestion_many.py --model models/m3-tiny
    python benchmarks/ingestion_many.py --ways shards --store elasticsearch

All collections are on one server. They must have the same ids, texts, metadata and scores. The exit status is 1 if they
differ.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fixtures import PACKAGES, RESULTS
from ingesting import Row, Rows, ids_of, log, read_rows, running, synthetic, table

from m3_connectors import Index, M3Embeddings, M3Encoder, connect
from m3_connectors.environment import describe, environment

WAYS = ("shards", "ray")
_FILES = 7
_QUERIES = 20
_TOLERANCE = 5e-3
"""In bfloat16, the scores of a text differ by up to 2e-3 between batches of other texts."""


def commands(way: str) -> list[list[str]]:
    """Return the options of each command of a way; shards run at the same time."""
    return {
        "one": [[]],
        "shards": [["--shard", "1/2"], ["--shard", "2/2"]],
        "ray": [["--ray", "local", "--ray-workers", "2"]],
    }[way]


def run(options: argparse.Namespace, rows: Rows) -> None:
    encoder = M3Encoder(str(options.model))
    rows.write(environment(*PACKAGES, "ray", documents=options.documents, store=options.store))
    with tempfile.TemporaryDirectory(prefix="m3-many-") as name, running(options.store) as server:
        folder = Path(name)
        (folder / "source").mkdir()
        documents = [synthetic(number) for number in range(options.documents)]
        for part in range(_FILES):
            lines = (
                json.dumps({"id": d.id, "text": d.text, **d.metadata}) + "\n" for d in documents[part::_FILES]
            )
            (folder / "source" / f"part-{part}.jsonl").write_text("".join(lines))
        for way in ("one", *options.ways):
            began = time.monotonic()
            processes = [_start(folder, server.url, way, more, options) for more in commands(way)]
            said = [_ended(process) for process in processes]
            row = {"kind": "run", "way": way, "seconds": round(time.monotonic() - began, 2), "reports": said}
            log(str(rows.write(row)))
            if way != "one":
                with (
                    connect(server.url, "one", encoder=encoder, create=False) as expected,
                    connect(server.url, way, encoder=encoder, create=False) as found,
                ):
                    log(
                        str(
                            rows.write(
                                {"kind": "comparison", "way": way, **compare(expected, found, encoder)}
                            )
                        )
                    )
            # Again: everything must be unchanged, whichever process stored it.
            again = [_ended(_start(folder, server.url, way, more, options)) for more in commands(way)]
            rows.write({"kind": "again", "way": way, "reports": again})


def _start(
    folder: Path, url: str, way: str, more: list[str], options: argparse.Namespace
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "m3_connectors", "ingest", "source", "--to", url, "--collection", way]
    command += ["--model", str(options.model.resolve()), "--chunk", "tokens:64:8", "--json", *more]
    environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state")}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _ended(process: subprocess.Popen[str]) -> Row:
    out, err = process.communicate()
    if process.returncode:
        raise SystemExit(f"{process.args} failed with {process.returncode}:\n{err}")
    said: Row = json.loads(out)
    return {name: said[name] for name in ("read", "documents", "chunks", "unchanged") if name in said}


def compare(expected: Index, found: Index, encoder: M3Encoder) -> Row:
    ids, others = ids_of(expected), ids_of(found)
    shared = sorted(set(ids) & set(others))
    different = 0
    for start in range(0, len(shared), 500):
        part = shared[start : start + 500]
        different += sum(a != b for a, b in zip(expected.get(part), found.get(part), strict=True))
    queries = [synthetic(n).text for n in random.Random(0).sample(range(100_000), _QUERIES)]
    asked: M3Embeddings = encoder.encode(queries)
    worst = 0.0
    for left, right in zip(
        expected.search_many(list(asked), k=20), found.search_many(list(asked), k=20), strict=True
    ):
        worst = max([worst, *(abs(a.score - b.score) for a, b in zip(left, right, strict=True))])
        different += {hit.document.id for hit in left[:10]} != {hit.document.id for hit in right[:10]}
    return {
        "expected": len(ids),
        "found": len(others),
        "lost": len(set(ids) - set(others)),
        "doubled": len(others) - len(set(others)),
        "unknown": len(set(others) - set(ids)),
        "different": different,
        "largest_score_difference": worst,
    }


def report(path: Path) -> tuple[str, bool]:
    machine, *rows = read_rows(path)
    lines, well = [], True
    for way in dict.fromkeys(row["way"] for row in rows):
        of: dict[str, Any] = {row["kind"]: row for row in rows if row["way"] == way}
        compared = of.get("comparison", {})
        faults = [compared.get(name, 0) for name in ("lost", "doubled", "unknown", "different")]
        again = sum(said.get("documents", 0) for said in of["again"]["reports"])
        well = (
            well
            and not any(faults)
            and not again
            and compared.get("largest_score_difference", 0) <= _TOLERANCE
        )
        reports = "; ".join(", ".join(f"{k} {v}" for k, v in said.items()) for said in of["run"]["reports"])
        scores = f"{compared['largest_score_difference']:.1e}" if compared else ""
        found = f"{compared['found']:,} of {compared['expected']:,}" if compared else ""
        lines.append([way, f"{of['run']['seconds']:.1f}", reports, found, *faults, scores, again])
    header = ["way", "seconds", "reports", "chunks found", "lost", "doubled", "unknown", "different"]
    header += ["largest score difference", "stored by the same run again"]
    return (
        f"{machine['store']}, {machine['documents']:,} documents; {describe(machine)}.\n\n{table(header, lines)}",
        well,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    today = datetime.datetime.now(datetime.UTC).date()
    parser.add_argument("--model", type=Path, default=Path("models/m3-tiny"))
    parser.add_argument("--documents", type=int, default=5_000)
    parser.add_argument("--store", default="milvus", choices=["milvus", "elasticsearch"])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--out", type=Path, default=RESULTS / f"ingestion-many-{today}.jsonl")
    parser.add_argument("--report", type=Path, help="only print the table of this file")
    options = parser.parse_args()
    if options.report is None:
        with Rows(options.out) as rows:
            run(options, rows)
    text, well = report(options.report or options.out)
    print(text)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
