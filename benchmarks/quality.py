"""Retrieval quality of a model: the five methods and BM25 on every BEIR folder below a directory, all splits.

    python benchmarks/quality.py DATA --model models/m3-tiny
    python benchmarks/quality.py --report benchmarks/results/quality-2025-01-31.jsonl

The same numbers as ``m3 eval``, folder by folder and split by split, but each corpus is encoded once, and each
(query, candidate) pair is scored once for all methods, with the definitions of ``scoring`` and ``methods`` and no store
between. One row a dataset, split and method goes to a JSON Lines file, after a record of the machine; the tables are
made from that file alone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from environment import ROOT, describe, environment

from m3_connectors import M3Embeddings, M3Encoder, MultiVectors, Weights
from m3_connectors.evaluation.datasets.beir import load_beir
from m3_connectors.evaluation.measures import Measures, measure
from m3_connectors.evaluation.run import DEPTH, run_bm25
from m3_connectors.methods import METHODS, Method, fuse, rank
from m3_connectors.scoring import as_float16, multivector_scores, score

Row = dict[str, Any]

MEASURES = ("nDCG@10", "Recall@100", "MRR@10")


def folders(data: Path) -> list[Path]:
    """Every BEIR folder at or below ``data``."""
    return sorted(path.parent for path in data.rglob("qrels") if path.is_dir())


def splits(folder: Path) -> list[str]:
    """Its splits."""
    return sorted({path.name.split(".")[0] for path in (folder / "qrels").glob("*.tsv*")})


def run(data: Path, model: str) -> Iterator[Row]:
    """One row a dataset, split and method."""
    encoder = M3Encoder(model)
    recommended = {name: Weights(*weights) for name, weights in encoder.recommended_weights.items()}
    methods = dict(METHODS)
    for name, weights in recommended.items():
        methods[name] = METHODS[name].weighted(*weights)
        methods[f"{name} (paper)"] = METHODS[name]
    packages = ("torch", "numpy", "scipy", "bm25s", "ir_measures")
    shown = {name: list(weights) for name, weights in recommended.items()}
    yield environment(*packages, model=str(encoder.info), precision=encoder.precision, weights=shown)
    for folder in folders(data):
        started = time.perf_counter()
        corpus: M3Embeddings | None = None
        for split in splits(folder):
            dataset = load_beir(folder, split)
            ids = [document.id for document in dataset.documents]
            if corpus is None:
                corpus = as_float16(encoder.encode([document.text for document in dataset.documents]))
            queries = as_float16(encoder.encode(list(dataset.queries.values())))
            runs: dict[str, dict[str, list[str]]] = {name: {} for name in methods}
            for id, query in zip(dataset.queries, queries, strict=True):
                for name, answer in answers(methods, query, corpus, ids).items():
                    runs[name][id] = answer
            named = {"dataset": str(folder.relative_to(data)), "split": split, "documents": len(ids)}
            for name, method in methods.items():
                measures = measure(dataset.qrels, runs[name])
                yield {**named, "method": name, "weights": list(method.weights), **_values(measures)}
            yield {**named, "method": "bm25", **_values(measure(dataset.qrels, run_bm25(dataset)))}
        seconds = time.perf_counter() - started
        yield {"kind": "time", "dataset": str(folder.relative_to(data)), "seconds": seconds}


def answers(
    methods: Mapping[str, Method], query: M3Embeddings, corpus: M3Embeddings, ids: list[str]
) -> dict[str, list[str]]:
    """The best 100 documents of each method for one query."""
    dense, sparse = score("dense", query, corpus), score("sparse", query, corpus)
    # Ties by id: sorted by id first, then stably by score.
    by_id = np.array(sorted(range(len(ids)), key=ids.__getitem__))
    by_dense = by_id[np.argsort(-dense[by_id], kind="stable")]
    by_sparse = by_id[np.argsort(-sparse[by_id], kind="stable")]
    by_sparse = by_sparse[sparse[by_sparse] > 0]
    multivector = np.full(len(ids), np.nan, dtype=np.float32)
    reranked = by_dense[:200].tolist()
    assert corpus.multivectors is not None
    rows = MultiVectors.from_list([corpus.multivectors[i] for i in reranked], corpus.multivectors.dimension)
    assert query.multivectors is not None
    multivector[reranked] = multivector_scores(query.multivectors[0], rows)
    found = {}
    for name, method in methods.items():
        lists = {"dense": by_dense, "sparse": by_sparse}
        candidates = np.unique(np.concatenate([lists[c][:depth] for c, depth in method.candidates.items()]))
        scores = {
            "dense": dense[candidates],
            "sparse": sparse[candidates],
            "multivector": multivector[candidates],
        }
        names = [ids[i] for i in candidates]
        found[name] = [names[i] for i in rank(names, fuse(scores, method.weights), DEPTH)]
    return found


def _values(measures: Measures) -> Row:
    values = (measures.ndcg_at_10, measures.recall_at_100, measures.mrr_at_10)
    return {**dict(zip(MEASURES, values, strict=True)), "queries": measures.queries}


def report(path: Path) -> str:
    """The tables, in Markdown."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [record for record in records if "kind" not in record]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [f"{records[0]['model']}, weights {records[0]['weights']}; {describe(records[0])}.", ""]
    for measure_name in MEASURES:
        lines += [f"{measure_name}", "", f"| dataset | queries | {' | '.join(methods)} |"]
        lines.append("|---" * (len(methods) + 2) + "|")
        for group, members in _groups(rows).items():
            queries = sum(row["queries"] for row in members if row["method"] == methods[0])
            means = [_mean([row[measure_name] for row in members if row["method"] == m]) for m in methods]
            best = max(means)
            cells = (f"**{mean:.3f}**" if mean == best else f"{mean:.3f}" for mean in means)
            lines.append(f"| {group} | {queries:,} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _groups(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows by line of the table: each test split; then means over languages and over cross-lingual splits."""
    groups: dict[str, list[Row]] = defaultdict(list)
    several = defaultdict(set)
    for row in rows:
        several[row["dataset"].partition("/")[0]].add(row["dataset"])
    for row in rows:
        family = row["dataset"].partition("/")[0]
        if row["split"] == "test":
            groups[row["dataset"]].append(row)
            if len(several[family]) > 1:
                groups[f"{family}, mean of {len(several[family])}"].append(row)
        else:
            groups[f"{family}, cross-lingual, mean"].append(row)
            groups[f"{family}, cross-lingual, documents in {row['dataset'].partition('/')[2]}"].append(row)
    return dict(sorted(groups.items()))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?", help="a directory with BEIR folders")
    parser.add_argument("--model", default=str(ROOT / "models" / "m3-tiny"))
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/quality-DATE.jsonl")
    parser.add_argument("--report", type=Path, help="only print the tables of this file")
    options = parser.parse_args()
    path = options.report
    if path is None:
        if options.data is None:
            parser.error("give DATA or --report")
        path = options.out or ROOT / "benchmarks" / "results" / f"quality-{datetime.date.today()}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for row in run(options.data, options.model):
                file.write(json.dumps(row) + "\n")
                file.flush()
    print(report(path))


if __name__ == "__main__":
    main()
