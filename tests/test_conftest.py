"""The end of a run names the tests and servers that could not run, also if a worker ran the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent

TESTS = """
import pytest
from live_servers import do_without
from m3_connectors.testing.servers import CannotStart

def test_on_milvus(ran_on, monkeypatch):
    ran_on("qdrant", "1.2.3 at some address")
    monkeypatch.delenv("CI", raising=False)
    do_without("milvus", CannotStart("milvus is not here\\n  Install it."))

def test_on_elasticsearch(monkeypatch):
    monkeypatch.setenv("CI", "true")
    do_without("elasticsearch", CannotStart("elasticsearch is not here\\n  Install it."))

@pytest.mark.skip(reason="no browser")
def test_of_a_page():
    pass
"""


def test_what_did_not_run_is_named_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((HERE / "conftest.py").read_text())
    (tmp_path / "pytest.ini").write_text(
        f"[pytest]\naddopts = -ra\npythonpath = {HERE}\nmarkers = live: on a server\n"
    )
    (tmp_path / "test_given.py").write_text(TESTS)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "1"],
        cwd=tmp_path,
        env={**os.environ, "CI": "true"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    for line in (
        " 2 tests could not run on this machine ",
        "  test_given.py::test_on_milvus: Skipped: milvus is not here",
        "  test_given.py::test_of_a_page: Skipped: no browser",
        "RUN on a real qdrant server: 1.2.3 at some address",
        "NOT RUN on a real milvus server: milvus is not here",
    ):
        assert line in ended.stdout
    failed = ended.stdout.splitlines()[-2]
    assert failed.startswith("FAILED test_given.py::test_on_elasticsearch - ")
    assert failed.endswith("elasticsearch is not here")  # not the second line of the error
