"""Our side of ``training.py``: takes rounds of steps with the trainer; run by it, in a process of its own.

python benchmarks/training_ours.py TASK.json
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from encoder import peak_memory_gb, reset_peak_memory

from m3_connectors.training.batches import LengthGroup
from m3_connectors.training.checkpoint import Progress
from m3_connectors.training.config import DataSettings, RunSettings, TrainingConfig
from m3_connectors.training.optimizer import OptimizerSettings
from m3_connectors.training.trainer import Trainer

Row = dict[str, Any]


def work(task: Row) -> Iterator[Row]:
    """Load and warm up; then, for each line of the standard input, take the steps of a round and yield their cost."""
    torch.set_num_threads(task["threads"])
    edges = task["edges"] if task["grouped"] else task["edges"][-1:]
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
            learning_rate=task["learning_rate"], table_learning_rate=task["learning_rate"], warm_up=0.0
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
    else:
        trainer.step()  # the first products of some sizes take longer
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


if __name__ == "__main__":
    for row in work(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))):
        print(json.dumps(row), flush=True)
