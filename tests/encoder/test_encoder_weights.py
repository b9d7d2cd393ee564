"""Weights: what is not a finite number is refused by file and tensor, shards are joined, narrow heads are padded."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from m3_connectors import scoring
from m3_connectors.encoder import M3Encoder, heads, loading, tokens
from m3_connectors.encoder.model import M3Model
from m3_connectors.encoder.weights import StoredTensor, checked
from m3_connectors.errors import ModelFormat
from m3_connectors.testing.checkpoints import SMALL, TEXTS

MIDDLE = "encoder.layer.0.intermediate.dense.weight"


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "model"))


def change_head(directory: Path, head: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    state = torch.load(directory / f"{head}.pt", weights_only=True)
    change(state)
    torch.save(state, directory / f"{head}.pt")


def change_backbone(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    state = load_file(directory / "model.safetensors")
    change(state)
    save_file(state, directory / "model.safetensors")


def refused(directory: Path, **options: str) -> str:
    with pytest.raises(ModelFormat) as caught:
        M3Encoder(directory, device="cpu", **({"precision": "float32"} | options))  # type: ignore[arg-type]
    said = str(caught.value)
    assert len(said.splitlines()) == 2
    assert said.splitlines()[1].startswith("  ")
    return said.splitlines()[0]


def values(part: str, *, at: object = ..., value: float = 0.0) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(state: dict[str, torch.Tensor]) -> None:
        state[part][at] = value  # type: ignore[index]

    return change


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("head", ["sparse_linear", "colbert_linear"])
def test_a_head_that_is_not_finite_is_named(copy: Path, head: str, value: float) -> None:
    change_head(copy, head, values("weight", at=(0, slice(3)), value=value))
    said = refused(copy)
    assert f"{head}.pt: 3 of the" in said
    assert f"{head}.weight are NaN or infinite" in said


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "name", ["embeddings.word_embeddings.weight", MIDDLE, "encoder.layer.1.output.LayerNorm.bias"]
)
def test_a_backbone_that_is_not_finite_is_named(copy: Path, name: str, value: float) -> None:
    change_backbone(copy, values(name, at=-1, value=value))
    said = refused(copy)
    assert "model.safetensors: " in said
    assert f"{name} are NaN or infinite" in said


def test_a_tensor_that_the_model_does_not_use_may_hold_anything(copy: Path) -> None:
    change_backbone(copy, lambda state: state.update({"pooler.dense.weight": torch.full((2, 2), torch.nan)}))
    assert len(M3Encoder(copy, device="cpu").encode(["a"])) == 1


@pytest.mark.parametrize("head", ["sparse_linear", "colbert_linear"])
def test_a_head_of_zeros_is_refused(copy: Path, head: str) -> None:
    change_head(copy, head, values("weight"))
    assert f"values of {head}.weight are 0" in refused(copy)


def test_a_matrix_of_zeros_is_refused_and_a_bias_of_zeros_is_not(copy: Path) -> None:
    change_head(copy, "colbert_linear", values("bias"))
    change_backbone(copy, values("embeddings.token_type_embeddings.weight"))
    change_backbone(copy, values(MIDDLE.replace("weight", "bias")))
    M3Encoder(copy, device="cpu")
    change_backbone(copy, values(MIDDLE))
    assert f"values of {MIDDLE} are 0" in refused(copy)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_a_dtype_that_is_none_of_weights_is_named(copy: Path, dtype: torch.dtype) -> None:
    def change(state: dict[str, torch.Tensor]) -> None:
        state["weight"] = state["weight"].to(dtype)

    change_head(copy, "sparse_linear", change)
    said = refused(copy)
    assert f"sparse_linear.weight is {str(dtype).removeprefix('torch.')}" in said


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_every_floating_dtype_loads(copy: Path, dtype: torch.dtype) -> None:
    def change(state: dict[str, torch.Tensor]) -> None:
        for name in state:
            state[name] = state[name].to(dtype)

    change_backbone(copy, change)
    change_head(copy, "colbert_linear", change)
    assert len(M3Encoder(copy, device="cpu", precision="float32").encode(["a"])) == 1


def test_a_value_too_large_for_the_precision_asked_for_is_named(tmp_path: Path) -> None:
    large = StoredTensor(
        "sparse_linear.weight", torch.tensor([[70_000.0, 1.0]]), tmp_path / "sparse_linear.pt"
    )
    assert checked(large, torch.Size([1, 2]), torch.float32)[0, 0] == 70_000
    with pytest.raises(
        ModelFormat, match=r"1 of the 2 values of sparse_linear.weight are too large for float16"
    ):
        checked(large, torch.Size([1, 2]), torch.float16)


@given(
    st.lists(st.floats(width=32), min_size=1, max_size=40), st.sampled_from([torch.float32, torch.bfloat16])
)
def test_a_weight_is_taken_if_all_its_values_are_finite_and_one_is_not_0(
    numbers: list[float], dtype: torch.dtype
) -> None:
    tensor = torch.tensor(numbers, dtype=torch.float32)
    stored = StoredTensor("x.weight", tensor, Path("file"))
    wanted = tensor.to(dtype)
    if torch.isfinite(wanted).all() and wanted.any():
        taken = checked(stored, tensor.shape, dtype)
        assert torch.equal(taken, wanted)
        assert taken.data_ptr() != tensor.data_ptr()
    else:
        with pytest.raises(ModelFormat, match=r"file: .* x\.weight"):
            checked(stored, tensor.shape, dtype)


@pytest.mark.parametrize("component", ["dense", "sparse", "multivector"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_numbers_that_overflow_while_encoding_are_an_error_and_never_nan(
    copy: Path, component: str, precision: str
) -> None:
    # Every weight is finite; the products of the first layer are not.
    change_backbone(copy, values("embeddings.LayerNorm.weight", value=1e38))
    encoder = M3Encoder(copy, device="cpu", precision=precision)  # type: ignore[arg-type]
    with pytest.raises(ModelFormat, match=rf"in {precision} computed no usable .* for texts\[0\]") as caught:
        encoder.encode(["lake"], components=(component,))  # type: ignore[arg-type]
    assert "float32" in str(caught.value).splitlines()[1]


@pytest.mark.parametrize(
    ("head", "what"),
    [
        ("dense_vectors", "dense vector"),
        ("token_weights", "sparse weights"),
        ("multivector_rows", "multi-vector"),
    ],
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_the_text_without_usable_numbers_is_named(
    encoder: M3Encoder, monkeypatch: pytest.MonkeyPatch, head: str, what: str, value: float
) -> None:
    real = getattr(heads, head)

    def overflowing(hidden: torch.Tensor, *rest: object) -> torch.Tensor:
        result: torch.Tensor = real(hidden, *rest)
        if len(hidden) < 50:  # the second window; its shortest text comes last
            result[-1] = value
        return result

    monkeypatch.setattr(heads, head, overflowing)
    texts = [*["lazy dog over"] * 1024, "fox", "quick brown fox"]  # 1,024 texts are a window
    with pytest.raises(ModelFormat, match=rf"no usable {what} for texts\[1024\] \(3 tokens: .*fox …\)"):
        encoder.encode(texts)
    assert len(encoder.encode(texts[:1024])) == 1024


def test_a_vector_of_norm_zero_is_refused(encoder: M3Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "multivector_rows", lambda hidden, _: torch.zeros(len(hidden), 32))
    with pytest.raises(ModelFormat, match="computed no usable multi-vector"):
        encoder.encode(["fox"])
    assert encoder.encode(["fox"], components=("dense", "sparse")).components == ("dense", "sparse")


# Shards


def shard(
    directory: Path, count: int = 3, *, stem: str = "model", ending: str = "safetensors"
) -> dict[str, str]:
    """Cut the backbone into shards; the index's weight map."""
    state = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for number in range(count):
        name = f"{stem}-{number + 1:05}-of-{count:05}.{ending}"
        part = {key: state[key] for key in sorted(state)[number::count]}
        save_file(part, directory / name) if ending == "safetensors" else torch.save(part, directory / name)
        weight_map |= dict.fromkeys(part, name)
    write_index(directory, weight_map, f"{stem}.{ending}")
    return weight_map


