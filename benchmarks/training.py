"""Measure tokens per second and peak memory of fine-tuning, with ours and with FlagEmbedding 1.4.2.

    python benchmarks/training.py --flag-python PATH --out FILE            # about 10 minutes
    python benchmarks/training.py --report FILE

PATH is a Python as ``training_reference.py`` needs it. Both sides train all three functions with self-distillation on
the same pairs of generated texts of known token counts: a query of 8 to 48 tokens and a passage that has either a fixed
number of tokens or, in ``mixed`` cases, any number up to it (equally likely on a logarithmic scale). A round is one
pass over all pairs; rounds of all engines alternate, each engine in a process of its own. Ours is the trainer as ``m3
train`` runs it; theirs is its model, loss and collator in a loop without logging and checkpoints. Tokens are those of
the texts, without padding.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from m3_connectors.encoder.config import ModelConfig
from m3_connectors.environment import describe, environment

Row = dict[str, Any]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
OURS, THEIRS = "m3_connectors", "FlagEmbedding"
LEARNING_RATE, TEMPERATURE = 1e-5, 0.02
ROUNDS = 3


@dataclass(frozen=True)
class Case:
    """The pairs of a measurement: ``batch`` is the number of queries, each with one passage, of a step."""

    longest: int
    mixed: bool
    pairs: int
    batch: int

    @property
    def name(self) -> str:
        return f"{'16 to ' if self.mixed else ''}{self.longest:,}"


# Theirs allocates [texts, tokens, vocabulary] for the sparse weights: larger batches do not fit into 8 GiB.
CASES = (
    Case(512, True, 48, 16),
    Case(2048, True, 16, 4),
    Case(8192, True, 8, 2),
    Case(512, False, 16, 16),
    Case(2048, False, 4, 4),
    Case(8192, False, 2, 2),
)

SPLIT_TOKENS = 8192
"""The number of tokens of a sub-batch: one passage of the longest."""

VARIANTS: dict[tuple[str, str], Row] = {
    (OURS, "plain"): {"grouped": False, "tokens_at_once": 0, "dtype": "bfloat16"},
    (OURS, "grouped"): {"grouped": True, "tokens_at_once": 0, "dtype": "bfloat16"},
    (OURS, "split"): {"grouped": False, "tokens_at_once": 512, "dtype": "bfloat16"},
    (OURS, "grouped, split"): {"grouped": True, "tokens_at_once": 512, "dtype": "bfloat16"},
    (OURS, "grouped, float32"): {"grouped": True, "tokens_at_once": 0, "dtype": "float32"},
    (THEIRS, "float32"): {"dtype": "float32", "gradient_checkpointing": False, "sub_batch_size": 0},
    (THEIRS, "bfloat16"): {"dtype": "bfloat16", "gradient_checkpointing": False, "sub_batch_size": 0},
    (THEIRS, "checkpointing, sub-batches of 1"): {
        "dtype": "float32",
        "gradient_checkpointing": True,
        "sub_batch_size": 1,
    },
}


# --- the data and the models ------------------------------------------------------------------------------------------


def write_pairs(case: Case, tokenizer: Tokenizer, folder: Path) -> list[Row]:
    """Write the pairs of a case as a folder of training data; return them as batches in random order."""
    words = [
        token[1:]
        for token in sorted(tokenizer.get_vocab())
        if token[:1] == "▁" and token[1:].isascii() and token[1:].isalpha()
    ]
    rng = random.Random(0)

    def text(tokens: int) -> str:
        return " ".join(rng.choices(words, k=tokens - 2))

    lengths = [case.longest] * case.pairs
    if case.mixed:
        lengths = [round(16 * (case.longest / 16) ** rng.random()) for _ in lengths]
    pairs = [(text(rng.randint(8, 48)), text(length)) for length in lengths]
    counts = [len(encoding.ids) for encoding in tokenizer.encode_batch([passage for _, passage in pairs])]
    assert counts == lengths, "a word is not one token"
    folder.mkdir()
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for query, passage in pairs:
            line = {"query": query, "positive": passage, "lang_q": "en", "lang_p": "en"}
            print(json.dumps(line), file=file)
    parts = [pairs[i : i + case.batch] for i in range(0, len(pairs), case.batch)]
    return [_batch(part) for part in parts if len(part) > 1]


def _batch(pairs: list[tuple[str, str]]) -> Row:
    queries, passages = zip(*pairs, strict=True)
    return {"queries": queries, "passages": passages, "targets": list(range(len(pairs)))}


def write_model(name: str, folder: Path) -> Path:
    """Return m3-tiny, or write a random model of 6 layers of 384 with its tokenizer."""
    from m3_connectors.testing.checkpoints import write_checkpoint

    tiny = ROOT / "models" / "m3-tiny"
    if name == "m3-tiny":
        return tiny
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    config = ModelConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=6,
        intermediate_size=1536,
        max_position_embeddings=8194,
    )
    target = write_checkpoint(folder / name, config=config, tokenizer=tokenizer)
    # With the tokenizer class of m3-tiny, transformers uses tokenizer.json as it is.
    (target / "tokenizer_config.json").write_bytes((tiny / "tokenizer_config.json").read_bytes())
    return target


MODELS = ("m3-tiny", "6 layers of 384")


# --- our side, in a process of its own --------------------------------------------------------------------------------


def work(task: Row) -> Iterator[Row]:
    """Load and warm up; then, for each line of the standard input, take the steps of a round and yield their cost."""
    import torch
    from encoder import peak_memory_gb, reset_peak_memory

    from m3_connectors.training.batches import LengthGroup
    from m3_connectors.training.checkpoint import Progress
    from m3_connectors.training.config import DataSettings, RunSettings, TrainingConfig
    from m3_connectors.training.optimizer import OptimizerSettings
    from m3_connectors.training.trainer import Trainer

    torch.set_num_threads(task["threads"])
    longest = task["longest"]
    edges = (longest // 16, longest // 4, longest) if task["grouped"] else (longest,)
    config = TrainingConfig(
        output="unused",
        start_from=task["model"],
        data=DataSettings(
            folder=task["folder"],
            source_weights={"pairs": 1.0},
            groups=tuple(LengthGroup(edge, task["batch"]) for edge in edges),
            query_longest=64,
            queries_per_passage=1,
            held_out_share=0.0,
            shifted_share=0.0,
        ),
        optimizer=OptimizerSettings(
            learning_rate=LEARNING_RATE, table_learning_rate=LEARNING_RATE, warm_up=0.0
        ),
        run=RunSettings(
            steps=1_000_000,
            distil_from=0.0,
            threads=task["threads"],
            dtype=task["dtype"],
            tokens_at_once=task["tokens_at_once"],
        ),
    )
    trainer = Trainer(config, Path(task["folder"]), Path(task["work"]))
    # The steps that together use every pair once; those of a group are the first of its shuffled epochs.
    steps, used, step = [], set(), 0
    while step < 200 and len(used) < len(trainer.store):
        _, rows, _ = trainer.stage.sampler.rows(step)  # type: ignore[attr-defined]
        pairs = {int(row) for part in rows for row in part}
        if not pairs & used:
            steps.append(step)
            used |= pairs
        step += 1
    loaded = peak_memory_gb()
    if limit := task["memory_limit_gib"]:
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit * 2**30), int(limit * 2**30)))
    yield {"kind": "ready"}
    for _ in sys.stdin:
        reset_peak_memory()
        tokens = 0
        start, cpu_start = time.perf_counter(), time.process_time()
        try:
            for step in steps:
                trainer.progress = Progress(step, 0.0)
                tokens += trainer.step()["tokens"]
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            yield {"kind": "out of memory", "error": str(error).splitlines()[0][:200]}
            return
        yield {
            "kind": "measurement",
            "steps": len(steps),
            "pairs": len(used),
            "tokens": tokens,
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu_start,
            "peak_memory_gb": peak_memory_gb(),
            "loaded_memory_gb": loaded,
        }


# --- the run ----------------------------------------------------------------------------------------------------------


class Engine:
    """A process that is ready to take rounds."""

    def __init__(self, command: list[str], task: Row, path: Path) -> None:
        path.write_text(json.dumps(task), encoding="utf-8")
        environ = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        environ |= {"TRANSFORMERS_VERBOSITY": "error", "OMP_NUM_THREADS": str(task["threads"])}
        self._process = subprocess.Popen(
            [*command, str(path)], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        while (row := self._read())["kind"] == "versions":
            pass
        self.failed = row if row["kind"] != "ready" else None

    def round(self) -> Row:
        assert self._process.stdin
        print("round", file=self._process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        self._process.communicate()

    def _read(self) -> Row:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("{"):
                row: Row = json.loads(line)
                return row
        return {"kind": "ended", "exit_code": self._process.wait()}


def engines(
    case: Case,
    model: Path,
    folder: Path,
    options: argparse.Namespace,
    variants: dict[tuple[str, str], Row],
    limit_gib: float = 0,
) -> Iterator[tuple[str, str, Engine]]:
    """Start the engines of a case one after the other."""
    folder.mkdir()
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    batches = write_pairs(case, tokenizer, folder / "pairs")
    warm_up = _batch([("a b", "c d"), ("e f", "g h")])
    for (engine, variant), settings in variants.items():
        name = f"{engine}-{variant}".replace(" ", "-")
        task = {
            "mode": "speed",
            "model": str(model),
            "threads": options.threads,
            "longest": case.longest,
            "batch": case.batch,
            "folder": str(folder / "pairs"),
            "work": str(folder / name),
            "temperature": TEMPERATURE,
            "learning_rate": LEARNING_RATE,
            "distil": True,
            "batches": batches,
            "warm_up": warm_up,
            "memory_limit_gib": limit_gib,
            **settings,
        }
        if engine == OURS:
            command = [sys.executable, __file__, "--work"]
        elif options.flag_python:
            command = [options.flag_python, str(Path(__file__).with_name("training_reference.py"))]
        else:
            continue
        yield engine, variant, Engine(command, task, folder / f"{name}.json")


def run(options: argparse.Namespace) -> Path:
    """Measure all cases; rounds of the engines alternate."""
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary, out.open("w", encoding="utf-8") as file:

        def write(row: Row) -> None:
            print(json.dumps(row), file=file, flush=True)

        write(environment("torch", "numpy", "tokenizers", threads=options.threads, rounds=ROUNDS))
        for model in options.models:
            directory = write_model(model, Path(temporary))
            for case in CASES:
                folder = Path(temporary) / f"{model}-{case.longest}-{case.mixed}".replace(" ", "-")
                about = {"model": model, "case": case.name, "batch": case.batch}
                started_here = list(engines(case, directory, folder, options, VARIANTS))
                for number in range(ROUNDS):
                    for engine, variant, process in started_here:
                        row = process.failed or process.round()
                        write({**row, **about, "engine": engine, "variant": variant, "round": number})
                        rate = row.get("tokens", 0) / row.get("cpu_seconds", 1)
                        print(
                            f"{time.perf_counter() - started:4.0f} s  {model}, {case.name}, {engine}, {variant}: "
                            f"{rate:,.0f} tokens per CPU second, {row.get('peak_memory_gb', 0):.1f} GiB",
                            file=sys.stderr,
                        )
                for *_, process in started_here:
                    process.close()
    return out


# --- the report -------------------------------------------------------------------------------------------------------


def report(path: Path) -> str:
    """Generate the tables from raw rows."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    about = rows[0]
    lines = [f"{describe(about)}; {about['threads']} thread(s).", ""]
    return "\n".join(lines + _speeds(rows))


