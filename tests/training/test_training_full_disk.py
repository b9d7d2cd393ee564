"""A disk that is full while a run saves: the previous state stays, and the message says what to do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from training_worlds import CONFIG, write_world

from m3_connectors.training.run import train

PROGRAM = """
import resource, sys
from m3_connectors.cli.app import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
sys.exit(main())
"""


def run(world: Path, largest_file: int) -> subprocess.CompletedProcess[str]:
    """Run ``m3 train`` where no file may be larger, as on a full disk."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PROGRAM, str(largest_file), "train", "tiny.toml"]
    return subprocess.run(command, cwd=world, env=environment, capture_output=True, text=True, timeout=240)


def losses(log: Path) -> list[float]:
    records = map(json.loads, log.read_text().splitlines())
    return [record["loss"] for record in records if "step" in record]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not limit the size of files")
def test_the_previous_state_stays_and_the_same_command_goes_on(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world")
    (world / "tiny.toml").write_text(CONFIG.replace("save_every = 100", "save_every = 2"))
    train(world / "tiny.toml", work=tmp_path / "whole", output=tmp_path / "model")

    work = world / "work-tiny"
    seen: list[dict[str, Any]] = []

    def after_three_steps() -> bool:
        return len([record for record in seen if "step" in record]) == 3

    with pytest.raises(KeyboardInterrupt):
        train(world / "tiny.toml", work=work, report=seen.append, stop=after_three_steps)
    assert json.loads((work / "state" / "progress.json").read_text())["step"] == 3
    sizes = {path.name: path.stat().st_size for path in (work / "state").iterdir()}
    assert sizes["optimizer.safetensors"] > 1.5 * sizes["model.safetensors"]

    # The weights of the next state can be written, the moments of the optimiser cannot.
    ended = run(world, int(1.5 * sizes["model.safetensors"]))
    assert ended.returncode == 1
    told = ended.stderr.splitlines()[-2:]
    assert told[0] == "StorageFull: training write: work-tiny/state.new: File too large."
    assert re.fullmatch(
        r"  Free [\d,]+ MB there and run the same command to continue: the previous state is kept\.", told[1]
    )
    assert json.loads((work / "state" / "progress.json").read_text())["step"] == 3
    assert not (work / "state.new").exists()

    train(world / "tiny.toml", work=work, output=world / "model")
    assert losses(work / "log.jsonl") == losses(tmp_path / "whole" / "log.jsonl")
    assert (world / "model/model.safetensors").read_bytes() == (
        tmp_path / "model/model.safetensors"
    ).read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not limit the size of files")
def test_a_model_that_cannot_be_written_is_written_later(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world")
    ended = run(world, 3000)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-2:] == [
        "StorageFull: training write: work-tiny: File too large.",
        "  Free space there and run the same command: it continues from the last saved state.",
    ]
    assert not (world / "model").exists()
    train(world / "tiny.toml", work=world / "work-tiny")
