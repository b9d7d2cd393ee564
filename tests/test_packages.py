"""What pip installs is whole: the README's Python runs from the two wheels, far from the repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAIN = "from m3_connectors.cli.app import main; raise SystemExit(main({}))"
WHERE = "import m3_connectors; print(m3_connectors.__file__)\n"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By distribution its wheel."""
    built = tmp_path_factory.mktemp("wheels")
    for project in (ROOT, ROOT / "models"):
        command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(built)]
        subprocess.run(command, cwd=project, check=True, capture_output=True, timeout=300)
    return {path.name.partition("-")[0].replace("_", "-"): path for path in built.glob("*.whl")}


def install(wheel: Path, target: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--target",
        str(target),
    ]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True, timeout=300)


def run(program: str, target: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    """A Python program whose m3_connectors is the one in ``target``; dependencies are this environment's."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("M3_")}
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=directory,
        env=environment | {"PYTHONPATH": str(target), "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


def test_the_readmes_python_runs_from_the_wheels_and_prints_what_it_says(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    target, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("m3-connectors", "m3-connectors-tiny"):
        install(wheels[name], target)
    first, *others = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    said = re.search(r"^```text\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert said is not None
    done = run(WHERE + first, target, elsewhere)
    assert done.returncode == 0, done.stderr
    where, _, printed = done.stdout.partition("\n")
    assert Path(where).is_relative_to(target)
    assert printed == said[1]
    done = run("\n".join(others), target, elsewhere)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_without_the_models_package_its_name_says_what_to_install(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    install(wheels["m3-connectors"], tmp_path / "installed")
    program = (
        WHERE
        + "from m3_connectors.cli.app import main; raise SystemExit(main(['encode', 'x', '--json', '-m', 'm3-tiny']))"
    )
    done = run(program, tmp_path / "installed", tmp_path)
    assert done.returncode == 1
    assert "m3-connectors-tiny, which is not installed" in done.stderr
    assert "pip install m3-connectors-tiny" in done.stderr
    assert "pip install ./models" in done.stderr


def test_a_clone_finds_the_model_by_its_name(tmp_path: Path) -> None:
    """Written under its name in one directory, a collection is opened in any other without ``--model``."""
    (tmp_path / "a.txt").write_text("Der Tee zieht drei Minuten.")
    made = run(
        MAIN.format(["index", f"qdrant:{tmp_path / 'data'}", "a.txt", "-m", "m3-tiny"]), ROOT, tmp_path
    )
    assert made.returncode == 0, made.stderr
    (tmp_path / "elsewhere").mkdir()
    asked = ["search", f"qdrant:{tmp_path / 'data'}", "how long does the tea steep", "--json"]
    found = run(MAIN.format(asked), ROOT, tmp_path / "elsewhere")
    assert found.returncode == 0, found.stderr
    assert "drei Minuten" in found.stdout


def test_the_page_of_m3_serve_is_in_the_wheel(wheels: dict[str, Path]) -> None:
    folder = ROOT / "m3_connectors" / "service" / "page"
    with zipfile.ZipFile(wheels["m3-connectors"]) as wheel:
        for file in folder.iterdir():
            assert wheel.read(f"m3_connectors/service/page/{file.name}") == file.read_bytes()
