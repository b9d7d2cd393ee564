"""The tutorial of docs/ingestion.md: its commands run in the order of the page, and print what the page shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "ingestion.md"
BLOCK = re.compile(r"^```console\n(.*?)^```", re.DOTALL | re.MULTILINE)
VARIES = (
    (re.compile(r"\d+(\.\d+)? s\b"), "T s"),
    (re.compile(r"(encoder busy )\d+ ?%"), r"\1B%"),
    (re.compile(r"\d[\d,.]*( (documents|tokens|chunks)/s)"), r"R\1"),
    (re.compile(r"-?\d\.\d{3}"), "X"),
)
"""What differs from run to run: times, rates and, by the processor, the last digits of scores."""


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Return each command with the lines that the page shows below it; ``> `` continues a command."""
    found: list[tuple[str, list[str]]] = []
    for block in BLOCK.finditer(text):
        for line in block[1].splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif line.startswith("> ") and not found[-1][1]:
                found[-1] = (f"{found[-1][0]}\n{line[2:]}", [])
            else:
                found[-1][1].append(line)
    return found


def same_each_time(lines: list[str]) -> list[str]:
    for pattern, instead in VARIES:
        lines = [pattern.sub(instead, line) for line in lines]
    return [line.rstrip() for line in lines if line.strip()]


def test_the_commands_of_the_page_print_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = commands(PAGE.read_text(encoding="utf-8").partition("## Tutorial")[2].partition("\n## ")[0])
    assert len(steps) > 10
    mark = "=== end of step ==="
    script = [f'm3() {{ "{sys.executable}" -m m3_connectors "$@"; }}', "exec 2>&1"]
    for command, _ in steps:
        script += [command, f'echo "{mark}"']
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("M3_")},
        "PYTHONPATH": os.pathsep.join(sys.path),
        "M3_MODEL": str(ROOT / "models" / "m3-tiny"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "M3_CACHE_DIR": str(tmp_path / "cache"),
        "COLUMNS": "120",
    }
    (tmp_path / "work").mkdir()
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path / "work",
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=False,
    )
    printed = [part.splitlines() for part in done.stdout.split(f"{mark}\n")]
    for (command, shown), lines in zip(steps, printed, strict=False):
        assert same_each_time(lines) == same_each_time(shown), command
    assert len(printed) == len(steps) + 1, done.stdout[-2000:]
