"""Exact and near duplicates: which stay, which are dropped, and that a repeated pass decides in the same way."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3_connectors import Document
from m3_connectors.curation import (
    CharacterCount,
    Curation,
    CurationReport,
    Curator,
    Dropped,
    Duplicates,
    ExactDuplicates,
    NearDuplicates,
    Span,
    Stage,
)
from m3_connectors.curation.words import normalised, shingles
from m3_connectors.errors import InvalidInput

WORDS = [f"w{i}" for i in range(2000)]


def passed(
    stages: Iterable[Stage], documents: Iterable[Document]
) -> tuple[list[Document], list[Dropped], CurationReport]:
    dropped: list[Dropped] = []
    with Curator(stages, dropped.append) as curator:
        kept = list(curator.curated(documents))
        return kept, dropped, curator.report


def named(texts: Sequence[str]) -> list[Document]:
    return [Document(f"d{i}", text) for i, text in enumerate(texts)]


def similarity(one: str, other: str) -> float:
    first, second = set(shingles(one)), set(shingles(other))
    return len(first & second) / len(first | second)


def family(seed: int, count: int, words: int = 120, edits: int = 8) -> list[str]:
    """Texts of which some are edited copies of earlier ones, from hardly changed to nearly new."""
    rng = random.Random(seed)
    texts: list[str] = []
    for _ in range(count):
        if texts and rng.random() < 0.6:
            new = rng.choice(texts).split()
            for _ in range(rng.randrange(edits)):
                new[rng.randrange(len(new))] = rng.choice(WORDS)
        else:
            new = rng.choices(WORDS, k=words)
        texts.append(" ".join(new))
    return texts


@given(st.lists(st.text(st.sampled_from("ab \n\u00e9e\u0301"), max_size=5)))
def test_the_first_of_equal_texts_stays(texts: list[str]) -> None:
    kept, dropped, report = passed([ExactDuplicates()], named(texts))
    first: dict[str, str] = {}
    for document in named(texts):
        first.setdefault(normalised(document.text), document.id)
    assert [document.id for document in kept] == list(first.values())
    for drop in dropped:
        assert drop.duplicate_of == first[normalised(drop.document.text)] != drop.document.id
        assert drop.value == 1.0
    assert report.read == report.kept + report.dropped_count == len(texts)


def test_a_document_that_is_read_again_is_no_duplicate_of_itself() -> None:
    texts = [Document("a", "one text of five words"), Document("a", "one text of five words", {"n": 2})]
    for stage in (ExactDuplicates(), NearDuplicates()):
        assert passed([stage], texts)[0] == texts


@pytest.mark.parametrize("kind", ["exact", "near"])
def test_a_replaced_document_is_no_original_any_more(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    x, y = family(1, 1)[0], family(2, 1)[0]
    documents = [Document("a", x), Document("b", x), Document("a", y), Document("c", x), Document("d", y)]
    with caplog.at_level(logging.WARNING):
        kept, dropped, _ = passed(Curation(duplicates=Duplicates.parse(kind)).stages(), documents)
    assert [document.id for document in kept] == ["a", "a", "c"]
    assert [(drop.document.id, drop.duplicate_of) for drop in dropped] == [("b", "a"), ("d", "a")]
    (record,) = caplog.records
    assert "'b' was dropped as a duplicate" in record.getMessage()


@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.95])
def test_near_duplicates_agree_with_the_exact_similarity(threshold: float) -> None:
    documents = named(family(3, 400))
    texts = {document.id: document.text for document in documents}
    kept, dropped, _ = passed([NearDuplicates(threshold)], documents)
    margin = 0.15  # four standard errors of an estimate from 128 values
    for drop in dropped:
        assert drop.duplicate_of is not None
        real = similarity(drop.document.text, texts[drop.duplicate_of])
        assert real >= threshold - margin
        assert abs(real - float(drop.value)) <= margin
    for i, document in enumerate(kept):
        for earlier in kept[:i]:
            assert similarity(document.text, earlier.text) < threshold + margin
    assert len(dropped) > 20
    assert {drop.duplicate_of for drop in dropped} <= {document.id for document in kept}


def test_few_changed_words_are_near_and_new_texts_are_not() -> None:
    rng = random.Random(5)
    text = rng.choices(WORDS, k=200)
    changed = [*text[:100], "new", *text[101:]]
    documents = named([" ".join(text), " ".join(changed).upper(), " ".join(rng.choices(WORDS, k=200))])
    kept, (drop,), _ = passed([NearDuplicates()], documents)
    assert [document.id for document in kept] == ["d0", "d2"]
    assert (drop.document.id, drop.duplicate_of, drop.stage) == ("d1", "d0", "near duplicates")
    assert drop.reason == f"is {drop.value:.1%} similar to 'd0', at least 80.0%"


def test_short_texts_are_near_only_with_the_same_words() -> None:
    texts = ["See page 10.", "see PAGE 10", "See page 11.", "...", "!!", "..."]
    kept, dropped, report = passed([NearDuplicates(0.5)], named(texts))
    assert [document.id for document in kept] == ["d0", "d2", "d3", "d4"]
    assert [(drop.stage, drop.duplicate_of) for drop in dropped] == [
        ("near duplicates", "d0"),
        ("exact duplicates", "d3"),
    ]
    assert dict(report.dropped) == {"near duplicates": 1, "exact duplicates": 1}


def test_texts_without_spaces_between_words() -> None:
    rng = random.Random(7)
    text = "".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(300))
    changed = text[:150] + "新" + text[151:]
    other = "".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(300))
    kept, dropped, _ = passed([NearDuplicates()], named([text, changed, other]))
    assert [document.id for document in kept] == ["d0", "d2"]
    assert dropped[0].duplicate_of == "d0"


def test_the_original_that_is_named_was_kept() -> None:
    """Also for an exact copy of a near duplicate."""
    rng = random.Random(11)
    words = rng.choices(WORDS, k=200)
    near = " ".join([*words[:10], "new", *words[11:]])
    kept, dropped, _ = passed([NearDuplicates()], named([" ".join(words), near, near]))
    assert [document.id for document in kept] == ["d0"]
    assert [drop.duplicate_of for drop in dropped] == ["d0", "d0"]


def test_of_several_similar_documents_the_most_similar_is_named() -> None:
    rng = random.Random(13)
    base = rng.choices(WORDS, k=100)
    far = " ".join([*base[:50], *rng.choices(WORDS, k=8), *base[58:]])
    close = " ".join([*base[:99], "new"])
    _, (drop,), _ = passed([NearDuplicates(0.8)], named([far, " ".join(base), close]))
    assert (drop.document.id, drop.duplicate_of) == ("d2", "d1")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 60))
def test_a_pass_that_stopped_and_is_repeated_decides_in_the_same_way(seed: int, stop: int) -> None:
    documents = named(family(seed, 60, words=30, edits=3))
    kept, dropped, _ = passed([NearDuplicates()], documents)
    some, dropped_before, _ = passed([NearDuplicates()], documents[:stop])
    assert some == kept[: len(some)]
    assert dropped_before == dropped[: len(dropped_before)]
    assert passed([NearDuplicates()], documents)[:2] == (kept, dropped)


def test_many_documents_of_one_template_are_compared_with_a_bounded_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And an exact or near copy of each is found nevertheless."""
    rng = random.Random(17)
    template = rng.choices(WORDS, k=60)
    texts = [" ".join([*template, *rng.choices(WORDS, k=40)]) for _ in range(300)]
    copies = [text + " end" for text in texts]
    _, dropped, _ = passed([NearDuplicates()], named(texts + copies))
    assert [drop.duplicate_of for drop in dropped] == [f"d{i}" for i in range(300)]


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5, float("nan")])
def test_a_threshold_out_of_range_is_refused(threshold: float) -> None:
    with pytest.raises(InvalidInput, match="out of range"):
        NearDuplicates(threshold)


