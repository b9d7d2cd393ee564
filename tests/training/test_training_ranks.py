"""Several processes train as one: the same loss, gradients and steps on the joint batch."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_rank import gradients
from training_worlds import texts_of, write_teacher, write_world

from m3_connectors.errors import InvalidInput
from m3_connectors.training.ranks import ALONE, Ranks
from m3_connectors.training.run import train

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
    "distil": {"run": F32, "objective": "distil", "dense_teacher": {"vectors": "teacher.safetensors"}},
    "with a dense teacher": {"run": F32, "dense_teacher": {"vectors": "teacher.safetensors"}},
    "retromae": {"run": F32 | {"tokens_at_once": 60}, "objective": "retromae"},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_world(tmp_path_factory.mktemp("world") / "training")
    write_teacher(root / "teacher.safetensors", texts_of(root))
    return root


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


@pytest.mark.parametrize(
    ("size", "names"), [(2, list(CASES)), (5, ["two passages"])], ids=["two", "more than texts"]
)
def test_the_gradients_are_those_of_one_process(
    world: Path, tmp_path: Path, size: int, names: list[str]
) -> None:
    cases = json.dumps([CASES[name] for name in names])
    ended = results(start_all(size, ["-m", "training_rank", str(world), cases, str(tmp_path)], tmp_path))
    assert [code for code, _, _ in ended] == [0] * size, ended
    for number, name in enumerate(names):
        alone = gradients(world, tmp_path / f"alone-{number}", CASES[name], ALONE)
        largest = 0.0
        for rank in range(size):
            joint = load_file(tmp_path / f"{number}-{rank}.safetensors")
            assert joint.keys() == alone.keys()
            for parameter, gradient in alone.items():
                torch.testing.assert_close(joint[parameter], gradient, atol=2e-6, rtol=1e-4)
                largest = max(largest, float((joint[parameter] - gradient).abs().max()))
        print(f"{size} processes, {name}: the largest difference of a gradient is {largest:.1e}")


TRAIN = ["-u", "-m", "m3_connectors", "train", "tiny.toml"]


def copied(world: Path, to: Path, **changes: str) -> Path:
    """Copy a world, with other lines in its configuration."""
    shutil.copytree(world, to)
    text = (to / "tiny.toml").read_text()
    for key, value in changes.items():
        text, found = re.subn(rf"^{key} = .*", f"{key} = {value}", text, flags=re.MULTILINE)
        assert found == 1
    (to / "tiny.toml").write_text(text)
    return to


def losses(log: Path) -> list[float]:
    records = map(json.loads, log.read_text().splitlines())
    return [record["loss"] for record in records if "step" in record]


def test_ctrl_c_on_one_process_stops_all_and_one_process_goes_on(world: Path, tmp_path: Path) -> None:
    world = copied(world, tmp_path / "world", steps="100_000", save_every="100_000")
    first, second = processes = start_all(2, TRAIN, world)
    assert first.stderr is not None
    for line in first.stderr:
        if "step      0" in line:
            break
    second.send_signal(signal.SIGINT)
    (code, said, complained), other = results(processes)
    assert (code, said) == (130, "")
    assert other[:2] == (130, "")
    assert "Stopped" not in other[2]
    saved = json.loads((world / "work-tiny" / "state" / "progress.json").read_text())["step"]
    last = complained.splitlines()[-1]
    assert last == "Stopped. Run the same command to continue from the last saved state."

    def steps_of_one_process(work: Path, count: int) -> list[float]:
        seen: list[float] = []
        with pytest.raises(KeyboardInterrupt):
            train(
                world / "tiny.toml",
                work=work,
                report=lambda record: seen.append(record["loss"]) if "step" in record else None,
                stop=lambda: len(seen) == count,
            )
        return seen

    together = losses(world / "work-tiny" / "log.jsonl")
    assert len(together) == saved
    alone = steps_of_one_process(tmp_path / "alone", saved + 2)
    assert together == pytest.approx(alone[:saved], abs=0.02)
    goes_on = steps_of_one_process(world / "work-tiny", 2)
    assert goes_on == pytest.approx(alone[saved:], abs=0.02)


def test_one_process_that_fails_ends_all_with_one_message(world: Path, tmp_path: Path) -> None:
    world = copied(world, tmp_path / "world", table_learning_rate="1e30")
    ended = results(start_all(2, TRAIN, world))
    assert [code for code, _, _ in ended] == [1, 1]
    told = "".join(complained for _, _, complained in ended)
    assert told.count("Diverged: step ") == 1
    assert told.count("AnotherRankFailed: process ") == 1
    assert len(list((world / "work-tiny").glob("diverged-step-*.json"))) == 1
    assert not (world / "model").exists()


def test_shares_have_about_equal_loads() -> None:
    rng = np.random.default_rng(0)
    loads = rng.integers(2, 500, 60).tolist()
    ranks = Ranks(0, 4)
    shares = ranks.shares(loads)
    assert sorted(item for share in shares for item in share) == list(range(60))
    sums = [sum(loads[item] for item in share) for share in shares]
    assert max(sums) - min(sums) <= max(loads)
    ranges = ranks.ranges(loads)
    assert [item for each in ranges for item in each] == list(range(60))
    assert max(sum(loads[item] for item in each) for each in ranges) <= sum(loads) / 4 + max(loads)
    assert [list(each) for each in ranks.ranges([7])].count([]) == 3


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        (
            {"WORLD_SIZE": "2", "RANK": "0"},
            "WORLD_SIZE=2, but not LOCAL_RANK and MASTER_ADDR and MASTER_PORT",
        ),
        ({"WORLD_SIZE": "two"}, "the environment has {'WORLD_SIZE': 'two'}"),
    ],
)
def test_a_place_that_is_not_complete_is_refused(environment: dict[str, str], told: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(told) + r"[\s\S]*\n  Start the processes with torchrun"):
        Ranks.from_environment(environment)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ALONE.device("auto") == ALONE.device("cpu") == torch.device("cpu")
    with pytest.raises(InvalidInput, match=r"run.device is 'cuda', but PyTorch .* finds no GPU"):
        ALONE.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert ALONE.device("auto") == torch.device("cuda", 0)
    assert ALONE.device("cuda:1") == torch.device("cuda", 1)
    assert Ranks(5, 8, 1).device("cuda") == torch.device("cuda", 1)
    with pytest.raises(InvalidInput, match=r"needs GPU 2, but there are 2 on this machine, from 0"):
        ALONE.device("cuda:2")
    with pytest.raises(InvalidInput, match=r"there are 2 processes.\n  Set run.device to \"cuda\""):
        Ranks(0, 2).device("cuda:1")
    with pytest.raises(InvalidInput, match=r"process 3 needs GPU 3, but there are 2 on this machine"):
        Ranks(3, 4, 3).device("auto")


def test_one_process_computes_nothing_more() -> None:
    tensor = torch.ones(3, requires_grad=True)
    assert ALONE.gather([tensor], [[3]])[0] is tensor
    assert ALONE.total(tensor) is tensor
