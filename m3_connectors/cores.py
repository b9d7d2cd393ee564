"""The number of cores that this process may use: those of its affinity, or fewer by the CPU quota of its container.

A container with a quota sees all cores of its host. Threads for all of them use up the quota early in each period and
then stand still until the next one, so every part of this package that starts threads asks here.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_ESCAPED = re.compile(r"\\([0-7]{3})")


def usable_cores(root: Path = Path("/")) -> int:
    """Return the number of cores that this process may use, at least 1.

    A quota of one and a half cores counts as 2: two threads use it up, and one thread could not.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    quota = cpu_quota(root)
    allowed = allowed_cores()
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota - 1e-6)))


def allowed_cores() -> int:
    """Return the number of cores on which this process may run; its CPU quota can allow less of their time."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the CPU quota of this process in cores, such as 1.5; None if there is no quota.

    The control groups of a process are nested, and the smallest quota applies. Groups outside the container cannot be
    seen; container engines set the quota on the container's own group.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    quotas = [quota for group in _groups(root) if (quota := _quota_of(group)) is not None]
    return min(quotas, default=None)


def _groups(root: Path) -> Iterator[Path]:
    """Yield the directories of the control groups of this process that can have a quota, with their parents."""
    groups = _groups_by_hierarchy(root / "proc/self/cgroup")
    for line in _lines(root / "proc/self/mountinfo"):
        # 31 23 0:27 /part/of/the/hierarchy /where/it/is/mounted rw … - cgroup cgroup rw,cpu,cpuacct
        place, _, kind = line.partition(" - ")
        fields, (filesystem, *options) = place.split(" "), kind.split(" ")
        if len(fields) < 5 or not options:
            continue
        controllers = options[-1].split(",")
        if not (filesystem == "cgroup2" or (filesystem == "cgroup" and "cpu" in controllers)):
            continue
        part, mounted = PurePosixPath(_unescaped(fields[3])), root / _unescaped(fields[4]).lstrip("/")
        group = PurePosixPath(groups.get("" if filesystem == "cgroup2" else "cpu", "/"))
        # A container may see its own group as the root, under the path that the group has on the host.
        inside = group.relative_to(part) if group.is_relative_to(part) else PurePosixPath()
        if ".." in inside.parts:
            inside = PurePosixPath()
        yield from (mounted / parent for parent in (inside, *inside.parents))


def _groups_by_hierarchy(path: Path) -> dict[str, str]:
    """Return the path of this process's group by controller; that of version 2 has the name ``""``."""
    groups = dict[str, str]()
    for line in _lines(path):  # 4:cpu,cpuacct:/docker/0f5b, or 0::/user.slice
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        groups |= dict.fromkeys(controllers.split(","), group)
    return groups


def _quota_of(group: Path) -> float | None:
    """Return the quota of one control group in cores; None if it has none."""
    for content in _lines(group / "cpu.max"):  # version 2: "max 100000", or "150000 100000"
        return _ratio(*content.split()[:2])
    quotas, periods = (_lines(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return _ratio(quotas[0], periods[0]) if quotas and periods else None  # version 1: -1 is no quota


def _ratio(quota: str = "", period: str = "100000") -> float | None:
    with contextlib.suppress(ValueError, OverflowError):  # "max"; a number of hundreds of digits
        if int(quota) > 0 and int(period) > 0:
            return int(quota) / int(period)
    return None


def _lines(path: Path) -> list[str]:
    """Return the lines of a file; nothing if it cannot be read, as on systems without control groups."""
    try:
        content = path.read_text(encoding="utf-8", errors="surrogateescape")
    except (OSError, ValueError):  # ValueError: a path with \000
        return []
    # Not splitlines: a path may contain other characters at which it would split.
    return [line for line in content.split("\n") if line]


def _unescaped(path: str) -> str:
    """Return a path of ``mountinfo``, where a space is ``\\040``."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), path)
