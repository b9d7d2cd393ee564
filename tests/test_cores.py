"""The cores that a process may use, in trees of control groups as containers and systemd lay them out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m3_connectors import cores
from m3_connectors.cores import cpu_quota, usable_cores

V2 = "30 24 0:26 {part} /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "36 31 0:33 {part} /sys/fs/cgroup/cpu,cpuacct ro,nosuid,nodev,noexec master:16 - cgroup cgroup rw,cpu,cpuacct"
CPUSET = "38 31 0:35 / /sys/fs/cgroup/cpuset ro,nosuid - cgroup cgroup rw,cpuset"
UNIFIED = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw"
DISK = "24 1 253:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw"

CPU = "sys/fs/cgroup/cpu,cpuacct"

TREES: dict[str, tuple[str, list[str], dict[str, str], float | None]] = {
    "version 2, a container with a namespace": (
        "0::/",
        [DISK, V2.format(part="/")],
        {"sys/fs/cgroup/cpu.max": "150000 100000"},
        1.5,
    ),
    "version 2, no quota": ("0::/", [V2.format(part="/")], {"sys/fs/cgroup/cpu.max": "max 100000"}, None),
    "version 2, a quota of an outer group": (
        "0::/user.slice/user-1000.slice/session-3.scope",
        [V2.format(part="/")],
        {
            "sys/fs/cgroup/user.slice/user-1000.slice/session-3.scope/cpu.max": "max 100000",
            "sys/fs/cgroup/user.slice/user-1000.slice/cpu.max": "200000 100000",
            "sys/fs/cgroup/user.slice/cpu.max": "max 100000",
        },
        2.0,
    ),
    "version 2, several quotas": (
        "0::/kubepods.slice/pod_1/cri-9.scope",
        [V2.format(part="/")],
        {
            "sys/fs/cgroup/kubepods.slice/pod_1/cri-9.scope/cpu.max": "400000 100000",
            "sys/fs/cgroup/kubepods.slice/pod_1/cpu.max": "125000 50000",
            "sys/fs/cgroup/kubepods.slice/cpu.max": "6000000 1000000",
        },
        2.5,
    ),
    "version 2, the group is outside the namespace": (
        "0::/../other.scope",
        [V2.format(part="/")],
        {"sys/fs/cgroup/cpu.max": "50000 100000", "sys/fs/other.scope/cpu.max": "10000 100000"},
        0.5,
    ),
    "version 2, the host's groups are mounted": (
        "0::/",
        [V2.format(part="/../..")],
        {"sys/fs/cgroup/cpu.max": "300000 100000"},
        3.0,
    ),
    "version 1, a container": (
        "9:cpuset:/docker/0f5b\n4:cpu,cpuacct:/docker/0f5b\n1:name=systemd:/docker/0f5b",
        [DISK, V1.format(part="/docker/0f5b"), CPUSET],
        {f"{CPU}/cpu.cfs_quota_us": "50000", f"{CPU}/cpu.cfs_period_us": "100000"},
        0.5,
    ),
    "version 1, an outer group": (
        "4:cpu,cpuacct:/jobs/42",
        [V1.format(part="/")],
        {
            f"{CPU}/jobs/42/cpu.cfs_quota_us": "-1",
            f"{CPU}/jobs/42/cpu.cfs_period_us": "100000",
            f"{CPU}/jobs/cpu.cfs_quota_us": "350000",
            f"{CPU}/jobs/cpu.cfs_period_us": "100000",
        },
        3.5,
    ),
    "version 1, no quota": (
        "4:cpu,cpuacct:/",
        [V1.format(part="/")],
        {f"{CPU}/cpu.cfs_quota_us": "-1", f"{CPU}/cpu.cfs_period_us": "100000"},
        None,
    ),
    "both versions": (
        "4:cpu,cpuacct:/a\n0::/b",
        [V1.format(part="/"), UNIFIED],
        {
            f"{CPU}/a/cpu.cfs_quota_us": "200000",
            f"{CPU}/a/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/unified/b/cgroup.procs": "1",
        },
        2.0,
    ),
    "a quota of a hierarchy that is not of processors": (
        "9:cpuset:/",
        [CPUSET],
        {"sys/fs/cgroup/cpuset/cpu.cfs_quota_us": "1000", "sys/fs/cgroup/cpuset/cpu.cfs_period_us": "100000"},
        None,
    ),
    "a space in the path": (
        "0::/my jobs",
        [V2.format(part=r"/my\040jobs").replace("/sys/fs/cgroup", r"/sys/fs/c\040group")],
        {"sys/fs/c group/cpu.max": "700000 100000"},
        7.0,
    ),
    "a colon in the path": (
        "0::/a:b",
        [V2.format(part="/")],
        {"sys/fs/cgroup/a:b/cpu.max": "100000 100000"},
        1.0,
    ),
    "contents of another form": (
        "no colon\n0::/",
        ["short", "1 2 3 / - ", "", V2.format(part="/")],
        {"sys/fs/cgroup/cpu.max": "many 100000"},
        None,
    ),
    "characters in a path that Unicode counts as spaces and ends of lines": (
        "0::/\u5b66\u3000\u751f/a\u2028b\x85",
        [
            DISK.replace("/dev/vda1", "/dev/\u3000x").replace(" / / ", " / /mnt/\u5b66\u3000\u751f\u2028 "),
            V2.format(part="/").replace("/sys/fs/cgroup", "/sys/fs/c\u3000group"),
        ],
        {
            "sys/fs/c\u3000group/\u5b66\u3000\u751f/cpu.max": "300000 100000",
            "sys/fs/c\u3000group/\u5b66\u3000\u751f/a\u2028b\x85/cpu.max": "250000 100000",
        },
        2.5,
    ),
    "a path that no file can have": (
        "0::/",
        [V2.format(part="/").replace("/sys/fs/cgroup", r"/sys/fs/c\000group"), V2.format(part="/")],
        {"sys/fs/cgroup/cpu.max": "100000 100000"},
        1.0,
    ),
    "a number that no float can hold": (
        "0::/",
        [V2.format(part="/")],
        {"sys/fs/cgroup/cpu.max": f"{'9' * 400} 1"},
        None,
    ),
    "a period of 0": ("0::/", [V2.format(part="/")], {"sys/fs/cgroup/cpu.max": "100000 0"}, None),
    "an empty file": ("0::/", [V2.format(part="/")], {"sys/fs/cgroup/cpu.max": ""}, None),
}


def write(root: Path, groups: str, mounts: list[str], files: dict[str, str]) -> Path:
    everything = {"proc/self/cgroup": groups, "proc/self/mountinfo": "\n".join(mounts), **files}
    for name, content in everything.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n" if content else "", encoding="utf-8")
    return root


@pytest.mark.parametrize("name", TREES)
def test_quota_of_a_tree(name: str, tmp_path: Path) -> None:
    groups, mounts, files, quota = TREES[name]
    assert cpu_quota(write(tmp_path, groups, mounts, files)) == quota


def test_a_system_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    assert usable_cores(tmp_path) == cores.allowed_cores()


@pytest.mark.parametrize(
    ("quota", "usable"),
    [("10000", 1), ("100000", 1), ("100001", 2), ("150000", 2), ("200000", 2), ("1600000", 8), ("max", 8)],
)
def test_a_part_of_a_core_counts_as_one_within_the_affinity(
    quota: str, usable: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "allowed_cores", lambda: 8)
    root = write(tmp_path, "0::/", [V2.format(part="/")], {"sys/fs/cgroup/cpu.max": f"{quota} 100000"})
    assert usable_cores(root) == usable


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    quotas=st.lists(st.none() | st.integers(1_000, 10_000_000), min_size=1, max_size=5),
    version=st.sampled_from([1, 2]),
)
def test_the_smallest_quota_of_nested_groups_applies(
    quotas: list[int | None], version: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    mounted, files = (CPU if version == 1 else "sys/fs/cgroup"), dict[str, str]()
    for depth, quota in enumerate(quotas):
        group = "/".join([mounted, *(f"g{i}" for i in range(depth))])
        if version == 1:
            files |= {f"{group}/cpu.cfs_quota_us": str(quota or -1), f"{group}/cpu.cfs_period_us": "100000"}
        else:
            files[f"{group}/cpu.max"] = f"{quota or 'max'} 100000"
    path = "/" + "/".join(f"g{i}" for i in range(len(quotas) - 1))
    groups, mount = (f"4:cpu,cpuacct:{path}", V1) if version == 1 else (f"0::{path}", V2)
    root = write(tmp_path_factory.mktemp("tree"), groups, [mount.format(part="/")], files)
    assert cpu_quota(root) == min((quota / 100_000 for quota in quotas if quota), default=None)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity of processes")
def test_affinity_of_a_real_process() -> None:
    program = (
        "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])});"
        "from m3_connectors.cores import allowed_cores, usable_cores; print(allowed_cores(), usable_cores())"
    )
    core = str(max(os.sched_getaffinity(0)))
    done = subprocess.run([sys.executable, "-c", program, core], capture_output=True, text=True, check=True)
    assert done.stdout == "1 1\n"
