"""``precision="int8"``: the quantiser, the products and layers in integers, and where they are refused."""

from __future__ import annotations

import dataclasses
import itertools
import os
import platform
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from m3_connectors.backends.schema import Schema
from m3_connectors.embeddings import M3Embeddings, ModelInfo
from m3_connectors.encoder import M3Encoder, int8, int8_layers
from m3_connectors.encoder.attention import tiled_attention
from m3_connectors.encoder.config import ModelConfig
from m3_connectors.encoder.devices import choose_dtype
from m3_connectors.encoder.int8 import Int8Linear, quantise_rows, quantise_rows_above, quantise_weight
from m3_connectors.encoder.int8_layers import Int8Layer
from m3_connectors.encoder.model import Layer, padded_attention
from m3_connectors.errors import Unsupported
from m3_connectors.testing.checkpoints import TEXTS, write_checkpoint

LAYER = ModelConfig(
    vocab_size=100,
    hidden_size=96,
    num_hidden_layers=1,
    num_attention_heads=3,
    intermediate_size=200,
    max_position_embeddings=2050,
)
WIDER = ModelConfig(
    vocab_size=1200,
    hidden_size=256,
    num_hidden_layers=6,
    num_attention_heads=4,
    intermediate_size=1024,
    max_position_embeddings=1026,
)

Rows = list[list[float]]
MATRICES = st.integers(1, 24).flatmap(
    lambda d: st.lists(
        st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=d, max_size=d), min_size=1, max_size=5
    )
)


@pytest.fixture(scope="module")
def integers() -> None:
    try:
        int8.largest_weight()
    except Unsupported as reason:
        pytest.skip(str(reason))


@pytest.fixture
def fresh() -> Iterator[None]:
    """Checks of the operators that were not made before, and are not remembered after."""
    int8.largest_weight.cache_clear()
    yield
    int8.largest_weight.cache_clear()


@pytest.fixture(scope="module")
def wider(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("wider"), config=WIDER)


def linear(inputs: int, outputs: int, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs).requires_grad_(False)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


# --- the quantiser ----------------------------------------------------------------------------------------------------


@given(MATRICES, st.sampled_from([127, 63]))
def test_a_weight_is_its_integer_times_its_scale_within_half_a_scale(rows: Rows, largest: int) -> None:
    weight = torch.tensor(rows)
    integers, scales = quantise_weight(weight, largest)
    assert integers.dtype is torch.int8
    assert int(integers.abs().max()) <= largest
    error = (integers.double() * scales.double()[:, None] - weight.double()).abs()
    assert (error <= 0.5001 * scales.double()[:, None]).all()
    assert (integers[weight == 0] == 0).all()


@given(MATRICES)
def test_an_activation_is_its_integer_times_the_scale_of_its_row_within_half_a_scale(rows: Rows) -> None:
    values = torch.tensor(rows)
    integers, scales = quantise_rows(values)
    assert integers.dtype is torch.uint8
    error = ((integers.double() - 128) * scales.double() - values.double()).abs()
    assert (error <= 0.5001 * scales.double()).all()
    assert (integers[values == 0] == 128).all()


@given(
    st.lists(
        st.lists(st.floats(float(np.float32(-0.17)), 1e4, width=32), min_size=7, max_size=7),
        min_size=1,
        max_size=5,
    )
)
def test_values_above_a_lowest_one_take_all_steps(rows: Rows) -> None:
    values = torch.tensor(rows)
    integers, scales = quantise_rows_above(float(np.float32(-0.17)), values)
    error = (integers.double() * scales.double() + float(np.float32(-0.17)) - values.double()).abs()
    # The largest value is exact to a few of its own last digits, in which it may exceed the step.
    assert (error <= 0.51 * scales.double() + 1e-6 * values.abs().amax(1, keepdim=True)).all()


def test_gelu_is_never_below_its_lowest_value() -> None:
    values = F.gelu(torch.linspace(-20, 20, 100_001))
    assert values.min() > int8_layers._LOWEST_GELU


@pytest.mark.usefixtures("integers")
@pytest.mark.parametrize("low", [None, -0.17])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_stay_so_and_stay_in_their_row(low: float | None, bad: float) -> None:
    layer = Int8Linear(linear(32, 8), low=low)
    rows = torch.rand(3, 32)
    clean = layer(rows)
    rows[1, 5] = bad
    found = layer(rows)
    assert not torch.isfinite(found[1]).any()
    assert torch.equal(found[[0, 2]], clean[[0, 2]])


