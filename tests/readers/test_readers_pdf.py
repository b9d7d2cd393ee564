"""PDF: one document per page, and everything that has no text is named."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pytest
from reading import read, write
from reportlab.lib import pdfencrypt
from reportlab.pdfgen import canvas

from m3_connectors.documents import Document


def pdf(*pages: str | None, title: str = "", password: str | None = None) -> bytes:
    """The bytes of a file: text pages, and a drawing where a page is None."""
    file = io.BytesIO()
    encrypt = None if password is None else pdfencrypt.StandardEncryption(password)
    sheet = canvas.Canvas(file, encrypt=encrypt, pageCompression=1)
    if title:
        sheet.setTitle(title)
    for text in pages:
        if text is None:
            sheet.rect(100, 100, 200, 200, fill=1)
        else:
            lines = sheet.beginText(72, 700)
            lines.textLines(text)
            sheet.drawText(lines)
        sheet.showPage()
    sheet.save()
    return file.getvalue()


def test_a_page_is_a_document_that_names_its_file_and_page(tmp_path: Path) -> None:
    write(
        tmp_path / "reports" / "rain.pdf",
        pdf("Rain falls.\nClouds bring it.", "Snow exam-\nple.", title="Weather"),
    )
    documents, letters = read(tmp_path)
    assert letters == []
    common = {
        "file": "reports/rain.pdf",
        "pages": 2,
        "title": "Weather",
        "chunk": {"parent": "reports/rain.pdf"},
    }
    assert documents == [
        Document("reports/rain.pdf#page=1", documents[0].text, {**common, "page": 1}),
        Document("reports/rain.pdf#page=2", documents[1].text, {**common, "page": 2}),
    ]
    assert documents[0].text.split() == ["Rain", "falls.", "Clouds", "bring", "it."]
    assert documents[1].text.split() == ["Snow", "example."]


def test_a_compressed_file(tmp_path: Path) -> None:
    (document,), letters = read(write(tmp_path / "a.pdf.gz", gzip.compress(pdf("rain"))))
    assert (document.text.strip(), letters) == ("rain", [])


def test_a_page_without_text_is_named(tmp_path: Path) -> None:
    documents, letters = read(write(tmp_path / "a.pdf", pdf("rain", None, "", "snow")))
    assert [document.metadata["page"] for document in documents] == [1, 4]
    assert [letter.line for letter in letters] == [2, 3]
    assert "OCR" in letters[0].reason


def test_a_scanned_file_is_one_letter(tmp_path: Path) -> None:
    documents, (letter,) = read(write(tmp_path / "a.pdf", pdf(None, None)))
    assert documents == []
    assert letter.line is None
    assert letter.reason == "no text on any of its pages (2): recognise scanned pages first (OCR)"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pdf("rain", password="secret"), "encrypted: save it without its password"),
        (b"", "not a PDF, or damaged"),
        (b"%PDF-1.7\n", "not a PDF, or damaged"),
        (b"<html>login page</html>", "not a PDF, or damaged"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    write(tmp_path / "a.pdf", content)
    write(tmp_path / "b.txt", "read")
    documents, (letter,) = read(tmp_path)
    assert [document.id for document in documents] == ["b.txt"]
    assert letter.line is None
    assert letter.reason.startswith(reason)


def test_a_file_that_needs_no_password_to_be_read(tmp_path: Path) -> None:
    (document,), letters = read(write(tmp_path / "a.pdf", pdf("rain", password="")))
    assert (document.text.strip(), letters) == ("rain", [])


def test_a_cut_file_is_named_wherever_it_is_cut(tmp_path: Path) -> None:
    content = pdf(*(f"page {i} of rain" for i in range(1, 6)))
    whole = {document.id: document.text for document in read(write(tmp_path / "a.pdf", content))[0]}
    for length in range(0, len(content.rstrip()) - 1, 97):
        documents, letters = read(write(tmp_path / "a.pdf", content[:length]))
        assert letters, length
        assert not [letter for letter in letters if "bug" in letter.reason]
        assert all(whole[document.id].startswith(document.text) for document in documents)
