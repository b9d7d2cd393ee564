"""Measure what other processes on the machine cost an encoder, by how long its threads spin before they sleep.

    python benchmarks/neighbours.py --out benchmarks/results/neighbours-2025-01-31.jsonl
    python benchmarks/neighbours.py --report benchmarks/results/neighbours-2025-01-31.jsonl

A random checkpoint of the real model's layers (24, with a small vocabulary) encodes one short query at a time, and
texts of 512 tokens; a small model takes training steps. Each is measured alone, beside one process that computes on one
core, and beside a second encoder that does the same work. The settings are PyTorch's own (GNU's OpenMP library looks
300,000 times whether the others are ready), the value that ``m3`` sets, and passive waiting.

All processes are started once and wait until they are asked; in each round, every setting is measured in every
condition, so that what changes on the machine meanwhile changes them all. The row "weights" is the time to read as many
bytes as the layers have, once, with the same threads: the bound of a query by the memory's bandwidth.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from m3_connectors.cores import usable_cores
from m3_connectors.environment import describe, environment

ROOT = Path(__file__).resolve().parents[1]
VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
SETTINGS: dict[str, dict[str, str]] = {
    "PyTorch's own": {},
    "10,000": {"GOMP_SPINCOUNT": "10000"},
    "1,000 (m3)": {"GOMP_SPINCOUNT": "1000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}
WORK = ("query", "documents", "training", "weights")
CONDITIONS = ("alone", "one busy process", "a second encoder")
QUERY = "the quick brown fox jumps over the lazy dog"
BUSY = """
import os
parent = os.getppid()
print(flush=True)
while os.getppid() == parent:  # also ends when this program is killed
    sum(range(1_000_000))
"""

Row = dict[str, Any]


# --- a process that is measured ---------------------------------------------------------------------------------------


def serve(model: Path) -> None:
    """Do what the lines of stdin ask for; each answer is a line on stdout, after one that says that it has begun."""
    calls = calls_of(model)
    for call in calls.values():
        call()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps("begun"), flush=True)
        seconds = list[float]()
        cpu, end = time.process_time(), time.perf_counter() + asked["seconds"]
        while not seconds or time.perf_counter() < end:
            start = time.perf_counter()
            calls[asked["work"]]()
            seconds.append(time.perf_counter() - start)
        cpu = (time.process_time() - cpu) / len(seconds)
        ordered = sorted(seconds)
        answer = {
            "times": len(ordered),
            "median_ms": 1e3 * statistics.median(ordered),
            "mean_ms": 1e3 * statistics.fmean(ordered),
            "p95_ms": 1e3 * ordered[int(0.95 * (len(ordered) - 1))],
            "least_ms": 1e3 * ordered[0],
            "cpu_ms": 1e3 * cpu,
        }
        print(json.dumps(answer), flush=True)


def calls_of(model: Path) -> dict[str, Callable[[], object]]:
    """Return what is measured, by name."""
    import torch
    from encoder import texts_of

    from m3_connectors import M3Encoder
    from m3_connectors.encoder.config import ModelConfig
    from m3_connectors.encoder.model import M3Model

    encoder = M3Encoder(model, device="cpu")
    documents = texts_of(512, 1024)
    config = ModelConfig.load(model / "config.json")
    width = {"float32": 4, "bfloat16": 2}[encoder.precision]
    numbers = config.num_hidden_layers * (4 * config.hidden_size + 2 * config.intermediate_size)
    weights = torch.ones(numbers * config.hidden_size * width // 4, dtype=torch.int32)

    small = M3Model(
        dataclasses.replace(
            config, hidden_size=256, intermediate_size=1024, num_attention_heads=4, num_hidden_layers=3
        )
    )
    optimizer = torch.optim.AdamW(small.parameters(), 1e-5)
    ids = torch.arange(16 * 64) % (config.vocab_size - 5) + 4

    def train() -> None:
        optimizer.zero_grad()
        small(ids, [64] * 16).square().mean().backward()
        optimizer.step()

    return {
        "query": lambda: encoder.encode([QUERY]),
        "documents": lambda: encoder.encode(documents),
        "training": train,
        "weights": weights.max,
    }


class Process:
    """A measured process, with a setting of its own."""

    def __init__(self, model: Path, setting: dict[str, str]) -> None:
        kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", str(model)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=kept | setting
        )

    def begin(self, work: str, seconds: float) -> None:
        """Ask for work, and return when it has begun."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"work": work, "seconds": seconds}) + "\n")
        self._process.stdin.flush()
        self.answer()

    def answer(self) -> Any:
        """Return the next line of the process."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"a measured process ended with {self._process.wait()}; see its message above."
            )
        return json.loads(line)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


# --- the run ----------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> Iterator[Row]:
    """Yield the record of the machine, and a row for each measurement."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        command = [sys.executable, str(Path(__file__).resolve()), "--write-model", folder]
        subprocess.run([*command, "--layers", str(options.layers)], check=True)
        yield environment(
            "torch", "numpy", layers=options.layers, seconds=options.seconds, rounds=options.rounds
        )
        measured, second = dict[str, Process](), dict[str, Process]()
        for name in options.settings:
            for processes in (measured, second):
                processes[name] = Process(Path(folder), SETTINGS[name])
                stack.callback(processes[name].stop)
                assert processes[name].answer() == "ready"
        for round_ in range(options.rounds):
            for work in options.work:
                for condition in options.conditions:
                    order = options.settings if round_ % 2 == 0 else options.settings[::-1]
                    for name in order:
                        with beside(condition, second[name], work, options.seconds):
                            measured[name].begin(work, options.seconds)
                            answer = measured[name].answer()
                        where = {"round": round_, "work": work, "condition": condition, "setting": name}
                        yield {"kind": "measurement", **where, **answer}