def write_index(directory: Path, weight_map: object, of: str = "model.safetensors") -> None:
    (directory / f"{of}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize(("stem", "ending"), [("model", "safetensors"), ("pytorch_model", "bin")])
def test_shards_give_the_same_model(copy: Path, encoder: M3Encoder, stem: str, ending: str) -> None:
    shard(copy, stem=stem, ending=ending)
    other = M3Encoder(copy, device="cpu", precision="float32")
    assert other.info.weights_fingerprint == encoder.info.weights_fingerprint
    texts = list(TEXTS.values())
    ours, theirs = encoder.encode(texts), other.encode(texts)
    np.testing.assert_array_equal(ours.dense, theirs.dense)
    assert ours.multivectors is not None
    assert theirs.multivectors is not None
    np.testing.assert_array_equal(ours.multivectors.rows, theirs.multivectors.rows)


def test_a_missing_shard_is_named(copy: Path) -> None:
    shard(copy)
    (copy / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors is missing: model.safetensors.index.json lists it" in refused(
        copy
    )


def test_a_damaged_shard_is_named(copy: Path) -> None:
    shard(copy)
    path = copy / "model-00003-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model-00003-of-00003.safetensors cannot be read" in refused(copy)


def test_nan_in_a_shard_is_named_with_the_shard(copy: Path) -> None:
    name = shard(copy)[MIDDLE]
    state = load_file(copy / name)
    state[MIDDLE][0, 0] = torch.nan
    save_file(state, copy / name)
    assert f"{name}: 1 of the" in refused(copy)


def test_an_index_that_lists_what_its_shard_lacks_is_refused(copy: Path) -> None:
    weight_map = shard(copy)
    other = next(name for name in weight_map.values() if name != weight_map[MIDDLE])
    write_index(copy, weight_map | {MIDDLE: other})
    said = refused(copy)
    assert f"{other} lacks 1 tensors that model.safetensors.index.json lists for it" in said
    assert MIDDLE in said


def test_an_index_that_lists_too_little_is_refused(copy: Path) -> None:
    weight_map = shard(copy)
    del weight_map[MIDDLE]
    write_index(copy, weight_map)
    assert f"model.safetensors.index.json lacks 1 tensors, such as {MIDDLE}" in refused(copy)


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/outside.safetensors",
        "sub/in.safetensors",
        "..\\out.safetensors",
        "C:x.safetensors",
        "model.bin",
        "",
        "..",
        3,
        None,
        "x\0.safetensors",
    ],
)
def test_a_shard_is_a_file_beside_the_index(copy: Path, name: object) -> None:
    weight_map: dict[str, object] = {**shard(copy)}
    shutil.copy(copy / str(weight_map[MIDDLE]), copy.parent / "outside.safetensors")
    write_index(copy, weight_map | {MIDDLE: name})
    said = refused(copy)
    assert f"the shard of {MIDDLE} is {name!r}" in said


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', "[" * 100_000]
)
def test_an_invalid_index_file_is_named(copy: Path, content: str) -> None:
    shard(copy)
    (copy / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json" in refused(copy)


# Narrow multi-vectors


@pytest.mark.parametrize("width", [2, 8, 31])
def test_a_narrower_multi_vector_head_is_padded_and_scores_as_it_should(
    copy: Path, encoder: M3Encoder, width: int
) -> None:
    def cut(state: dict[str, torch.Tensor]) -> None:
        for part in state:
            state[part] = state[part][:width].clone()

    change_head(copy, "colbert_linear", cut)
    narrow = M3Encoder(copy, device="cpu", precision="float32")
    texts = list(TEXTS.values())
    wide, ours = encoder.encode(texts), narrow.encode(texts)
    assert ours.multivectors is not None
    assert wide.multivectors is not None
    assert ours.multivectors.dimension == narrow.info.dimension
    rows = ours.multivectors.rows
    assert not rows[:, width:].any()
    head = torch.load(copy / "colbert_linear.pt", weights_only=True)
    assert head["weight"].shape[0] == width
    np.testing.assert_allclose(np.linalg.norm(rows[:, :width], axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(ours.dense, wide.dense)
    late = (ours.multivectors[0][:, :width] @ ours.multivectors[1][:, :width].T).max(1).mean()
    assert scoring.score("multivector", ours[0], ours)[1] == pytest.approx(late, abs=1e-6)
    if width < 31:
        assert narrow.info.weights_fingerprint != encoder.info.weights_fingerprint


def test_a_wider_multi_vector_head_says_what_is_supported(copy: Path) -> None:
    def widen(state: dict[str, torch.Tensor]) -> None:
        state["weight"], state["bias"] = torch.ones(48, 32), torch.ones(48)

    change_head(copy, "colbert_linear", widen)
    assert (
        "colbert_linear.weight is [48, 32], for multi-vectors with 48 dimensions, more than the 32"
        in refused(copy)
    )


def test_a_narrow_head_whose_bias_does_not_fit_is_refused(copy: Path) -> None:
    change_head(copy, "colbert_linear", lambda state: state.update({"weight": state["weight"][:8].clone()}))
    assert "colbert_linear.bias is [32]" in refused(copy)


# The rest of what is read


@pytest.mark.parametrize(
    "content", ['{"all": [NaN, 1, 1]}', '{"all": [1, -1, 1]}', '{"all": [0, 0, 0]}', '{"al": [1, 1, 1]}']
)
def test_invalid_weights_are_named(copy: Path, content: str) -> None:
    (copy / "weights.json").write_text(content)
    assert "weights.json is not a weights file" in refused(copy)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layer_norm_eps", float("nan")),
        ("layer_norm_eps", float("inf")),
        ("num_attention_heads", 0),
        ("num_attention_heads", 5),
        ("num_hidden_layers", 0),
        ("hidden_size", 32.0),
        ("pad_token_id", 1200),
        ("max_position_embeddings", 4),
        ("intermediate_size", 10**400),
    ],
)
def test_a_size_out_of_range_is_named(copy: Path, name: str, value: object) -> None:
    raw = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(raw | {name: value}))
    assert (
        f"config.json has {name if name != 'num_attention_heads' or value == 0 else 'hidden_size'}"
        in refused(copy)
    )