def test_a_document_that_is_dropped_for_itself_is_not_the_original_of_another() -> None:
    curation = Curation(characters=Span(most=10), duplicates=Duplicates("exact"))
    documents = [Document("a", "text" + " " * 20 + "text"), Document("b", "text text")]
    kept, dropped, report = passed(curation.stages(), documents)
    assert [document.id for document in kept] == ["b"]
    assert [(drop.document.id, drop.stage) for drop in dropped] == [("a", "characters")]
    assert dict(report.dropped) == {"characters": 1}


def test_a_stage_of_your_own() -> None:
    def odd(document: Document) -> Document | Dropped:
        count = len(document.text)
        return Dropped(document, "odd", f"has {count} characters", count) if count % 2 else document

    kept, _, report = passed([CharacterCount(Span(2)), odd], named(["a", "ab", "abc", "abcd"]))
    assert [document.text for document in kept] == ["ab", "abcd"]
    assert list(report.dropped.items()) == [("characters", 1), ("odd", 1)]


def test_what_is_no_text_is_left_to_whoever_stores_it() -> None:
    documents = [Document("a", None), Document("b", "\ud800"), "no document"]  # type: ignore[arg-type, list-item]
    stages = Curation(characters=Span(5), duplicates=Duplicates("near")).stages()
    assert passed(stages, documents)[0] == documents  # type: ignore[arg-type]


def test_nothing_is_read_ahead() -> None:
    read: list[str] = []

    def documents() -> Iterable[Document]:
        for document in named(["a", "b", "c"]):
            read.append(document.id)
            yield document

    with Curator([ExactDuplicates()]) as curator:
        curated = curator.curated(documents())
        next(curated)
        assert read == ["d0"]
        assert curator.report.read == 1
        with contextlib.suppress(StopIteration):
            next(curated)
        assert read == ["d0", "d1"]


def test_languages_are_counted() -> None:
    texts = [
        "The house stands by the river and the trees.",
        "Das Haus steht am Fluss und bei den Bäumen.",
        "12 34",
    ]
    _, dropped, report = passed(Curation(languages=("en", "und")).stages(), named(texts))
    assert dict(report.languages) == {"en": 1, "und": 1}
    assert [drop.value for drop in dropped] == ["de"]
