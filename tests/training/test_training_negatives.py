"""Hard negatives: read, stored, chosen by (seed, step), and never one that answers the query."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from m3_connectors.training.batches import Batch, LengthGroup, Sampler
from m3_connectors.training.data import PairStore, open_pairs
from m3_connectors.training.pairs import read_lines
from m3_connectors.training.tokenizer import build_tokenizer

WORDS = [f"w{number}" for number in range(80)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_tokenizer([(f"▁{word}", -1.0) for word in WORDS])


def opened(root: Path, rows: list[dict[str, Any]], tokenizer: Tokenizer, **changes: Any) -> PairStore:
    (root / "pairs").mkdir(exist_ok=True)
    (root / "pairs" / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_pairs(
        root / "pairs", tokenizer, root / "cache", **{"longest": 40, "held_out_share": 0.0, **changes}
    )


def sampler(store: PairStore, **changes: Any) -> Sampler:
    options: dict[str, Any] = {
        "source_weights": {"qa": 1.0},
        "groups": (LengthGroup(40, 4),),
        "query_longest": 16,
        "queries_per_passage": 2,
        "negatives_per_query": 2,
    }
    return Sampler(store, **(options | changes))


def world(seed: int, queries: int = 16) -> list[dict[str, Any]]:
    """Queries with one or two positives and some negatives, of which a few answer another query or this one."""
    rng = np.random.default_rng(seed)
    passages = [" ".join(rng.choice(WORDS, 6, replace=False)) for _ in range(queries)]
    rows = []
    for number in range(queries):
        others = [passages[i] for i in rng.choice(queries, 3, replace=False) if i != number]
        fresh = [" ".join(rng.choice(WORDS, 6, replace=False)) for _ in range(3)]
        negatives = [*fresh, *others][: int(rng.integers(0, 6))]
        scores = {"pos_scores": [5.0], "neg_scores": rng.normal(size=len(negatives)).round(3).tolist()}
        query = " ".join(rng.choice(WORDS, 3, replace=False))
        rows.append({"query": query, "pos": [passages[number]], "neg": negatives, **scores})
        if rng.random() < 0.3:  # on another line, a negative of this one is an answer
            rows.append({"query": query, "pos": [(negatives or passages)[0]]})
    return rows


def texts_of(batch: Batch, tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    queries, passages = (
        [" ".join(tokenizer.id_to_token(int(id)).removeprefix("▁") for id in text[1:-1]) for text in part]
        for part in (batch.queries, batch.passages)
    )
    return queries, passages


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31))
def test_no_passage_that_answers_a_query_is_its_negative(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, seed: int
) -> None:
    """False negatives in a batch: a passage is masked for a query that it answers on any line."""
    rows = world(seed)
    store = opened(tmp_path_factory.mktemp("world"), rows, tokenizer)
    answers: dict[str, set[str]] = {}
    negatives: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        answers.setdefault(row["query"], set()).update(row["pos"])
        negatives[row["query"], row["pos"][0]] = set(row.get("neg", ()))
    drawn = sampler(store)
    for step in range(8):
        batch = drawn.batch(step)
        queries, passages = texts_of(batch, tokenizer)
        assert len(set(passages)) == len(passages)
        extra = set(passages[batch.targets.max() + 1 :])
        allowed: set[str] = set()
        for number, (query, target) in enumerate(zip(queries, batch.targets, strict=True)):
            assert passages[target] in answers[query]
            for column, passage in enumerate(passages):
                expected = column != target and (passage in answers[query] or passage == query)
                assert batch.ignored[number, column] == expected
            available = negatives[query, passages[target]] - answers[query]
            allowed |= available
            assert len(available & set(passages)) >= min(2, len(available))
        assert extra <= allowed


def test_teacher_scores_reach_their_own_query_and_passage(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = world(3)
    store = opened(tmp_path, rows, tokenizer)
    known = {
        (row["query"], text): score
        for row in rows
        if row.get("neg")
        for texts, scores in ((row["pos"], row["pos_scores"]), (row["neg"], row["neg_scores"]))
        for text, score in zip(texts, scores, strict=True)
    }
    drawn, scored = sampler(store), 0
    for step in range(12):
        batch = drawn.batch(step)
        if batch.teacher is None:
            continue
        queries, passages = texts_of(batch, tokenizer)
        for number, column in np.argwhere(np.isfinite(batch.teacher)).tolist():
            assert batch.teacher[number, column] == pytest.approx(known[queries[number], passages[column]])
            assert not batch.ignored[number, column]
        has = np.isfinite(batch.teacher)
        assert set(has.sum(1).tolist()) <= {0, 2, 3}  # the target and one or two negatives
        assert (has[np.arange(len(batch)), batch.targets] == has.any(1)).all()
        scored += int(has.any())
    assert scored > 5


def test_negatives_depend_on_seed_and_step_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    store = opened(tmp_path, world(1), tokenizer)
    one, other = sampler(store), sampler(store)
    forwards = [one.batch(step) for step in range(12)]
    backwards = [other.batch(step) for step in reversed(range(12))][::-1]
    for ours, again in zip(forwards, backwards, strict=True):
        assert [text.tolist() for text in ours.passages] == [text.tolist() for text in again.passages]
    elsewhere = [sampler(store, seed=1).batch(step) for step in range(12)]
    assert any(len(ours.passages) != len(two.passages) for ours, two in zip(forwards, elsewhere, strict=True))


def test_a_query_gets_other_negatives_in_another_epoch(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [
        {"query": f"w{i}", "pos": [f"w{i} w{i + 1}"], "neg": [f"w{i} w{j}" for j in range(40, 60)]}
        for i in range(4)
    ]
    drawn = sampler(opened(tmp_path, rows, tokenizer))
    seen = [frozenset(map(bytes, drawn.batch(step).passages[4:])) for step in range(4)]
    assert all(len(passages) == 8 for passages in seen)
    assert len(set(seen)) == 4


def test_negatives_that_fit_the_group_come_before_longer_ones_which_are_truncated(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    long = [" ".join(WORDS[i : i + 20]) for i in range(4)]
    rows = [
        {"query": f"w{i}", "pos": [f"w{i} w{i + 1}"], "neg": [*long, f"w{i} w70", f"w{i} w71"][: 4 + i]}
        for i in range(3)
    ]
    drawn = sampler(opened(tmp_path, rows, tokenizer), groups=(LengthGroup(8, 4), LengthGroup(40, 4)))
    batch = drawn.batch(0)
    assert max(map(len, batch.passages)) == 8
    _, passages = texts_of(batch, tokenizer)
    assert {"w1 w70", "w2 w70", "w2 w71"} <= set(passages)


def test_texts_that_are_equal_once_they_are_truncated_are_not_each_others_negatives(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """Repeated passages in a batch: two texts that the model cannot tell apart."""
    begin = " ".join(WORDS[:10])
    rows = [
        {"query": "w20", "pos": [f"{begin} w30"], "neg": [f"{begin} w31", "w50 w51"]},
        {"query": "w21", "pos": [f"{begin} w32"], "neg": ["w52"]},
        {"query": "w22", "pos": ["w60 w61"]},
    ]
    batch = sampler(opened(tmp_path, rows, tokenizer), groups=(LengthGroup(12, 4),)).batch(0)
    _, passages = texts_of(batch, tokenizer)
    for number, target in enumerate(batch.targets):
        for column, passage in enumerate(passages):
            same = column != target and passage == passages[target]
            assert batch.ignored[number, column] == same
    assert batch.ignored.sum() == 4


def test_a_held_out_passage_is_never_a_negative(tmp_path: Path, tokenizer: Tokenizer) -> None:
    passages = [f"w{i} w{i + 30}" for i in range(30)]
    rows = [
        {"query": f"w{i} w70", "pos": [passages[i]], "neg": [p for p in passages if p != passages[i]]}
        for i in range(30)
    ]
    store = opened(tmp_path, rows, tokenizer, held_out_share=0.4)
    held = {tuple(store.text(n).tolist()) for n in store.passage[np.asarray(store.held_out)]}
    drawn = sampler(store, negatives_per_query=7)
    assert 5 < len(held) < 20
    for step in range(10):
        batch = drawn.batch(step)
        assert len(batch.passages) > 4
        assert not {tuple(text[1:-1].tolist()) for text in batch.passages} & held


def test_pairs_without_negatives_make_the_batches_they_made_before(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    rows = [{"query": f"w{i}", "pos": [f"w{i} w{i + 1}"]} for i in range(8)]
    batch = sampler(opened(tmp_path, rows, tokenizer)).batch(0)
    assert len(batch.passages) == 4
    assert batch.teacher is None
    assert not batch.ignored.any()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"neg": "text"}, "neg is 'text'; it must be a list of strings"),
        ({"neg": ["a", " "]}, "neg[1] is ' '"),
        (
            {"neg": ["a"], "pos_scores": [1.0], "neg_scores": [0.5, 0.4]},
            "neg_scores is [0.5, 0.4]; it must be a list",
        ),
        ({"neg": ["a"], "pos_scores": [1.0, 2.0], "neg_scores": [0.5]}, "pos_scores is [1.0, 2.0]"),
        ({"neg": ["a"], "pos_scores": [True], "neg_scores": [0.5]}, "pos_scores[0] is True"),
        ({"neg": ["a"], "pos_scores": [1.0], "neg_scores": [float("nan")]}, "neg_scores[0] is nan"),
        ({"neg": ["a"], "pos_scores": [1.0], "neg_scores": [10**400]}, "neg_scores[0] is 1000"),
    ],
)
def test_wrong_negatives_and_scores_are_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    rows = [{"query": "q", "pos": ["p"]}, {"query": "q", "pos": ["p"]} | change]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, line = read_lines(tmp_path)
    assert "qa.jsonl:2 is not a training pair" in line.broken
    assert said in line.broken


def test_negatives_are_read_in_both_forms_without_repetitions_and_positives(tmp_path: Path) -> None:
    ours = {"query": "q", "positive": "p", "lang_q": "en", "lang_p": "en", "neg": ["a", "p", "a", "b"]}
    theirs = {
        "query": "q",
        "pos": ["p", "o"],
        "neg": ["a", "b"],
        "pos_scores": [3, 2],
        "neg_scores": [1, 0.5],
    }
    (tmp_path / "qa.jsonl").write_text(json.dumps(ours) + "\n" + json.dumps(theirs) + "\n")
    first, second = read_lines(tmp_path)
    assert first.negatives == second.negatives == ("a", "b")
    assert np.isnan([*first.negative_scores, first.pairs[0].score]).all()
    assert second.negative_scores == (1.0, 0.5)
    assert [pair.score for pair in second.pairs] == [3.0, 2.0]
    assert not first.unused
    assert not second.unused
