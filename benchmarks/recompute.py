"""Recompute measures from raw files by their definitions and compare them with the report, without using the package.

    python benchmarks/recompute.py RUNS        # a tree that ``m3 report RUNS`` was run on

nDCG@10, Recall@100 and MRR@10 are computed from qrels.trec and runs/*.trec of every evaluation; p50, p95, p99 and
requests per second from requests.parquet of every benchmark. The exit code is 1 if one differs from the package's by
more than 1e-9.
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

TOLERANCE = 1e-9


def of_query(grades: dict[str, int], ranked: list[str]) -> dict[str, float]:
    relevant = {document for document, grade in grades.items() if grade > 0}
    gains = [max(grades.get(document, 0), 0) for document in ranked[:10]]
    best = sorted((grade for grade in grades.values() if grade > 0), reverse=True)[:10]
    dcg, ideal = (sum(gain / math.log2(rank + 2) for rank, gain in enumerate(some)) for some in (gains, best))
    first = next((rank for rank, document in enumerate(ranked[:10], 1) if document in relevant), None)
    return {
        "nDCG@10": dcg / ideal if ideal else 0.0,
        "Recall@100": len(relevant & set(ranked[:100])) / len(relevant) if relevant else 0.0,
        "MRR@10": 1 / first if first else 0.0,
    }


def quality(folder: Path) -> tuple[int, float]:
    """Return how many numbers of an evaluation were compared, and the largest difference."""
    queries = pq.read_table(folder / "queries.parquet")["query_id"].to_pylist()
    encoded = {query.replace("%", "%25").replace(" ", "%20"): query for query in queries}
    qrels: dict[str, dict[str, int]] = defaultdict(dict)
    for line in (folder / "qrels.trec").read_text().splitlines():
        query, _, document, grade = line.split()
        qrels[query][document] = int(grade)
    computed = {}
    for row in pq.read_table(folder / "metrics.parquet").to_pylist():
        computed[row["method"], row["query_id"], row["measure"]] = row["value"]
    count, largest = 0, 0.0
    for path in sorted((folder / "runs").glob("*.trec")):
        answers: dict[str, list[tuple[float, str]]] = defaultdict(list)
        for line in path.read_text().splitlines():
            query, _, document, _, score, _ = line.split()
            answers[query].append((-float(score), document))
        for written, query in encoded.items():
            ranked = [document for _, document in sorted(answers[written])]
            for measure, value in of_query(qrels[written], ranked).items():
                theirs = computed.get((path.stem, query, measure))
                if theirs is not None:
                    count, largest = count + 1, max(largest, abs(value - theirs))
    return count, largest


def cost(folder: Path) -> tuple[int, float]:
    """Return how many numbers of a benchmark were compared, and the largest difference."""
    rows = defaultdict(list)
    # The rows of an interrupted benchmark are still in parts.
    files = sorted((folder / "parts").glob("requests-*.parquet")) or [folder / "requests.parquet"]
    for row in (row for file in files for row in pq.read_table(file).to_pylist()):
        if row["phase"] == "measured" and row["error"] is None and row["end_seconds"] is not None:
            span = (row["intended_seconds"], row["end_seconds"])
            rows[row["store"], row["documents"], row["load"], None].append(span)
            rows[row["store"], row["documents"], row["load"], row["method"]].append(span)
    count, largest = 0, 0.0
    for load in json.loads((folder / "summary.json").read_text())["loads"]:
        key = load["store"], load["documents"], load["load"]
        begins, ends = np.array(rows[*key, load["method"]]).T
        first, last = np.array(rows[*key, None]).T  # rates are of the load's time
        latency = np.sort(ends - begins)
        ours = {f"p{100 * q:g}": latency[math.ceil(len(latency) * q - 1e-9) - 1] for q in (0.5, 0.95, 0.99)}
        pairs = [(ours[name], load["latency_seconds"][name]) for name in ours]
        pairs.append((len(latency) / (last.max() - first.min()), load["requests_per_second"]))
        known = [abs(mine - theirs) for mine, theirs in pairs if theirs is not None]
        count, largest = count + len(known), max([largest, *known])
    return count, largest


def main(root: Path) -> int:
    wrong = 0
    for name, check in (("evaluation.json", quality), ("bench.json", cost)):
        for record in sorted(root.rglob(name)):
            count, largest = check(record.parent)
            wrong += not count or largest > TOLERANCE
            print(
                f"{record.parent.relative_to(root)}: {count:,} numbers recomputed, largest difference {largest:.1e}"
            )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
