"""Precisions of multi-vector rows: what is encoded, what is stored, and how far it is from the rows."""

from __future__ import annotations

import json
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_connectors.backends.blobs import pack_multivector, unpack_multivectors
from m3_connectors.backends.checks import check_query, check_stored
from m3_connectors.backends.precision import (
    FLOAT16,
    FLOAT32,
    PRECISIONS,
    Precision,
    PrecisionName,
    precision_of,
)
from m3_connectors.backends.schema import Schema, Storage
from m3_connectors.embeddings import Float32, M3Embeddings, MultiVectors
from m3_connectors.errors import InvalidInput
from m3_connectors.testing.worlds import make_world, unit_rows

each = pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)


@st.composite
def unit_matrices(draw: st.DrawFn) -> Float32:
    """Unit rows ``[t, d]`` with a few values that are nearly 0 or nearly 1, also for t = 0."""
    rows, width = draw(st.integers(0, 20)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([0, 1, 4, 12]))
    values = rng.normal(size=(rows, width)) * 10.0 ** -rng.uniform(0, spread, size=(rows, width))
    return np.ascontiguousarray(unit_rows(values), dtype=np.float32)


def decoded(precision: Precision, encoded: bytes, shape: tuple[int, ...]) -> Float32:
    into = np.full(shape, np.nan, dtype=np.float32)
    precision.decode(encoded, into)
    return into


@each
@given(unit_matrices())
def test_decoded_rows_are_the_rounded_rows_bit_for_bit(precision: Precision, rows: Float32) -> None:
    rounded = precision.round(rows)
    assert rounded.dtype == np.float32
    back = decoded(precision, precision.encode(rows), rows.shape)
    np.testing.assert_array_equal(back.view(np.uint32), rounded.view(np.uint32))
    # What was stored is not changed by storing it again, in whatever order it lies in memory.
    assert precision.encode(np.asfortranarray(rounded)) == precision.encode(rows)
    assert precision.round(rounded).tobytes() == rounded.tobytes()


@each
@given(unit_matrices())
def test_the_bytes_of_a_row_and_the_tolerance_are_as_promised(precision: Precision, rows: Float32) -> None:
    assert len(precision.encode(rows)) == len(rows) * precision.row_bytes(rows.shape[1])
    assert np.abs(precision.round(rows) - rows).max(initial=0) <= precision.tolerance


@each
@given(st.lists(unit_matrices(), min_size=1, max_size=4))
def test_blobs_hold_the_rounded_rows(precision: Precision, matrices: list[Float32]) -> None:
    width = matrices[0].shape[1]
    texts = [rows for rows in matrices if rows.shape[1] == width]
    back = unpack_multivectors([pack_multivector(rows, precision) for rows in texts], width)
    want = precision.round(np.concatenate(texts))
    assert back.rows.tobytes() == want.tobytes()
    assert back.counts.tolist() == [len(rows) for rows in texts]


@each
@given(unit_matrices())
def test_the_digits_determine_what_is_stored(precision: Precision, rows: Float32) -> None:
    rounded = precision.round(rows)
    digits = precision.digits or 9
    sent = np.array([float(f"{value:.{digits - 1}e}") for value in rounded.flat], dtype=np.float32)
    assert precision.round(sent.reshape(rows.shape)).tobytes() == rounded.tobytes()


def test_each_precision_has_a_name_and_a_code_of_its_own() -> None:
    assert tuple(PRECISIONS) == get_args(PrecisionName)
    assert len({precision.code for precision in PRECISIONS.values()}) == len(PRECISIONS)
    for name in PRECISIONS:
        assert precision_of(name).name == name
        assert Storage(name).precision is precision_of(name)
        assert json.loads(json.dumps(make_world(1, storage=Storage(name)).schema.to_json()))["storage"][
            "multivector_dtype"
        ] == name  # fmt: skip


@pytest.mark.parametrize("name", ["int8", "Float16", "", None, ["float16"], np.float16])
def test_an_unknown_precision_is_refused_with_the_valid_ones(name: Any) -> None:
    with pytest.raises(InvalidInput, match=r"multivector_dtype is .*\n  Use 'float16' or 'float32'\."):
        Storage(name)


def test_the_stored_bytes_are_those_of_earlier_versions() -> None:
    rows = np.array([[1.0, -2.5], [0.1, 65504.0]], dtype=np.float32)
    assert FLOAT16.encode(rows).hex() == "003c00c1662eff7b"
    assert FLOAT32.encode(rows).hex() == "0000803f000020c0cdcccc3d00e07f47"
    header = "6d330101{:02x}0000000200000002000000"
    for precision in (FLOAT16, FLOAT32):
        itemsize = precision.row_bytes(1)
        assert pack_multivector(rows, precision)[:16].hex() == header.format(itemsize)


@each
def test_embeddings_are_rounded_in_their_rows_only(precision: Precision) -> None:
    embeddings = make_world(5).embeddings
    for rounded in (precision.rounded(embeddings), precision.rounded_query(embeddings)):
        assert rounded.multivectors is not None
        assert embeddings.multivectors is not None
        np.testing.assert_array_equal(
            rounded.multivectors.rows, precision.round(embeddings.multivectors.rows)
        )
        np.testing.assert_array_equal(rounded.multivectors.offsets, embeddings.multivectors.offsets)
        assert rounded.dense is embeddings.dense
        assert rounded.sparse is not None
        assert embeddings.sparse is not None
        assert (rounded.sparse != embeddings.sparse).nnz == 0
    assert precision.rounded(M3Embeddings(dense=embeddings.dense)).components == ("dense",)


@each
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e16])
def test_what_no_precision_holds_is_refused(precision: Precision, bad: float) -> None:
    schema, embeddings = with_value(precision, bad)
    with pytest.raises(InvalidInput, match=r"multivectors has"):
        check_stored(schema, "c", len(embeddings), embeddings)
    with pytest.raises(InvalidInput, match=r"query\.multivectors has"):
        check_query(schema, "c", ("multivector",), embeddings[0])


@each
def test_the_largest_value_is_stored_and_more_is_refused(precision: Precision) -> None:
    largest = min(precision.largest, 1e15)
    schema, embeddings = with_value(precision, np.float32(largest) if largest < 1e15 else 9e14)
    check_stored(schema, "c", len(embeddings), embeddings)
    schema, embeddings = with_value(precision, 1.01 * largest)
    what = f"which {precision.name} cannot hold" if largest < 1e15 else "overflow"
    with pytest.raises(InvalidInput, match=what):
        check_stored(schema, "c", len(embeddings), embeddings)


def with_value(precision: Precision, value: float) -> tuple[Schema, M3Embeddings]:
    world = make_world(3, documents=2, storage=Storage(precision.name))
    assert world.embeddings.multivectors is not None
    rows = world.embeddings.multivectors.rows.copy()
    rows[0, 1] = value
    return world.schema, world.embeddings.replace(
        multivectors=MultiVectors(rows, world.embeddings.multivectors.offsets)
    )
