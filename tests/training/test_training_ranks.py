"""Several processes train as one: the same loss, gradients and steps on the joint batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_rank import gradients
from training_worlds import write_world

from m3_connectors.training.ranks import ALONE

F32 = {"dtype": "float32"}
CASES: dict[str, dict[str, Any]] = {
    "L": {"run": F32 | {"distil_from": 1.0}},
    "L_final": {"run": F32 | {"distil_from": 0.0}},
    "sub-batches": {"run": F32 | {"distil_from": 0.0, "tokens_at_once": 40}},
    "two passages": {
        "run": F32 | {"distil_from": 0.0},
        "data": {"groups": [{"batch": 2}], "queries_per_passage": 1},
    },
    "five texts": {"run": F32, "data": {"groups": [{"batch": 2}], "queries_per_passage": 2}},
    "unsupervised": {"run": F32, "objective": "unsupervised"},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world") / "training")


def start_all(size: int, arguments: list[str], cwd: Path) -> list[subprocess.Popen[str]]:
    """Start the processes of a run as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    path = os.pathsep.join(sys.path)
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=cwd,
            env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def results(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Wait for all; return the exit code, stdout and stderr of each."""
    found = []
    for process in processes:
        said, complained = process.communicate(timeout=240)
        found.append((process.returncode, said, complained))
    return found


@pytest.mark.parametrize("size", [2, 5])
def test_the_gradients_are_those_of_one_process(world: Path, tmp_path: Path, size: int) -> None:
    arguments = ["-m", "training_rank", str(world), json.dumps(list(CASES.values())), str(tmp_path)]
    ended = results(start_all(size, arguments, tmp_path))
    assert [code for code, _, _ in ended] == [0] * size, ended
    for number, (name, case) in enumerate(CASES.items()):
        alone = gradients(world, tmp_path / f"alone-{number}", case, ALONE)
        largest = 0.0
        for rank in range(size):
            joint = load_file(tmp_path / f"{number}-{rank}.safetensors")
            assert joint.keys() == alone.keys()
            for parameter, gradient in alone.items():
                torch.testing.assert_close(joint[parameter], gradient, atol=2e-6, rtol=1e-4)
                largest = max(largest, float((joint[parameter] - gradient).abs().max()))
        print(f"{size} processes, {name}: the largest difference of a gradient is {largest:.1e}")
