"""Hard negatives: the right ranks and scores, and no passage that answers the query."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from stub_encoder import STORAGE, StubEncoder

from m3_connectors import Document, M3Embeddings, M3Encoder, connect
from m3_connectors.embeddings import COMPONENTS, Component
from m3_connectors.errors import InvalidInput, ModelMismatch
from m3_connectors.methods import METHODS
from m3_connectors.records import read_settings
from m3_connectors.training.mining import MinedLine, MiningSettings, QueryLine, mine, overlap

TEXT = "rain falls on the hills ship sails sea green grass in winter cold snow wind river"
WORDS = TEXT.split()


def line(query: str, *positives: str) -> QueryLine:
    return QueryLine(query, positives, "en", "en")


def passages(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [f"{' '.join(rng.choice(WORDS, 9))} {i}" for i in range(count)]


def everything(count: int = 7, **settings: Any) -> MiningSettings:
    """Settings that take the best candidates without limits."""
    fixed: dict[str, Any] = {"range_min": 0, "range_max": 100, "sampling_strategy": "top"}
    fixed |= {"relative_margin": None, "num_negatives": count}
    return MiningSettings(**(fixed | settings))


def exact_scores(query: M3Embeddings, texts: M3Embeddings, weights: Sequence[float]) -> np.ndarray:  # type: ignore[type-arg]
    """The fused scores in float64, from the definitions."""
    dense = texts.dense.astype(np.float64) @ query.dense[0].astype(np.float64)
    sparse = np.asarray((texts.sparse.astype(np.float64) @ query.sparse.astype(np.float64).T).todense())[:, 0]
    rows = query.multivectors[0].astype(np.float64)
    multi = [(rows @ row.multivectors[0].astype(np.float64).T).max(axis=1).mean() for row in texts]
    return np.array(weights) @ np.array([dense, sparse, multi])


class Exact:
    """Mines by sorting all scores of all passages."""

    def __init__(self, encoder: Any, texts: Sequence[str], weights: Sequence[float]) -> None:
        self.encoder, self.texts, self.weights = encoder, list(texts), weights
        self.vectors = encoder.encode(self.texts)

    def scores(self, query: str) -> dict[str, float]:
        scores = exact_scores(self.encoder.encode([query]), self.vectors, self.weights)
        return dict(zip(self.texts, scores.tolist(), strict=True))

    def window(self, query: str, own: set[str], settings: MiningSettings) -> list[str]:
        scores = self.scores(query)
        others = sorted((text for text in self.texts if text not in own), key=lambda text: -scores[text])
        best = max(scores[text] for text in own)
        limit = settings.limit(best)
        window = others[settings.range_min : settings.range_max]
        return [text for text in window if scores[text] <= limit]


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_the_negatives_are_those_of_a_sort_of_all_scores(data: st.DataObject) -> None:
    count = data.draw(st.integers(20, 60))
    texts = passages(count, data.draw(st.integers(0, 1000)))
    of = data.draw(
        st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True), min_size=1, max_size=5)
    )
    lines = [line(f"question {i}", *(texts[p] for p in positives)) for i, positives in enumerate(of)]
    low = data.draw(st.integers(0, 10))
    chosen = MiningSettings(
        num_negatives=data.draw(st.integers(1, 5)),
        range_min=low,
        range_max=low + data.draw(st.integers(5, 40)),
        sampling_strategy=data.draw(st.sampled_from(["top", "random"])),
        relative_margin=data.draw(st.one_of(st.none(), st.floats(0, 0.5))),
        absolute_margin=data.draw(st.one_of(st.none(), st.floats(0, 0.5))),
        max_overlap=2.0,
        seed=data.draw(st.integers(0, 9)),
    )
    exact = Exact(StubEncoder(), texts, (1, 0, 0))
    mined = list(mine(StubEncoder(), lines, chosen, passages=texts))
    assert [one.line for one in mined] == lines
    for one in mined:
        window = exact.window(one.line.query, set(one.line.positives), chosen)
        expected = window[: chosen.num_negatives]
        if chosen.sampling_strategy == "top":
            assert list(one.negatives) == expected
        else:
            assert len(one.negatives) == len(expected)
            places = [window.index(text) for text in one.negatives]
            assert places == sorted(places)
        scores = exact.scores(one.line.query)
        assert one.pos_scores == pytest.approx([scores[text] for text in one.line.positives], abs=2e-6)
        assert one.neg_scores == pytest.approx([scores[text] for text in one.negatives], abs=2e-6)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_ranks_by_its_own_scores(encoder: M3Encoder, method: str) -> None:
    texts = passages(40)
    lines = [line("rain falls on the hills in winter", texts[3]), line("a ship sails", texts[30], texts[7])]
    weights = (0.2, 0.7, 0.1) if method == "all" else (0.4, 0.6, 0) if method == "dense_sparse" else None
    exact = Exact(encoder, texts, weights or list(METHODS[method].weights))
    for one in mine(encoder, lines, everything(method=method, weights=weights), passages=texts):
        scores = exact.scores(one.line.query)
        expected = exact.window(one.line.query, set(one.line.positives), everything())[:7]
        assert one.neg_scores == pytest.approx([scores[text] for text in one.negatives], abs=1e-5)
        assert one.neg_scores == pytest.approx([scores[text] for text in expected], abs=1e-5)
        assert one.pos_scores == pytest.approx([scores[text] for text in one.line.positives], abs=1e-5)


def test_random_negatives_come_from_all_ranks_of_the_window() -> None:
    texts = passages(60)
    lines = [line(f"question {i}", texts[i % 7]) for i in range(120)]
    chosen = MiningSettings(num_negatives=3, range_min=10, range_max=30, relative_margin=None)
    exact = Exact(StubEncoder(), texts, (1, 0, 0))
    ranks = np.zeros(60, int)
    for one in mine(StubEncoder(), lines, chosen, passages=texts):
        scores = exact.scores(one.line.query)
        order = sorted(set(texts) - set(one.line.positives), key=lambda text: -scores[text])
        ranks[[order.index(text) for text in one.negatives]] += 1
    assert ranks[:10].sum() == ranks[30:].sum() == 0
    assert ranks[10:30].min() >= 8  # 18 are expected of each


def _only(mined: Sequence[MinedLine], query: str) -> MinedLine:
    (found,) = [one for one in mined if one.line.query == query]
    return found


ANSWER = "The ferry to the northern island leaves the old harbour at seven every morning except on Sundays in winter."


@pytest.mark.parametrize(
    "copy",
    [
        " The ferry to the northern  island leaves the old\nharbour at seven every morning except on Sundays in "
        "winter.\t",
        "the ferry to the northern island leaves the old harbour at seven every morning, except on Sundays in winter",
        "A ferry to the northern island leaves the old harbour at seven every morning except on Sundays in winter "
        "and on the day of the harbour festival, when there is no ferry to the northern island.",
        "The ferry to the northern island leaves the old harbour at seven every morning",
        f"Timetables. {ANSWER} Tickets are sold on board, and dogs travel for free with their owners.",
    ],
    ids=["white space", "case and punctuation", "one word and an end", "an excerpt", "within a longer text"],
)
def test_a_copy_of_a_positive_is_no_negative(copy: str) -> None:
    others = passages(5)
    (one,) = mine(
        StubEncoder(), [line("When does the ferry leave?", ANSWER)], everything(), passages=[copy, *others]
    )
    assert sorted(one.negatives) == sorted(others)
    same_text = " ".join(copy.split()) == ANSWER
    assert one.dropped["near_copy"] == (not same_text)


def test_texts_that_share_a_few_words_are_negatives() -> None:
    other = "The ferry to the southern island leaves the new harbour at nine every evening, and on Sundays at noon."
    texts = [other, *passages(5)]
    (one,) = mine(StubEncoder(), [line("When does the ferry leave?", ANSWER)], everything(), passages=texts)
    assert other in one.negatives


def test_positives_of_other_lines_of_a_query_are_no_negatives_nor_is_what_it_answers() -> None:
    texts = passages(12)
    lines = [
        line("good morning", texts[0]),
        line("good  morning", texts[1], texts[2]),  # the same query
        line(texts[3], "good morning"),  # the other direction of a translation
        line("another", texts[4]),
    ]
    mined = list(mine(StubEncoder(), lines, everything(20), passages=[*texts, "good morning"]))
    assert set(_only(mined, "good morning").negatives) == set(texts[4:])
    assert set(_only(mined, texts[3]).negatives) == set(texts) - {texts[3]}
    assert set(_only(mined, "another").negatives) == {*texts, "good morning"} - {texts[4]}


def test_the_margin_of_a_negative_score_is_below_it() -> None:
    assert MiningSettings(relative_margin=0.05).limit(0.8) == pytest.approx(0.76)
    assert MiningSettings(relative_margin=0.05).limit(-0.8) == pytest.approx(-0.84)
    assert MiningSettings(relative_margin=0.05, absolute_margin=0.1).limit(0.8) == pytest.approx(0.7)
    assert MiningSettings(relative_margin=None).limit(0.8) == float("inf")


def test_a_line_with_no_candidate_below_its_positive_has_no_negative() -> None:
    texts = passages(30)
    exact = Exact(StubEncoder(), texts, (1, 0, 0))
    scores = exact.scores("a question")
    worst = min(texts, key=lambda text: scores[text])
    chosen = MiningSettings(range_min=0, range_max=10)
    (one,) = mine(StubEncoder(), [line("a question", worst)], chosen, passages=texts)
    assert one.negatives == ()
    assert one.found == 0  # the worst of 30 is not among the best 11
    assert one.dropped == {"own": 0, "margin": 10, "near_copy": 0}
    assert one.pos_scores == pytest.approx([scores[worst]], abs=2e-6)


def test_the_choice_depends_on_the_seed_and_not_on_other_lines() -> None:
    texts = passages(50)
    lines = [line(f"question {i}", texts[i]) for i in range(20)]
    chosen = MiningSettings(relative_margin=None)
    first = {one.line.query: one for one in mine(StubEncoder(), lines, chosen, passages=texts)}
    again = {one.line.query: one for one in mine(StubEncoder(), lines[::-1], chosen, passages=texts[::-1])}
    assert first == again
    other = mine(StubEncoder(), lines, MiningSettings(relative_margin=None, seed=1), passages=texts)
    assert sum(first[one.line.query].negatives != one.negatives for one in other) > 15


def test_a_given_index_is_searched_and_not_written() -> None:
    encoder, texts = StubEncoder(), passages(30)
    answer = "an answer that the index does not have"
    with connect("memory:", encoder=encoder, storage=STORAGE) as index:
        documents = [Document(f"d{i}", text) for i, text in enumerate([*texts, texts[0], "  "])]
        index.add(documents)
        lines = [line("a question", answer), line("another", texts[5])]
        first, second = mine(encoder, lines, everything(40), index=index)
        assert index.count() == len(documents)
    exact = Exact(encoder, [*texts, answer], (1, 0, 0))
    assert list(first.negatives) == exact.window("a question", {answer}, everything())
    assert first.pos_scores == pytest.approx([exact.scores("a question")[answer]], abs=2e-6)
    assert first.found == 0
    assert texts[5] not in second.negatives
    assert len(second.negatives) == len(set(second.negatives)) == 29


def test_an_index_of_another_model_is_refused(encoder: M3Encoder) -> None:
    with connect("memory:", encoder=encoder) as index:
        index.add([Document(str(i), text) for i, text in enumerate(passages(20))])
        with pytest.raises(ModelMismatch):
            list(mine(StubEncoder(), [line("a", "b")], everything(), index=index))


def test_too_few_passages_are_refused_and_few_are_named(caplog: pytest.LogCaptureFixture) -> None:
    lines = [line(f"question {i}", text) for i, text in enumerate(passages(11))]
    with pytest.raises(InvalidInput, match="11 distinct passages, and range_min 10 skips"):
        list(mine(StubEncoder(), lines))
    with pytest.raises(InvalidInput, match="0 distinct passages"):
        list(mine(StubEncoder(), []))
    with caplog.at_level(logging.WARNING):
        list(mine(StubEncoder(), lines, passages=passages(40, seed=1)))
    assert "51 distinct passages, fewer than range_max 200" in caplog.text


class DenseOnly(StubEncoder):
    def encode(self, texts: Sequence[str], *, components: Sequence[Component] = COMPONENTS) -> M3Embeddings:
        return super().encode(texts, components=("dense",))


def test_a_method_that_the_model_cannot_serve_is_refused() -> None:
    lines = [line("a question", "an answer")]
    with pytest.raises(InvalidInput, match=r"method dense_sparse needs sparse, which the model tests/stub"):
        list(mine(DenseOnly(), lines, MiningSettings(method="dense_sparse"), passages=passages(20)))
    assert list(mine(DenseOnly(), lines, everything(), passages=passages(20)))


def test_queries_that_can_be_read_only_once_are_refused() -> None:
    with pytest.raises(InvalidInput, match="generator, which can be read only once"):
        list(mine(StubEncoder(), (one for one in [line("a", "b")])))  # type: ignore[arg-type]


def test_the_settings_are_a_strict_table() -> None:
    table = {"method": "all", "weights": [1.0, 0.3, 1.0], "range_min": 5, "relative_margin": 0.1}
    assert read_settings(MiningSettings, table, "t", "…") == MiningSettings(
        method="all", weights=(1.0, 0.3, 1.0), range_min=5, relative_margin=0.1
    )
    with pytest.raises(InvalidInput, match="unknown key margin"):
        read_settings(MiningSettings, {"margin": 0.1}, "t", "…")
    for wrong in (
        {"relative_margin": -0.1},
        {"num_negatives": 0},
        {"range_min": -1},
        {"sampling_strategy": "best"},
    ):
        with pytest.raises(ValidationError):
            MiningSettings(**wrong)
    with pytest.raises(ValidationError, match="fewer than num_negatives 7"):
        MiningSettings(range_min=10, range_max=16)
    with pytest.raises(InvalidInput, match="method dense takes no weights"):
        list(mine(StubEncoder(), [line("a", "b")], MiningSettings(weights=(1.0, 0.0, 0.0))))


@given(st.lists(st.sampled_from(WORDS), max_size=12), st.lists(st.sampled_from(WORDS), max_size=12))
def test_the_overlap_is_a_symmetric_share(first: list[str], second: list[str]) -> None:
    share = overlap(" ".join(first), " ".join(second))
    assert 0 <= share <= 1
    assert share == overlap(" ".join(second), " ".join(first))
    assert overlap(" ".join(first), " ".join(first)) == (1.0 if first else 0.0)
    if len(first) >= 5:
        assert overlap(" ".join(first), " ".join([*second, *first])) == 1.0
