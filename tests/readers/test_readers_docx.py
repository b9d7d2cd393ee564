"""DOCX: the text in its order, also where python-docx does not look for it; and damage."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path
from typing import Any

import docx
import pytest
from docx.oxml.parser import parse_xml
from reading import read, texts, write

from m3_connectors.readers import Limits, ReadOptions
from m3_connectors.readers import docx as reader

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def saved(document: Any) -> bytes:
    file = io.BytesIO()
    document.save(file)
    return file.getvalue()


def report() -> Any:
    document = docx.Document()
    document.core_properties.title = "Rain report"
    document.add_heading("Causes", 1)
    document.add_paragraph("Clouds\tbring\nrain.")
    table = document.add_table(2, 2)
    for place, text in [((0, 0), "city"), ((0, 1), "mm"), ((1, 0), "Kiel\nnorth"), ((1, 1), "12")]:
        table.cell(*place).text = text
    document.add_heading("Effects", 2)
    document.add_paragraph("Rivers rise.")
    return document


REPORT = "Rain report\n# Causes\nClouds\tbring\nrain.\ncity | mm\nKiel north | 12\n## Effects\nRivers rise."


def body(*xml: str) -> bytes:
    """A document of which the body has these elements."""
    document = docx.Document()
    for part in xml:
        document.element.body.insert(0, parse_xml(f"<w:p {W}>{part}</w:p>"))
    return saved(document)


def test_headings_paragraphs_and_tables_in_order(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a.docx", saved(report()))) == {"a.docx": REPORT}


def test_a_title_that_the_text_begins_with_is_not_repeated(tmp_path: Path) -> None:
    document = docx.Document()
    document.core_properties.title = "Rain"
    document.add_heading("Rain", 0)
    document.add_paragraph("It falls.")
    assert texts(write(tmp_path / "a.docx", saved(document))) == {"a.docx": "# Rain\nIt falls."}


def test_merged_cells_and_nested_tables_are_read_once(tmp_path: Path) -> None:
    document = docx.Document()
    table = document.add_table(2, 2)
    table.cell(0, 0).merge(table.cell(0, 1)).text = "wide"
    table.cell(1, 0).text = "left"
    inner = table.cell(1, 1).add_table(1, 1)
    inner.cell(0, 0).text = "inner"
    assert texts(write(tmp_path / "a.docx", saved(document))) == {"a.docx": "wide\nleft | inner"}


@pytest.mark.parametrize(
    ("xml", "text"),
    [
        (
            "<w:ins><w:r><w:t>new</w:t></w:r></w:ins><w:del><w:r><w:delText>old</w:delText></w:r></w:del>",
            "new",
        ),
        ("<w:moveFrom><w:r><w:t>away</w:t></w:r></w:moveFrom><w:r><w:t>stays</w:t></w:r>", "stays"),
        ("<w:sdt><w:sdtContent><w:r><w:t>control</w:t></w:r></w:sdtContent></w:sdt>", "control"),
        ('<w:hyperlink w:anchor="x"><w:r><w:t>link</w:t></w:r></w:hyperlink>', "link"),
        ("<w:r><w:instrText>PAGE</w:instrText></w:r><w:r><w:t>field</w:t></w:r>", "field"),
        (
            "<w:pPr><w:tabs><w:tab/></w:tabs></w:pPr><w:r><w:t>a</w:t><w:noBreakHyphen/><w:t>b</w:t></w:r>",
            "a-b",
        ),
        (
            "<w:r><w:t>out</w:t></w:r><w:r><w:pict><w:txbxContent><w:p><w:r><w:t>box</w:t></w:r></w:p>"
            "</w:txbxContent></w:pict></w:r>",
            "out\nbox",
        ),
    ],
)
def test_wrapped_text_is_read(tmp_path: Path, xml: str, text: str) -> None:
    assert texts(write(tmp_path / "a.docx", body(xml))) == {"a.docx": text}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "damaged, or not a Word document: BadZipFile"),
        (b"plain text", "damaged, or not a Word document: BadZipFile"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "encrypted, or a .doc"),
        (saved(docx.Document()), "empty"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    documents, (letter,) = read(write(tmp_path / "a.docx", content))
    assert documents == []
    assert letter.reason.startswith(reason)


def test_another_package_is_named(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as package:
        package.writestr("xl/workbook.xml", "<workbook/>")
    _, (letter,) = read(write(tmp_path / "a.docx", file.getvalue()))
    assert letter.reason.startswith("damaged, or not a Word document")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("word/media/image.png", "expands to more than 200 times its size"),
        ("word/media/photo.png", "expands to more than 0.0625 GiB"),
        ("word/extra.xml", "its text expands to more"),
    ],
)
def test_a_bomb_is_refused_before_it_expands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    size = reader.MAX_FILE_BYTES + 1
    limits = Limits() if "image" in name else Limits(10**6, 2**30 if name.endswith("xml") else 2**26)
    path = write(tmp_path / "a.docx", saved(report()))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as package, package.open(name, "w") as part:
        for begin in range(0, size, 2**20):
            part.write(bytes(min(2**20, size - begin)))
    assert path.stat().st_size < 2**20
    monkeypatch.setattr(docx, "Document", lambda _: pytest.fail("it was expanded"))
    documents, (letter,) = read(path, options=ReadOptions(limits=limits))
    assert documents == []
    assert letter.reason.startswith(reason)


def test_a_cut_or_damaged_file_is_read_whole_or_named(tmp_path: Path) -> None:
    content = saved(report())
    pick = random.Random(5)
    for number in range(300):
        raw = bytearray(content)
        if number % 2:
            raw[pick.randrange(len(raw))] ^= 1 << pick.randrange(8)
        else:
            del raw[pick.randrange(len(raw)) :]
        documents, letters = read(write(tmp_path / "a.docx", bytes(raw)))
        assert not [letter for letter in letters if "bug" in letter.reason]
        assert len(documents) + len(letters) == 1
        if not number % 2:
            assert letters
