"""The ablation tables of the paper at a small size: what each stage, self-distillation and mined negatives are worth.

    python benchmarks/ablations.py --data PAIRS --eval MLQA_DEV --out FILE.jsonl [--work DIR] [--seeds 0 1] [--e5 DIR]
    python benchmarks/ablations.py --report FILE.jsonl

From scratch: {fine-tuning only, + unsupervised, + RetroMAE} x {with, without self-distillation} x {in-batch only, +
mined negatives}; from ``--e5`` (recipes/e5_small.py): the last two. Every fine-tuning has the same number of steps
and of passages in a batch: with a mined negative for each query, a batch has half as many pairs. The stages before
it have a budget of their own, which the rows name. Negatives are mined once for each start, by the model that was
fine-tuned from it in-batch without distillation.

The pairs are a sample of the folder by source, the same in every cell. Each finished cell is a line of the output, so
an interrupted run goes on. The evaluation folders are used for nothing but the results.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from m3_connectors.encoder.config import ModelConfig
from m3_connectors.environment import environment
from m3_connectors.training.checkpoint import export_model, import_model
from m3_connectors.training.config import load_stages
from m3_connectors.training.data import open_pairs
from m3_connectors.training.monitor import EvaluationSettings, FolderTexts, evaluate
from m3_connectors.training.pairs import Pair, read_pairs
from m3_connectors.training.run import train
from m3_connectors.training.start import build_start

ROOT = Path(__file__).parent.parent
SAMPLE = {"qa_": 18_000, "par_": 8_000, "book_": 3_000, "doc_": 4_000, "news_": 1_500}
"""Pairs of the sources with these prefixes, in proportion to their sizes."""
CROSS = [
    ("de", "en"),
    ("en", "es"),
    ("es", "zh"),
    ("hi", "en"),
    ("en", "ar"),
    ("vi", "de"),
    ("zh", "vi"),
    ("ar", "hi"),
]
"""Question language and passage language of the splits that are evaluated across languages."""
TABLE = """
[data]
folder = {folder}
query_longest = 48
queries_per_passage = 2
held_out_share = 0.01
negatives_per_query = {negatives}
linked_sources = ["par_", "qa_mlqa"]
groups = [{{ longest = 64, batch = {short} }}, {{ longest = 192, batch = {long} }}]
[data.source_weights]
qa_ = 0.55
par_ = 0.2
book_ = 0.08
doc_ = 0.12
news_ = 0.05
[loss]
temperature = {temperature}
inter_weights = [1.0, 1.0, 1.0]
lambdas = [1.0, 1.0, 1.0]
[optimizer]
learning_rate = {rate}
table_learning_rate = {table_rate}
betas = [0.9, 0.98]
[run]
steps = {steps}
save_every = 100000
distil_from = {distil_from}
dtype = "bfloat16"
threads = 1
seed = {seed}
[retromae]
decoder_share = 0.15
"""


def sample(folder: Path, target: Path) -> None:
    """Write the sample of pairs, by source; texts stay outside the repository."""
    by_source: dict[str, list[Pair]] = {}
    for pair in read_pairs(folder):
        by_source.setdefault(pair.source, []).append(pair)
    partial = target.with_name("pairs.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, wanted in SAMPLE.items():
        sources = {name: pairs for name, pairs in sorted(by_source.items()) if name.startswith(prefix)}
        total = sum(map(len, sources.values()))
        for name, pairs in sources.items():
            chosen = np.sort(rng.permutation(len(pairs))[: round(wanted * len(pairs) / total)])
            with (partial / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                for i in chosen:
                    record = {
                        name: getattr(pairs[i], name) for name in ("query", "positive", "lang_q", "lang_p")
                    }
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
    partial.rename(target)


class Evaluator:
    """Evaluates a model on the splits of one folder of folders by language."""

    def __init__(self, folder: Path) -> None:
        languages = sorted(path.name for path in folder.iterdir() if path.is_dir())
        self._sets = [("mono", folder / language, "test", 200) for language in languages]
        self._sets += [("cross", folder / passage, f"q-{query}", 60) for query, passage in CROSS]

    def __call__(self, model: Path) -> dict[str, dict[str, float]]:
        """Return the mean nDCG@10 by method, within and across languages."""
        checkpoint = import_model(model)
        found: dict[str, list[dict[str, float]]] = {"mono": [], "cross": []}
        for kind, folder, split, queries in self._sets:
            settings = EvaluationSettings(
                folder=str(folder), split=split, most_queries=queries, most_documents=10**6
            )
            texts = FolderTexts(settings, checkpoint.tokenizer)
            weights = {"dense_sparse": (1.0, 1.0, 0.0), "all": (1.0, 1.0, 1.0)}
            found[kind].append(evaluate(checkpoint.model, texts, [texts.task], weights, dtype=torch.bfloat16))
        return {
            kind: {method: round(fmean(row[method] for row in rows), 4) for method in rows[0]}
            for kind, rows in found.items()
        }


class Lab:
    """Trains the cells in a working folder.

    Args:
        options: The command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._work: Path = options.work
        self._options = options
        self.pairs = self._work / "pairs"
        if not self.pairs.is_dir():
            sample(options.data, self.pairs)

    def scratch(self, seed: int) -> Path:
        """Write the initial model of a seed: latent semantic indexing in a small network."""
        target = self._work / f"start-{seed}"
        if not target.is_dir():
            tokenizer = Tokenizer.from_file(str(ROOT / "models/m3-tiny/tokenizer.json"))
            store = open_pairs(self.pairs, tokenizer, self._work / "tokens", longest=512, held_out_share=0.01)
            sizes = ModelConfig(tokenizer.get_vocab_size(), 128, 2, 2, 256, 514)
            config = load_stages(self._toml(f"scratch-{seed}", seed=seed))[0]
            model = build_start(store, sizes, config.start, seed)
            partial = self._work / f"start-{seed}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            export_model(model, tokenizer, partial, torch.float32)
            partial.rename(target)
        return target

    def stage(self, name: str, start: Path, objective: str, seed: int, **changes: Any) -> tuple[Path, float]:
        """Train one stage and return its model and the seconds that it took."""
        target = self._work / name
        path = self._toml(name, objective=objective, start=start, seed=seed, **changes)
        began = time.perf_counter()
        if not (target / "training.toml").exists():
            work = self._work / f"work-{name}"
            shutil.rmtree(work, ignore_errors=True)
            train(path, output=target, work=work)
            shutil.rmtree(work)
        return target, time.perf_counter() - began

    def mined(self, name: str, model: Path) -> Path:
        """Return a folder of the same pairs with mined negatives."""
        target = self._work / f"mined-{name}"
        if not target.is_dir():
            partial = self._work / f"mined-{name}.partial"
            partial.mkdir(exist_ok=True)
            for source in sorted(self.pairs.glob("qa_*.jsonl")):
                mine = f"{sys.executable} -m m3_connectors mine --negatives 1 --range-min 5 --range-max 100".split()
                paths = [str(source), "--model", str(model), "--to", str(partial / source.name)]
                subprocess.run([*mine, *paths], check=True)
            for source in self.pairs.glob("*.jsonl"):
                if not source.name.startswith("qa_"):
                    shutil.copyfile(source, partial / source.name)
            for other in partial.iterdir():
                if other.suffix != ".jsonl" or "." in other.stem:
                    other.unlink()
            partial.rename(target)
        return target

    def _toml(self, name: str, **values: Any) -> Path:
        defaults = {
            "objective": "finetune",
            "folder": self.pairs,
            "negatives": 0,
            "short": 128,
            "long": 64,
            "temperature": 0.02,
            "rate": 1.5e-3,
            "table_rate": 1e-2,
            "steps": self._options.steps,
            "distil_from": 2.0,
            "start": "",
        }
        values = defaults | values
        values["folder"] = json.dumps(str(values["folder"]))
        head = f'output = "unused"\nobjective = "{values["objective"]}"\nstart_from = "{values["start"]}"\n'
        path = self._work / f"{name}.toml"
        path.write_text(head + TABLE.format(**values), encoding="utf-8")
        return path