@contextlib.contextmanager
def beside(condition: str, second: Process, work: str, seconds: float) -> Iterator[None]:
    """Let the neighbour of a condition work for as long as something is measured."""
    if condition == "one busy process":
        with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) as busy:
            assert busy.stdout is not None
            busy.stdout.readline()
            try:
                yield
            finally:
                busy.kill()
    elif condition == "a second encoder":
        second.begin(work, seconds + 2)
        yield
        second.answer()
    else:
        yield


def report(path: Path) -> str:
    """Return the tables of a run: medians of the rounds."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    machine, rows = rows[0], rows[1:]
    load = machine["load_average"][0]
    lines = [f"{describe(machine)}; {machine['layers']} layers; load average {load:.1f} at the start.", ""]
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    lines += [f"| work | beside | {' | '.join(settings)} |", "|---|---|" + "---:|" * len(settings)]
    for work, condition in dict.fromkeys((row["work"], row["condition"]) for row in rows):
        cells = []
        for setting in settings:
            found = [
                r for r in rows if (r["work"], r["condition"], r["setting"]) == (work, condition, setting)
            ]
            ms, late, cpu = (
                statistics.median(r[key] for r in found) for key in ("median_ms", "p95_ms", "cpu_ms")
            )
            cells.append(f"{ms:.1f} / {late:.1f} ({cpu:.1f})")
        lines.append(f"| {work} | {condition} | {' | '.join(cells)} |")
    lines += ["", "Milliseconds, median / 95th percentile (CPU time), median of the rounds."]
    alone = {
        work: [r["least_ms"] for r in rows if (r["work"], r["condition"]) == (work, "alone")] for work in WORK
    }
    if alone["query"] and alone["weights"]:
        query, weights = (min(alone[work]) for work in ("query", "weights"))
        lines += [
            "",
            f"The fastest query took {query / weights:.2f} times the fastest reading of the weights.",
        ]
    return "\n".join(lines)


def write_model(folder: Path, layers: int) -> None:
    from m3_connectors.testing.checkpoints import M3_LARGE, write_checkpoint

    write_checkpoint(folder, config=dataclasses.replace(M3_LARGE, vocab_size=1200, num_hidden_layers=layers))


def main() -> None:
    today = datetime.date.today().isoformat()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / f"neighbours-{today}.jsonl"
    )
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=3, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", nargs="+", choices=WORK, default=WORK)
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=CONDITIONS)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=tuple(SETTINGS))
    parser.add_argument("--report", type=Path, help="print the table of an earlier run without measuring")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write-model", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
    elif options.write_model:
        write_model(options.write_model, options.layers)
    elif options.report:
        print(report(options.report))
    else:
        count = len(options.work) * len(options.conditions) * len(options.settings) * options.rounds
        print(f"{count} measurements of {options.seconds:g} s on {usable_cores()} cores", file=sys.stderr)
        with options.out.open("w", encoding="utf-8") as file:
            for row in run(options):
                file.write(json.dumps(row) + "\n")
                file.flush()
        print(report(options.out))


if __name__ == "__main__":
    main()