@pytest.mark.usefixtures("integers")
def test_rows_of_zeros_give_the_bias() -> None:
    plain = linear(32, 8)
    torch.testing.assert_close(Int8Linear(plain)(torch.zeros(2, 32)), plain.bias.expand(2, 8), atol=0, rtol=0)


@pytest.mark.usefixtures("integers")
def test_an_outlier_costs_only_its_own_row() -> None:
    plain, rows = linear(64, 48), torch.randn(4, 64)
    rows[2, 7] = 1e6
    found, expected = Int8Linear(plain)(rows), plain(rows)
    for i in (0, 1, 3):
        assert relative_error(found[i], expected[i]) < 0.02
    assert relative_error(found[2], expected[2]) < 0.02


# --- products and layers ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("integers")
def test_the_operations_of_a_linear_layer() -> None:
    first, second, rows = linear(256, 64, 1), linear(256, 32, 2), torch.randn(40, 256)
    both = torch.cat([first(rows), second(rows)], 1)
    ours = Int8Linear(first, second)
    assert relative_error(ours(rows), both) < 0.015
    out = torch.empty(40, 96)
    assert torch.equal(ours(rows, out), out)
    assert torch.equal(out, ours(rows))
    assert relative_error(ours.gelu(rows), F.gelu(both)) < 0.02
    residual = torch.randn(40, 96)
    assert relative_error(ours.plus(rows, residual), both + residual) < 0.015
    positive = F.gelu(rows)
    shifted, centred = Int8Linear(first, low=-0.17)(positive), Int8Linear(first)(positive)
    assert relative_error(shifted, first(positive)) < 0.8 * relative_error(centred, first(positive))


@pytest.mark.usefixtures("integers")
def test_channels_known_to_be_large_do_not_cost_the_others_their_digits() -> None:
    plain, rows = linear(256, 64), torch.randn(40, 256)
    rows[:, 3] *= 60
    largest = rows.abs().amax(0)
    plain.weight[:, 3] /= 20
    expected = plain(rows)
    known = relative_error(Int8Linear(plain, largest_inputs=largest)(rows), expected)
    assert known < 0.5 * relative_error(Int8Linear(plain)(rows), expected)