def cells(lab: Lab, options: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Path, float]]:
    """Yield each cell with its model and its seconds of fine-tuning."""
    for seed in options.seeds:
        start = lab.scratch(seed)
        retro, retro_seconds = lab.stage(f"retro-{seed}", start, "retromae", seed, steps=options.pretraining)
        unsupervised = {"steps": options.pretraining, "short": 256, "long": 128, "temperature": 0.02}
        plain, plain_seconds = lab.stage(f"unsup-{seed}", start, "unsupervised", seed, **unsupervised)
        both, both_seconds = lab.stage(f"retro-unsup-{seed}", retro, "unsupervised", seed, **unsupervised)
        for base, model, seconds in (
            ("fine-tuning only", start, 0.0),
            ("+ unsupervised", plain, plain_seconds),
            ("+ RetroMAE", both, retro_seconds + both_seconds),
        ):
            yield from fine_tuned(lab, base, model, seed, options.steps, {}, seconds)
        if options.e5:
            small = {"short": 48, "long": 24, "rate": 1e-4, "table_rate": 2e-4}
            yield from fine_tuned(lab, "e5", options.e5, seed, options.e5_steps, small, 0.0)


def fine_tuned(
    lab: Lab, base: str, model: Path, seed: int, steps: int, sizes: dict[str, Any], before: float
) -> Iterator[tuple[dict[str, Any], Path, float]]:
    """Yield the four cells of one start."""
    name = f"{base.replace(' ', '-').replace('+', 'plus')}-{seed}"
    miner: Path | None = None
    for negatives in (False, True):
        folder = lab.mined(name, miner) if negatives and miner else lab.pairs
        batches = dict(sizes)
        if negatives:
            batches |= {
                "negatives": 1,
                "short": sizes.get("short", 128) // 2,
                "long": sizes.get("long", 64) // 2,
            }
        for distillation in (False, True):
            cell = {
                "base": base,
                "self_distillation": distillation,
                "mined_negatives": negatives,
                "seed": seed,
            }
            trained, seconds = lab.stage(
                f"{name}-{'distil' if distillation else 'plain'}-{'mined' if negatives else 'batch'}",
                model,
                "finetune",
                seed,
                folder=folder,
                steps=steps,
                distil_from=0.3 if distillation else 2.0,
                **batches,
            )
            miner = miner or trained
            yield {**cell, "steps": steps, "seconds_before": round(before)}, trained, seconds


