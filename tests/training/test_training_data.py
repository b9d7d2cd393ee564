"""Pairs, their token cache, and the batches drawn from them."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from m3_connectors.errors import InvalidInput
from m3_connectors.training.batches import LengthGroup, Sampler
from m3_connectors.training.data import PairStore, open_pairs
from m3_connectors.training.pairs import read_lines, read_pairs
from m3_connectors.training.tokenizer import build_tokenizer

WORDS = [f"w{number}" for number in range(60)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_tokenizer([(f"▁{word}", -1.0) for word in WORDS])


def line(query: str, positive: str, lang_q: str = "en", lang_p: str = "en") -> str:
    return json.dumps({"query": query, "positive": positive, "lang_q": lang_q, "lang_p": lang_p}) + "\n"


def words(rng: np.random.Generator, count: int) -> str:
    return " ".join(rng.choice(WORDS, count))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sources: monolingual questions, several to a passage; and parallel sentences."""
    data = tmp_path / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    with gzip.open(data / "qa_x.jsonl.gz", "wt", encoding="utf-8") as file:
        for number in range(60):
            passage, language = words(rng, int(rng.integers(5, 40))), ("de", "en")[number % 2]
            for _ in range(3):
                file.write(line(words(rng, 4), passage, language, language))
            file.write(line(words(rng, 4), passage, "fr", language))
    with (data / "par_y.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(40):
            english, german, french = (words(rng, 6) for _ in range(3))
            file.write(line(english, german, "en", "de") + line(french, english, "fr", "en"))
    return data


def opened(folder: Path, tokenizer: Tokenizer, **changes: object) -> PairStore:
    options: dict[str, object] = {"longest": 64, "held_out_share": 0.2, "linked_sources": ("par_",)}
    return open_pairs(folder, tokenizer, folder.parent / "cache", **(options | changes))  # type: ignore[arg-type]


def test_texts_are_tokenised_once_and_read_back(folder: Path, tokenizer: Tokenizer) -> None:
    store = opened(folder, tokenizer)
    pairs = list(read_pairs(folder))
    assert len(store) == len(pairs) == 60 * 4 + 80
    for number in (0, 17, 239, 240, 319):
        pair = pairs[number]
        for text, column in ((pair.query, store.query), (pair.positive, store.passage)):
            expected = tokenizer.encode(text, add_special_tokens=False).ids
            assert store.text(column[number]).tolist() == expected
        assert store.sources[store.source[number]] == pair.source
        assert store.cross_lingual[number] == (pair.lang_q != pair.lang_p)
    questions = store.source == store.sources.index("qa_x")
    assert len(np.unique(store.passage[questions])) == 60  # equal texts have equal numbers


def test_the_cache_is_rebuilt_only_after_a_change(folder: Path, tokenizer: Tokenizer) -> None:
    opened(folder, tokenizer)
    index = folder.parent / "cache" / "index.json"
    stamp = index.stat().st_mtime_ns
    opened(folder, tokenizer)
    assert index.stat().st_mtime_ns == stamp
    shorter = opened(folder, tokenizer, longest=3)
    assert shorter.lengths.max() == 3
    with (folder / "par_y.jsonl").open("a", encoding="utf-8") as file:
        file.write(line("w1 w2", "w3 w4"))
    assert len(opened(folder, tokenizer, longest=3)) == 60 * 4 + 81
    path = folder / "par_y.jsonl"
    stamp, size = path.stat().st_mtime_ns, path.stat().st_size
    path.write_text(path.read_text(encoding="utf-8").replace('"w1 w2"', '"w5 w6"'), encoding="utf-8")
    os.utime(path, ns=(stamp, stamp))
    assert path.stat().st_size == size
    edited = opened(folder, tokenizer, longest=3)
    expected = tokenizer.encode("w5 w6", add_special_tokens=False).ids[:3]
    assert edited.text(edited.query[80]).tolist() == expected


def test_held_out_texts_are_never_used_for_training(folder: Path, tokenizer: Tokenizer) -> None:
    store = opened(folder, tokenizer)
    held = np.asarray(store.held_out)
    assert 0 < held.sum() < len(store)
    assert not set(store.passage[held].tolist()) & set(store.passage[~held].tolist())
    parallel = np.array([name.startswith("par_") for name in store.sources])[store.source]
    sides = [
        set(store.query[parallel & side]) | set(store.passage[parallel & side]) for side in (held, ~held)
    ]
    assert sides[0]
    assert not sides[0] & sides[1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON: Expecting property name"),
        ('{"query": "a"}', "positive"),
        ("[1]", "a JSON array, not an object"),
        ('{"query": "", "positive": "b", "lang_q": "en", "lang_p": "en"}', "query is ''"),
        ('{"query": 3, "positive": "b", "lang_q": "en", "lang_p": "en"}', "query is 3"),
    ],
)
def test_a_broken_line_is_named_and_the_rest_is_used(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "bad.jsonl").write_text(line("a", "b") + text + "\n" + line("c", "d"), encoding="utf-8")
    assert [pair.query for pair in read_pairs(tmp_path)] == ["a", "c"]
    (said,) = (line.broken for line in read_lines(tmp_path) if line.broken)
    assert "bad.jsonl:2" in said
    assert reason in said


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="contains no"):
        list(read_pairs(tmp_path))


