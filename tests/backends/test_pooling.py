"""Long documents pooled by Ward's method: what comes out, and that every way in and out of an index says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3_connectors import Document, M3Encoder, connect
from m3_connectors.backends.base import Schema, Storage
from m3_connectors.backends.pooling import long_documents, pool_long, pool_rows
from m3_connectors.cli.app import main
from m3_connectors.embeddings import Float32
from m3_connectors.errors import InvalidInput
from m3_connectors.testing.worlds import make_world, unit_rows

POOLED = Storage(long_documents="pool", pool_factor=3, pool_from_rows=10)


@st.composite
def texts(draw: st.DrawFn) -> Float32:
    """Unit rows of one text, some of them equal, some opposite."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = rng.normal(size=(draw(st.integers(1, 60)), draw(st.integers(1, 12))))
    for _ in range(draw(st.integers(0, 8))):
        a, b = rng.integers(len(rows), size=2)
        rows[a] = rng.choice([-1, 1]) * rows[b]
    return unit_rows(rows)


@given(texts(), st.integers(1, 70), st.integers(1, 80))
@settings(deadline=None)
def test_the_promised_number_of_unit_rows_and_always_the_same(
    rows: Float32, factor: int, block_rows: int
) -> None:
    pooled = pool_rows(rows, factor, block_rows=block_rows)
    assert pooled.shape == (-(-len(rows) // factor), rows.shape[1])
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(pooled, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(pool_rows(rows.copy(), factor, block_rows=block_rows), pooled)


@given(texts())
@settings(deadline=None)
def test_a_factor_of_1_changes_nothing(rows: Float32) -> None:
    np.testing.assert_array_equal(pool_rows(rows, 1), rows)


@given(texts())
@settings(deadline=None)
def test_one_row_is_never_changed(rows: Float32) -> None:
    np.testing.assert_array_equal(pool_rows(rows[:1], 4), rows[:1])


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_near_rows_meet_in_their_mean_in_the_order_of_the_first(seed: int, copies: int) -> None:
    rng = np.random.default_rng(seed)
    centres = np.eye(8)[rng.permutation(8)]
    members = rng.permutation(np.repeat(np.arange(8), copies))
    rows = unit_rows(centres[members] + rng.normal(scale=0.01, size=(len(members), 8)))
    in_order = list(dict.fromkeys(members.tolist()))
    means = unit_rows([rows[members == member].mean(axis=0) for member in in_order])
    np.testing.assert_allclose(pool_rows(rows, copies), means, atol=1e-6)


def test_rows_meet_within_their_block_only() -> None:
    rows = unit_rows(np.tile(np.eye(4), (2, 1)))
    np.testing.assert_allclose(pool_rows(rows, 2), np.eye(4))
    apart = pool_rows(rows, 2, block_rows=4)
    assert apart.shape == (4, 4)
    assert apart.max(axis=1).min() < 0.8


def test_only_long_documents_are_pooled_and_nothing_else_changes() -> None:
    world = make_world(61, documents=12)
    before = world.embeddings
    assert before.multivectors is not None
    long = long_documents(POOLED, before)
    assert 0 < long.sum() < 12
    after = pool_long(POOLED, before)
    assert after.multivectors is not None
    for rows, now, is_long in zip(before.multivectors, after.multivectors, long, strict=True):
        assert is_long == (len(rows) >= 10)
        assert len(now) == (-(-len(rows) // 3) if is_long else len(rows))
        if not is_long:
            np.testing.assert_array_equal(now, rows)
    np.testing.assert_array_equal(after.dense, before.dense)
    assert (after.sparse != before.sparse).nnz == 0  # type: ignore[union-attr]
    assert pool_long(Storage(), before) is before
    assert not long_documents(POOLED, before.replace(multivectors=None)).any()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"long_documents": "shorten"}, "shorten"),
        ({"long_documents": "pool", "pool_factor": 1}, "pool_factor is 1"),
        ({"long_documents": "pool", "pool_factor": 2.5}, "pool_factor is 2.5"),
        ({"long_documents": "pool", "pool_factor": True}, "pool_factor is True"),
        ({"long_documents": "pool", "pool_from_rows": 0}, "pool_from_rows is 0"),
        ({"pool_factor": 4}, "which does not pool"),
        ({"long_documents": "error", "pool_from_rows": 50}, "which does not pool"),
    ],
)
def test_a_storage_that_cannot_be_is_refused(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        Storage(**arguments)


def test_all_documents_can_be_pooled_except_those_of_one_row() -> None:
    every = Storage(long_documents="pool", pool_from_rows=1)
    assert [every.pools(rows) for rows in (1, 2, 300)] == [False, True, True]
    # From two rows is the same choice, so a collection of the one opens with the other.
    assert every == Storage(long_documents="pool", pool_from_rows=2)
    assert every != Storage(long_documents="pool", pool_from_rows=3)


def test_schemas_remember_how_they_pool_and_earlier_ones_still_open() -> None:
    schema = Schema(make_world(62).schema.model, storage=POOLED)
    assert Schema.from_json(schema.to_json()) == schema
    earlier = Schema(schema.model).to_json()
    earlier["storage"] = {"multivector_dtype": "float32", "long_documents": "error"}
    assert Schema.from_json(earlier).storage == Storage("float32", "error")


def test_an_index_pools_what_it_adds_and_says_so(encoder: M3Encoder) -> None:
    documents = [Document("long", "the quick brown fox " * 8), Document("short", "the lazy dog")]
    with connect("memory:", encoder=encoder, storage=POOLED) as index:
        assert index.add(documents).pooled == 1
        assert index.add(documents[1:]).pooled == 0
        long = index.explain("fox", "long").pairs
        short = index.explain("fox", "short").pairs
        assert {pair.document_token.split()[0] for pair in long} == {"row"}
        assert "row" not in {pair.document_token.split()[0] for pair in short}
    with connect("memory:", encoder=encoder) as index:
        assert index.add(documents).pooled == 0


def test_m3_index_pools_on_request_and_says_so(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "long.txt").write_text("fox " * 1024)
    (tmp_path / "notes" / "short.txt").write_text("fox " * 500)
    call = ["index", f"qdrant:{tmp_path}/store", str(tmp_path / "notes"), "--model", str(checkpoint)]
    assert main([*call, "-c", "pooled", "--long-documents", "pool"]) == 0
    assert "2 documents · 1 long, with rows pooled by 2 ·" in capsys.readouterr().out
    (tmp_path / "notes" / "long.txt").write_text("fox " * 1025)
    assert main([*call, "-c", "pooled", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pooled"] == 1
    with connect(f"qdrant:{tmp_path}/store", "pooled") as index:
        assert index.schema.storage == Storage(long_documents="pool")
    assert main([*call, "-c", "pooled", "--long-documents", "split"]) == 1
    assert "--long-documents" in capsys.readouterr().err
    assert main([*call, "-c", "other", "--long-documents", "shorten"]) == 2
    assert "shorten" in capsys.readouterr().err


def test_m3_index_pools_all_documents_of_a_compact_precision(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "short.txt").write_text("the quick brown fox")
    call = ["index", f"qdrant:{tmp_path}/store", str(tmp_path / "notes"), "--model", str(checkpoint)]
    how = ["--long-documents", "pool", "--pool-from-rows", "1", "--pool-factor", "3"]
    assert main([*call, "--multivector-dtype", "int2", *how, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pooled"] == 1
    assert main(["collections", f"qdrant:{tmp_path}/store"]) == 0
    assert "int2, long documents: pool all by 3" in " ".join(capsys.readouterr().out.split())
    with connect(f"qdrant:{tmp_path}/store", create=False) as index:
        assert index.schema.storage == Storage("int2", long_documents="pool", pool_factor=3, pool_from_rows=1)


@pytest.mark.parametrize("option", ["--pool-factor", "--pool-from-rows"])
def test_m3_index_refuses_a_choice_for_pooling_without_pooling(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("fox")
    # The value is the default of Storage, which cannot tell that it was given.
    value = str(getattr(Storage, option.removeprefix("--").replace("-", "_")))
    assert main(["index", "memory:", str(tmp_path / "a.txt"), option, value]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert option in shown
    assert f"{value} has no effect" in shown
