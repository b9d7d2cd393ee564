"""``m3 train`` interrupted by Ctrl-C: acknowledged at once, the step saved, and the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from training_worlds import CONFIG, write_world

PROGRAM = "import sys; from m3_connectors.cli.app import main; sys.exit(main())"
ACKNOWLEDGED = "press Ctrl-C again to stop at once."


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return write_world(tmp_path / "world")


def start(world: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-c", PROGRAM, "train", "tiny.toml"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, cwd=world, env=environment, stderr=subprocess.PIPE, text=True)


def until(lines: Iterator[str], words: str) -> list[str]:
    """The lines of stderr up to one that holds these words."""
    seen = []
    for line in lines:
        seen.append(line)
        if words in line:
            return seen
    raise AssertionError(f"{words!r} is not in {seen}")


def test_ctrl_c_saves_the_step_and_the_same_command_goes_on(world: Path) -> None:
    endless = CONFIG.replace("steps = 6", "steps = 100_000").replace(
        "save_every = 100", "save_every = 100_000"
    )
    (world / "tiny.toml").write_text(endless)
    with start(world) as process:
        assert process.stderr is not None
        seen = until(process.stderr, "step      0")
        process.send_signal(signal.SIGINT)
        said = process.stderr.read().splitlines()
    assert any("reading pairs" in line for line in seen)
    assert said[-2] == f"Stopping after this step, which will be saved; {ACKNOWLEDGED}"
    saved = json.loads((world / "work-tiny" / "state" / "progress.json").read_text())["step"]
    assert said[-1] == f"Stopped: {saved:,} steps are saved. Run the same command to continue."
    assert saved >= 1
    assert process.returncode == 130
    assert not (world / "model").exists()

    with start(world) as process:
        assert process.stderr is not None
        seen = until(process.stderr, "step ")
        process.send_signal(signal.SIGINT)
        process.stderr.read()
    assert f"step {saved:6}" in seen[-1]
    assert process.returncode == 130


def test_ctrl_c_ends_the_making_of_a_tokenizer_at_once(world: Path) -> None:
    syllables = [a + b for a in "bdfgklmnprstvwz" for b in "aeiou"]
    with (world / "pairs" / "qa.jsonl").open("w") as file:
        for i in range(4000):
            words = ["".join(syllables[(i * k + j * 7 + k) % 75] for k in range(1, 6)) for j in range(200)]
            pair = {"query": words[0], "positive": " ".join(words), "lang_q": "en", "lang_p": "en"}
            file.write(json.dumps(pair) + "\n")
    (world / "tiny.toml").write_text(CONFIG.replace("vocabulary_size = 300", "vocabulary_size = 8000"))
    with start(world) as process:
        assert process.stderr is not None
        until(process.stderr, "training the tokenizer")
        process.send_signal(signal.SIGINT)
        said = process.stderr.read().splitlines()
    # A line that was being written when the signal came may stand there twice.
    assert said[-2:] == [
        f"Stopping; {ACKNOWLEDGED}",
        "Stopped before the first step. Run the same command to continue.",
    ]
    assert process.returncode == 130
    assert not (world / "work-tiny" / "tokenizer.json").exists()
