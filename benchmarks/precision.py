"""Measure what each precision of multi-vector rows, and pooling of all documents, costs in nDCG@10.

    python benchmarks/precision.py DATA/cranfield DATA/mlqa-dev/*            # m3-tiny
    python benchmarks/precision.py DATA/cranfield DATA/mlqa-dev/* --model e5 # tests/real_weights.py
    python benchmarks/precision.py --report benchmarks/results/precision-2025-01-31-*.jsonl

Every corpus is encoded once. Every variant is pooled by ``pooling.pool_rows``, rounded by its precision, and ranked by
the definitions of ``scoring`` and ``methods``: Dense's top 200, re-ranked. Changes are against float32 without pooling,
with 95 % intervals of the paired bootstrap over queries. A report joins the files of one model.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m3_connectors import M3Embeddings, M3Encoder, MultiVectors, Weights
from m3_connectors.backends.pooling import pool_rows
from m3_connectors.backends.precision import PRECISIONS, Precision, PrecisionName
from m3_connectors.documents import Document
from m3_connectors.embeddings import Float32
from m3_connectors.environment import describe, environment
from m3_connectors.evaluation.datasets.beir import load_beir
from m3_connectors.evaluation.datasets.dataset import Dataset
from m3_connectors.evaluation.measures import per_query
from m3_connectors.methods import ALL, MULTI_VEC, Method, fuse, rank
from m3_connectors.scoring import score

Row = dict[str, Any]
Encode = Callable[[Sequence[str]], M3Embeddings]

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

MEASURE = "nDCG@10"
NAMES: tuple[PrecisionName, ...] = ("float32", "float16", "int8", "int4", "int2", "int1")
POOLED_NAMES: tuple[PrecisionName, ...] = ("float16", "int4", "int2", "int1")
"""Without pooling, float32 and int8 differ from float16 by less than .0002."""
FACTORS = (1, 2, 3)
RESAMPLES = 10_000
_TEXTS_AT_ONCE = 128


class Model:
    """An encoder of passages and of queries, with its weights of All."""

    def __init__(self, name: str) -> None:
        self.name = Path(name).name
        self.encode_query: Encode
        self.encode_passage: Encode
        if name == "e5":
            from real_weights import PASSAGE, QUERY, RealEncoder, real_checkpoint

            real = RealEncoder(real_checkpoint(), torch.bfloat16)
            self.title = "multilingual-e5-small (384 dims)"
            self.all = ALL.weighted(*real.weights)
            self.encode_query = lambda texts: real.encode(texts, QUERY)
            self.encode_passage = lambda texts: real.encode(texts, PASSAGE)
        else:
            encoder = M3Encoder(name)
            self.title = str(encoder.info)
            self.all = ALL.weighted(*Weights(*encoder.recommended_weights.get("all", ALL.weights)))
            self.encode_query = self.encode_passage = encoder.encode


class Task:
    """One dataset, encoded: the candidates of each query, and how to measure rows of its documents."""

    def __init__(self, folder: Path, model: Model, limit: int | None, kept: Path | None) -> None:
        dataset = load_beir(folder)
        documents = part_of(dataset, limit)
        self.ids = [document.id for document in documents]
        there = set(self.ids)
        # Of a part of a corpus, only the queries of which every relevant document is there can be measured.
        self.qrels = {
            query: dataset.qrels[query]
            for query in dataset.queries
            if there >= {document for document, grade in dataset.qrels[query].items() if grade}
        }
        self.name = f"{folder.resolve().parent.name}/{folder.name}"
        self.methods: dict[str, Method] = {"Multi-vec": MULTI_VEC, "All": model.all}
        stem = f"{model.name}-{self.name.replace('/', '-')}{limit or ''}"
        corpus = encoded(
            model.encode_passage, [document.text for document in documents], kept, f"{stem}-documents"
        )
        texts = [dataset.queries[query] for query in self.qrels]
        asked = encoded(model.encode_query, texts, kept, f"{stem}-queries")
        self.documents, self.queries = corpus.multivectors, asked.multivectors
        self.truncated = int(corpus.truncated.sum())
        self.scores: list[dict[str, Float32]] = []
        self.near: list[list[int]] = []
        for query in asked:
            dense = score("dense", query, corpus)
            near = rank(self.ids, dense, MULTI_VEC.candidates["dense"])
            self.near.append(near)
            self.scores.append({"dense": dense[near]})
            if "sparse" in corpus.components:
                self.scores[-1]["sparse"] = score("sparse", query, corpus)[near]
        dense_runs = {
            query: [self.ids[i] for i in near[:100]]
            for query, near in zip(self.qrels, self.near, strict=True)
        }
        self.dense = float(np.mean(list(per_query(self.qrels, dense_runs, [MEASURE])[MEASURE].values())))

    def pooled(self, factor: int) -> MultiVectors:
        """Return the rows of every document pooled by this factor."""
        return MultiVectors.from_list(
            [pool_rows(rows, factor) for rows in self.documents], self.documents.dimension
        )

    def measured(self, precision: Precision, stored: MultiVectors) -> dict[str, np.ndarray]:
        """Return for each method the measure of each query."""
        late = self._late(
            MultiVectors(precision.round_query(self.queries.rows), self.queries.offsets),
            precision.round_documents(stored),
        )
        runs: dict[str, dict[str, list[str]]] = {name: {} for name in self.methods}
        for query, near, scores, multivector in zip(self.qrels, self.near, self.scores, late, strict=True):
            names = [self.ids[i] for i in near]
            for name, method in self.methods.items():
                best = rank(names, fuse({**scores, "multivector": multivector}, method.weights), 100)
                runs[name][query] = [names[i] for i in best]
        return {
            name: np.array(list(per_query(self.qrels, run, [MEASURE])[MEASURE].values()))
            for name, run in runs.items()
        }

    def _late(self, queries: MultiVectors, documents: MultiVectors) -> list[Float32]:
        """Return the multi-vector score of each query's candidates: one product for each document."""
        places: list[list[tuple[int, int]]] = [[] for _ in self.ids]
        for query, near in enumerate(self.near):
            for place, document in enumerate(near):
                places[document].append((query, place))
        late = [np.empty(len(near), np.float32) for near in self.near]
        for document, asking in enumerate(places):
            if not asking:
                continue
            rows = [queries[query] for query, _ in asking]
            best = (documents[document] @ np.concatenate(rows).T).max(axis=0)
            starts = np.cumsum([0, *map(len, rows[:-1])])
            sums = np.add.reduceat(best, starts)
            for (query, place), total, own in zip(asking, sums, rows, strict=True):
                late[query][place] = total / len(own)
        return late