PAPER = """
The paper's (MIRACL, nDCG@10): dense from fine-tuning only 60.5, with RetroMAE 66.1, with RetroMAE and unsupervised
pre-training 69.2; dense / sparse / multi-vec without self-distillation 68.7 / 36.7 / 69.3, with it 69.2 / 53.9 / 70.5.
"""


def report(path: Path) -> str:
    """Return the table of a file: nDCG@10, the means over seeds, with the lowest and highest if there are several."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    seeds: dict[tuple[str, bool, bool, int], list[dict[str, Any]]] = {}
    for row in rows:
        key = (row["base"], row["self_distillation"], row["mined_negatives"], row["steps"])
        seeds.setdefault(key, []).append(row)
    columns = [(kind, method) for kind in ("mono", "cross") for method in rows[0][kind]]
    title = ["stages", "self-distillation", "negatives", "steps", "seeds", *(f"{k} {m}" for k, m in columns)]
    lines = [f"| {' | '.join(title)} |", "|---" * len(title) + "|"]
    for (base, distilled, mined, steps), found in seeds.items():
        cells = [base, "yes" if distilled else "no", "mined" if mined else "in-batch", steps, len(found)]
        for kind, method in columns:
            values = [row[kind][method] for row in found]
            spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{fmean(values):.3f}{spread}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    machine = rows[0]["machine"]
    about = f"{machine['processor']}, {machine['cores']} core, {machine['date'][:10]}."
    return "\n".join([about, "", *lines, PAPER])


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and evaluate the cells that the output lacks, or print the table of an earlier run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report", type=Path, help="print the table of an earlier run")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--eval", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", type=Path, default=Path("bench-data/ablations"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--pretraining", type=int, default=300)
    parser.add_argument("--e5", type=Path)
    parser.add_argument("--e5-steps", type=int, default=60)
    options = parser.parse_args(arguments)
    if options.report:
        print(report(options.report))
        return
    if not (options.data and options.eval and options.out):
        parser.error("--data, --eval and --out are needed")
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    done = {}
    if options.out.exists():
        done = {row["cell"]: row for row in map(json.loads, options.out.read_text().splitlines())}
    evaluator = Evaluator(options.eval)
    for cell, model, seconds in cells(Lab(options), options):
        label = json.dumps(cell)
        if label not in done:
            row = {
                "cell": label,
                **cell,
                "seconds": round(seconds, 1),
                **evaluator(model),
                "machine": environment("torch"),
            }
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            sys.stderr.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
