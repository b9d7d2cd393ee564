"""The record that stands first in every file of results: what the numbers depend on."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def environment(*packages: str, **settings: Any) -> dict[str, Any]:
    """The machine, the commit, the versions of ``packages`` (None: not installed), and the run's own settings."""
    cpu = _cpu()
    memory_bytes = (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    )
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "kind": "environment",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit or None,
        "processor": cpu.get("model name", platform.processor() or platform.machine()),
        "family_model": f"{cpu.get('cpu family')}/{cpu.get('model')}",
        "bfloat16": [flag for flag in ("avx512_bf16", "amx_bf16") if flag in cpu.get("flags", "").split()],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": memory_bytes and round(memory_bytes / 2**30, 1),
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in packages},
        **settings,
    }


def describe(record: dict[str, Any]) -> str:
    """One line of it, to stand beside numbers."""
    return f"{record['processor']}, {record['cores']} cores, {record['date'][:10]}, commit {record['commit']}"


def _cpu() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; nothing where there is none."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    fields = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in fields}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
