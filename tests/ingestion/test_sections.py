"""Sections: the titles of nested headings, whatever is between them, in Markdown, HTML and DOCX."""

from __future__ import annotations

import html
import io
import itertools
import time
from pathlib import Path

import docx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reading import read
from reportlab.pdfgen.canvas import Canvas

from m3_connectors.encoder.encoder import M3Encoder
from m3_connectors.ingestion.chunking import Chunking
from m3_connectors.ingestion.sections import headings, sections
from m3_connectors.readers.docx_text import text_of
from m3_connectors.readers.html import html_to_text
from m3_connectors.readers.xhtml import xhtml_to_text

WORDS = ["fox", "图书馆", "ภาษาไทย", "كيف تعمل", "מה זה", "東京の夏", "C# is", "50 %", "é́", "🇰🇪"]
PLAIN = [
    "A fox sees a lake.",
    "光合作用把光能变成化学能。植物生长。",
    "ภาษาไทยเขียนติดกันโดยไม่เว้นวรรค",
    "كيف تعمل اللوحات الشمسية؟ تعمل بالضوء.",
    "#hashtag and #include <stdio.h>",
    "####### seven marks",
]
BLOCKS = [
    *PLAIN,
    "```sh\n# no heading\n```",
    "~~~~\n# no heading\n```\n# nor this\n~~~\n## nor this\n~~~~",
    "| a | b |\n|---|---|\n| # c | d |",
    "- item\n---",
    "    # indented code",
    "two lines\nof text\n-----",
    "> quoted\n---",
    "`# code`\n\\# escaped",
]
LOOKALIKES = ["# a comment", "## two", "```", "~~~", "=====", "---", "  # indented"]

trees = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join)),
    max_size=12,
)


def paths_of(found: list[tuple[int, str]]) -> list[tuple[str, ...]]:
    """The title path of each heading, by its definition: the last heading of each lower level that still holds."""
    paths = []
    for i, (level, title) in enumerate(found):
        path, below = [title], level
        for above, name in reversed(found[:i]):
            if above < below:
                path.insert(0, name)
                below = above
        paths.append(tuple(path))
    return paths


@given(trees, st.data())
def test_titles_of_markdown(found: list[tuple[int, str]], data: st.DataObject) -> None:
    parts = []
    for level, title in found:
        mark = data.draw(st.sampled_from(["# {}", "# {} ##", "  # {}", "# {}\t"])).replace(
            "#", "#" * level, 1
        )
        if level < 3 and data.draw(st.booleans()) and not title.startswith("-"):
            mark = "\n{}\n" + "=-"[level - 1] * data.draw(st.integers(3, 9))
        blocks = data.draw(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=3))
        parts += [mark.format(title), *(f"\n{block}\n" for block in blocks)]
    text = data.draw(st.sampled_from(["\n", "\r\n"])).join(parts)
    got = sections(text)
    assert [section.titles for section in got] == (paths_of(found) or [()])
    assert "".join(text[section.start : section.end] for section in got) == text


@given(trees, st.data())
def test_titles_of_html_and_xhtml(found: list[tuple[int, str]], data: st.DataObject) -> None:
    parts = ["<title># no heading</title>"]
    for level, title in found:
        inside = data.draw(st.sampled_from(["{}", "<a href='x'><b>{}</b></a>", "<div>{}</div>"]))
        blocks = data.draw(st.lists(st.sampled_from([*PLAIN, *LOOKALIKES]), min_size=1, max_size=3))
        around = data.draw(st.sampled_from(["p", "pre", "li", "td"]))
        parts.append(f"<h{level} id='x'>{inside.format(html.escape(title))}</h{level}><h2> </h2>")
        parts += [f"<{around}>{html.escape(block)}</{around}>" for block in blocks]
    page = "".join(parts)
    expected = paths_of(found)
    for text in (html_to_text(page), xhtml_to_text(f"<html>{page}</html>")):
        assert [section.titles for section in sections(text) if section.titles] == expected


@given(trees, st.data())
def test_titles_of_docx(found: list[tuple[int, str]], data: st.DataObject) -> None:
    document = docx.Document()
    for level, title in found:
        document.add_heading(title, level)
        for block in data.draw(st.lists(st.sampled_from([*PLAIN, *LOOKALIKES]), min_size=1, max_size=3)):
            document.add_paragraph(block)
        table = document.add_table(1, 2)
        table.cell(0, 0).text, table.cell(0, 1).text = "#", "name"
    titles = [section.titles for section in sections(text_of(document))]
    assert titles == (paths_of(found) or [()])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("# A", [(1, "A")]),
        ("#A\n#\n# #\n## \n", []),
        ("# A # B ##\n# C#", [(1, "A # B"), (1, "C#")]),
        ("A\n===\nB\n---\n", [(1, "A"), (2, "B")]),
        ("A\n==\nB\n-\n\n---\n", []),
        ("---\ntitle: A\n---\n", []),
        ("1. a\n\nb\nc\n---\n", []),
        ("```\n# A\n", []),
        ("``` `# A`\n# B", [(1, "B")]),
        ("text ```\n# A", [(1, "A")]),
        ("# A\u2028# B\x0c# C", [(1, "A"), (1, "B"), (1, "C")]),
        (f"# {'x' * 300}", [(1, f"{'x' * 199}…")]),
    ],
)
def test_what_is_a_heading(text: str, found: list[tuple[int, str]]) -> None:
    assert [(heading.level, heading.title) for heading in headings(text)] == found


