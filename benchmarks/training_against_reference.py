"""Fine-tune one checkpoint with FlagEmbedding 1.4.2 and with ours on the same batches, and compare every loss.

    python benchmarks/training_against_reference.py --flag-python PATH --data PAIRS
    python benchmarks/training_against_reference.py --report benchmarks/results/training-losses-2025-01-31.jsonl

PATH is a Python as ``training_reference.py`` needs it. A batch has queries, positives and negatives of one source of a
folder of pairs (docs/training.md), cut to seeded lengths, so that it needs padding. Each run takes one step per batch
with a constant learning rate, without weight decay, warm-up or clipping, in float32 unless its name says otherwise.
Each difference of the code bases is switched off in turn, until only rounding is left. Results contain no texts.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from m3_connectors.encoder.model import M3Model
from m3_connectors.environment import describe, environment
from m3_connectors.testing.checkpoints import write_checkpoint
from m3_connectors.training.checkpoint import import_model
from m3_connectors.training.forward import TABLES, TouchedRows, TrainingEncoder, split
from m3_connectors.training.losses import LossSettings, objective, score_all
from m3_connectors.training.optimizer import OptimizerSettings, RowAdamW
from m3_connectors.training.pairs import Pair, read_pairs

Row = dict[str, Any]

ROOT = Path(__file__).resolve().parents[1]
QUERIES, NEGATIVES = 8, 3
LENGTHS = range(4, 65)
"""The numbers of tokens to which passages are cut, including ``<s>`` and ``</s>``."""
TEMPERATURE = 0.02
NAME = "m3_connectors"


@dataclass(frozen=True)
class Start:
    """A checkpoint, the learning rate that suits it, and whether self-distillation is added from the first step."""

    model: str
    learning_rate: float
    distil: bool

    @property
    def name(self) -> str:
        return f"{self.model}, {'L_final' if self.distil else 'L'}"


TINY, RANDOM, CENTRED = "m3-tiny", "random", "random, rows around 0"
STARTS = (
    Start(RANDOM, 1e-3, True),
    Start(CENTRED, 1e-3, True),
    Start(TINY, 1e-5, True),
    Start(TINY, 1e-5, False),
)
"""``RANDOM`` has 2 layers of 32. Its multi-vector rows have a large common part, so that no token score is below 0;
``CENTRED`` is without it, and many token scores of short passages are."""


# --- the batches and the checkpoints ----------------------------------------------------------------------------------


def make_batches(data: Path, tokenizer: Tokenizer, steps: int) -> list[Row]:
    """Draw the batches; a passage occurs once in a batch, and none of its negatives is another query's positive."""
    rng = random.Random(0)
    sources: dict[str, dict[str, Pair]] = {}
    for pair in read_pairs(data):
        if pair.lang_q == pair.lang_p:  # across languages, ours leaves L_lex out
            sources.setdefault(pair.source, {}).setdefault(pair.positive, pair)
    need = QUERIES * (1 + NEGATIVES)
    names = [name for name, pairs in sorted(sources.items()) if len(pairs) >= need]
    lists = {name: list(sources[name].values()) for name in names}
    batches = []
    for step in range(steps):
        drawn = rng.sample(lists[names[step % len(names)]], need)
        passages = [_cut(pair.positive, tokenizer, rng.choice(LENGTHS)) for pair in drawn]
        batches.append(
            {
                "queries": [_cut(pair.query, tokenizer, 48) for pair in drawn[:: 1 + NEGATIVES]],
                "passages": passages,
                "targets": list(range(0, need, 1 + NEGATIVES)),
            }
        )
    return batches


def _cut(text: str, tokenizer: Tokenizer, longest: int) -> str:
    """Return the characters of the first tokens of a text."""
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets[: longest - 2]
    return text[: offsets[-1][1]] if offsets else text


def checkpoint(model: str, folder: Path) -> Path:
    """Return m3-tiny, or write a random checkpoint; both have FlagEmbedding's layout."""
    if model == TINY:
        return ROOT / "models" / "m3-tiny"
    target = write_checkpoint(folder / model.replace(" ", "-"))
    if model == CENTRED:
        loaded = import_model(str(target))
        rng = np.random.default_rng(0)
        texts = [np.array([0, *rng.integers(4, 1000, 30), 2]) for _ in range(32)]
        (states,), _ = TrainingEncoder(loaded.model, torch.float32).apply(lambda hidden, *_: (hidden,), texts)
        head = {"weight": loaded.model.colbert_linear.weight.detach().clone()}
        head["bias"] = -head["weight"] @ states.detach().mean(0)
        torch.save(head, target / "colbert_linear.pt")
    return target


