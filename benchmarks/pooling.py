"""Measure nDCG@10 and bytes of BEIR folders with their long documents unpooled and pooled by 2, 4 and 8.

    python benchmarks/pooling.py DATA/openstax-long/en DATA/openstax-long/es --model models/m3-tiny
    python benchmarks/pooling.py --report benchmarks/results/pooling-2025-01-31.jsonl

Each corpus is encoded once. Every variant is pooled in the same way as by ``Storage(long_documents="pool")``, rounded
to float16 as in every store, and ranked by the definitions of ``scoring`` and ``methods``, without a store. ``--whole``
also clusters each document in one piece, to measure what is lost by clustering in blocks.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from m3_connectors import M3Embeddings, M3Encoder, MultiVectors, Weights
from m3_connectors.backends.pooling import BLOCK_ROWS, pool_rows
from m3_connectors.backends.precision import FLOAT16
from m3_connectors.backends.schema import Storage
from m3_connectors.environment import describe, environment
from m3_connectors.evaluation.datasets.beir import load_beir
from m3_connectors.evaluation.measures import per_query
from m3_connectors.methods import ALL, MULTI_VEC, Method, fuse, rank
from m3_connectors.scoring import score

Row = dict[str, Any]

ROOT = Path(__file__).resolve().parents[1]

FACTORS = (1, 2, 4, 8)
MEASURE = "nDCG@10"


def run(folders: list[Path], model: str, block_rows: list[int]) -> Iterator[Row]:
    """Yield a row for each folder, factor and block size; factor 1 means no pooling."""
    encoder = M3Encoder(model)
    methods = {"Multi-vec": MULTI_VEC, "All": ALL}
    if "all" in encoder.recommended_weights:
        methods |= {
            "All": ALL.weighted(*Weights(*encoder.recommended_weights["all"])),
            "All (1, 0.3, 1)": ALL,
        }
    weights = {name: list(method.weights) for name, method in methods.items()}
    yield environment("torch", "numpy", "scipy", "ir_measures", model=str(encoder.info), weights=weights)
    long_from = Storage(long_documents="pool").pool_from_rows
    for folder in folders:
        dataset = load_beir(folder)
        documents = list(dataset.documents)
        corpus = encoder.encode([document.text for document in documents])
        queries = FLOAT16.rounded(encoder.encode(list(dataset.queries.values())))
        asked = dict(zip(dataset.queries, queries, strict=True))
        ids = [document.id for document in documents]
        for factor in FACTORS:
            for block in block_rows[: 1 if factor == 1 else None]:
                long = [len(rows) for rows in corpus.multivectors if len(rows) >= long_from and factor > 1]
                started = time.perf_counter()
                pooled = [
                    pool_rows(rows, factor, block_rows=block) if len(rows) >= long_from else rows
                    for rows in corpus.multivectors
                ]
                seconds = time.perf_counter() - started
                kept = MultiVectors.from_list(pooled, corpus.multivectors.dimension)
                del pooled  # at most two copies of the corpus at a time
                stored = FLOAT16.rounded(corpus.replace(multivectors=kept))
                runs = rankings(methods, asked, stored, ids)
                del stored
                yield {
                    "folder": f"{folder.resolve().parent.name}/{folder.name}",
                    "documents": len(ids),
                    "queries": len(asked),
                    "factor": factor,
                    "block_rows": block,
                    "pooled_documents": len(long),
                    "pooled_rows_before": sum(long),
                    "rows": len(kept.rows),
                    "multivector_bytes": 2 * kept.rows.size,
                    "pooling_seconds": round(seconds, 2),
                    MEASURE: {
                        name: statistics.fmean(per_query(dataset.qrels, answers, [MEASURE])[MEASURE].values())
                        for name, answers in runs.items()
                    },
                }


def rankings(
    methods: dict[str, Method], queries: dict[str, M3Embeddings], corpus: M3Embeddings, ids: list[str]
) -> dict[str, dict[str, list[str]]]:
    """Return the best 100 documents of every query, by method and query."""
    runs: dict[str, dict[str, list[str]]] = {name: {} for name in methods}
    for query_id, query in queries.items():
        dense, sparse = score("dense", query, corpus), score("sparse", query, corpus)
        near = rank(ids, dense, MULTI_VEC.candidates["dense"])  # both methods re-rank the list of Dense
        names = [ids[i] for i in near]
        # One by one: copying the rows of 200 long documents would take longer than scoring them.
        late = np.array([score("multivector", query, corpus[i : i + 1])[0] for i in near], dtype=np.float32)
        scores = {"dense": dense[near], "sparse": sparse[near], "multivector": late}
        for name, method in methods.items():
            best = rank(names, fuse(scores, method.weights), 100)
            runs[name][query_id] = [names[i] for i in best]
    return runs


def report(path: Path) -> str:
    """Return the table in Markdown."""
    machine, *rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    methods = list(machine["weights"])
    lines = [f"{machine['model']}; {MEASURE}; weights {machine['weights']}; {describe(machine)}.", ""]
    lines += [
        f"| folder | pooled by | {' | '.join(methods)} | multi-vectors, float16 | pooling, s per 1,000 rows |"
    ]
    lines.append("|---" * (len(methods) + 4) + "|")
    for row in rows:
        whole = row["block_rows"] > BLOCK_ROWS and row["factor"] > 1
        factor = "not" if row["factor"] == 1 else f"{row['factor']}{', clustered whole' if whole else ''}"
        cells = [f"{row[MEASURE][name]:.3f}" for name in methods]
        cells.append(f"{row['multivector_bytes'] / 1e6:,.0f} MB")
        pace = 1000 * row["pooling_seconds"] / max(1, row["pooled_rows_before"])
        cells.append("" if row["factor"] == 1 else f"{pace:.3f}")
        lines.append(f"| {row['folder']} | {factor} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="*", help="BEIR folders with a test split")
    parser.add_argument("--model", default=str(ROOT / "models" / "m3-tiny"))
    parser.add_argument("--whole", action="store_true", help="also cluster every document in one piece")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/pooling-DATE.jsonl")
    parser.add_argument("--report", type=Path, help="only print the table of this file")
    options = parser.parse_args()
    path = options.report
    if path is None:
        if not options.folders:
            parser.error("give BEIR folders or --report")
        path = options.out or ROOT / "benchmarks" / "results" / f"pooling-{datetime.date.today()}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for row in run(options.folders, options.model, [BLOCK_ROWS] + [2**20] * options.whole):
                file.write(json.dumps(row) + "\n")
                file.flush()
    print(report(path))


if __name__ == "__main__":
    main()
