"""Precisions of multi-vector rows: what is encoded, what is stored, and how far it is from the rows."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, get_args

import anyio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_connectors import maxsim
from m3_connectors.backends.blobs import multivector_bytes, pack_multivector, unpack_multivectors
from m3_connectors.backends.capabilities import Capability
from m3_connectors.backends.checks import check_query, check_stored
from m3_connectors.backends.compact import Levels
from m3_connectors.backends.memory import MemoryBackend
from m3_connectors.backends.precision import (
    FLOAT16,
    FLOAT32,
    INT1,
    INT2,
    INT4,
    INT8,
    PRECISIONS,
    CompactPrecision,
    Precision,
    PrecisionName,
    precision_of,
)
from m3_connectors.backends.rotation import rotate, rotate_back
from m3_connectors.backends.schema import Schema, Storage
from m3_connectors.embeddings import Float32, M3Embeddings, MultiVectors
from m3_connectors.errors import InvalidInput, Unsupported
from m3_connectors.scoring import multivector_scores
from m3_connectors.testing.worlds import make_world, unit_rows

each = pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
floats = pytest.mark.parametrize("precision", [FLOAT16, FLOAT32], ids=lambda precision: precision.name)
compact = pytest.mark.parametrize("precision", [INT8, INT4, INT2, INT1], ids=lambda precision: precision.name)


GOLDEN = {
    "int8": "12dc3609fb007f81027ff9e13c12db3709fc007f8102b772e13cee24caf70500817ffe7ff9e13c",
    "int4": "fe028167f021ea23ea4c74f93c9768a06e0738ae803e68975f910809a7803e",
    "int2": "fe028167f021ea23ea4c74f93c1d26183a848f3f2219276e998f3f",
    "int1": "fe028167f021ea23ea4c74f93c000f35311d401f006cc61c40",
}


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
    # In whatever order it lies in memory, and in whatever parts it comes that are whole blocks.
    assert precision.encode(np.asfortranarray(rows)) == precision.encode(rows)
    long, block = np.resize(rows, (3 * precision.rows_together + 1, rows.shape[1])), precision.rows_together
    parts = precision.encode(long[:block]), precision.encode(long[block:])
    assert b"".join(parts) == precision.encode(long)
    assert decoded(precision, b"".join(parts), long.shape).tobytes() == precision.round(long).tobytes()


@floats
@given(unit_matrices())
def test_storing_what_was_stored_changes_nothing(precision: Precision, rows: Float32) -> None:
    rounded = precision.round(rows)
    assert precision.encode(rounded) == precision.encode(rows)
    assert precision.round(rounded).tobytes() == rounded.tobytes()


@each
@given(unit_matrices())
def test_the_bytes_of_a_row_and_the_tolerance_are_as_promised(precision: Precision, rows: Float32) -> None:
    assert len(precision.encode(rows)) == precision.encoded_bytes(*rows.shape)
    assert np.abs(precision.round(rows) - rows).max(initial=0) <= precision.tolerance


@each
@given(st.integers(0, 3000), st.integers(1, 2000), st.data())
def test_the_number_of_rows_follows_from_the_bytes(
    precision: Precision, rows: int, width: int, data: st.DataObject
) -> None:
    size, more = precision.encoded_bytes(rows, width), precision.encoded_bytes(rows + 1, width)
    assert precision.rows_within(data.draw(st.integers(size, more - 1)), width) == rows


@each
@given(st.lists(unit_matrices(), min_size=1, max_size=4))
def test_blobs_hold_the_rounded_rows(precision: Precision, matrices: list[Float32]) -> None:
    width = matrices[0].shape[1]
    texts = [rows for rows in matrices if rows.shape[1] == width]
    back = unpack_multivectors([pack_multivector(rows, precision) for rows in texts], precision, width)
    assert back.rows.tobytes() == b"".join(precision.round(rows).tobytes() for rows in texts)
    assert back.counts.tolist() == [len(rows) for rows in texts]


@floats
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


@pytest.mark.parametrize("name", ["int3", "Float16", "", None, ["float16"], np.float16])
def test_an_unknown_precision_is_refused_with_the_valid_ones(name: Any) -> None:
    with pytest.raises(
        InvalidInput,
        match=r"multivector_dtype is .*\n  Use 'float16', .*, 'int2', 'int1'\.",
    ):
        Storage(name)


def test_the_stored_bytes_are_those_of_earlier_versions() -> None:
    rows = np.array([[1.0, -2.5], [0.1, 65504.0]], dtype=np.float32)
    assert FLOAT16.encode(rows).hex() == "003c00c1662eff7b"
    assert FLOAT32.encode(rows).hex() == "0000803f000020c0cdcccc3d00e07f47"
    header = "6d330101{:02x}0000000200000002000000"
    for precision in (FLOAT16, FLOAT32):
        itemsize = precision.encoded_bytes(1, 1)
        assert pack_multivector(rows, precision)[:16].hex() == header.format(itemsize)


@each
def test_embeddings_are_rounded_in_their_rows_only(precision: Precision) -> None:
    embeddings = make_world(5).embeddings
    for round, rounded in (
        (precision.round, precision.rounded(embeddings)),
        (precision.round_query, precision.rounded_query(embeddings)),
    ):
        for got, rows in zip(rounded.multivectors, embeddings.multivectors, strict=True):
            np.testing.assert_array_equal(got, round(rows))
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


# -- compact precisions


@st.composite
def matrices(draw: st.DrawFn, width: int, least: int = 1) -> Float32:
    """Rows ``[t, width]`` of any length, among them rows of zeros, equal values, and one large value."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = rng.normal(size=(draw(st.integers(least, 12)), width))
    rows *= 10.0 ** rng.choice(
        draw(st.sampled_from([[0.0], [-3.0, 3.0], [-30.0, -20.0, 0.0, 14.0]])), (len(rows), 1)
    )
    rows[rng.random(len(rows)) < 0.1] = 0
    rows[rng.random(len(rows)) < 0.1] = rng.choice([-0.25, 1.0])
    rows[rng.random(rows.shape) < draw(st.sampled_from([0.0, 0.5, 0.95]))] = 0
    return rows.astype(np.float32)


