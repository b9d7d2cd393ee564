"""Precisions of multi-vector rows: what is encoded, what is stored, and how far it is from the rows."""

from __future__ import annotations

import base64
import dataclasses
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
from m3_connectors.blocking import connect
from m3_connectors.calibration import calibrated
from m3_connectors.embeddings import Float32, M3Embeddings, MultiVectors
from m3_connectors.errors import InvalidInput, Unsupported
from m3_connectors.scoring import multivector_scores
from m3_connectors.testing.worlds import make_world, unit_rows

each = pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
floats = pytest.mark.parametrize("precision", [FLOAT16, FLOAT32], ids=lambda precision: precision.name)
compact = pytest.mark.parametrize("precision", [INT8, INT4, INT2, INT1], ids=lambda precision: precision.name)


GOLDEN = {
    "int8": "12dc3609fb007f81027ff9613d00000000000000000000000000",
    "int4": "9768a06e07fba9003f888888880800000000",
    "int2": "1d26181b8e0f402a2a2a00000000",
    "int1": "000fd1fb9c401f0f00000000",
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
    # In whatever order it lies in memory, and in whatever batches it comes.
    assert precision.encode(np.asfortranarray(rows)) == precision.encode(rows)
    assert precision.encode(rows[:7]) + precision.encode(rows[7:]) == precision.encode(rows)


@floats
@given(unit_matrices())
def test_storing_what_was_stored_changes_nothing(precision: Precision, rows: Float32) -> None:
    rounded = precision.round(rows)
    assert precision.encode(rounded) == precision.encode(rows)
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
    back = unpack_multivectors([pack_multivector(rows, precision) for rows in texts], precision, width)
    want = precision.round(np.concatenate(texts))
    assert back.rows.tobytes() == want.tobytes()
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
        itemsize = precision.row_bytes(1)
        assert pack_multivector(rows, precision)[:16].hex() == header.format(itemsize)


@each
def test_embeddings_are_rounded_in_their_rows_only(precision: Precision) -> None:
    embeddings = make_world(5).embeddings
    for round, rounded in (
        (precision.round, precision.rounded(embeddings)),
        (precision.round_query, precision.rounded_query(embeddings)),
    ):
        assert rounded.multivectors is not None
        assert embeddings.multivectors is not None
        np.testing.assert_array_equal(rounded.multivectors.rows, round(embeddings.multivectors.rows))
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
def collections(draw: st.DrawFn) -> tuple[Float32 | None, Float32, list[Float32]]:
    """A centre or none, a query, and documents, of one width."""
    width = draw(st.integers(1, 70))
    centre = draw(st.none() | matrices(width))
    query, documents = draw(matrices(width)), draw(st.lists(matrices(width), min_size=1, max_size=5))
    return None if centre is None else centre[0], query, documents


@each
@given(collections())
def test_scores_of_bytes_are_those_of_the_definition(
    precision: Precision, world: tuple[Float32 | None, Float32, list[Float32]]
) -> None:
    centre, query, documents = world
    precision = precision.centred(centre)
    if precision is FLOAT16:
        query, documents = (np.clip(query, -6e4, 6e4), [np.clip(rows, -6e4, 6e4) for rows in documents])
    stored = MultiVectors.from_list([precision.round(rows) for rows in documents], query.shape[1])
    asked = precision.round_query(query)
    assert np.isfinite(stored.rows).all()
    assert np.isfinite(asked).all()
    got = precision.scores(query, [precision.encode(rows) for rows in documents])
    assert got.dtype == np.float32
    # Each product is off by rounding relative to the lengths of its rows (and of the centre, which both have).
    longest = [max(np.linalg.norm(rows.astype(np.float64), axis=1)) for rows in stored]
    longest = [
        length + 2 * (0 if centre is None else np.linalg.norm(centre.astype(np.float64)))
        for length in longest
    ]
    allowed = 1e-5 * np.array(longest) * np.linalg.norm(asked.astype(np.float64), axis=1).mean()
    want = multivector_scores(asked, stored)
    assert (np.abs(got.astype(np.float64) - want) <= allowed + 1e-30).all()


@compact
@given(collections())
def test_what_is_read_is_never_further_than_the_length_of_the_row(
    precision: CompactPrecision, world: tuple[Float32 | None, Float32, list[Float32]]
) -> None:
    centre, rows = world[0], np.concatenate(world[2])
    origin = np.zeros(rows.shape[1], np.float32) if centre is None else centre
    apart = rows.astype(np.float64) - origin
    read = precision.centred(centre).round(rows).astype(np.float64)
    length = np.linalg.norm(apart, axis=1)
    error = np.linalg.norm(read - rows, axis=1)
    rounding = 1e-5 * (length + np.linalg.norm(origin.astype(np.float64))) + 1e-36
    assert (error <= precision.tolerance * length + rounding).all()
    # A row at the centre, and one of zeros where there is none, is read exactly.
    np.testing.assert_array_equal(precision.centred(centre).round(origin[None]), origin[None])


@compact
@pytest.mark.parametrize("width", [64, 384, 1024])
def test_the_product_of_a_row_with_itself_is_kept_on_average(precision: CompactPrecision, width: int) -> None:
    rng = np.random.default_rng(11)
    centre = rng.normal(size=width).astype(np.float32) / np.float32(2 * width**0.5)
    rows = unit_rows(rng.normal(size=(300, width)) * rng.gamma(1, size=width) + rng.normal(size=width))
    read = precision.centred(centre).round(rows)
    apart, kept = (rows - centre).astype(np.float64), (read - centre).astype(np.float64)
    # Along the row itself, for each row: the scale is chosen for it.
    np.testing.assert_allclose((apart * kept).sum(axis=1), (apart * apart).sum(axis=1), rtol=1e-4)
    # The error grows as bits are left out, and is no more than for normally distributed values.
    error = np.linalg.norm(read - rows, axis=1) / np.linalg.norm(apart, axis=1)
    assert error.mean() < {"int8": 0.02, "int4": 0.13, "int2": 0.41, "int1": 0.8}[precision.name]


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


@compact
def test_the_schema_records_the_centre(precision: CompactPrecision) -> None:
    world = make_world(7, storage=Storage(precision.name))
    schema = world.schema
    assert schema.centre is not None
    assert isinstance(schema.precision, CompactPrecision)
    assert world.embeddings.multivectors is not None
    again = Schema.from_json(json.loads(json.dumps(schema.to_json())))
    assert again == schema
    assert isinstance(again.precision, CompactPrecision)
    np.testing.assert_array_equal(again.precision.centre, schema.precision.centre)
    for damaged in ("", "AAAA", "!", schema.centre[:-4], base64.b64encode(b"\x00\x7c" * 24).decode()):
        with pytest.raises(InvalidInput, match="centre"):
            Schema.from_json({**schema.to_json(), "centre": damaged})


def test_schemas_without_a_centre_are_written_as_before() -> None:
    for storage in (Storage(), Storage("float32"), Storage("int4", components=("dense", "sparse"))):
        schema = Schema(make_world(7).schema.model, storage)
        assert schema.centred(np.ones((1, 24), np.float32)) is schema
        assert "centre" not in schema.to_json()


class _Lines:
    """An encoder whose rows have the mean (3, 4), unless told others."""

    def __init__(self) -> None:
        self.asked = 0
        self.texts: Any = None
        self.rows: list[list[float]] = [[2, 4], [4, 4]]

    def encode(self, texts: Any, *, components: Any = ()) -> M3Embeddings:
        self.asked += 1
        self.texts = texts
        rows = np.array(self.rows, np.float32)
        return M3Embeddings(rows[:1], None, MultiVectors(rows, np.array([0, len(rows)])))


def test_a_new_collection_is_calibrated_once_and_only_where_it_matters() -> None:
    model = dataclasses.replace(make_world(7).schema.model, dimension=2)
    encoder = _Lines()
    for name in ("float16", "float32"):
        schema = Schema(model, Storage(name))  # type: ignore[arg-type]
        assert anyio.run(calibrated, schema, encoder) is schema
    assert (
        anyio.run(calibrated, Schema(model, Storage("int4", components=("dense",))), encoder).centre is None
    )
    assert encoder.asked == 0
    found = anyio.run(calibrated, Schema(model, Storage("int2")), encoder)
    assert isinstance(found.precision, CompactPrecision)
    assert found.precision.centre is not None
    assert found.precision.centre.tolist() == [3.0, 4.0]
    assert anyio.run(calibrated, found, encoder) is found
    assert encoder.asked == 1
    encoder.rows = [[2, 4], [-2, -3]]  # a centre close to 0 would make nothing better
    assert anyio.run(calibrated, Schema(model, Storage("int2")), encoder).centre is None


def test_connect_calibrates_a_new_collection_with_the_sample() -> None:
    encoder = _Lines()
    encoder.rows = [[1.0] * 24]
    encoder.info = make_world(7).schema.model  # type: ignore[attr-defined]
    with connect("memory:", encoder=encoder, sample=["one"]):  # type: ignore[arg-type]
        assert encoder.asked == 0  # float16 has no centre
    with connect("memory:", encoder=encoder, storage=Storage("int4"), sample=["one", "two"]) as index:  # type: ignore[arg-type]
        assert encoder.texts == ("one", "two")
        precision = index.schema.precision
        assert isinstance(precision, CompactPrecision)
        assert precision.centre is not None
        assert precision.centre.tolist() == [1.0] * 24


def test_one_text_is_not_a_sample_of_its_characters() -> None:
    encoder = _Lines()
    encoder.info = make_world(7).schema.model  # type: ignore[attr-defined]
    with pytest.raises(InvalidInput, match=r"sample is one string.*\n  Pass a list"):
        connect("memory:", encoder=encoder, storage=Storage("int4"), sample="one text")  # type: ignore[arg-type]
    assert encoder.asked == 0


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
