"""Measure tokens per second and peak memory of fine-tuning, with ours and with FlagEmbedding 1.4.2.

    python benchmarks/training.py --flag-python PATH --out FILE            # about 10 minutes
    python benchmarks/training.py --report FILE

PATH is a Python as ``training_reference.py`` needs it; without it, only ours is measured. Both sides train all three
functions with self-distillation on the same pairs of generated texts: a query of 8 to 48 tokens, and a passage of 16
tokens to the longest, equally likely on a logarithmic scale. A round is one pass over all pairs; rounds of all engines
alternate, each engine in a process of its own. Ours is the trainer as ``m3 train`` runs it; theirs is its collator,
model and loss with AdamW, without its logs and checkpoints. Tokens are those of the texts, without padding. On a busy
machine, tokens per CPU second are more reliable than tokens per second.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
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
THEIR_LIMIT_GIB = 14
"""At which its allocations fail, and its row says so, instead of exhausting the machine."""


@dataclass(frozen=True)
class Case:
    """The pairs of a measurement.

    Attributes:
        longest: The number of tokens of the longest passage.
        mixed: Whether passages have any number of tokens from 16 to ``longest``.
        pairs: The number of pairs, each a query and a passage.
        batch: The number of pairs of a step.
        compared: Whether FlagEmbedding is measured too.
    """

    longest: int
    mixed: bool
    pairs: int
    batch: int
    compared: bool = True

    @property
    def name(self) -> str:
        return f"{'16 to ' if self.mixed else ''}{self.longest:,}"

    @property
    def edges(self) -> tuple[int, ...]:
        """The lengths of three groups, each with a third of the pairs of a mixed case."""
        return (*(round(16 * (self.longest / 16) ** (part / 3)) for part in (1, 2)), self.longest)


# Theirs allocates [passages, tokens, vocabulary] for the sparse weights, 0.5 GiB for each 2,048 tokens with m3-tiny,
# several times. Ours is also measured with batches that theirs cannot take in 8 GiB.
CASES = (
    Case(512, True, 24, 8),
    Case(2048, True, 6, 2),
    Case(8192, True, 6, 2),
    Case(512, True, 192, 64, compared=False),
    Case(2048, True, 72, 24, compared=False),
    Case(8192, True, 24, 8, compared=False),
)

SPLIT_TOKENS = 2048
"""The number of tokens of a sub-batch; a longer text is one of its own."""

_OURS = {"grouped": False, "tokens_at_once": 0, "dtype": "bfloat16"}
_THEIRS = {"dtype": "float32", "gradient_checkpointing": False, "sub_batch_size": 0}
VARIANTS: dict[tuple[str, str], Row] = {
    (OURS, "plain"): _OURS,
    (OURS, "grouped"): _OURS | {"grouped": True},
    (OURS, "split"): _OURS | {"tokens_at_once": SPLIT_TOKENS},
    (OURS, "grouped, split"): _OURS | {"grouped": True, "tokens_at_once": SPLIT_TOKENS},
    (OURS, "plain, float32"): _OURS | {"dtype": "float32"},
    (THEIRS, "plain, float32"): _THEIRS,
    (THEIRS, "sub-batches of 1, checkpointing"): _THEIRS
    | {"gradient_checkpointing": True, "sub_batch_size": 1},
}
"""The settings of each engine. Theirs takes as long in bfloat16 (autocast) as in float32; see ``--all-variants``."""
EXTRA: dict[tuple[str, str], Row] = {
    (THEIRS, "plain, bfloat16"): _THEIRS | {"dtype": "bfloat16"},
    (THEIRS, "checkpointing, float32"): _THEIRS | {"gradient_checkpointing": True},
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
        shares = [(number + rng.random()) / case.pairs for number in range(case.pairs)]
        lengths = [round(16 * (case.longest / 16) ** share) for share in shares]
        rng.shuffle(lengths)
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
            "edges": case.edges,
            "batch": case.batch,
            "folder": str(folder / "pairs"),
            "work": str(folder / name),
            "temperature": TEMPERATURE,
            "learning_rate": LEARNING_RATE,
            "distil": True,
            "batches": batches,
            "warm_up": warm_up,
            "memory_limit_gib": limit_gib or (THEIR_LIMIT_GIB if engine == THEIRS else 0),
            **settings,
        }
        if engine == OURS:
            command = [sys.executable, str(Path(__file__).with_name("training_ours.py"))]
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

        write(environment("torch", "numpy", "tokenizers", threads=options.threads, rounds=options.rounds))
        for model in options.models:
            directory = write_model(model, Path(temporary))
            for case in CASES if options.cases is None else [CASES[number] for number in options.cases]:
                folder = Path(temporary) / f"{model}-{case.longest}-{case.batch}".replace(" ", "-")
                about = {"model": model, "case": case.name, "pairs_of_case": case.pairs, "batch": case.batch}
                variants = VARIANTS | (EXTRA if options.all_variants else {})
                if not case.compared:
                    variants = {key: value for key, value in variants.items() if key[0] == OURS}
                started_here = list(engines(case, directory, folder, options, variants))
                for number in range(options.rounds):
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
            if (row["model"], row["case"], row["batch"]) == (model, case, batch):
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
    parser.add_argument("--cases", type=int, nargs="*", help="only these of the cases, by number from 0")
    parser.add_argument(
        "--all-variants", action="store_true", help="also theirs with bfloat16 and checkpointing"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", default=RESULTS / f"training-speed-{today}.jsonl")
    parser.add_argument("--report", type=Path, help="print the tables of an earlier run")
    options = parser.parse_args()
    print(report(options.report or run(options)))


if __name__ == "__main__":
    main()
