"""The container image of ``m3 serve``, as far as it can be checked without a container engine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from m3_connectors.cli.app import main

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"

Instruction = tuple[str, str]


def _instructions() -> list[Instruction]:
    """What the Dockerfile says, without comments, each instruction on one line."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def _of(name: str) -> list[str]:
    return [rest for instruction, rest in _instructions() if instruction == name]


def _final_stage() -> list[Instruction]:
    instructions = _instructions()
    last = max(i for i, (name, _) in enumerate(instructions) if name == "FROM")
    return instructions[last:]


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    return dict(read["services"]["serve"])


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, "--failure-threshold", "style", DOCKERFILE], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_bases_are_pinned_and_nothing_is_fetched_past_pip() -> None:
    for base in _of("FROM"):
        assert re.fullmatch(r"python:3\.\d+-slim-[a-z]+( AS [a-z]+)?", base)
    assert _of("ADD") == []
    hosts = re.findall(r"https?://([\w.-]+)", DOCKERFILE.read_text())
    assert set(hosts) == {"download.pytorch.org", "127.0.0.1"}
    for run in _of("RUN"):
        if "pip install" in run:
            assert "--constraint constraints.txt" in run


def test_it_runs_as_nobody_in_particular_and_writes_to_volumes_only() -> None:
    final = _final_stage()
    names = [name for name, _ in final]
    user = next(rest for name, rest in final if name == "USER")
    uid, gid = user.split(":")
    assert int(uid) >= 10_000  # a number, which clusters can check, of no user of the host
    assert int(gid) >= 10_000
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert "RUN" not in names[names.index("USER") :]
    volumes = json.loads(next(rest for name, rest in final if name == "VOLUME"))
    made = next(rest for name, rest in final if name == "RUN")
    assert made == f"install -d -o {uid} -g {gid} {' '.join(volumes)}"
    environment = dict(part.split("=", 1) for name, rest in final if name == "ENV" for part in rest.split())
    for variable in ("HF_HOME", "M3_CACHE_DIR", "HOME"):  # everything that writes
        assert environment[variable].startswith((*volumes, "/tmp"))
    assert environment["PYTHONDONTWRITEBYTECODE"] == "1"


def test_the_command_is_one_that_m3_takes(capsys: pytest.CaptureFixture[str]) -> None:
    entry, command = (json.loads(_of(name)[0]) for name in ("ENTRYPOINT", "CMD"))
    assert entry[:2] == ["m3", "serve"]
    assert command == ["qdrant:/data/store"]
    # It is read, and then refused: beyond this machine a key is needed.
    assert main([*entry[1:], *command]) == 1
    said = capsys.readouterr().err
    assert "--host is 0.0.0.0, and there is no API key" in said


def test_the_health_check_needs_no_program_but_python(tmp_path: Path) -> None:
    options, _, command = _of("HEALTHCHECK")[0].partition("CMD ")
    assert re.search(r"--start-period=\d+m", options)
    check = json.loads(command)
    assert check[0] == "python"
    port = json.loads(_of("ENTRYPOINT")[0])[-1]
    assert f"http://127.0.0.1:{port}/healthz" in check[-1]
    assert _of("EXPOSE") == [port]
    # On a port where nothing listens, the check fails.
    done = subprocess.run(
        [sys.executable, *check[1:-1], check[-1].replace(port, "9")], capture_output=True, cwd=tmp_path
    )
    assert done.returncode != 0


def test_the_image_has_what_the_wheel_is_built_from() -> None:
    allowed = {
        line[1:]
        for line in (ROOT / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
        if line[:1] == "!"
    }
    sources = [
        part
        for rest in _of("COPY")
        if not rest.startswith("--from")
        for part in rest.split()[:-1]
        if not part.startswith("--")
    ]
    assert set(sources) == allowed
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml"}
    assert wanted | {*project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]} <= allowed
    extras = re.search(r'"\.\[([\w,-]+)\]"', " ".join(_of("RUN")))
    assert extras
    assert {*extras[1].split(",")} <= {*project["project"]["optional-dependencies"]}
    assert {"serve", "qdrant", "milvus", "elasticsearch"} <= {*extras[1].split(",")}


def test_the_service_of_the_compose_file_has_no_rights_and_needs_a_key(service: dict[str, Any]) -> None:
    assert service["profiles"] == ["service"]
    assert (
        ROOT / "docker" / service["build"]["context"] / service["build"]["dockerfile"]
    ).resolve() == DOCKERFILE
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "/tmp" in service["tmpfs"]
    assert {volume.split(":")[1] for volume in service["volumes"]} == {
        *json.loads(next(rest for name, rest in _final_stage() if name == "VOLUME"))
    }
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    # Without a default: m3 serve refuses to start, and says why.
    assert service["environment"]["M3_SERVE_API_KEYS"] == "${M3_SERVE_API_KEYS:-}"
    assert service["command"][0].startswith("qdrant+http://")
