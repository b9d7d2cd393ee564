"""M3Embeddings: slicing, joining, saving, and what is refused."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from m3_connectors.embeddings import COMPONENTS, M3Embeddings, ModelInfo, MultiVectors
from m3_connectors.errors import InvalidInput

MODEL = ModelInfo("some/model", "0123456789", 3, 20, "abc", "def")
WIDTH = 3


def equal(a: M3Embeddings, b: M3Embeddings) -> bool:
    if a.components != b.components or a.model != b.model or len(a) != len(b):
        return False
    same = [np.array_equal(a.truncated, b.truncated)]
    for ours, theirs in ((a.token_counts, b.token_counts), (a.kept_token_counts, b.kept_token_counts)):
        same.append((ours is None) == (theirs is None))
        same.append(ours is None or theirs is None or np.array_equal(ours, theirs))
    if "dense" in a.components:
        same.append(a.dense.dtype == b.dense.dtype and np.array_equal(a.dense, b.dense))
    if "sparse" in a.components:
        same.append(a.sparse.shape == b.sparse.shape and a.sparse.dtype == b.sparse.dtype)
        same.append(np.array_equal(a.sparse.toarray(), b.sparse.toarray()))
    if "multivector" in a.components:
        same.append(np.array_equal(a.multivectors.rows, b.multivectors.rows))
        same.append(np.array_equal(a.multivectors.offsets, b.multivectors.offsets))
    return all(same)


@st.composite
def embeddings(draw: st.DrawFn, components: tuple[str, ...] | None = None) -> M3Embeddings:
    n = draw(st.integers(0, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    chosen = components or draw(st.sets(st.sampled_from(COMPONENTS), min_size=1))
    counts = rng.integers(0, 4, size=n)
    return M3Embeddings(
        rng.normal(size=(n, WIDTH)).astype(np.float32) if "dense" in chosen else None,
        sp.csr_array((rng.random((n, 20)) * (rng.random((n, 20)) < 0.2)).astype(np.float32))
        if "sparse" in chosen
        else None,
        MultiVectors.from_list([rng.normal(size=(count, WIDTH)) for count in counts], WIDTH)
        if "multivector" in chosen
        else None,
        rng.random(n) < 0.3,
        draw(st.sampled_from([None, MODEL])),
        *draw(st.sampled_from([(None, None), (rng.integers(9, 99, size=n), rng.integers(2, 9, size=n))])),
    )


@given(embeddings(), st.data())
def test_parts_join_to_the_whole(whole: M3Embeddings, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=4)))
    parts = [whole[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert sum(len(part) for part in parts) == len(whole)
    assert equal(M3Embeddings.concatenate(parts), whole)
    if len(whole):
        assert equal(M3Embeddings.concatenate(list(whole)), whole)


@given(embeddings(), st.slices(6))
def test_a_slice_is_that_of_a_list(whole: M3Embeddings, at: slice) -> None:
    part = whole[at]
    chosen = range(len(whole))[at]
    assert len(part) == len(chosen)
    for got, i in zip(part, chosen, strict=True):
        assert equal(got, whole[i])


@given(embeddings(), st.integers(-8, 8))
def test_an_index_gives_a_batch_of_one(whole: M3Embeddings, i: int) -> None:
    if -len(whole) <= i < len(whole):
        assert len(whole[i]) == 1
        assert equal(whole[i], whole[i % len(whole)])
    else:
        with pytest.raises(IndexError):
            whole[i]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(embeddings())
def test_a_saved_file_loads_equal(tmp_path: Path, whole: M3Embeddings) -> None:
    path = tmp_path / "batch.safetensors"
    whole.save(path)
    assert equal(M3Embeddings.load(path), whole)
    assert equal(M3Embeddings.from_bytes(path.read_bytes()), whole)
    assert [file.name for file in tmp_path.iterdir()] == ["batch.safetensors"]


def test_a_slice_can_be_saved(tmp_path: Path) -> None:
    # Views into a larger array are not contiguous files by themselves.
    whole = M3Embeddings(np.arange(30, dtype=np.float32).reshape(10, 3))
    whole[2:9:3].save(tmp_path / "part")
    assert equal(M3Embeddings.load(tmp_path / "part"), whole[2:9:3])


@pytest.mark.parametrize("content", [b"", b"not a file of tensors", b"\x00" * 100, b"\x80\x04]\x94."])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match="was not written by M3Embeddings"):
        M3Embeddings.load(path)
    with pytest.raises(InvalidInput, match="bytes are not what M3Embeddings"):
        M3Embeddings.from_bytes(content)
    with pytest.raises(FileNotFoundError):
        M3Embeddings.load(tmp_path / "nowhere")


def test_safetensors_of_someone_else_are_refused(tmp_path: Path) -> None:
    save_file({"dense": np.zeros((1, 3), dtype=np.float32)}, tmp_path / "other")
    with pytest.raises(InvalidInput, match="was not written by M3Embeddings"):
        M3Embeddings.load(tmp_path / "other")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    beyond = sp.csr_array((np.ones(1, np.float32), [7], [0, 1]), shape=(1, 8))
    M3Embeddings(sparse=beyond).save(tmp_path / "good")
    tensors, header = load_file(tmp_path / "good"), '"vocabulary_size": %d'
    for change in (
        {"sparse.indices": np.array([8])},
        {"truncated": None},
        {"sparse.indptr": np.array([0, 5])},
    ):
        kept = {name: tensor for name, tensor in {**tensors, **change}.items() if tensor is not None}
        metadata = {"m3_connectors": '{"format": "M3Embeddings/1", "model": null, ' + header % 8 + "}"}
        save_file(kept, tmp_path / "bad", metadata=metadata)
        with pytest.raises(InvalidInput, match="is damaged"):
            M3Embeddings.load(tmp_path / "bad")
        with pytest.raises(InvalidInput, match="are not what"):
            M3Embeddings.from_bytes((tmp_path / "bad").read_bytes())


@pytest.mark.parametrize(
    ("change", "matches"),
    [
        ({}, True),
        ({"name": "renamed", "revision": None}, True),  # the fingerprint of the weights decides
        ({"weights_fingerprint": "other"}, False),
        ({"vocabulary_fingerprint": "other"}, False),
        ({"dimension": 4}, False),
        ({"weights_fingerprint": None}, True),
        ({"weights_fingerprint": None, "name": "other"}, False),
        ({"weights_fingerprint": None, "revision": "other"}, False),
        ({"weights_fingerprint": None, "revision": None}, True),
    ],
)
def test_models_match_where_their_vectors_can_be_compared(change: dict[str, Any], matches: bool) -> None:
    other = dataclasses.replace(MODEL, **change)
    assert MODEL.matches(other) is matches
    assert other.matches(MODEL) is matches


def test_a_text_beyond_the_last_is_named() -> None:
    with pytest.raises(IndexError, match="text 5 is out of range for 2 texts"):
        M3Embeddings(DENSE)[5]


def test_a_failed_save_leaves_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "batch"
    first = M3Embeddings(np.ones((1, 3), dtype=np.float32))
    first.save(path)

    def full(*arguments: Any, **options: Any) -> None:
        Path(arguments[1]).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("m3_connectors.embeddings.save_file", full)
    with pytest.raises(OSError, match="no space"):
        M3Embeddings(np.zeros((2, 3), dtype=np.float32)).save(path)
    assert equal(M3Embeddings.load(path), first)
    assert [file.name for file in tmp_path.iterdir()] == ["batch"]


DENSE = np.ones((2, 3), dtype=np.float32)


@pytest.mark.parametrize(
    "make",
    [
        lambda: M3Embeddings(),
        lambda: M3Embeddings(DENSE.astype(np.float64)),
        lambda: M3Embeddings(DENSE[0]),
        lambda: M3Embeddings(DENSE, sp.csr_array((3, 5), dtype=np.float32)),
        lambda: M3Embeddings(sparse=sp.csr_array((3, 5), dtype=np.float64)),
        lambda: M3Embeddings(DENSE, truncated=np.zeros(3, dtype=bool)),
        lambda: M3Embeddings(DENSE, token_counts=np.zeros(3, dtype=np.int64)),
        lambda: MultiVectors(DENSE, np.array([0, 1])[:1]),
        lambda: MultiVectors(DENSE, np.array([0, 2, 1, 2])),
        lambda: MultiVectors(DENSE, np.array([1, 2])),
        lambda: MultiVectors(DENSE, np.array([0, 2], dtype=np.int32)),
        lambda: MultiVectors(DENSE.astype(np.float16), np.array([0, 2])),
        lambda: MultiVectors.from_list([np.ones((4, 6))], 8),
        lambda: MultiVectors.from_list([np.ones(8)], 8),
        lambda: M3Embeddings([[1.0]]),  # type: ignore[arg-type]
        lambda: M3Embeddings(DENSE, truncated=[True, False]),  # type: ignore[arg-type]
        lambda: M3Embeddings(DENSE).save("no/such/folder/file"),
        lambda: M3Embeddings(DENSE).save("."),
        lambda: M3Embeddings.concatenate([]),
        lambda: M3Embeddings.concatenate([M3Embeddings(DENSE), M3Embeddings(DENSE, model=MODEL)]),
        lambda: M3Embeddings.concatenate(
            [M3Embeddings(DENSE), M3Embeddings(sparse=sp.csr_array((1, 5), dtype=np.float32))]
        ),
        lambda: M3Embeddings(DENSE).lexical_weights(0, None),  # type: ignore[arg-type]
    ],
)
def test_what_does_not_fit_is_refused(make: Any) -> None:
    with pytest.raises(InvalidInput):
        make()


def test_any_sparse_format_becomes_csr() -> None:
    kept = M3Embeddings(sparse=sp.coo_array(np.eye(3, dtype=np.float32)))  # type: ignore[arg-type]
    assert isinstance(kept.sparse, sp.csr_array)
    assert kept.components == ("sparse",)


def test_a_component_that_was_not_asked_for_says_so() -> None:
    only_dense = M3Embeddings(DENSE)
    for name, component in (("sparse", "sparse"), ("multivectors", "multivector")):
        with pytest.raises(InvalidInput, match=f"have no {component} component, only dense") as raised:
            getattr(only_dense, name)
        assert f"Encode with components=('dense', '{component}')" in str(raised.value)
    with pytest.raises(InvalidInput, match="have no dense component"):
        M3Embeddings(sparse=sp.csr_array((3, 5), dtype=np.float32)).dense  # noqa: B018
    assert repr(only_dense) == "<M3Embeddings of 2 texts: dense; unknown model>"


def test_embeddings_do_not_change() -> None:
    embeddings = M3Embeddings(DENSE)
    for name in ("dense", "model", "anything"):
        with pytest.raises(AttributeError):
            setattr(embeddings, name, None)
    other = embeddings.replace(model=MODEL, truncated=np.array([True, False]))
    assert (other.model, other.truncated_count, embeddings.model, embeddings.truncated_count) == (
        MODEL,
        1,
        None,
        0,
    )
    assert other.dense is embeddings.dense
    assert pickle.loads(pickle.dumps(other)).model == MODEL


def test_a_file_without_token_counts_loads(tmp_path: Path) -> None:
    M3Embeddings(DENSE).save(tmp_path / "file")
    assert "token_counts" not in load_file(tmp_path / "file")  # as files were before there were counts
    assert M3Embeddings.load(tmp_path / "file").token_counts is None


def test_truncated_texts_are_counted() -> None:
    assert M3Embeddings(DENSE, truncated=np.array([True, False])).truncated_count == 1
    assert M3Embeddings(DENSE).truncated_count == 0


def test_lexical_weights_are_readable_and_heaviest_first() -> None:
    class Words:
        def id_to_token(self, id: int) -> str | None:
            return {1: "▁fox", 2: "▁lake", 4: "▁the"}.get(id)

    weights = np.array([[0, 0.25, 0.5, 0.125, 0], [0, 0, 0, 0, 1]], dtype=np.float32)
    embeddings = M3Embeddings(sparse=sp.csr_array(weights))
    assert list(embeddings.lexical_weights(0, Words()).items()) == [
        ("▁lake", 0.5),
        ("▁fox", 0.25),
        ("<3>", 0.125),
    ]
    assert embeddings.lexical_weights(-1, Words()) == {"▁the": 1.0}


def test_rows_are_those_of_their_text() -> None:
    matrices = [np.full((n, 2), n, dtype=np.float32) for n in (2, 1, 3)]
    joined = MultiVectors.from_list(matrices, 2)
    assert joined.counts.tolist() == [2, 1, 3]
    for got, want in zip(joined, matrices, strict=True):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(joined[-1], matrices[-1])
    np.testing.assert_array_equal(joined[::-1][0], matrices[-1])
    assert len(MultiVectors.from_list([], 2)) == 0


def test_a_model_is_named_with_its_revision_and_width() -> None:
    assert str(MODEL) == "some/model@0123456 (3 dims)"
    assert str(dataclasses.replace(MODEL, revision=None)) == "some/model (3 dims)"