def test_a_long_line_takes_no_long_time() -> None:
    began = time.monotonic()
    for line in ("# a" + " " * 10**6 + "b", "#" * 10**6, "`" * 10**6, "# " * 10**6, "-" * 10**6 + "x"):
        list(headings(line))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<h1>A<br>b</h1>c", "# A b\nc"),
        ("<h1>A<p>b<p>c", "# A\nb\nc"),
        ("<h2><div>A</div><div>b</div></h2>c", "## A\nb\nc"),
        ("<h2><img></h2>a<h3>\n</h3>b", "a\nb"),
        ("<div><h2>A</h2></div><h2>B</h2>", "## A\n## B"),
        ("<ul><li><h3>A</h3>b</ul>", "### A\nb"),
        ("<pre># a\nb</pre>", "\\# a b"),
        ("<h1>A <h2>B</h2> c</h1>", "# A\n## B\nc"),
    ],
)
def test_headings_of_html(page: str, text: str) -> None:
    assert html_to_text(page) == text


LONG = {
    "chinese": "光合作用把光能变成化学能。植物在阳光下生长，释放氧气。" * 40,
    "thai": "ภาษาไทยเขียนติดกันโดยไม่เว้นวรรค" * 60,
    "arabic": "كيف تعمل اللوحات الشمسية؟ تعمل بالضوء. " * 60,
    "hebrew": "מה ההבדל בין מזג אוויר לאקלים? " * 60,
    "table": "| name | value |\n|---|---|\n" + "".join(f"| row {i} | {i * i} |\n" for i in range(200)),
    "code": "```python\n" + "".join(f"x_{i} = {i}  # no heading\n" for i in range(200)) + "```\n",
}


@pytest.fixture(scope="module")
def tiny() -> M3Encoder:
    """The shipped model: its tokens, unlike those of random checkpoints, never contain a line end."""
    return M3Encoder("m3-tiny")


@pytest.mark.parametrize("how", ["tokens:64:0", "tokens:64:16", "headings:48"])
@pytest.mark.parametrize("script", LONG)
def test_long_sections_in_all_scripts(tiny: M3Encoder, how: str, script: str) -> None:
    chunking = Chunking.parse(how)
    text = f"# One\n\n{LONG[script]}\n\n## Two\n\n{LONG[script]}\n\n# Three\n\nend\n"
    spans = chunking.spans(text, tiny.token_spans)
    assert (spans[0].start, spans[-1].end) == (0, len(text))
    for before, after in itertools.pairwise(spans):
        assert before.start < after.start <= before.end < after.end
    counts = [len(tiny.token_spans(text[span.start : span.end])) for span in spans]
    assert max(counts) <= chunking.tokens
    two, three = text.index("## Two"), text.index("# Three")
    for span in spans:
        expected = ("One",) if span.start < two else ("One", "Two") if span.start < three else ("Three",)
        assert span.titles == expected
    if script in ("table", "code") and not chunking.overlap:
        # Between lines, as they are shorter than a chunk.
        assert all(text[span.start - 1] == "\n" for span in spans[1:])
    if script == "chinese" and not chunking.overlap:
        assert all(
            text[: span.start].rstrip().endswith("。") for span in spans if span.start not in (0, two, three)
        )


def test_a_text_is_tokenised_about_twice(tiny: M3Encoder) -> None:
    tokenised = 0

    def counted(text: str) -> npt.NDArray[np.int64]:
        nonlocal tokenised
        tokenised += len(text)
        return tiny.token_spans(text)

    text = "".join(f"# {name}\n\n{long}\n\n" for name, long in LONG.items())
    for how in ("tokens:64:0", "headings:512"):
        tokenised = 0
        Chunking.parse(how).spans(text, counted)
        assert tokenised < 2.5 * len(text)


def test_pages_of_a_pdf_have_the_file_as_parent(tmp_path: Path, encoder: M3Encoder) -> None:
    file = io.BytesIO()
    canvas = Canvas(file)
    for page in ("first page", "second page"):
        lines = canvas.beginText(40, 800)
        for i in range(40):
            lines.textLine(f"{page}, line {i} of many.")
        canvas.drawText(lines)
        canvas.showPage()
    canvas.save()
    (tmp_path / "a.pdf").write_bytes(file.getvalue())
    pages, letters = read(tmp_path / "a.pdf")
    assert letters == []
    assert [(page.id, page.parent) for page in pages] == [
        ("a.pdf#page=1", "a.pdf"),
        ("a.pdf#page=2", "a.pdf"),
    ]
    assert [page.passage.page for page in pages if page.passage] == [1, 2]
    chunks = [chunk for page in pages for chunk in Chunking("tokens", 64).chunks(page, encoder.token_spans)]
    assert {chunk.parent for chunk in chunks} == {"a.pdf"}
    for chunk in chunks:
        page = pages[chunk.metadata["page"] - 1]
        assert chunk.passage is not None
        assert page.text[chunk.passage.start : chunk.passage.end] == chunk.text
        assert chunk.id == f"{page.id}#{chunk.passage.position}"
        assert chunk.passage.page == page.metadata["page"]
