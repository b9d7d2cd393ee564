"""``main_content``: articles without their menus, and pages in which there is no article."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from reading import read, texts, write

from m3_connectors.errors import MissingDependency
from m3_connectors.readers import ReadOptions

MAIN = ReadOptions(main_content=True)
PARAGRAPH = (
    "The fox crosses the frozen lake at night, because the ice carries it, and nobody hears its steps. "
)
PAGE = f"""<!doctype html><html><head><title>Fox</title></head><body>
<nav><ul><li><a href="/">Home</a><li><a href="/imprint">Imprint</a></ul></nav>
<article><h1>The fox of Köln</h1>{"".join(f"<p>{PARAGRAPH * 4}</p>" for _ in range(4))}</article>
<footer>All rights reserved</footer></body></html>"""


@pytest.mark.parametrize("codec", ["utf-8", "windows-1252"])
def test_menus_and_footers_are_left_out(tmp_path: Path, codec: str) -> None:
    page = PAGE if codec == "utf-8" else PAGE.replace("<title>", f"<meta charset={codec}><title>")
    path = write(tmp_path / "a.html", page.encode(codec))
    (whole,) = texts(path).values()
    assert "Imprint" in whole
    assert "All rights" in whole
    (main,) = texts(path, options=MAIN).values()
    assert main.startswith("Fox\n")
    assert "# The fox of Köln" in main
    assert PARAGRAPH.strip() in main
    assert "Imprint" not in main
    assert "All rights" not in main


def test_a_page_without_main_content_has_its_visible_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.html", "<title>t</title><nav><a href=x>one</a></nav>")
    assert texts(path, options=MAIN) == texts(path) == {"a.html": "t\none"}
    other = write(tmp_path / "b.txt", PAGE)
    assert texts(other, options=MAIN) == texts(other)


def test_broken_encodings_are_named_as_without_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.html", b"<meta charset=utf-8><p>\xff</p>")
    assert read(path, options=MAIN) == read(path)


def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    with pytest.raises(MissingDependency, match=r"m3-connectors\[main-content\]"):
        read(write(tmp_path / "a.html", PAGE), options=MAIN)
