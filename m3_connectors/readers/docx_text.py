"""Convert the XML of a Word document to plain text.

python-docx iterates over paragraphs and tables, but not over what is wrapped in content controls, insertions of
tracked changes or text boxes; their text would be lost silently. Its XML is therefore read here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from docx.opc.constants import RELATIONSHIP_TYPE
from docx.oxml.ns import qn
from docx.oxml.parser import parse_xml

from m3_connectors.readers.marks import heading, paragraph

if TYPE_CHECKING:
    from docx.document import Document

_PARAGRAPH, _TABLE, _ROW, _CELL = qn("w:p"), qn("w:tbl"), qn("w:tr"), qn("w:tc")
_TEXTS = {qn("w:tab"): "\t", qn("w:br"): "\n", qn("w:cr"): "\n", qn("w:noBreakHyphen"): "-"}
_TEXT = qn("w:t")
_LEFT_OUT = frozenset(
    {
        qn("w:del"),  # deleted text of tracked changes, and text that was moved away
        qn("w:moveFrom"),
        qn("w:pPr"),  # properties, whose tab stops would count as tabs
        qn("w:rPr"),
        "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback",  # repeats the choice before it
    }
)
_BOX = qn("w:txbxContent")
_NOTES = (RELATIONSHIP_TYPE.FOOTNOTES, RELATIONSHIP_TYPE.ENDNOTES)


def text_of(document: Document) -> str:
    """Return a document's text: the title, one line per paragraph and table row, and the notes at the end.

    Headings are marked as in Markdown; the cells of a row are separated by ``|``.
    """
    levels = _heading_levels(document)
    lines = list(_lines(document.element.body, levels))
    for relationship in document.part.rels.values():
        if relationship.reltype in _NOTES and not relationship.is_external:
            lines += _lines(parse_xml(relationship.target_part.blob), levels)
    title = " ".join((document.core_properties.title or "").split())
    if title and not any(line == title for _, line in lines[:1]):
        lines.insert(0, (0, title))
    return "\n".join(_marked(level, line) for level, line in lines)


def _marked(level: int, text: str) -> str:
    if level:
        return heading(level, " ".join(text.split()))
    return "\n".join(map(paragraph, text.split("\n")))


def _heading_levels(document: Document) -> dict[str, int]:
    """Return the level, from 1, of each style that is a heading; Word names them so in every language."""
    levels = {}
    for style in document.styles.element.iterchildren(qn("w:style")):
        name = style.find(qn("w:name"))
        kind, _, level = ("" if name is None else name.get(qn("w:val"), "")).lower().partition(" ")
        if kind == "heading" and level.isdecimal():
            levels[style.get(qn("w:styleId"), "")] = int(level)
        elif kind == "title":
            levels[style.get(qn("w:styleId"), "")] = 1
    return levels


def _lines(parent: Any, levels: dict[str, int]) -> Iterator[tuple[int, str]]:
    """Yield the texts of all paragraphs and table rows below an element, with the level of those that are headings."""
    for child in parent.iterchildren():
        if child.tag == _PARAGRAPH:
            text = _paragraph(child).strip()
            if text:
                yield _level(child, levels), text
            for box in _boxes(child):
                yield from _lines(box, levels)
        elif child.tag == _TABLE:
            for row in child.iter(_ROW):
                if next(row.iterancestors(_TABLE)) is child and (text := _row(row)):
                    yield 0, text
        elif child.tag not in _LEFT_OUT:
            yield from _lines(child, levels)


def _row(row: Any) -> str:
    cells = (cell for cell in row.iter(_CELL) if next(cell.iterancestors(_ROW)) is row)
    texts = [" ".join(" ".join(text for _, text in _lines(cell, {})).split()) for cell in cells]
    return " | ".join(texts) if any(texts) else ""


def _level(paragraph: Any, levels: dict[str, int]) -> int:
    style = paragraph.find(f"{qn('w:pPr')}/{qn('w:pStyle')}")
    return 0 if style is None else min(levels.get(style.get(qn("w:val"), ""), 0), 6)


def _paragraph(element: Any) -> str:
    parts = []
    for child in element.iterchildren():
        if child.tag == _TEXT:
            parts.append(child.text or "")
        elif child.tag in _TEXTS:
            parts.append(_TEXTS[child.tag])
        elif child.tag not in _LEFT_OUT and child.tag != _BOX:
            parts.append(_paragraph(child))
    return "".join(parts)


def _boxes(element: Any) -> Iterator[Any]:
    """Yield the text boxes that are anchored in a paragraph."""
    for child in element.iterchildren():
        if child.tag == _BOX:
            yield child
        elif child.tag not in _LEFT_OUT:
            yield from _boxes(child)