def sampler(store: PairStore, **changes: object) -> Sampler:
    options: dict[str, object] = {
        "source_weights": {"qa_": 2.0, "par_y": 1.0},
        "groups": (LengthGroup(16, 8), LengthGroup(64, 4)),
        "query_longest": 16,
        "queries_per_passage": 2,
        "seed": 5,
    }
    return Sampler(store, **(options | changes))  # type: ignore[arg-type]


def test_a_batch_depends_on_seed_and_step_alone(folder: Path, tokenizer: Tokenizer) -> None:
    store = opened(folder, tokenizer)
    one, other = sampler(store), sampler(store)
    forwards = [one.rows(step) for step in range(40)]
    backwards = [other.rows(step) for step in reversed(range(40))][::-1]
    for (source, rows, longest), again in zip(forwards, backwards, strict=True):
        assert (source, longest) == (again[0], again[2])
        assert [part.tolist() for part in rows] == [part.tolist() for part in again[1]]
    elsewhere = [sampler(store, seed=6).rows(step) for step in range(40)]
    assert any(
        [part.tolist() for part in one[1]] != [part.tolist() for part in two[1]]
        for one, two in zip(forwards, elsewhere, strict=True)
    )


def test_no_wrong_negatives_and_no_mixture(folder: Path, tokenizer: Tokenizer) -> None:
    store = opened(folder, tokenizer)
    drawn = sampler(store)
    queries_of: dict[int, set[int]] = {}
    for query, passage in zip(store.query.tolist(), store.passage.tolist(), strict=True):
        queries_of.setdefault(passage, set()).add(query)
    groups_seen, several = set(), False
    for step in range(60):
        source, by_passage, longest = drawn.rows(step)
        rows = np.concatenate(by_passage)
        passages = [int(store.passage[part[0]]) for part in by_passage]
        assert len(set(passages)) == len(passages)
        assert len(set(store.query[rows].tolist())) == len(rows)
        assert all((store.passage[part] == store.passage[part[0]]).all() for part in by_passage)
        for number, passage in enumerate(passages):
            for other in passages[number + 1 :]:
                assert not queries_of[passage] & queries_of[other]
        assert not store.held_out[rows].any()
        assert {store.sources[s] for s in store.source[rows]} == {source}
        assert len(set(store.passage_language[rows].tolist())) == 1
        lengths = store.lengths[passages] + 2
        assert (lengths <= longest).all()
        assert longest == 16 or (lengths > 16).all()
        groups_seen.add((longest, len(passages) <= (8 if longest == 16 else 4)))
        several |= any(len(part) == 2 for part in by_passage)
        assert all(len(part) <= 2 for part in by_passage)
    assert groups_seen == {(16, True), (64, True)}
    assert several


def test_batches_carry_special_tokens_targets_and_limits(folder: Path, tokenizer: Tokenizer) -> None:
    store = opened(folder, tokenizer)
    drawn = sampler(store, groups=(LengthGroup(12, 8),), query_longest=5)
    cut = False
    for step in range(20):
        batch = drawn.batch(step)
        for text in batch.queries + batch.passages:
            assert text[0] == 0
            assert text[-1] == 2
            assert (text[1:-1] > 3).all()
        assert max(map(len, batch.queries)) <= 5
        assert max(map(len, batch.passages)) <= 12
        cut |= max(map(len, batch.passages)) == 12
        _, by_passage, _ = drawn.rows(step)
        for query, target in zip(batch.queries, batch.targets, strict=True):
            own = {tuple(store.text(store.query[row])[:3].tolist()) for row in by_passage[target]}
            assert tuple(query[1:-1].tolist()) in own
        assert batch.tokens == sum(map(len, batch.queries)) + sum(map(len, batch.passages))
    assert cut


def test_every_training_passage_is_drawn_in_an_epoch(folder: Path, tokenizer: Tokenizer) -> None:
    store = opened(folder, tokenizer, held_out_share=0.0)
    drawn = sampler(store, source_weights={"qa_x": 1.0}, groups=(LengthGroup(64, 6),))
    seen = {int(store.passage[part[0]]) for step in range(14) for part in drawn.rows(step)[1]}
    assert len(seen) == 60


def test_sources_that_match_nothing_are_refused(folder: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidInput, match="match no source"):
        sampler(opened(folder, tokenizer), source_weights={"nothing": 1.0})
