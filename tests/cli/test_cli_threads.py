"""How the threads of ``m3`` wait for each other, and how many there are in a container and in several processes."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from m3_connectors.cli import threads
from m3_connectors.cli.app import main
from m3_connectors.cli.threads import settle_threads, share_cores

VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")


def cores(monkeypatch: pytest.MonkeyPatch, *, allowed: int, usable: int) -> None:
    monkeypatch.setattr(threads, "allowed_cores", lambda: allowed)
    monkeypatch.setattr(threads, "usable_cores", lambda: usable)


def test_without_a_quota_only_the_waiting_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, allowed=8, usable=8)
    environment: dict[str, str] = {}
    settle_threads(environment)
    assert environment == {"GOMP_SPINCOUNT": "1000"}


def test_a_quota_limits_the_threads_of_every_library(monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, allowed=64, usable=2)
    environment: dict[str, str] = {}
    settle_threads(environment)
    assert environment == {"GOMP_SPINCOUNT": "1000", "OMP_NUM_THREADS": "2", "RAYON_NUM_THREADS": "2"}


@pytest.mark.parametrize(
    "chosen",
    [
        {"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "5", "RAYON_NUM_THREADS": "6"},
        {"GOMP_SPINCOUNT": "7", "OMP_NUM_THREADS": "5", "RAYON_NUM_THREADS": "6"},
    ],
)
def test_what_the_user_has_set_stays(chosen: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, allowed=64, usable=2)
    environment = dict(chosen)
    settle_threads(environment)
    share_cores(environment, 2)
    assert environment == chosen


@pytest.mark.parametrize(("usable", "processes", "share"), [(8, 2, "4"), (8, 3, "2"), (2, 4, "1")])
def test_processes_share_the_cores(
    usable: int, processes: int, share: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores(monkeypatch, allowed=64, usable=usable)
    environment: dict[str, str] = {}
    share_cores(environment, processes)
    assert environment == {"OMP_NUM_THREADS": share, "RAYON_NUM_THREADS": share}


def test_processes_share_the_quota_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, allowed=64, usable=8)
    environment: dict[str, str] = {}
    settle_threads(environment)
    assert environment["OMP_NUM_THREADS"] == "8"
    share_cores(environment, 4)
    assert environment["OMP_NUM_THREADS"] == environment["RAYON_NUM_THREADS"] == "2"


def test_processes_share_what_the_user_has_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, allowed=64, usable=8)
    environment = {"OMP_NUM_THREADS": "8"}
    settle_threads(environment)
    share_cores(environment, 4)
    assert (environment["OMP_NUM_THREADS"], environment["RAYON_NUM_THREADS"]) == ("8", "2")


@pytest.mark.parametrize("allowed", [8, 64])
def test_m3_serve_gives_each_of_its_processes_a_share(allowed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, allowed=allowed, usable=8)
    inherited: dict[str, str] = {}
    monkeypatch.setattr("uvicorn.run", lambda *_, **__: inherited.update(os.environ))
    for name in (*VARIABLES, "M3_SERVE_PROCESS"):
        monkeypatch.setenv(name, "")  # so that it is as before at the end
        monkeypatch.delenv(name)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    url = "qdrant+http://127.0.0.1:9"
    arguments = ["serve", url, "--workers", "4", "--port", port, "--model", "m3-tiny"]
    monkeypatch.setattr(sys, "argv", ["m3", *arguments])
    assert main() == 0  # as the program itself, which also limits its own threads
    assert inherited["OMP_NUM_THREADS"] == inherited["RAYON_NUM_THREADS"] == "2"


def bare_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return kept | {"PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch uses GNU's OpenMP library on Linux only")
def test_openmp_s_library_of_the_program_waits_as_it_was_told(checkpoint: Path, tmp_path: Path) -> None:
    """The variable is set before PyTorch loads the library, which prints what it read."""
    done = subprocess.run(
        [sys.executable, "-m", "m3_connectors", "encode", "one text", "--json", "--model", str(checkpoint)],
        cwd=tmp_path,
        env=bare_environment() | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"GOMP_SPINCOUNT = '1000'", done.stderr), done.stderr


def test_the_library_leaves_the_environment_of_its_program_alone(checkpoint: Path) -> None:
    program = (
        "import os, sys; from m3_connectors import M3Encoder; M3Encoder(sys.argv[1]).encode(['one']);"
        f"print([name for name in {VARIABLES!r} if name in os.environ])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(checkpoint)],
        env=bare_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
