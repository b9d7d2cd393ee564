"""The model card of a run: where the model comes from, its data, its settings and its results."""

from __future__ import annotations

import hashlib
import platform
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m3_connectors import __version__
from m3_connectors.cores import usable_cores
from m3_connectors.training.config import TrainingConfig
from m3_connectors.training.data import PairStore

CARD, BESIDE = "README.md", "README.new.md"

_MARK = re.compile(r"<!-- m3 train wrote this card; sha256 of the text above: (\w+) -->\n?\Z")
_METHODS = {
    "dense": "Dense",
    "sparse": "Sparse",
    "multi_vec": "Multi-vec",
    "dense_sparse": "Dense+Sparse",
    "all": "All",
}
_LICENCE = (
    "**Licence**: to be filled in. Write it here and as `license:` at the top of this file. It depends on the "
    "licences of the model that the training started from and of the data."
)

Table = Mapping[str, Mapping[str, float]]
"""nDCG@10 by task and method."""


def write_card(folder: Path, text: str) -> Path:
    """Write a card, beside the one that is there if a person has edited or written that one.

    Returns:
        The file that was written.
    """
    path = folder / CARD
    if path.exists():
        found = path.read_text(encoding="utf-8")
        mark = _MARK.search(found)
        if not mark or mark[1] != _digest(found[: mark.start()]):
            path = folder / BESIDE
    path.write_text(
        f"{text}<!-- m3 train wrote this card; sha256 of the text above: {_digest(text)} -->\n",
        encoding="utf-8",
    )
    return path