def part_of(dataset: Dataset, limit: int | None) -> list[Document]:
    """Return all documents or, up to this number, the relevant ones of the first queries, then the others."""
    documents = {document.id: document for document in dataset.documents}
    if limit is None:
        return list(documents.values())
    relevant = [
        document for query in dataset.queries for document, grade in dataset.qrels[query].items() if grade
    ]
    return [documents[id] for id in list(dict.fromkeys([*relevant, *documents]))[:limit]]


def encoded(encode: Encode, texts: list[str], kept: Path | None, name: str) -> M3Embeddings:
    """Return the embeddings of texts, from the file where they are kept if it exists."""
    path = kept and kept / f"{name}.safetensors"
    if path and path.exists():
        return M3Embeddings.load(path)
    parts = [encode(texts[i : i + _TEXTS_AT_ONCE]) for i in range(0, len(texts), _TEXTS_AT_ONCE)]
    embeddings = M3Embeddings.concatenate(parts)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        embeddings.save(path)
    return embeddings


def run(folders: list[Path], options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each folder, factor and precision."""
    warnings.simplefilter("ignore")  # texts beyond the model's length are counted in the rows
    model = Model(options.model)
    yield environment(
        "torch",
        "numpy",
        "scipy",
        "ir_measures",
        model=model.title,
        weights=list(model.all.weights),
    )
    for folder in folders:
        task = Task(folder, model, options.documents, options.embeddings)
        draws = np.random.default_rng(0).multinomial(
            len(task.qrels), np.full(len(task.qrels), 1 / len(task.qrels)), RESAMPLES
        ) / len(task.qrels)
        whole: dict[str, np.ndarray] | None = None
        for factor in options.factors:
            pooled = task.pooled(factor)
            for name in NAMES if factor == 1 else POOLED_NAMES:
                precision = PRECISIONS[name]
                started = time.perf_counter()
                values = task.measured(precision, pooled)
                whole = whole or values
                sizes = [precision.encoded_bytes(count, pooled.dimension) for count in pooled.counts.tolist()]
                row: Row = {
                    "folder": task.name,
                    "documents": len(task.ids),
                    "truncated": task.truncated,
                    "queries": len(task.qrels),
                    "dense": task.dense,
                    "factor": factor,
                    "precision": name,
                    "rows": len(pooled.rows),
                    "bytes_per_document": round(sum(sizes) / len(task.ids)),
                    "seconds": round(time.perf_counter() - started, 1),
                }
                for method, measured in values.items():
                    changes = draws @ (measured - whole[method])
                    row[method] = {
                        "value": float(measured.mean()),
                        "change": float((measured - whole[method]).mean()),
                        "low": float(np.quantile(changes, 0.025)),
                        "high": float(np.quantile(changes, 0.975)),
                        "error": float(changes.std()),
                    }
                yield row


def report(paths: list[Path]) -> str:
    """Return the tables in Markdown: the mean over the sets of each model, then All of each set."""
    lines: list[str] = []
    runs: dict[str, tuple[Row, list[Row]]] = {}
    for path in paths:
        machine, *rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        runs.setdefault(machine["model"], (machine, []))[1].extend(rows)
    for machine, rows in runs.values():
        sets = list(dict.fromkeys(row["folder"] for row in rows))
        queries = sum({row["folder"]: row["queries"] for row in rows}.values())
        variants = list(dict.fromkeys((row["factor"], row["precision"]) for row in rows))
        cells = {(row["folder"], row["factor"], row["precision"]): row for row in rows}
        lines += [
            f"{machine['model']}, weights {machine['weights']}; mean {MEASURE} of {len(sets)} sets, {queries:,} "
            f"queries; change against float32 without pooling; {describe(machine)}.",
            "",
            "| pooled by | precision | bytes a document | Multi-vec | change | All | change |",
            "|---" * 7 + "|",
        ]
        for factor, precision in variants:
            of = [cells[name, factor, precision] for name in sets]
            size = round(np.mean([row["bytes_per_document"] for row in of]))
            shown = [_mean([row[method] for row in of]) for method in ("Multi-vec", "All")]
            lines.append(f"| {_factor(factor)} | {precision} | {size:,} | {' | '.join(shown)} |")
        lines += ["", f"| {machine['model']}: All | {' | '.join(sets)} |", "|---" * (len(sets) + 1) + "|"]
        about = [cells[name, *variants[0]] for name in sets]
        lines.append(f"| documents (cut), queries | {' | '.join(_about(row) for row in about)} |")
        lines.append(f"| Dense | {' | '.join(format(row['dense'], '.4f') for row in about)} |")
        for factor, precision in variants:
            of = [cells[name, factor, precision]["All"] for name in sets]
            shown = [f"{cell['change']:+.4f} ± {1.96 * cell['error']:.4f}" for cell in of]
            if (factor, precision) == variants[0]:
                shown = [f"{cell['value']:.4f}" for cell in of]
            lines.append(f"| {_factor(factor)}, {precision} | {' | '.join(shown)} |")
        lines.append("")
    return "\n".join(lines)


def _mean(cells: list[dict[str, float]]) -> str:
    """Return the mean over sets and its change; the sets are drawn independently, so their variances add up."""
    value, change = (float(np.mean([cell[key] for cell in cells])) for key in ("value", "change"))
    half = 1.96 * float(np.sqrt(np.sum([cell["error"] ** 2 for cell in cells]))) / len(cells)
    return f"{value:.4f} | {change:+.4f} [{change - half:+.4f}, {change + half:+.4f}]"


def _factor(factor: int) -> str:
    return "not" if factor == 1 else str(factor)


def _about(row: Row) -> str:
    cut = f" ({row['truncated']})" if row["truncated"] else ""
    return f"{row['documents']}{cut}, {row['queries']}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="*", help="BEIR folders with a test split")
    parser.add_argument("--model", default=str(ROOT / "models" / "m3-tiny"), help="a checkpoint, or e5")
    parser.add_argument("--factors", type=int, nargs="+", default=FACTORS, help="of pooling; the first is 1")
    parser.add_argument("--documents", type=int, help="use only this many documents of each folder")
    parser.add_argument("--embeddings", type=Path, help="a folder where embeddings are kept for the next run")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/precision-DATE-MODEL.jsonl")
    parser.add_argument("--report", type=Path, nargs="+", help="only print the tables of these files")
    options = parser.parse_args()
    if options.report:
        print(report(options.report))
        return
    if not options.folders:
        parser.error("give BEIR folders or --report")
    name = f"precision-{datetime.date.today()}-{Path(options.model).name}.jsonl"
    path = options.out or ROOT / "benchmarks" / "results" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row in run(options.folders, options):
            file.write(json.dumps(row) + "\n")
            file.flush()
    print(report([path]))


if __name__ == "__main__":
    main()