@pytest.mark.usefixtures("integers")
@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(1, 70), st.sampled_from([None, -0.17]))
def test_a_row_has_the_same_output_in_any_company(seed: int, count: int, low: float | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(count, 96, generator=generator) * torch.logspace(-3, 3, count)[:, None]
    layer = Int8Linear(linear(96, 40), low=low)
    together = layer(rows)
    for i in {0, count // 2, count - 1}:
        assert torch.equal(layer(rows[i : i + 1])[0], together[i])


@pytest.mark.usefixtures("integers")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_in_integers_is_near_the_layer(dtype: torch.dtype) -> None:
    lengths = [600, 256, 9, 9, 1]  # more rows than pass at once
    torch.manual_seed(0)
    layer = Layer(LAYER).eval().requires_grad_(False)
    hidden = torch.randn(sum(lengths), LAYER.hidden_size)
    expected = layer(hidden, lengths, padded_attention)
    largest = hidden.abs().amax(0)
    with torch.inference_mode():
        ours = Int8Layer(layer.to(dtype), largest, largest)(hidden.to(dtype), lengths, tiled_attention)
    assert ours.dtype is dtype
    assert F.cosine_similarity(ours.float(), expected, dim=-1).min() > 0.9995


@pytest.mark.usefixtures("integers")
def test_int8_stays_near_float32_on_a_wider_and_deeper_model(wider: Path) -> None:
    texts = [*TEXTS.values(), " ".join(TEXTS.values()), ""]
    single, integer = (
        M3Encoder(wider, device="cpu", precision=precision).encode(texts) for precision in ("float32", "int8")
    )
    assert (single.dense * integer.dense).sum(1).min() > 0.995
    assert (single.multivectors.rows * integer.multivectors.rows).sum(1).min() > 0.99
    largest = single.sparse.data.max()
    assert np.abs((single.sparse - integer.sparse).data).max() < 0.1 * largest


@pytest.mark.usefixtures("integers")
def test_a_trained_model_keeps_its_vectors() -> None:
    """Trained weights lose most of it in the first layer's q, k and v: in integers too, the lowest cosine is .9967."""
    texts = [*TEXTS.values(), " ".join(TEXTS.values()) * 4, "x", "<mask>", ""]
    single, integer = (
        M3Encoder("m3-tiny", device="cpu", precision=precision).encode(texts, mcls=True)
        for precision in ("float32", "int8")
    )
    assert (single.dense * integer.dense).sum(1).min() > 0.998
    assert (single.multivectors.rows * integer.multivectors.rows).sum(1).min() > 0.998
    assert np.abs((single.sparse - integer.sparse).data).max() < 0.02 * single.sparse.data.max()


@pytest.mark.usefixtures("integers")
def test_the_result_for_a_text_does_not_depend_on_its_neighbours(wider: Path) -> None:
    encoder = M3Encoder(wider, device="cpu", precision="int8")
    texts = [*TEXTS.values(), "a " * 300, "x", ""]
    together = encoder.encode(texts)
    for i, text in enumerate(texts):
        alone = encoder.encode([text])
        assert alone.dense[0] @ together.dense[i] > 0.9999
        assert (alone.multivectors[0] * together.multivectors[i]).sum(1).min() > 0.9995


# --- what is recorded -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("integers")
def test_int8_is_named_wherever_the_model_is(checkpoint: Path, encoder: M3Encoder, tmp_path: Path) -> None:
    ours = M3Encoder(checkpoint, device="cpu", precision="int8")
    assert ours.precision == "int8"
    assert str(ours.info).endswith("(32 dims, int8)")
    ours.encode(["lake"]).save(tmp_path / "saved")
    assert M3Embeddings.load(tmp_path / "saved").model == ours.info
    schema = Schema(ours.info)
    assert Schema.from_json(schema.to_json()) == schema
    assert ours.info.matches(encoder.info), "vectors of both can be compared"
    assert encoder.info.precision is None


def test_models_in_floating_point_are_written_as_before() -> None:
    info = ModelInfo("name", None, 32, 100, "v", "w")
    assert list(info.to_json()) == [
        "name",
        "revision",
        "dimension",
        "vocabulary_size",
        "vocabulary_fingerprint",
        "weights_fingerprint",
    ]
    assert "precision" not in Schema(info).to_json()["model"]
    assert Schema(dataclasses.replace(info, precision="int8")).to_json()["model"]["precision"] == "int8"


# --- where it is refused ----------------------------------------------------------------------------------------------


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(Unsupported) as caught:
        call()
    first, second = str(caught.value).splitlines()
    assert second.startswith("  Use ")
    return first


def test_auto_is_never_int8() -> None:
    assert choose_dtype("auto", torch.device("cpu")) in (torch.bfloat16, torch.float32)
    assert choose_dtype("int8", torch.device("cpu")) is choose_dtype("auto", torch.device("cpu"))


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_a_gpu_is_refused(device: str) -> None:
    said = refusal(lambda: choose_dtype("int8", torch.device(device)))
    assert said == f"precision='int8' is for CPUs; the device is '{device}'."


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("error", [AttributeError, RuntimeError, NotImplementedError])
def test_a_pytorch_without_the_operators_is_refused(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def missing(*_: object) -> Tensor:
        raise error("no qlinear_pointwise\nand a long trace")

    monkeypatch.setattr(int8, "_multiply", missing)
    said = refusal(lambda: M3Encoder(checkpoint, device="cpu", precision="int8"))
    assert torch.__version__ in said
    assert said.endswith("no qlinear_pointwise")


@pytest.mark.usefixtures("fresh")
def test_an_error_without_a_message_is_named_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> Tensor:
        raise RuntimeError

    monkeypatch.setattr(int8, "_multiply", missing)
    assert refusal(int8.largest_weight).endswith(": RuntimeError")


@pytest.mark.usefixtures("fresh", "integers")
@pytest.mark.parametrize(
    "wrong",
    [
        lambda product: product + 1,
        lambda product: product * 1.001,
        lambda product: torch.zeros_like(product),
        lambda product: product.clamp(-4000, 4000),
        lambda product: product * torch.nan,
    ],
)
def test_a_kernel_that_computes_wrongly_is_refused(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Tensor], Tensor]
) -> None:
    right = int8._multiply
    monkeypatch.setattr(int8, "_multiply", lambda *arguments: wrong(right(*arguments)))
    said = refusal(lambda: M3Encoder(checkpoint, device="cpu", precision="int8"))
    assert "are wrong" in said


@pytest.mark.usefixtures("fresh")
def test_processors_that_saturate_get_smaller_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def saturating(
        rows: Tensor, zero: int, weight: Tensor, scales: Tensor, zero_points: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """What processors without VNNI do: pairs of products are added in 16 bits."""
        pairs = rows.long()[:, None] * weight.long()[None]
        pairs = pairs.view(*pairs.shape[:2], -1, 2)
        sums: Tensor = pairs.sum(-1).clamp(-(2**15), 2**15 - 1).sum(-1)
        product: Tensor = (sums - zero * weight.long().sum(1)).to(dtype) * scales
        return product

    monkeypatch.setattr(torch.ops.onednn, "qlinear_prepack", lambda weight, _: weight)
    monkeypatch.setattr(int8, "_multiply", saturating)
    monkeypatch.setattr(int8, "_times_float32", lambda _: 1.0)
    assert int8.largest_weight() == 63


@pytest.mark.usefixtures("fresh", "integers")
def test_a_processor_on_which_it_is_much_slower_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "_times_float32", lambda _: 140.0)
    assert "took 140 times as long" in refusal(int8.largest_weight)


@pytest.mark.usefixtures("fresh", "integers")
@pytest.mark.parametrize(("delayed", "refused"), [(12, False), (1000, True)])
def test_a_busy_machine_is_not_taken_for_a_slow_processor(
    delayed: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first products in integers take 100 s by the clock, and every call of the clock takes 1 s."""
    now, products, right = itertools.count(), 0, int8._multiply
    late = 0.0

    def multiply(*arguments: Any) -> Tensor:
        nonlocal products, late
        if arguments[0].shape == (32, 512):  # the shape that is measured
            products += 1
            late += 100.0 * (products <= delayed)
        return right(*arguments)

    monkeypatch.setattr(int8, "_multiply", multiply)
    monkeypatch.setattr("time.perf_counter", lambda: next(now) + late)
    if refused:
        assert "took 101 times as long" in refusal(int8.largest_weight)
    else:
        assert int8.largest_weight() in (127, 63)


@pytest.mark.usefixtures("integers")
def test_the_layers_in_floating_point_are_freed_one_by_one(
    wider: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of the real size has 0.6 GB of them in bfloat16, 1.2 GB in float32."""
    kept = list[weakref.ref[Tensor]]()
    alive = list[int]()

    class Counted(Int8Layer):
        def __init__(self, layer: Layer, *arguments: Any) -> None:
            alive.append(sum(reference() is not None for reference in kept))
            kept.append(weakref.ref(layer.intermediate.dense.weight))
            super().__init__(layer, *arguments)

    monkeypatch.setattr(int8_layers, "Int8Layer", Counted)
    M3Encoder(wider, device="cpu", precision="int8")
    assert len(alive) == WIDER.num_hidden_layers
    assert max(alive) <= 1


@pytest.mark.usefixtures("integers")
def test_a_checkpoint_that_integers_would_change_is_refused(wider: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(wider, tmp_path / "model"))
    state = load_file(copy / "model.safetensors")
    for name, tensor in state.items():  # attention to single tokens, chosen by tiny differences
        if name.endswith(("query.weight", "key.weight")):
            tensor *= 12
    save_file(state, copy / "model.safetensors")
    said = refusal(lambda: M3Encoder(copy, device="cpu", precision="int8"))
    assert "does not suit this checkpoint" in said
    assert M3Encoder(copy, device="cpu", precision="float32").encode(["lake"]).dense.shape == (1, 256)


@pytest.mark.usefixtures("integers")
def test_a_checkpoint_that_overflows_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    state = load_file(copy / "model.safetensors")
    state["embeddings.LayerNorm.weight"][...] = 1e38
    save_file(state, copy / "model.safetensors")
    assert "lowest cosine" in refusal(lambda: M3Encoder(copy, device="cpu", precision="int8"))


_OLDER = """
import sys
from m3_connectors.encoder import M3Encoder, devices
from m3_connectors.encoder.int8 import largest_weight
devices.cpu_has_bfloat16 = lambda: False  # PyTorch itself still sees this processor
encoders = (M3Encoder(sys.argv[1], device="cpu", precision=name) for name in ("float32", "int8"))
exact, ours = (encoder.encode(["lake", "a town"]) for encoder in encoders)
print(largest_weight(), (exact.dense * ours.dense).sum(1).min())
"""


@pytest.mark.usefixtures("integers")
@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="oneDNN names processors of x86 only"
)
@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE"])
def test_processors_without_vnni_compute_with_smaller_weights(checkpoint: Path, instructions: str) -> None:
    """With this variable, oneDNN uses the instructions that older processors have."""
    answer = subprocess.run(
        [sys.executable, "-c", _OLDER, str(checkpoint)],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": instructions},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    largest, cosine = answer.stdout.split()
    assert largest == "63"
    assert float(cosine) > 0.99
