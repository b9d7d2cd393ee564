"""Chunks: their spans cover the text, none is too long, ids are stable, and headings lead them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stub_encoder import StubEncoder

from m3_connectors.documents import MAX_ID_BYTES, Document, check_documents
from m3_connectors.encoder.encoder import M3Encoder
from m3_connectors.errors import InvalidInput
from m3_connectors.ingestion.chunking import Chunking, Span, chunk_id

WORDS = StubEncoder().token_spans
texts = st.lists(
    st.sampled_from(
        [
            "fox",
            "lake ",
            "Wizard. ",
            "\n",
            "\n\n",
            "# Title\n",
            "## Part\n",
            "```\n",
            " ",
            "图书馆。",
            "é",
            "a-b",
        ]
    ),
    max_size=150,
).map("".join)
ways = st.sampled_from(["tokens:16:0", "tokens:16:8", "tokens:40:5", "headings:16", "headings:64"]).map(
    Chunking.parse
)


def assert_covers(spans: list[Span], text: str) -> None:
    assert spans[0].start == 0
    assert spans[-1].end == len(text)
    for before, after in itertools.pairwise(spans):
        assert before.start < after.start <= before.end < after.end


@given(texts, ways)
def test_the_spans_cover_the_text_and_none_is_too_long(text: str, how: Chunking) -> None:
    spans = how.spans(text, WORDS)
    assert_covers(spans, text)
    assert all(len(WORDS(text[span.start : span.end])) <= how.tokens for span in spans)


@given(texts)
def test_without_overlap_the_joined_chunks_are_the_text(text: str) -> None:
    chunks = Chunking("tokens", 16).chunks(Document("d", text), WORDS)
    assert "".join(chunk.text for chunk in chunks) == text


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=400))
def test_with_the_tokens_of_a_model(encoder: M3Encoder, text: str) -> None:
    how = Chunking("tokens", 16, 4)
    spans = how.spans(text, encoder.token_spans)
    assert_covers(spans, text)
    assert max(encoder.count_tokens([text[span.start : span.end] for span in spans])) <= 16 + 2


def test_token_spans_of_a_long_text_are_those_of_its_parts(encoder: M3Encoder) -> None:
    sentence = "the quick fox sees a lake. "
    starts = encoder.token_spans(sentence.strip())[:, 0]
    spans = encoder.token_spans(sentence * 20_000)  # tokenised in several pieces
    assert (spans[1:, 0] >= spans[:-1, 0]).all()
    assert spans[-1, 1] == len(sentence) * 20_000
    expected = {int(start) + i * len(sentence) for i in range(20_000) for start in starts}
    # Behind the first, the token of a word may begin at the space before it.
    found = set(spans[:, 0].tolist()) | set((spans[:, 0] + 1).tolist())
    assert expected <= found


def test_the_overlap_repeats_whole_words() -> None:
    text = " ".join(f"w{i}" for i in range(100))
    spans = Chunking("tokens", 20, 5).spans(text, WORDS)
    for before, after in itertools.pairwise(spans):
        assert text[after.start : before.end].split() == text[: before.end].split()[-5:]


def test_it_cuts_between_paragraphs_sentences_and_words_in_that_order() -> None:
    words = " ".join(f"w{i}" for i in range(12))
    text = f"{words} one.\n\nTwo three. four five six seven"
    assert Chunking("tokens", 16).spans(text, WORDS)[0].end == text.index("Two")
    assert Chunking("tokens", 16).spans(text.replace("\n\n", " "), WORDS)[0].end == text.index("Two") - 1


def test_the_title_of_a_page_belongs_to_its_first_section() -> None:
    parts = Chunking.parse("headings").chunks(Document("d", "Ferry\n\n# Ferry\nIt leaves.\n", {}), WORDS)
    assert [part.text for part in parts] == ["Ferry\n\n# Ferry\nIt leaves.\n"]


def test_headings_are_the_titles_of_their_sections() -> None:
    text = "intro\nand more\n# A\none\n## B\n```\n# no heading\n```\n## C ##\n### D\nfour\n# E\nfive\n# F\n"
    parts = Chunking.parse("headings").chunks(Document("d", text, {"lang": "en"}), WORDS)
    assert [(part.text, part.metadata["chunk"].get("titles")) for part in parts] == [
        ("intro\nand more\n", None),
        ("# A\none\n", ["A"]),
        ("## B\n```\n# no heading\n```\n", ["A", "B"]),
        ("## C ##\n### D\nfour\n", ["A", "C", "D"]),
        ("# E\nfive\n# F\n", ["E"]),
    ]
    assert all(part.metadata["lang"] == "en" for part in parts)


def test_a_chunk_knows_its_place() -> None:
    text = " ".join(f"w{i}" for i in range(40))
    parts = Chunking.parse("tokens:16:0").chunks(Document("a/b", text), WORDS)
    check_documents(parts)
    assert [part.id for part in parts] == ["a/b#0", "a/b#1", "a/b#2"]
    place = parts[1].metadata["chunk"]
    assert place == {"parent": "a/b", "position": 1, "count": 3, "start": place["start"], "end": place["end"]}
    assert text[place["start"] : place["end"]] == parts[1].text


def test_ids_of_chunks_are_valid_and_differ() -> None:
    assert chunk_id("a#1", 0) != chunk_id("a", 1)
    longest = "é" * (MAX_ID_BYTES // 2)
    check_documents([Document(chunk_id(longest, 7), "")])
    assert chunk_id(longest, 7) != chunk_id("x" + longest[1:], 7)


def test_an_empty_text_is_one_chunk_and_none_is_the_document() -> None:
    document = Document("d", "")
    (part,) = Chunking("tokens").chunks(document, WORDS)
    assert (part.id, part.text) == ("d#0", "")
    assert Chunking().chunks(document, None) == [document]


@pytest.mark.parametrize(
    "text", ["words", "none:3", "tokens:8", "tokens:64:33", "tokens:a", "headings:64:3", "tokens:-1", ""]
)
def test_invalid_ways_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="Use"):
        Chunking.parse(text)


@pytest.mark.parametrize("text", ["none", "tokens:512:64", "headings:512"])
def test_a_way_is_written_as_it_is_read(text: str) -> None:
    assert str(Chunking.parse(text)) == text
    assert str(Chunking.parse(text.partition(":")[0])) == text


def test_a_document_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(InvalidInput, match="'chunk'"):
        Chunking("tokens").chunks(Document("d", "x", {"chunk": 1}), WORDS)
    with pytest.raises(InvalidInput, match="M3Encoder"):
        Chunking("tokens").chunks(Document("d", "x"), None)
