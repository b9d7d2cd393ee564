"""Pairs from the structure of documents, as our readers give their texts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_connectors.documents import Document
from m3_connectors.readers import Fields, ReadOptions
from m3_connectors.training_data.examples import Example
from m3_connectors.training_data.sources import Documents, pairs_of_documents
from m3_connectors.training_data.structure import KINDS, pairs_of

MARKDOWN = """---
title: Rivers
---

Rivers carry water to the sea. They shape valleys.

## Bends

The outer bank erodes.

### Sand

Sand stays at the inner bank.

## Empty

## Deltas

A delta grows where a river meets the sea."""

PAGE = """<html><head><title>Rivers</title></head><body><p>Rivers carry water to the sea. They shape valleys.</p>
<h2>Bends</h2><p>The outer bank erodes.</p></body></html>"""


def pairs(text: str, *kinds: str) -> list[tuple[str, str]]:
    return [
        (pair.query, pair.positives[0])
        for pair in pairs_of(Document("d", text), "file", kinds or list(KINDS))
    ]


def of_file(path: Path, *kinds: str) -> list[tuple[str, str, str]]:
    documents = Documents([path], Fields(may_be_blank=False), ReadOptions())
    found = list(pairs_of_documents(documents, kinds))
    return [(p.kind, p.query, p.positives[0]) for p in found if isinstance(p, Example)]


def test_markdown_with_front_matter(tmp_path: Path) -> None:
    path = tmp_path / "rivers.md"
    path.write_text(MARKDOWN)
    assert of_file(path, "heading-section") == [
        ("heading-section", "Rivers: Bends", "The outer bank erodes."),
        ("heading-section", "Rivers: Sand", "Sand stays at the inner bank."),
        ("heading-section", "Rivers: Deltas", "A delta grows where a river meets the sea."),
    ]
    (title,) = of_file(path, "title-body")
    assert title[1] == "Rivers"
    assert title[2].startswith("Rivers carry water to the sea. They")
    assert title[2].endswith("meets the sea.")
    (sentence,) = of_file(path, "first-sentence-rest")
    assert sentence[1] == "Rivers carry water to the sea."
    assert sentence[2].startswith("They shape valleys.")


def test_html(tmp_path: Path) -> None:
    path = tmp_path / "rivers.html"
    path.write_text(PAGE)
    assert ("heading-section", "Rivers: Bends", "The outer bank erodes.") in of_file(path, *KINDS)
    assert [query for _, query, _ in of_file(path, "title-body")] == ["Rivers"]


def test_records_with_titles(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"id": "1", "title": "Rivers", "text": "Rivers carry water to the sea. They shape valleys."}\n'
    )
    assert of_file(path, *KINDS) == [
        ("title-body", "Rivers", "Rivers carry water to the sea. They shape valleys."),
        ("first-sentence-rest", "Rivers carry water to the sea.", "They shape valleys."),
    ]


@pytest.mark.parametrize(
    ("text", "query", "rest"),
    [
        (
            "He lives in St. petersburg now, e.g. there. He works.",
            "He lives in St. petersburg now, e.g. there.",
            "He works.",
        ),
        ("冰川由雪形成。它们缓慢流动。", "冰川由雪形成。", "它们缓慢流动。"),
        (
            "नदियाँ समुद्र तक पानी ले जाती हैं। वे घाटियाँ बनाती हैं।",
            "नदियाँ समुद्र तक पानी ले जाती हैं।",
            "वे घाटियाँ बनाती हैं।",
        ),
        ('She said "it is so." Then she left.', 'She said "it is so."', "Then she left."),
        (
            "In 1923, G. N. Lewis wrote a book. It was new.",
            "In 1923, G. N. Lewis wrote a book.",
            "It was new.",
        ),
        ("A sentence over\ntwo lines. The rest.", "A sentence over two lines.", "The rest."),
        (
            "A paragraph without an end\nin two lines\n\nThe rest.",
            "A paragraph without an end in two lines",
            "The rest.",
        ),
    ],
)
def test_first_sentences(text: str, query: str, rest: str) -> None:
    assert pairs(text, "first-sentence-rest") == [(query, rest)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "One line without an end",
        "One sentence alone.",
        "No. This begins with a sentence of one word.",
        "word " * 200 + ". The first sentence is too long.",
        "# Only a heading",
    ],
)
def test_documents_without_a_first_sentence_and_a_rest(text: str) -> None:
    assert pairs(text, "first-sentence-rest") == []


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("Rivers\n\nThey carry water.", "Rivers"),
        ("# Rivers #\nThey carry water.", "Rivers"),
        ("Rivers\n======\nThey carry water.", "Rivers"),
        ("\n\n  Rivers\nThey carry water.", "Rivers"),
        ("Rivers carry water.\nThey shape valleys.", None),
        ("Rivers:\n- one\n- two", None),
        ("x" * 201 + "\nThey carry water.", None),
        ("Rivers\n\n ", None),
    ],
)
def test_titles(text: str, title: str | None) -> None:
    assert [query for query, _ in pairs(text, "title-body")] == ([title] if title else [])


@given(st.text(st.sampled_from("ab .\n#-= 。"), max_size=80))
def test_every_passage_is_a_part_of_its_document_and_not_the_query(text: str) -> None:
    for query, passage in pairs(text):
        assert query.strip()
        assert passage.strip()
        assert passage in text


def test_a_document_without_any_pair_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "1", "text": "Nothing here"}\n{"id": "2", "te')
    found = list(pairs_of_documents(Documents([path], Fields(), ReadOptions()), ["title-body"]))
    assert [(one.stage, one.place) for one in found if not isinstance(one, Example)] == [
        ("no pair", f"{path} 1"),
        ("broken", f"{path}:2"),
    ]
