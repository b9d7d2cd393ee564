"""``python -m m3_connectors`` is ``m3``."""

from __future__ import annotations

import subprocess
import sys

import m3_connectors


def test_is_the_command_with_its_exit_code() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "m3_connectors", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    version = run("--version")
    assert (version.returncode, m3_connectors.__version__ in version.stdout) == (0, True)
    wrong = run("no-such-command")
    assert wrong.returncode == 2
    assert "Usage: m3 " in wrong.stderr