# --- our side ---------------------------------------------------------------------------------------------------------


def ours(
    directory: Path, start: Start, batches: Sequence[Row], *, all_rows: bool, dtype: torch.dtype
) -> Iterator[Row]:
    """Take one step per batch with the parts of the trainer; yield the loss of every step before its update.

    Args:
        directory: The checkpoint.
        start: What the run starts from.
        batches: The batches.
        all_rows: Whether AdamW updates every row of the embedding tables, as PyTorch's does, or those of the batch.
        dtype: The dtype of the layers' products.
    """
    loaded = import_model(str(directory))
    model, tokenizer = loaded.model, loaded.tokenizer
    encoder = TrainingEncoder(model, dtype)
    settings = OptimizerSettings(
        learning_rate=start.learning_rate,
        table_learning_rate=start.learning_rate,
        betas=(0.9, 0.999),
        weight_decay=0.0,
        clip=float("inf"),
    )
    by_row = RowAdamW(dict(model.named_parameters()), settings)
    plain = torch.optim.AdamW(model.parameters(), lr=start.learning_rate, weight_decay=0.0, foreach=False)
    for step, batch in enumerate(batches):
        texts = [
            np.array(tokenizer.encode(text).ids, np.int64) for text in batch["queries"] + batch["passages"]
        ]
        shown, tables = encoder(texts)
        loss, parts = objective(
            score_all(*split(shown, len(batch["queries"]))),
            torch.tensor(batch["targets"]),
            LossSettings(temperature=TEMPERATURE),
            cross_lingual=torch.zeros(len(batch["queries"]), dtype=torch.bool),
            self_distillation=start.distil,
        )
        loss.backward()  # type: ignore[no-untyped-call]
        if all_rows:
            _spread(model, tables)
            plain.step()
            plain.zero_grad()
        else:
            by_row.step(tables, 1.0)
        total = 0
        for text in texts:
            total = zlib.crc32(text.astype(np.int32).tobytes(), total)
        yield {"step": step, "loss": loss.item(), **parts, "token_checksum": total}


def _spread(model: M3Model, tables: Mapping[str, TouchedRows]) -> None:
    """Give the tables gradients of their own shape, which are 0 in the rows that the batch does not use."""
    parameters = dict(model.named_parameters())
    for name in TABLES:
        gradient: Tensor = torch.zeros_like(parameters[name])
        gradient.index_add_(0, tables[name].numbers, tables[name].values.grad)  # type: ignore[arg-type]
        parameters[name].grad = gradient


OURS: dict[str, Row] = {
    "as it trains": {"all_rows": False, "dtype": torch.bfloat16},
    "float32": {"all_rows": False, "dtype": torch.float32},
    "float32, all rows": {"all_rows": True, "dtype": torch.float32},
}
THEIRS: dict[str, Row] = {"as it is": {"padding_rows": True}, "without padding rows": {"padding_rows": False}}


# --- the run ----------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> Path:
    torch.set_num_threads(options.threads)
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, out.open("w", encoding="utf-8") as file:

        def write(row: Row) -> None:
            print(json.dumps(row), file=file, flush=True)

        write(
            environment(
                "torch",
                "numpy",
                "tokenizers",
                threads=options.threads,
                steps=options.steps,
                queries=QUERIES,
                negatives=NEGATIVES,
                temperature=TEMPERATURE,
                learning_rates={start.name: start.learning_rate for start in STARTS},
            )
        )
        for start in STARTS:
            if options.starts and start.model not in options.starts:
                continue
            directory = checkpoint(start.model, Path(temporary))
            tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
            batches = make_batches(options.data, tokenizer, options.steps)
            for variant, settings in OURS.items():
                print(NAME, start.name, variant, file=sys.stderr)
                for row in ours(directory, start, batches, **settings):
                    write({"kind": "step", "engine": NAME, "variant": variant, "start": start.name, **row})
            for variant, settings in THEIRS.items():
                print("FlagEmbedding", start.name, variant, file=sys.stderr)
                task = {
                    "mode": "losses",
                    "model": str(directory),
                    "temperature": TEMPERATURE,
                    "learning_rate": start.learning_rate,
                    "distil": start.distil,
                    "variant": variant,
                    "threads": options.threads,
                    "batches": batches,
                    **settings,
                }
                for row in reference_rows(options.flag_python, task, Path(temporary)):
                    write(row | {"start": start.name})
    return out


