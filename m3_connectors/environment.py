"""The record that accompanies every measurement: machine, commit and package versions."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from m3_connectors.cores import usable_cores


def environment(*packages: str, **settings: Any) -> dict[str, Any]:
    """Return a description of what measured numbers depend on.

    Args:
        *packages: Distributions whose versions are recorded; None if one is not installed.
        **settings: The settings of the run, added unchanged.

    Returns:
        A JSON object. ``commit`` is the commit of the working tree that this package is imported from (with
        ``-dirty`` if it has uncommitted changes), or None for an installed package.
    """
    cpu = _cpu()
    memory_bytes = (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    )
    return {
        "kind": "environment",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "processor": cpu.get("model name", platform.processor() or platform.machine()),
        "family_model": f"{cpu.get('cpu family')}/{cpu.get('model')}",
        "bfloat16": [flag for flag in ("avx512_bf16", "amx_bf16") if flag in cpu.get("flags", "").split()],
        "cores": usable_cores(),
        "memory_gib": memory_bytes and round(memory_bytes / 2**30, 1),
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in packages},
        **settings,
    }


def describe(record: dict[str, Any]) -> str:
    """Return a one-line summary of an environment, to be printed next to measurements."""
    return f"{record['processor']}, {record['cores']} cores, {record['date'][:10]}, commit {record['commit']}"


def _commit() -> str | None:
    """The commit of the checkout that contains this package; None if it is installed from elsewhere."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(git, cwd=root, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def _cpu() -> dict[str, str]:
    """The fields of the first processor in /proc/cpuinfo; empty if the file does not exist."""
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
