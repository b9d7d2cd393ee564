"""Measure what the precision of the encoder costs: cosines with float32, and nDCG@10 of every method.

    python benchmarks/encoder_quality.py DATA/cranfield DATA/mlqa-dev/*            # m3-tiny
    python benchmarks/encoder_quality.py DATA/cranfield DATA/mlqa-dev/* --model e5 # tests/real_weights.py
    python benchmarks/encoder_quality.py --report benchmarks/results/encoder-quality-2025-01-31-*.jsonl

Documents and queries are encoded in each precision. Dense and Sparse rank the whole corpus; Multi-vec and All re-rank
Dense's top 200. The last column of a precision ranks documents in float32 by Dense with queries in this precision,
which is what a collection meets whose queries come from another machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from precision import MEASURE, ROOT, Encode, Task

from m3_connectors import M3Embeddings, M3Encoder, Weights
from m3_connectors.backends.precision import PRECISIONS
from m3_connectors.environment import describe, environment
from m3_connectors.evaluation.measures import per_query
from m3_connectors.methods import ALL, rank

Row = dict[str, Any]

NAMES = ("float32", "bfloat16", "int8")
METHODS = ("Dense", "Sparse", "Multi-vec", "All")


class Model:
    """An encoder of passages and of queries in one precision, as ``precision.Task`` takes it."""

    def __init__(self, name: str, precision: str) -> None:
        self.name = _named(name, precision)
        self.encode_query: Encode
        self.encode_passage: Encode
        if name == "e5":
            from real_weights import PASSAGE, QUERY, RealEncoder, real_checkpoint

            dtype = torch.float32 if precision == "float32" else torch.bfloat16
            real = RealEncoder(real_checkpoint(), dtype, integers=precision == "int8")
            self.title = "multilingual-e5-small (384 dims)"
            self.all = ALL.weighted(*real.weights)
            self.encode_query = lambda texts: real.encode(texts, QUERY)
            self.encode_passage = lambda texts: real.encode(texts, PASSAGE)
        else:
            encoder = M3Encoder(name, device="cpu", precision=precision)  # type: ignore[arg-type]
            self.title = encoder.info.name
            self.all = ALL.weighted(*Weights(*encoder.recommended_weights.get("all", ALL.weights)))
            self.encode_query = self.encode_passage = encoder.encode


def _named(model: str, precision: str) -> str:
    return f"{Path(model).name}-{precision}"


def measured(
    folder: Path, model: Model, limit: int | None, kept: Path
) -> tuple[Row, M3Embeddings, M3Embeddings]:
    """Encode one dataset; return nDCG@10 of every method, the documents and the queries."""
    started = time.process_time()
    task = Task(folder, model, limit, kept)  # type: ignore[arg-type]
    seconds = time.process_time() - started
    values = task.measured(PRECISIONS["float32"], task.documents)
    found = {name: float(each.mean()) for name, each in values.items()}
    stem = f"{model.name}-{task.name.replace('/', '-')}{limit or ''}"
    corpus, asked = (
        M3Embeddings.load(kept / f"{stem}-{what}.safetensors") for what in ("documents", "queries")
    )
    found["Dense"] = ranked(task, asked.dense @ corpus.dense.T)
    if "sparse" in corpus.components:
        found["Sparse"] = ranked(task, (asked.sparse @ corpus.sparse.T).toarray())
    row = {
        "folder": task.name,
        "documents": len(task.ids),
        "queries": len(task.qrels),
        "cpu_seconds": seconds,
    }
    return row | {"methods": found, "task": task, "stem": stem}, corpus, asked


def ranked(task: Task, scores: np.ndarray) -> float:
    """Return the mean measure of rankings by scores ``[queries, documents]``."""
    runs = {
        query: [task.ids[i] for i in rank(task.ids, own, 100)]
        for query, own in zip(task.qrels, scores, strict=True)
    }
    return float(np.mean(list(per_query(task.qrels, runs, [MEASURE])[MEASURE].values())))


def run(folders: Sequence[Path], options: argparse.Namespace, kept: Path) -> Iterator[Row]:
    """Yield a row for each folder and precision."""
    yield environment("torch", model=Path(options.model).name, threads=options.threads)
    for name in options.precisions:  # one model at a time
        model = Model(options.model, name)
        for folder in folders:
            row, corpus, asked = measured(folder, model, options.documents, kept)
            task = row.pop("task")
            stem = row.pop("stem").replace(model.name, _named(options.model, "float32"), 1)
            whole = M3Embeddings.load(kept / f"{stem}-documents.safetensors")
            rows = np.einsum("ij,ij->i", corpus.multivectors.rows, whole.multivectors.rows)
            dense = np.einsum("ij,ij->i", corpus.dense, whole.dense)
            row |= {
                "precision": name,
                "dense_cosine": [float(dense.min()), float(dense.mean())],
                "multivector_cosine": [float(rows.min()), float(rows.mean())],
                "mixed": ranked(task, asked.dense @ whole.dense.T),
            }
            if "sparse" in corpus.components:
                row["sparse_difference"] = float(np.abs((corpus.sparse - whole.sparse).data).max(initial=0))
                row["sparse_largest"] = float(whole.sparse.data.max())
            yield row


def report(paths: Sequence[Path]) -> str:
    """Return a table in Markdown for each file."""
    lines: list[str] = []
    for path in paths:
        machine, *rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        names = [name for name in METHODS if name in rows[0]["methods"]]
        lines += [
            f"{machine['model']}; {MEASURE}, and its change from float32; {describe(machine)}.",
            "",
            "| set (documents, queries) | precision | dense cosine, lowest (mean) | multi-vector cosine, lowest (mean) "
            f"| largest sparse difference | {' | '.join(names)} | Dense, documents in float32 |",
            "|---" * (6 + len(names)) + "|",
        ]
        folders = list(dict.fromkeys(row["folder"] for row in rows))
        for row in sorted(rows, key=lambda row: folders.index(row["folder"])):
            first = next(one for one in rows if one["folder"] == row["folder"])
            sparse = "–"
            if "sparse_difference" in row:
                sparse = f"{row['sparse_difference']:.4f} of {row['sparse_largest']:.2f}"
            cells = [f"{row['folder']} ({row['documents']:,}, {row['queries']:,})", row["precision"]]
            cells += [
                f"{row[key][0]:.5f} ({row[key][1]:.5f})" for key in ("dense_cosine", "multivector_cosine")
            ]
            cells += [sparse, *(_change(row["methods"][name], first["methods"][name]) for name in names)]
            cells.append(_change(row["mixed"], first["mixed"]))
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _change(value: float, whole: float) -> str:
    return f"{value:.4f} ({value - whole:+.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="*", help="BEIR folders with a test split")
    parser.add_argument("--model", default=str(ROOT / "models" / "m3-tiny"), help="a checkpoint, or e5")
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=NAMES,
        default=NAMES,
        help="float32 comes first, unless its embeddings were kept by an earlier run",
    )
    parser.add_argument("--documents", type=int, help="use only this many documents of each folder")
    parser.add_argument("--embeddings", type=Path, help="a folder where embeddings are kept")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--out", type=Path, help="default: benchmarks/results/encoder-quality-DATE-MODEL.jsonl"
    )
    parser.add_argument("--report", type=Path, nargs="+", help="only print the tables of these files")
    options = parser.parse_args()
    if options.report:
        print(report(options.report))
        return
    if not options.folders or not options.embeddings:
        parser.error("give BEIR folders and --embeddings, or --report")
    torch.set_num_threads(options.threads)
    name = f"encoder-quality-{datetime.date.today()}-{Path(options.model).name}.jsonl"
    path = options.out or ROOT / "benchmarks" / "results" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row in run(options.folders, options, options.embeddings):
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(json.dumps(row)[:400], file=sys.stderr, flush=True)
    print(report([path]))


if __name__ == "__main__":
    main()