def reference_rows(python: str, task: Row, folder: Path) -> Iterator[Row]:
    """Run ``training_reference.py`` in its own environment, and yield the rows that it prints."""
    path = folder / "task.json"
    path.write_text(json.dumps(task), encoding="utf-8")
    environ = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environ |= {"TRANSFORMERS_VERBOSITY": "error", "OMP_NUM_THREADS": str(task["threads"])}
    # Its largest tensors are freed in every step; with this, the C library keeps their memory for the next one.
    environ |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000000"}
    environ.pop("PYTHONPATH", None)
    script = Path(__file__).with_name("training_reference.py")
    command = [python, str(script), str(path)]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from (json.loads(line) for line in process.stdout if line.startswith("{"))
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with exit code {process.returncode}")


# --- the report -------------------------------------------------------------------------------------------------------

COMPARED = (
    ("as it is", "as it trains", "all"),
    ("as it is", "float32", "without bfloat16"),
    ("as it is", "float32, all rows", "AdamW also updates all rows of the tables"),
    ("without padding rows", "float32, all rows", "padding rows do not count either: only rounding"),
)
"""A variant of theirs, one of ours, and which differences are left between them."""


def report(path: Path) -> str:
    """Generate the tables from raw rows, for the starts whose runs are all complete."""
    about, *rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    curves: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["kind"] == "step":
            curves.setdefault((row["start"], row["variant"]), []).append(row)
    whole = {key for key, curve in curves.items() if len(curve) == about["steps"]}
    starts = [
        name
        for name in dict.fromkeys(name for name, _ in curves)
        if all((name, variant) in whole for variant in (*OURS, *THEIRS))
    ]
    shown = sorted({*range(0, about["steps"], max(1, about["steps"] // 5)), about["steps"] - 1})
    lines = [
        f"{describe(about)}; {about['steps']} steps of {about['queries']} queries with {about['negatives']} negatives "
        f"each; temperature {about['temperature']}; learning rates {about['learning_rates']}.",
        "",
        "| start, objective | code base | " + " | ".join(f"step {step}" for step in shown) + " | mean |",
        "|---" * (len(shown) + 3) + "|",
    ]
    for name in starts:
        for engine, variant in (
            ("FlagEmbedding", "as it is"),
            (NAME, "float32"),
            (NAME + " in bfloat16", "as it trains"),
        ):
            losses = [row["loss"] for row in curves[name, variant]]
            lines.append(
                f"| {name} | {engine} | "
                + " | ".join(f"{losses[step]:.5f}" for step in shown)
                + f" | {sum(losses) / len(losses):.5f} |"
            )
    lines += ["", f"| differences that are left | {' | '.join(starts)} |", "|---" * (len(starts) + 1) + "|"]
    for theirs, our, what in COMPARED:
        cells = []
        for name in starts:
            pairs = zip(curves[name, theirs], curves[name, our], strict=True)
            gaps = [abs(a["loss"] - b["loss"]) for a, b in pairs]
            cells.append(f"{gaps[0]:.1e}, {max(gaps):.1e}")
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    clamped = []
    for name in starts:
        here = curves[name, "as it is"]
        share = sum(row["clamped_token_scores"] for row in here) / sum(row["token_scores"] for row in here)
        clamped.append(
            f"{share:.2%} ({name}; s_mul by {max(row['largest_raise_of_s_mul'] for row in here):.1e})"
        )
    same = all(
        len({curves[name, variant][step]["token_checksum"] for variant in (*OURS, *THEIRS)}) == 1
        for name in starts
        for step in range(about["steps"])
    )
    lines += [
        "",
        "Each cell of the second table is the difference of the losses in the first step and the largest in any step. "
        "Token scores that its padding rows raise to 0: "
        + ", ".join(clamped)
        + f". Token ids of all steps are {'equal' if same else 'NOT EQUAL'} on both sides.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    today = datetime.datetime.now(datetime.UTC).date()
    parser.add_argument("--flag-python", help="a Python with FlagEmbedding==1.4.2 and transformers<5")
    parser.add_argument("--data", type=Path, help="a folder of training pairs")
    parser.add_argument("--starts", nargs="*", choices=(RANDOM, CENTRED, TINY), help="only these checkpoints")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default=ROOT / "benchmarks" / "results" / f"training-losses-{today}.jsonl")
    parser.add_argument("--report", type=Path, help="print the tables of an earlier run")
    options = parser.parse_args()
    if not options.report and not (options.flag_python and options.data):
        parser.error("--flag-python and --data are needed")
    print(report(options.report or run(options)))


if __name__ == "__main__":
    main()