def test_loading_and_encoding_import_no_reference_implementations(checkpoint: Path) -> None:
    program = (
        "import sys; from m3_connectors.encoder import encoder, loading; before = set(sys.modules);"
        "encoder.M3Encoder(sys.argv[1], device='cpu', precision='float32').encode(['one']);"
        "print(len(set(sys.modules) - before))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(checkpoint)],
        check=True,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert int(done.stdout) < 50, "PyTorch's reference implementations are 890 modules and two seconds"


def test_a_vocabulary_is_read_once_from_its_tokenizer(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def vocabulary_of(tokenizer: Tokenizer) -> dict[str, int]:
        read.append(tokens.vocabulary_of(tokenizer))
        return read[-1]

    monkeypatch.setattr(loading, "vocabulary_of", vocabulary_of)
    loaded = loading.load(str(checkpoint), revision=None, dtype=torch.float32)
    assert len(read) == 1
    assert loaded.info.vocabulary_fingerprint == tokens.vocabulary_fingerprint(read[0])


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 300_000)))
@example({'quote " and \\ backslash': 0, "control \x00\x1f\x7f": 1, "▁été 中文 🦊\u2028": 2})
@example({"b": 0, "a": 0})
def test_fingerprints_of_vocabularies_stay_those_of_stored_collections(vocabulary: dict[str, int]) -> None:
    table = sorted((id, token) for token, id in vocabulary.items())
    stored = hashlib.sha256(json.dumps(table, ensure_ascii=False).encode()).hexdigest()
    assert tokens.vocabulary_fingerprint(vocabulary) == stored


def test_a_model_made_from_scratch_begins_as_pytorch_s_own() -> None:
    torch.manual_seed(3)
    table = M3Model(SMALL).embeddings.word_embeddings
    torch.manual_seed(3)
    own = torch.nn.Embedding(SMALL.vocab_size, SMALL.hidden_size, SMALL.pad_token_id)
    assert torch.equal(table.weight, own.weight)
    assert table.weight.requires_grad
