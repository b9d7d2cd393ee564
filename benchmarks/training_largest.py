"""Search the largest batch of long passages that fits into a limited memory: ours and FlagEmbedding 1.4.2's.

    python benchmarks/training_largest.py --flag-python PATH --out FILE
    python benchmarks/training_largest.py --report FILE

The data and the two sides are those of ``training.py``: a batch of n is n queries with one passage each. Every attempt
is a step in a process whose data segment and private mappings are limited (RLIMIT_DATA) after the model is loaded, so
that allocations fail instead of exhausting the machine. The batch is doubled until a step fails; then the interval is
halved until its ends are within 10 %.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from training import EXTRA, MODELS, OURS, RESULTS, THEIRS, VARIANTS, Case, engines, write_model

from m3_connectors.environment import describe, environment

Row = dict[str, Any]

SEARCHED: dict[tuple[str, str], Row] = {
    key: (VARIANTS | EXTRA)[key]
    for key in (
        (THEIRS, "plain, float32"),
        (THEIRS, "checkpointing, float32"),
        (THEIRS, "sub-batches of 1, checkpointing"),
        (OURS, "plain"),
        (OURS, "split"),
    )
}
SMALLEST = 2
"""One passage has no negative."""


def search(fits: Callable[[int], bool], first: int, most: int) -> None:
    """Call ``fits`` for the batches of the search, from ``first`` on, none larger than ``most``."""
    low, high = 0, min(first, most)
    while fits(high):
        if high == most:
            return
        low, high = high, min(2 * high, most)
    while low and high - low > max(1, low // 10):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)


def attempts(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Search for every engine, and yield a row for each attempt."""
    model = write_model(options.model, folder)
    for engine, variant in SEARCHED:
        if options.only and options.only != f"{engine}, {variant}":
            continue
        rows: list[Row] = []

        def fits(batch: int, key: tuple[str, str] = (engine, variant), rows: list[Row] = rows) -> bool:
            here = folder / f"{key[0]}-{key[1]}-{batch}".replace(" ", "-")
            case = Case(options.length, False, batch, batch)
            ((*_, process),) = engines(case, model, here, options, {key: SEARCHED[key]}, options.limit_gib)
            row = process.failed or process.round()
            process.close()
            row |= {"engine": key[0], "variant": key[1], "batch": batch, "length": options.length}
            rows.append(row | {"model": options.model})
            print(json.dumps(rows[-1]), file=sys.stderr)
            return row["kind"] == "measurement"

        search(fits, options.first, options.most)
        yield from rows


def report(path: Path) -> str:
    """Generate the table from raw rows."""
    about, *rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    rows = [row for row in rows if row["kind"] != "environment"]  # of runs with --only, one after the other
    lines = [
        f"{describe(about)}; {about['threads']} thread(s), {about['limit_gib']:g} GiB, {rows[0]['model']}.",
        "",
        f"| engine | largest batch of passages of {rows[0]['length']:,} tokens | its peak memory, GiB "
        "| seconds of the step | smallest that failed |",
        "|---|---:|---:|---:|---:|",
    ]
    for engine, variant in dict.fromkeys((row["engine"], row["variant"]) for row in rows):
        here = [row for row in rows if (row["engine"], row["variant"]) == (engine, variant)]
        fit = [row for row in here if row["kind"] == "measurement"]
        failed = [row["batch"] for row in here if row["kind"] != "measurement"]
        best = max(fit, key=lambda row: row["batch"], default=None)
        cells = ("below 2", "", "")
        if best:
            cells = (str(best["batch"]), f"{best['peak_memory_gb']:.2f}", f"{best['seconds']:.0f}")
        lines.append(f"| {engine}, {variant} | {' | '.join(cells)} | {min(failed, default='none tried')} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    today = datetime.datetime.now(datetime.UTC).date()
    parser.add_argument("--flag-python", help="a Python with FlagEmbedding==1.4.2 and transformers<5")
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    parser.add_argument("--length", type=int, default=8192, help="tokens of a passage")
    parser.add_argument("--limit-gib", type=float, default=8)
    parser.add_argument("--first", type=int, default=SMALLEST, help="the batch to begin with")
    parser.add_argument("--most", type=int, default=128, help="the largest batch that is tried")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="one engine, as the report names it")
    parser.add_argument("--out", type=Path, default=RESULTS / f"training-largest-{today}.jsonl")
    parser.add_argument("--report", type=Path, help="print the table of an earlier run")
    options = parser.parse_args()
    if not options.report:
        if not options.flag_python and not (options.only or "").startswith(OURS):
            parser.error("--flag-python is needed, or --only one of ours")
        about = environment(
            "torch", "numpy", "tokenizers", threads=options.threads, limit_gib=options.limit_gib
        )
        with tempfile.TemporaryDirectory() as folder, options.out.open("w", encoding="utf-8") as file:
            print(json.dumps(about), file=file, flush=True)
            for row in attempts(options, Path(folder)):
                print(json.dumps(row), file=file, flush=True)
    print(report(options.report or options.out))


if __name__ == "__main__":
    main()