@st.composite
def collections(draw: st.DrawFn) -> tuple[Float32, list[Float32]]:
    """A query, and documents, of one width."""
    width = draw(st.integers(1, 70))
    return draw(matrices(width)), draw(st.lists(matrices(width), min_size=1, max_size=5))


@each
@given(collections())
def test_scores_of_bytes_are_those_of_the_definition(
    precision: Precision, world: tuple[Float32, list[Float32]]
) -> None:
    query, documents = world
    if precision is FLOAT16:
        query, documents = (np.clip(query, -6e4, 6e4), [np.clip(rows, -6e4, 6e4) for rows in documents])
    stored = MultiVectors.from_list([precision.round(rows) for rows in documents], query.shape[1])
    asked = precision.round_query(query)
    assert np.isfinite(stored.rows).all()
    assert np.isfinite(asked).all()
    got = precision.scores(query, [precision.encode(rows) for rows in documents])
    assert got.dtype == np.float32
    # Each product is off by rounding relative to the lengths of its rows, and of the centre, which is no longer.
    longest = [3 * max(np.linalg.norm(rows.astype(np.float64), axis=1)) for rows in documents]
    allowed = 1e-5 * np.array(longest) * np.linalg.norm(asked.astype(np.float64), axis=1).mean()
    want = multivector_scores(asked, stored)
    assert (np.abs(got.astype(np.float64) - want) <= allowed + 1e-30).all()


@compact
@given(collections())
def test_what_is_read_is_never_further_than_the_row_is_from_the_mean(
    precision: CompactPrecision, world: tuple[Float32, list[Float32]]
) -> None:
    for rows in world[1]:
        exact, read = rows.astype(np.float64), precision.round(rows).astype(np.float64)
        mean = exact.mean(axis=0)
        error = np.linalg.norm(read - exact, axis=1)
        # The mean itself is stored in 8 bits.
        rounding = np.linalg.norm(mean) * (rows.shape[1] ** 0.5 / 127 + 1e-5) + 1e-5 * np.linalg.norm(
            exact, axis=1
        )
        assert (error <= np.linalg.norm(exact - mean, axis=1) + rounding + 1e-36).all()
    zeros = np.zeros((3, 7), np.float32)
    np.testing.assert_array_equal(precision.round(zeros), zeros)


@compact
@pytest.mark.parametrize("width", [64, 384, 1024])
def test_the_error_grows_with_the_distance_from_the_mean(precision: CompactPrecision, width: int) -> None:
    rng = np.random.default_rng(11)
    rows = unit_rows(rng.normal(size=(300, width)) * rng.gamma(1, size=width) + 2 * rng.normal(size=width))
    apart = rows - rows.mean(axis=0)
    error = np.linalg.norm(precision.round(rows) - rows, axis=1) / np.linalg.norm(apart, axis=1)
    # No more than for normally distributed values; without a centre it would be twice as much.
    assert error.mean() < {"int8": 0.025, "int4": 0.13, "int2": 0.41, "int1": 0.8}[precision.name]


@compact
def test_blobs_of_another_precision_width_or_size_are_refused(precision: CompactPrecision) -> None:
    rows = unit_rows(np.random.default_rng(3).normal(size=(3, 24)))
    blob = pack_multivector(rows, precision)
    for other in PRECISIONS.values():
        if other is not precision:
            with pytest.raises(ValueError, match=f"{precision.name} rows, not {other.name}"):
                unpack_multivectors([blob], other, 24)
    with pytest.raises(ValueError, match="width is not 25"):
        multivector_bytes([blob], precision, 25)
    for damaged in (
        blob[:-1],
        blob + b"x",
        b"m3" + bytes([2]) + blob[3:],
        blob[:4] + bytes([99]) + blob[5:],
        b"",
    ):
        with pytest.raises(ValueError, match="vector blob"):
            multivector_bytes([damaged], precision, 24)


