"""Kill ``m3 train`` with SIGKILL at seeded random moments of each stage, also while it saves; compare the losses.

    python benchmarks/training_kills.py --kills 5

The script prints one line per kill and one per stage, and exits with 1 if a loss or the model differs from those of a
run that was never killed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAM = "import sys; from m3_connectors.cli.app import main; sys.exit(main())"
STEPS = 12
CONFIG = f"""
output = "model"
[data]
folder = "pairs"
query_longest = 16
groups = [{{ longest = 64, batch = 16 }}]
held_out_share = 0.1
source_weights = {{ qa = 1.0 }}
[tokenizer]
vocabulary_size = 2000
[model]
hidden_size = 128
layers = 2
heads = 2
intermediate_size = 256
max_length = 64
[run]
steps = {STEPS}
save_every = 2
threads = 1
"""


def write_world(root: Path, rng: random.Random, objectives: list[str]) -> Path:
    """Write seeded pairs and a configuration with a stage of each objective."""
    (root / "pairs").mkdir(parents=True)
    words = ["".join(rng.choices("bdfgklmnprst", k=1) + rng.choices("aeiou", k=1) * 2) for _ in range(60)]
    words = [a + b for a in words for b in words[:20]]
    with (root / "pairs" / "qa.jsonl").open("w") as file:
        for _ in range(600):
            passage = rng.choices(words, k=40)
            pair = {
                "query": " ".join(rng.sample(passage, 6)),
                "positive": " ".join(passage),
                "lang_q": "en",
                "lang_p": "en",
            }
            file.write(json.dumps(pair) + "\n")
    stages = "".join(f'[[stages]]\nobjective = "{each}"\n' for each in objectives)
    (root / "run.toml").write_text(CONFIG + stages)
    return root / "run.toml"


def start(config: Path, work: Path, output: Path) -> subprocess.Popen[bytes]:
    """Start ``m3 train`` as a process."""
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        "train",
        str(config),
        "--work",
        str(work),
        "--output",
        str(output),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[bytes]) -> None:
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"m3 train failed with {process.returncode}: {out.decode()}")


def losses(log: Path) -> dict[int, float]:
    """Return the loss of each step in a log."""
    found = {}
    for line in log.read_text().splitlines() if log.exists() else []:
        if '"step"' in line and line.endswith("}"):
            record = json.loads(line)
            found[record["step"]] = (record["loss"], record["gradient_norm"])
    return found


def kill(
    config: Path, work: Path, stage: Path, output: Path, step: int, rng: random.Random, saving: bool
) -> str:
    """Kill a run after a step of a stage, or while the next state is written; return what was left."""
    process = start(config, work, output)
    while process.poll() is None and step not in losses(stage / "log.jsonl"):
        time.sleep(0.002)
    if saving:
        while process.poll() is None and not (stage / "state.new").exists():
            pass
    time.sleep(rng.uniform(0, 0.03))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if process.returncode != -signal.SIGKILL:
        raise SystemExit(f"the run ended with {process.returncode} before it could be killed")
    new = stage / "state.new"
    saved = stage / "state" / "progress.json"
    return (
        f"steps in the log {max(losses(stage / 'log.jsonl')) + 1}, "
        f"saved {json.loads(saved.read_text())['step'] if saved.exists() else 'none'}, "
        f"unfinished state {sorted(os.listdir(new)) if new.exists() else 'none'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5, help="kills of each stage")
    parser.add_argument("--stages", nargs="+", default=["retromae", "unsupervised", "finetune"])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    same = True
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        config = write_world(root / "world", rng, arguments.stages)
        finish(start(config, root / "whole", root / "model-whole"))
        for number, objective in enumerate(arguments.stages, 1):
            stage = root / "killed" / f"{number}-{objective}"
            moments = sorted(rng.sample(range(STEPS - 2), arguments.kills))
            for step in moments:
                saving = rng.random() < 0.5
                left = kill(config, root / "killed", stage, root / "model-killed", step, rng, saving)
                print(
                    f"{objective}: killed {'while saving ' if saving else ''}after step {step}: {left}",
                    flush=True,
                )
        finish(start(config, root / "killed", root / "model-killed"))
        for number, objective in enumerate(arguments.stages, 1):
            name = f"{number}-{objective}/log.jsonl"
            whole, killed = losses(root / "whole" / name), losses(root / "killed" / name)
            equal = whole == killed and len(whole) == STEPS
            same &= equal
            print(
                f"{objective}: {len(killed)} losses and gradient norms, {'equal' if equal else 'DIFFERENT'}"
            )
        models = [(root / f"model-{kind}" / "model.safetensors").read_bytes() for kind in ("whole", "killed")]
        same &= models[0] == models[1]
        print(f"the two models are {'equal' if models[0] == models[1] else 'DIFFERENT'}, byte for byte")
    raise SystemExit(not same)


if __name__ == "__main__":
    main()
