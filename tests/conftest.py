"""Fixtures that several test files share, and the loud end: what could not run is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from m3_connectors.encoder.encoder import M3Encoder
from m3_connectors.testing.checkpoints import write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small complete checkpoint with random weights."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "small-m3")


@pytest.fixture(scope="session")
def encoder(checkpoint: Path) -> M3Encoder:
    """An encoder on it, in float32."""
    return M3Encoder(str(checkpoint), precision="float32")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        terminalreporter.write_sep(
            "!", f"{len(skipped)} tests could not run on this machine", yellow=True, bold=True
        )
        for report in skipped:
            terminalreporter.write_line(f"  {report.nodeid}: {report.longrepr[2]}")
