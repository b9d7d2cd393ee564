"""Chunks from the command line: files of all formats become chunks, and a search shows file, page, titles and text."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import docx
import pytest
from reportlab.pdfgen.canvas import Canvas
from rich.cells import cell_len

from m3_connectors.cli.app import main
from m3_connectors.cli.passages import best_lines, place_of
from m3_connectors.passages import Passage

URL = "qdrant:./data"


@pytest.fixture
def stored(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A collection of four manuals; each has chunks about the fox and about the lake."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.md").write_text("# Fox\nThe fox sees a lake.\n## Food\nMice.\n# Lake\nThe lake is deep.\n")
    (docs / "b.html").write_text("<h1>Fox</h1><p>Quick.<h2>Food</h2><p>Mice.<h1>Lake</h1><pre># deep\n</pre>")
    document = docx.Document()
    for title, level, text in (("Fox", 1, "Quick."), ("Food", 2, "Mice."), ("Lake", 1, "Deep.")):
        document.add_heading(title, level)
        document.add_paragraph(text)
    document.save(str(docs / "c.docx"))
    file = io.BytesIO()
    canvas = Canvas(file)
    for text in ("The quick fox jumps over the lazy dog.", "The lake is deep."):
        canvas.drawString(72, 700, text)
        canvas.showPage()
    canvas.save()
    (docs / "d.pdf").write_bytes(file.getvalue())
    command = ["ingest", "docs", "--to", URL, "-m", str(checkpoint), "--chunk", "headings:64"]
    assert main(command) == 0
    capsys.readouterr()


@pytest.mark.usefixtures("stored")
def test_each_format_keeps_its_structure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", URL, "fox", "--json", "-k", "50"]) == 0
    places = {}
    for hit in json.loads(capsys.readouterr().out)["hits"]:
        chunk = hit["metadata"]["chunk"]
        places[hit["id"]] = (chunk["parent"], hit["metadata"].get("page"), chunk.get("titles"))
    titles = [["Fox"], ["Fox", "Food"], ["Lake"]]
    sections = {
        f"{name}#{i}": (name, None, titles[i]) for name in ("a.md", "b.html", "c.docx") for i in range(3)
    }
    pages = {f"d.pdf#page={page}#0": ("d.pdf", page, None) for page in (1, 2)}
    assert places == {**sections, **pages}


@pytest.mark.usefixtures("stored")
def test_a_search_by_parent_shows_the_passage_of_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", URL, "the lake", "--group-by", "parent", "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert answer["group_by"] == "parent"
    found = [hit["metadata"]["chunk"]["parent"] for hit in answer["hits"]]
    assert sorted(found) == ["a.md", "b.html", "c.docx", "d.pdf"]
    page_of = {hit["id"]: hit["metadata"].get("page") for hit in answer["hits"]}
    assert main(["search", URL, "the lake", "--group-by", "parent"]) == 0
    shown = capsys.readouterr().out
    assert len([line for line in shown.splitlines() if " · " in line]) == 4
    (page,) = filter(None, page_of.values())
    assert f"d.pdf · page {page}" in shown
    assert main(["search", URL, "the lake", "--filter", '{"chunk.titles": "Food"}']) == 0
    assert "a.md · Fox › Food · 2 of 3\n" in capsys.readouterr().out
    assert main(["search", URL, "the lake", "--group-by", "file"]) == 2


def test_a_place_names_what_is_known() -> None:
    assert place_of(Passage("a", 0, 1, 0, 9)) == "a"
    assert place_of(Passage("a", 1, 3, 0, 9, ("T", "U"), 7)) == "a · page 7 · T › U · 2 of 3"


@pytest.mark.parametrize(
    ("text", "query", "begins"),
    [
        (
            "Old news. " * 30 + "The heat pump starts. " + "More news. " * 30,
            "starting heat pumps",
            "…The heat pump",
        ),
        ("First line.\n" * 30 + "no stops heat " * 2, "heat", "…no stops heat"),
        ("光合作用把光能变成化学能。" * 20 + "热泵从空气中取热。" * 2, "热泵", "…热泵从空气"),
        ("ภาษาไทยเขียนติดกัน " * 20 + "ปั๊มความร้อน", "ความร้อน", "…"),
        ("لوحة قديمة. " * 30 + "كيف تعمل المضخة؟", "المضخة", "…كيف تعمل المضخة"),
        ("nothing in common " * 30, "heat", "nothing in common"),
        ("short", "", "short"),
        ("", "heat", ""),
        ("\x1b[31mred\x07", "red", "[31mred"),
    ],
)
@pytest.mark.parametrize("width", [20, 60, 98])
def test_the_best_lines(text: str, query: str, begins: str, width: int) -> None:
    shown = best_lines(text, query, width).plain
    assert shown.startswith(begins) or width == 20
    assert len(shown.splitlines()) <= 2
    assert all(cell_len(line) <= width for line in shown.splitlines())
