"""Show what a caller gets when a store fails: run the fault tests and generate a table of their cases.

    python benchmarks/faults.py
    python benchmarks/faults.py -k "[milvus]"        # most cases of one store
    python benchmarks/faults.py --report benchmarks/results/faults-2025-01-31.jsonl

Each case is a test that fails if a call ends late, raises another error than it should, or loses or duplicates an
acknowledged document. Its rows (store, case, call, error, first line of the message, seconds, documents lost and
duplicated) are written to a JSON Lines file, after a record of the machine; the table is generated from that file.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from m3_connectors.environment import describe, environment
from m3_connectors.testing.servers.elasticsearch import VERSION

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]

TESTS = (
    "backends/faults/test_faults_network.py",
    "backends/faults/test_faults_restarts.py",
    "backends/faults/test_faults_answers.py",
    "backends/faults/test_faults_collections.py",
    "backends/faults/test_faults_concurrent.py",
    "backends/milvus/test_milvus_faults.py::test_a_disk_that_fills_up_loses_nothing_not_even_after_a_kill",
    "backends/qdrant/test_backends_qdrant_faults.py::test_kill_at_any_moment_keeps_every_acknowledged_document_once",
    "backends/qdrant/test_backends_qdrant_faults.py::test_a_disk_that_fills_up_loses_nothing",
    "backends/elasticsearch/test_elasticsearch_security.py::test_credentials_that_lose_their_rights_are_named_until_they_have_them_again",
)
"""The tests that write rows."""

PACKAGES = (
    "qdrant-client",
    "qdrant-edge-py",
    "pymilvus",
    "milvus-lite",
    "elasticsearch",
    "grpcio",
    "aiohttp",
    "httpx",
)
NAMES = {
    "qdrant-grpc": "Qdrant, gRPC",
    "qdrant-rest": "Qdrant, REST",
    "qdrant-edge": "Qdrant Edge",
    "milvus": "Milvus",
    "elasticsearch": "Elasticsearch",
}


def run(path: Path, matching: str) -> int:
    """Run the tests, which append rows to ``path`` after the record of the machine, and return pytest's exit status."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(environment(*PACKAGES, elasticsearch_server=VERSION)) + "\n", encoding="utf-8")
    tests = [str(ROOT / "tests" / name) for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "--durations=5", "-k", matching, *tests]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "M3_FAULT_ROWS": str(path.resolve())}, check=False
    ).returncode


def report(path: Path) -> str:
    """Return the table in Markdown."""
    record, *rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    cases: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cases[row["case"]][row["store"].partition(",")[0]].append(row)
    stores = [store for store in NAMES if any(store in by_store for by_store in cases.values())]
    lines = [
        f"{len(rows)} calls, {describe(record)}; load average {record['load_average'][0]:.0f}.",
        "",
        f"| case | calls | {' | '.join(NAMES[store] for store in stores)} | lost | doubled |",
        "|---" * (len(stores) + 4) + "|",
    ]
    for case, by_store in cases.items():
        cells = [_seen(by_store[store]) if store in by_store else "" for store in stores]
        calls = dict.fromkeys(row["call"] for rows in by_store.values() for row in rows)
        lost, doubled = (_total(by_store, name) for name in ("lost", "doubled"))
        lines.append(f"| {case} | {' · '.join(calls)} | {' | '.join(cells)} | {lost} | {doubled} |")
    return "\n".join(lines)


def _seen(rows: list[Row]) -> str:
    """Return how the calls of a case ended, and the longest time of each."""
    ends: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        calls = ends[row["error"] or "answer"]
        calls[row["call"]] = max(row["seconds"], calls.get(row["call"], 0.0))
    seen = []
    for end, calls in ends.items():
        whose = f" ({' · '.join(calls)})" if len(ends) > 1 else ""
        seen.append(f"{end}{whose} {max(calls.values()):.1f} s")
    seen += [
        f"loop away for {row['stall_ms']} ms at most, at work for {row['loop_work_ms']} ms"
        for row in rows
        if "stall_ms" in row
    ]
    return "; ".join(seen)


def _total(by_store: dict[str, list[Row]], name: str) -> str:
    """Return the number of documents of a case on all stores, or an empty text if the case has no documents to lose."""
    # Every row of a case and store has the numbers of that case.
    counts = [rows[-1][name] for rows in by_store.values() if rows[-1].get(name) is not None]
    return str(sum(counts)) if counts else ""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "-k", default="", metavar="EXPRESSION", help="run only cases that match, as in pytest"
    )
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/faults-DATE.jsonl")
    parser.add_argument("--report", type=Path, help="only print the table of this file")
    options = parser.parse_args()
    status, path = 0, options.report
    if path is None:
        path = options.out or ROOT / "benchmarks" / "results" / f"faults-{datetime.date.today()}.jsonl"
        status = run(path, options.k)
    print(report(path))
    return status


if __name__ == "__main__":
    sys.exit(main())
