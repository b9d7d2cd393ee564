"""What the README and the docs show is what happens: their Python runs, its types fit, their links lead somewhere."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import m3_connectors

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def _id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_python_blocks_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page share one namespace; they run in an empty folder that holds ``models`` only."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    text = page.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], str(page), "exec"), names)


def test_python_blocks_pass_mypy_strict(tmp_path: Path) -> None:
    """As a user's own code would, against the package with its types; each page is one module."""
    (tmp_path / "pages").mkdir()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        module = ""
        for block in BLOCK.finditer(text):
            # Lines have the numbers that they have on the page.
            module += "\n" * (text[: block.start(1)].count("\n") - module.count("\n")) + block[1]
        if module:
            (tmp_path / "pages" / f"{_module(page)}.py").write_text(module)
    # With this repository's configuration, which is strict, and with its cache: `make types` has filled it.
    done = subprocess.run(
        [sys.executable, "-m", "mypy", tmp_path / "pages"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _module(page: Path) -> str:
    return re.sub(r"\W", "_", _id(page).removesuffix(".md"))


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_links_into_the_repository_are_valid(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#|mailto:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_api_page_is_what_the_docstrings_say() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_api.py"))
    assert made["grouped"]() >= set(m3_connectors.__all__), "a public name has no place in docs/make_api.py"
    on_disk = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert made["page"]() == on_disk, "docs/api.md is stale: run python docs/make_api.py"
    for call in ("search", "search_many", "add", "get", "delete", "count", "describe", "drop", "explain"):
        assert f"#### Index.{call}\n" in on_disk


def test_the_tables_of_storage_are_what_the_formulas_and_results_say() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_storage.py"))
    on_disk = (ROOT / "docs" / "storage.md").read_text(encoding="utf-8")
    assert made["page"](on_disk) == on_disk, "docs/storage.md is stale: run python docs/make_storage.py"
    assert re.findall(r"<!-- (\w+) -->\n.", on_disk) == ["sizes", "measured", "quality", "latency"]