def _speeds(rows: list[Row]) -> list[str]:
    lines = [
        "| model | tokens of a passage | batch | engine | tokens/s (lowest–highest) | tokens per CPU second | "
        "times FlagEmbedding's best | peak memory, GiB |",
        "|---" * 8 + "|",
    ]
    cases = dict.fromkeys((row["model"], row["case"], row["batch"]) for row in rows[1:])
    for model, case, batch in cases:
        here: dict[tuple[str, str], list[Row]] = {}
        for row in rows[1:]:
            if (row["model"], row["case"]) == (model, case):
                here.setdefault((row["engine"], row["variant"]), []).append(row)
        theirs = [
            _rate(each, "cpu_seconds")
            for (engine, _), each in here.items()
            if engine == THEIRS and _all_ran(each)
        ]
        for (engine, variant), each in here.items():
            if not _all_ran(each):
                lines.append(
                    f"| {model} | {case} | {batch} | {engine}, {variant} | {each[0]['kind']} | | | |"
                )
                continue
            rates = [row["tokens"] / row["seconds"] for row in each]
            cpu = _rate(each, "cpu_seconds")
            times = f"{cpu / max(theirs):.1f}" if engine == OURS and theirs else ""
            lines.append(
                f"| {model} | {case} | {batch} | {engine}, {variant} "
                f"| {statistics.median(rates):,.0f} ({min(rates):,.0f}–{max(rates):,.0f}) | {cpu:,.0f} | {times} "
                f"| {max(row['peak_memory_gb'] for row in each):.2f} |"
            )
    return lines


def _all_ran(rows: list[Row]) -> bool:
    return all(row["kind"] == "measurement" for row in rows)


def _rate(rows: list[Row], seconds: str) -> float:
    return statistics.median(row["tokens"] / row[seconds] for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    today = datetime.datetime.now(datetime.UTC).date()
    parser.add_argument("--flag-python", help="a Python with FlagEmbedding==1.4.2 and transformers<5")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=MODELS[:1])
    parser.add_argument("--out", default=RESULTS / f"training-speed-{today}.jsonl")
    parser.add_argument("--report", type=Path, help="print the tables of an earlier run")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        for row in work(json.loads(options.work.read_text(encoding="utf-8"))):
            print(json.dumps(row), flush=True)
    elif options.report:
        print(report(options.report))
    else:
        print(report(run(options)))


if __name__ == "__main__":
    main()
