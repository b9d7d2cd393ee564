"""Methods: the paper's depths and weights, fusion, ties, weights files."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_connectors.embeddings import COMPONENTS
from m3_connectors.errors import InvalidInput
from m3_connectors.methods import (
    ALL,
    DENSE,
    DENSE_SPARSE,
    LONG_DOCUMENTS,
    METHODS,
    MIRACL,
    MULTI_VEC,
    SPARSE,
    Method,
    Weights,
    fuse,
    get_method,
    load_weights,
    rank,
    save_weights,
)


def test_presets_are_the_papers() -> None:
    depths = {name: dict(method.candidates) for name, method in METHODS.items()}
    assert depths == {
        "dense": {"dense": 1000},
        "sparse": {"sparse": 1000},
        "multi_vec": {"dense": 200},
        "dense_sparse": {"dense": 1000, "sparse": 1000},
        "all": {"dense": 200},
    }
    assert tuple(MIRACL["all"]) == (1, 0.3, 1) == tuple(ALL.weights)
    assert tuple(MIRACL["dense_sparse"]) == (1, 0.3, 0) == tuple(DENSE_SPARSE.weights)
    assert tuple(LONG_DOCUMENTS["all"]) == (0.15, 0.5, 0.35)
    assert tuple(LONG_DOCUMENTS["dense_sparse"]) == (0.2, 0.8, 0)


def test_components_that_a_query_needs() -> None:
    assert MULTI_VEC.scored == ("multivector",)
    assert MULTI_VEC.components == ("dense", "multivector")
    assert SPARSE.components == ("sparse",)
    assert ALL.components == COMPONENTS
    assert ALL.weighted(1, 0, 0).scored == ("dense",)


def test_lists_get_deeper_with_k_and_never_shallower() -> None:
    assert ALL.deep_enough(200) is ALL
    assert dict(ALL.deep_enough(500).candidates) == {"dense": 500}
    assert dict(DENSE_SPARSE.deep_enough(1001).candidates) == {"dense": 1001, "sparse": 1001}
    assert DENSE.deep_enough(5).candidates["dense"] == 1000


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf"), "1", None, True])
def test_bad_weights_are_refused(bad: Any) -> None:
    with pytest.raises(InvalidInput, match="weight of sparse"):
        Weights(1, bad, 0)
    with pytest.raises(InvalidInput):
        ALL.weighted(1, bad, 0)


def test_weights_that_are_all_zero_rank_nothing() -> None:
    with pytest.raises(InvalidInput, match="all three weights are 0"):
        Weights(0, 0, 0)


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ({}, "no component"),
        ({"multivector": 10}, "multivector cannot retrieve candidates"),
        ({"dense": 0}, "depth"),
        ({"dense": 1.5}, "depth"),
    ],
)
def test_bad_methods_are_refused(candidates: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Method("mine", candidates, Weights(1, 0, 0))


@pytest.mark.parametrize("name", ["bm25", "", None, ["all"]])
def test_an_unknown_method_names_the_known(name: Any) -> None:
    with pytest.raises(InvalidInput, match="dense_sparse, all"):
        get_method(name)


@given(
    st.lists(st.tuples(*[st.floats(-1, 1, width=32)] * 3), min_size=1, max_size=8),
    st.tuples(*[st.floats(0, 10)] * 3).filter(any),
)
def test_fusion_is_the_weighted_sum(
    rows: list[tuple[float, float, float]], weights: tuple[float, float, float]
) -> None:
    columns = np.array(rows, dtype=np.float32)
    scores = {name: columns[:, i] for i, name in enumerate(COMPONENTS) if weights[i]}
    got = fuse(scores, Weights(*weights))
    assert got.dtype == np.float64
    want = [sum(weight * float(value) for weight, value in zip(weights, row, strict=True)) for row in columns]
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@given(
    st.dictionaries(st.text(max_size=3), st.sampled_from([0.0, 0.5, 0.5000001, 1.0]), max_size=12),
    st.integers(1, 15),
)
def test_ranking_is_by_score_then_id(scores: dict[str, float], k: int) -> None:
    ids = list(scores)
    got = [ids[i] for i in rank(ids, np.array(list(scores.values())), k)]
    assert len(got) == min(k, len(ids))
    for better, worse in itertools.pairwise(got):
        assert (-scores[better], better) < (-scores[worse], worse)
    for left_out in set(ids) - set(got):
        assert (-scores[got[-1]], got[-1]) < (-scores[left_out], left_out)


def test_weights_files_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "weights.json"
    save_weights(path, LONG_DOCUMENTS)
    assert load_weights(path) == LONG_DOCUMENTS
    assert Weights.load(path) == LONG_DOCUMENTS["all"]
    assert Weights.load(path, "dense_sparse") == LONG_DOCUMENTS["dense_sparse"]
    assert json.loads(path.read_text()) == {"dense_sparse": [0.2, 0.8, 0], "all": [0.15, 0.5, 0.35]}


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"all": 1}', '{"all": [1, 2]}', '{"none": [1, 2, 3]}', '{"all": [1, -2, 3]}', "\x00"],
)
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "weights.json"
    path.write_text(content)
    with pytest.raises(InvalidInput):
        load_weights(path)


def test_a_method_without_weights_in_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.json"
    path.write_text('{"all": [1, 0.3, 1]}')
    with pytest.raises(InvalidInput, match="no weights for 'dense_sparse'"):
        Weights.load(path, "dense_sparse")