def card(
    name: str,
    stages: Sequence[TrainingConfig],
    store: PairStore,
    records: Sequence[Mapping[str, Any]],
    weights: Mapping[str, tuple[float, float, float]],
) -> str:
    """Return the text of a card; it contains no path of the machine.

    Args:
        name: The name of the model.
        stages: The configurations of the stages.
        store: The pairs of the last stage.
        records: The log of the last stage.
        weights: The weights of the fused methods.
    """
    starts = [record for record in records if record.get("event") == "start_from"]
    first = stages[0].start_from
    base = Path(first).name if Path(first).exists() else first
    revision = starts[0]["revision"] if starts and len(stages) == 1 else None
    on_hub = bool(re.fullmatch(r"[\w.-]+/[\w.-]+", first)) and not Path(first).exists()
    origin = (
        f"fine-tuned from {base}{f', revision {revision}' if revision else ''}"
        if base
        else "trained from scratch"
    )
    tables = {
        record["when"]: record["ndcg_at_10"] for record in records if record.get("event") == "validation"
    }
    parts = [
        _front_matter(base if on_hub else "", store),
        f"# {name}\n\nAn M3 model {origin}: one forward pass gives a dense vector, sparse token weights and "
        "multi-vectors (arXiv 2402.03216).",
        _LICENCE,
        _data(store),
        _settings(stages),
        _run(records),
        _results(tables, weights),
        _use(name, stages[-1]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _front_matter(base: str, store: PairStore) -> str:
    languages = [
        language
        for language in store.languages
        if re.fullmatch(r"[a-z]{2,3}", language) and language != "und"
    ]
    lines = [
        *([f"base_model: {base}"] if base else []),
        *([f"language: [{', '.join(sorted(set(languages)))}]"] if languages else []),
        "library_name: m3-connectors",
        "pipeline_tag: feature-extraction",
    ]
    return "\n".join(["---", *lines, "---"])


def _data(store: PairStore) -> str:
    pairs = zip(
        store.source.tolist(),
        store.query_language.tolist(),
        store.passage_language.tolist(),
        np.asarray(store.held_out).tolist(),
        strict=True,
    )
    counts: dict[tuple[str, str], Counter[bool]] = {}
    for source, query, passage, held_out in pairs:
        cross = f"{store.languages[query]} to " if query != passage else ""
        row = (store.sources[source], cross + store.languages[passage])
        counts.setdefault(row, Counter())[held_out] += 1
    rows = [
        f"| {source} | {language} | {count[False]:,} | {count[True]:,} |"
        for (source, language), count in sorted(counts.items())
    ]
    return "\n".join(
        ["## Data", "", "| source | language | pairs | held out |", "|---|---|---:|---:|", *rows]
    )


def _settings(stages: Sequence[TrainingConfig]) -> str:
    rows = ["## Settings", "", "All settings are in `training.toml`."]
    for config in stages:
        lora = f"; LoRA of rank {config.lora.rank}, alpha {config.lora.alpha}" if config.lora else ""
        widths = f"; dense vectors also trained at {', '.join(map(str, config.loss.matryoshka))} dimensions"
        batches = ", ".join(
            f"{group.batch} passages of up to {group.longest:,} tokens" for group in config.data.groups
        )
        rows += [
            "",
            f"- {config.objective}: {config.run.steps:,} steps; trained: {', '.join(config.train)}{lora}"
            f"{widths if config.loss.matryoshka else ''}; learning rate {config.optimizer.learning_rate:g}; "
            f"temperature {config.loss.temperature:g}; a batch has at most {batches}; seed {config.run.seed}.",
        ]
    return "\n".join(rows)


def _run(records: Sequence[Mapping[str, Any]]) -> str:
    steps = [record for record in records if "tokens" in record]
    if not steps:
        return ""
    seconds, tokens = sum(record["seconds"] for record in steps), sum(record["tokens"] for record in steps)
    few = max(1, len(steps) // 10)
    before, after = (np.mean([record["loss"] for record in part]) for part in (steps[:few], steps[-few:]))
    return "\n".join(
        [
            "## Run",
            "",
            f"- {len(steps):,} steps with {tokens:,} tokens in {seconds / 60:,.1f} minutes ({tokens / seconds:,.0f} "
            f"tokens/s); mean loss {before:.3f} in the first tenth, {after:.3f} in the last",
            f"- {_hardware()}",
            f"- m3-connectors {__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}",
        ]
    )


def _hardware() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    return f"{usable_cores()} CPU cores ({platform.machine()}), {torch.get_num_threads()} threads"


def _results(tables: Mapping[str, Table], weights: Mapping[str, tuple[float, float, float]]) -> str:
    rows = ["## Results", ""]
    after, before = tables.get("end"), tables.get("start")
    if after is None:
        rows += ["Nothing was measured: the weights were not tuned on held-out pairs (`tune_importance`)."]
    else:
        rows += [
            "nDCG@10 on held-out pairs"
            + (", of the model that the training started from → of this model" if before else "")
            + ":",
            "",
            f"| pairs | {' | '.join(_METHODS.values())} |",
            "|---|" + "---:|" * len(_METHODS),
        ]
        for task, values in after.items():
            cells = (
                (f"{before[task][method]:.3f} → " if before and task in before else "")
                + f"{values[method]:.3f}"
                for method in _METHODS
            )
            rows.append(f"| {task} | {' | '.join(cells)} |")
        rows += [
            "",
            "The weights of Dense+Sparse and All were chosen on these same pairs, so that both are measured too high."
            + (" Before the training, both have the weights of the start model." if before else ""),
        ]
    rows += ["", "Weights of the fused methods (dense, sparse, multi-vector):", ""]
    rows += [
        f"- {_METHODS[name]}: {', '.join(f'{value:g}' for value in values)}"
        for name, values in weights.items()
    ]
    return "\n".join(rows)


def _use(name: str, config: TrainingConfig) -> str:
    narrow = f", colbert_dim={config.colbert_dim}" if config.colbert_dim else ""
    return "\n".join(
        [
            "## Use",
            "",
            "```python",
            "from m3_connectors import M3Encoder",
            "",
            f'encoder = M3Encoder("{name}")  # FlagEmbedding: BGEM3FlagModel("{name}"{narrow})',
            'embeddings = encoder.encode(["a text"])',
            "```",
        ]
    )
