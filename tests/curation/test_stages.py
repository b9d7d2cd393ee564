"""The stages of curation that look at one document."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_connectors import Document
from m3_connectors.curation import (
    BrokenCharacters,
    CharacterCount,
    Curation,
    Dropped,
    Duplicates,
    Languages,
    Letters,
    RepeatedLines,
    Span,
    Stage,
    WordCount,
)
from m3_connectors.curation.words import normalised, shingles, word_count
from m3_connectors.errors import InvalidInput

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


def outcome(stage: Stage, text: str) -> tuple[float | str, str] | None:
    """Value and reason of a dropped text; None for one that is kept."""
    document = Document("d", text)
    found = stage(document)
    if isinstance(found, Dropped):
        assert found.document == document
        return found.value, found.reason
    assert found is document
    return None


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [("50:100000", 50, 100_000), ("50:", 50, None), (":7", None, 7), ("0:0", 0, 0), ("3:3", 3, 3)],
)
def test_a_range_is_parsed_and_shown(text: str, least: int | None, most: int | None) -> None:
    span = Span.parse(text)
    assert span == Span(least, most)
    assert str(span) == text


@pytest.mark.parametrize("text", ["", ":", "50", "5:4", "a:b", "1:2:3", ":-1", "1.5:2"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="range"):
        Span.parse(text)


def test_characters_are_code_points_without_outer_white_space() -> None:
    stage = CharacterCount(Span(3, 5))
    assert outcome(stage, "  ab \n") == (2, "has 2 characters, fewer than 3")
    assert outcome(stage, "abc") is None
    assert outcome(stage, "你好世界啊") is None
    assert outcome(stage, "你好世界啊哈") == (6, "has 6 characters, more than 5")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("...  !?", 0),
        ("It's 3.5 m", 5),
        ("naïve café", 2),
        ("你好 世界", 4),
        ("ありがとう", 5),
        ("สวัสดี", 6),
        ("हिन्दी में", 2),
        ("one—two…three", 3),
    ],
)
def test_words_of_any_script(text: str, count: int) -> None:
    assert word_count(text) == count
    assert (outcome(WordCount(Span(1)), text) is None) == (count > 0)


@given(TEXTS)
def test_shingles_ignore_case_and_white_space(text: str) -> None:
    spread = text.replace(" ", "\n \t")
    assert list(shingles(spread)) == list(shingles(text))
    assert len(list(shingles(text))) <= max(len(text), 1)


@given(TEXTS)
def test_normalising_again_changes_nothing(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("abcd", 1.0),
        ("a1b2", 0.5),
        ("12 34\n", 0.0),
        ("", 0.0),
        ("हिन्दी", 1.0),
        ("你好。", 2 / 3),
        ("a\u0301-", 2 / 3),
    ],
)
def test_the_share_of_letters(text: str, share: float) -> None:
    assert outcome(Letters(share), text) is None
    if share < 1:
        found = outcome(Letters(share + 0.01), text)
        assert found is not None
        assert found[0] == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("plain\ttext\r\n\f", 0.0),
        ("a\ufffdb\x00", 0.5),
        ("\ue000\uf8ff", 1.0),
        ("", 0.0),
        ("\x85", 0.0),
        ("\x1ba", 0.5),
    ],
)
def test_the_share_of_broken_characters(text: str, share: float) -> None:
    assert outcome(BrokenCharacters(share), text) is None
    if share > 0:
        found = outcome(BrokenCharacters(share - 0.01), text)
        assert found is not None
        assert found[0] == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("one\ntwo\nthree", 0.0),
        ("menu\n  menu \n\n\nmenu\ntext", 0.5),
        ("", 0.0),
        ("\n\n\n", 0.0),
        ("ab\r\nab", 0.5),
    ],
)
def test_the_share_of_repeated_lines(text: str, share: float) -> None:
    assert outcome(RepeatedLines(share), text) is None
    if share > 0:
        found = outcome(RepeatedLines(share - 0.01), text)
        assert found is not None
        assert found[0] == pytest.approx(share)


@given(TEXTS)
def test_shares_are_shares(text: str) -> None:
    for stage in (Letters(2.0), BrokenCharacters(-1.0), RepeatedLines(-1.0)):
        found = outcome(stage, text)
        assert found is not None
        assert 0 <= float(found[0]) <= 1


ENGLISH = "The river runs through the old town and under three bridges before it reaches the sea."
GERMAN = "Der Fluss fließt durch die alte Stadt und unter drei Brücken hindurch, bevor er das Meer erreicht."
CHINESE = "这条河流经老城区，从三座桥下穿过，然后流入大海。"


@pytest.mark.parametrize(("text", "language"), [(ENGLISH, "en"), (GERMAN, "de"), (CHINESE, "zh")])
def test_languages_are_tagged(text: str, language: str) -> None:
    found = Languages()(Document("d", text, {"n": 1}))
    assert isinstance(found, Document)
    assert found.metadata["language"] == language
    assert 0.5 <= found.metadata["language_confidence"] <= 1
    assert found.metadata["n"] == 1
    assert found.text == text


def test_a_variety_of_chinese_is_chinese() -> None:
    text = "侬好，今朝天气蛮好个，阿拉一道去外滩白相好伐？伊拉屋里向个小囡老好白相个。"
    assert Languages()._identifier.classify(text)[0] == "wuu"
    found = Languages(["zh"])(Document("d", text))
    assert isinstance(found, Document)
    assert found.metadata["language"] == "zh"
    with pytest.raises(InvalidInput, match="'wuu' cannot be detected"):
        Languages(["wuu"])


@pytest.mark.parametrize("text", ["", "123 456", "%%% ---"])
def test_a_text_without_a_language_is_undetermined(text: str) -> None:
    found = Languages()(Document("d", text))
    assert isinstance(found, Document)
    assert found.metadata["language"] == "und"
    assert found.metadata["language_confidence"] < 0.5
    dropped = Languages(["en"])(Document("d", text))
    assert isinstance(dropped, Dropped)
    assert dropped.value == "und"
    assert isinstance(Languages(["und"])(Document("d", text)), Document)


def test_other_languages_are_dropped() -> None:
    stage = Languages(["en", "zh"])
    assert isinstance(stage(Document("d", ENGLISH)), Document)
    dropped = stage(Document("d", GERMAN))
    assert isinstance(dropped, Dropped)
    assert (dropped.stage, dropped.value) == ("language", "de")
    assert "'de', with confidence" in dropped.reason


def test_the_language_that_the_metadata_has_counts_and_stays() -> None:
    document = Document("d", ENGLISH, {"language": "fr"})
    assert Languages()(document) is document
    assert isinstance(Languages(["fr"])(document), Document)
    dropped = Languages(["en"])(document)
    assert isinstance(dropped, Dropped)
    assert dropped.reason == "its language is 'fr', as its metadata says"
    other = Document("d", ENGLISH, {"language": ["fr"]})
    assert Languages(["en"])(other) is other


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(InvalidInput, match="'english' cannot be detected") as error:
        Languages(["en", "english"])
    assert "und" in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("exact", Duplicates("exact")),
        ("near", Duplicates("near", 0.8)),
        ("near:0.95", Duplicates("near", 0.95)),
    ],
)
def test_duplicates_are_parsed(text: str, expected: Duplicates) -> None:
    assert Duplicates.parse(text) == expected


@pytest.mark.parametrize("text", ["", "all", "near:", "near:0", "near:1.1", "near:x", "exact:1", "near:nan"])
def test_what_names_no_duplicates_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="near"):
        Duplicates.parse(text)


@pytest.mark.parametrize("name", ["min_letters", "max_broken", "max_repeated"])
@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(name: str, share: float) -> None:
    with pytest.raises(InvalidInput, match=name):
        Curation(**{name: share})