def test_the_bytes_of_compact_rows_stay_those_of_this_version() -> None:
    rows = np.array([[1, -2, 3, 0.5, -0.25, 0, 7, -7, 0.1], [0] * 9], dtype=np.float32)
    assert {precision.name: precision.encode(rows).hex() for precision in (INT8, INT4, INT2, INT1)} == GOLDEN


@compact
def test_scores_need_rows(precision: CompactPrecision) -> None:
    rows = unit_rows(np.ones((1, 8)))
    for query, documents in ((rows[:0], [precision.encode(rows)]), (rows, [precision.encode(rows), b""])):
        with pytest.raises(InvalidInput, match="no multi-vector rows"):
            precision.scores(query, documents)
    assert precision.scores(rows, []).shape == (0,)


@each
@pytest.mark.parametrize("rows_at_once", [1, 3, 7])
def test_documents_longer_than_a_block_have_the_same_scores(
    precision: Precision, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(rows_at_once)
    query, *documents = [unit_rows(rng.normal(size=(count, 32))) for count in (5, 20, 1, 2, 9, 3)]
    encoded = [precision.encode(rows) for rows in documents]
    whole = precision.scores(query, encoded)
    monkeypatch.setattr(
        maxsim, "_BLOCK_BYTES", rows_at_once * 32 * (1 if precision.engine_dtype is None else 4)
    )
    np.testing.assert_allclose(precision.scores(query, encoded), whole, atol=1e-6)
    # The rows may lie in any buffer, as a reader of a response finds them.
    loose = [memoryview(bytearray(b"xxx" + part))[3:] for part in encoded]
    np.testing.assert_allclose(precision.scores(query, loose), whole, atol=1e-6)


@pytest.mark.parametrize("width", [1, 2, 3, 24, 384, 1000, 1024])
def test_the_rotation_keeps_products_and_is_undone(width: int) -> None:
    rows = unit_rows(np.random.default_rng(width).normal(size=(9, width)))
    np.testing.assert_allclose(rotate(rows) @ rotate(rows).T, rows @ rows.T, atol=2e-6)
    np.testing.assert_allclose(rotate_back(rotate(rows)), rows, atol=2e-6)
    if width >= 24:  # a single large value is spread over all
        spread = rotate(np.eye(width, dtype=np.float32))
        assert np.abs(spread).max() < 0.75


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
@pytest.mark.parametrize("width", [5, 64, 1024])
def test_both_kernels_give_the_same_bits(bits: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    assert maxsim._multiplies(torch), "this torch is not used for codes; the other tests ran with numpy"
    rng = np.random.default_rng(bits)
    levels = Levels(bits, 2.0)
    query = rng.integers(-127, 128, (6, width), dtype=np.int8)
    documents = [
        levels.pack(*levels.quantise(unit_rows(rng.normal(size=(count, width))))) for count in (1, 5000, 2)
    ]
    fast = maxsim.code_maxima(query, documents, bits)
    monkeypatch.setattr(maxsim, "_loaded_torch", lambda: None)
    np.testing.assert_array_equal(fast, maxsim.code_maxima(query, documents, bits))


def test_a_broken_product_of_torch_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")

    class Broken:
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        def _int_mm(self, a: Any, b: Any) -> Any:
            return torch._int_mm(a, b) + 1

    assert not maxsim._multiplies(Broken())
    monkeypatch.setattr(maxsim, "_loaded_torch", Broken)
    rows = unit_rows(np.random.default_rng(0).normal(size=(4, 32)))
    assert INT8.scores(rows, [INT8.encode(rows)]) == pytest.approx(1.0, abs=0.02)


def test_scoring_does_not_import_torch() -> None:
    code = (
        "import sys, numpy as np\n"
        "from m3_connectors.backends.precision import PRECISIONS\n"
        "rows = np.eye(8, dtype=np.float32)\n"
        "print([float(p.scores(rows[:1], [p.encode(rows)])[0]) > 0.9 for p in PRECISIONS.values()])\n"
        "assert 'torch' not in sys.modules\n"
        "sys.modules['torch'] = None  # its import is forbidden\n"
        "assert all(len(p.scores(rows[:1], [p.encode(rows)])) == 1 for p in PRECISIONS.values())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([True] * len(PRECISIONS))


def test_a_store_that_cannot_hold_a_precision_says_so_before_it_creates() -> None:
    class Plain(MemoryBackend):
        capabilities = MemoryBackend.capabilities - {Capability.COMPACT}

    async def refused() -> None:
        backend = Plain("c")
        world = make_world(7, storage=Storage("int4"))
        with pytest.raises(Unsupported, match=r'int8.*COMPACT(.|\n)*Use multivector_dtype="float16"'):
            await backend.create(world.schema)
        assert await backend.collections() == []
        await backend.create(make_world(7).schema)

    anyio.run(refused)
