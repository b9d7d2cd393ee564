"""Linear layers whose products are computed in 8-bit integers, on CPUs.

A weight has one scale for each output channel. An activation has one scale for each token, computed from the token
alone, so that the vectors of a text do not depend on the texts beside it. oneDNN's operator accepts only one scale for
the whole input. It therefore gets the scale 1, and the scale of each token is applied to its output, in the same pass
as the bias.

PyTorch has the operator under a private name, so the code checks whether it is there, exact, and fast.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m3_connectors.encoder.linear import PlainLinear
from m3_connectors.errors import Unsupported

INSTEAD = "Use precision='auto', which takes the fastest floating point of this machine."
ROWS_AT_ONCE = 512
"""The number of rows that pass through a layer together: their widened form in float32 fits the cache."""
_SMALLEST = 1e-30
"""The smallest maximum of a row that is used as such; rows that are all 0 stay 0 with any scale."""
_SLOWEST = 4
"""How many times slower than float32 a product may be before it is taken for PyTorch's reference implementation."""
_LEAST_MEASURED, _MOST_MEASURED = 5, 50
"""How often each of both products is measured; the shortest time counts."""


def quantise_weight(weight: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """Quantise the rows of a weight symmetrically.

    Args:
        weight: float32 ``[out, in]``, finite.
        largest: The largest integer to use, 127 or 63.

    Returns:
        int8 ``[out, in]``, and the scales, float32 ``[out]``: a weight is its integer times the scale, within half a
        scale.
    """
    scales = weight.abs().amax(1).clamp_min_(_SMALLEST).div_(largest)
    return (weight / scales[:, None]).round_().clamp_(-largest, largest).to(torch.int8), scales


def quantise_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise each row symmetrically around 128.

    Args:
        rows: float32 ``[n, d]``. NaN and infinity make the scale of their row NaN or infinite, and with it every
            output of the row.

    Returns:
        uint8 ``[n, d]``, and the scales, float32 ``[n, 1]``: a value is (integer - 128) * scale, within half a scale.
    """
    most = rows.abs().amax(-1, keepdim=True).clamp_min_(_SMALLEST)
    return _bytes(rows * (127 / most)), most.div_(127)


def quantise_rows_above(low: float, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise each row of values that are at least ``low``.

    Returns:
        uint8 ``[n, d]``, and the scales, float32 ``[n, 1]``: a value is integer * scale + low, within half a scale.
    """
    inverse = 255 / (rows.amax(-1, keepdim=True) - low).clamp_min_(_SMALLEST)
    return _bytes(torch.addcmul(-low * inverse - 128, rows, inverse)), inverse.reciprocal_()


def smoothing(inputs: Tensor, weights: Tensor) -> Tensor:
    """Return what to divide each input channel by, so that inputs and weights are equally hard to quantise.

    Args:
        inputs: float32 ``[in]``, the largest absolute value of each channel; a channel far below the median may have
            been small only in the sample, and counts as a tenth of the median.
        weights: float32 ``[in]``, the same of the weights.

    Returns:
        float32 ``[in]``, above 0.
    """
    inputs, weights = (x.clamp_min(max(float(x.median()) / 10, _SMALLEST)) for x in (inputs, weights))
    return (inputs / weights).sqrt_()


def _bytes(rows: Tensor) -> Tensor:
    """Round values from -128 to 127 and add 128: the conversion to int8 has vector instructions, that to uint8 none."""
    return rows.round_().to(torch.int8).view(torch.uint8).bitwise_xor_(128)


class Int8Linear(nn.Module):
    """A linear layer whose product is computed in integers.

    Args:
        linears: Layers with the same input, computed as one product; their outputs are concatenated.
        largest_inputs: float32 ``[in]``, the largest absolute value of each input channel in a sample. Channels that
            are much larger than the others are then made smaller before they are quantised, and their weights larger.
        low: A value that no input is below, or None if the inputs have both signs.
        dtype: That of the outputs, float32 or bfloat16.
    """

    def __init__(
        self,
        *linears: nn.Linear,
        largest_inputs: Tensor | None = None,
        low: float | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        weight = torch.cat([linear.weight for linear in linears]).detach().float()
        self.factors = None
        if largest_inputs is not None:
            factors = smoothing(largest_inputs, weight.abs().amax(0))
            weight, self.factors = weight * factors, factors.reciprocal()
        bias = torch.cat([linear.bias for linear in linears]).detach().float()
        integers, self.scales = quantise_weight(weight, largest_weight())
        if (
            low is not None
        ):  # the product of the integers lacks ``low`` times the sum of each row of the weight
            bias = bias + low * self.scales * integers.sum(1)
        self.bias = bias.to(dtype)
        self.weight = torch.ops.onednn.qlinear_prepack(integers, [ROWS_AT_ONCE, weight.shape[1]])
        self.zero_points = torch.zeros(len(weight), dtype=torch.int64)
        self.low = low

    def forward(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """Compute ``W rows + b`` from float32 rows."""
        product, scales = self._product(rows)
        return torch.addcmul(self.bias, product, scales, out=product if out is None else out)

    def gelu(self, rows: Tensor) -> Tensor:
        """Compute ``gelu(W rows + b)`` in the exact form."""
        return F.gelu(self.forward(rows))

    def plus(self, rows: Tensor, residual: Tensor) -> Tensor:
        """Compute ``W rows + b + residual``."""
        product, scales = self._product(rows)
        return torch.addcmul(residual, product, scales, out=product).add_(self.bias)

    def _product(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the product without the scales of the rows, and these scales."""
        if self.factors is not None:
            rows = rows * self.factors
        if self.low is None:
            integers, scales = quantise_rows(rows)
            zero = 128
        else:
            integers, scales = quantise_rows_above(self.low, rows)
            zero = 0
        dtype = self.bias.dtype
        return _multiply(integers, zero, self.weight, self.scales, self.zero_points, dtype), scales.to(dtype)


@functools.cache
def largest_weight() -> int:
    """Return the largest integer of a weight with which products are exact here: 127, or 63 on older processors.

    Without VNNI, processors add pairs of products in 16 bits, where ``2 * 255 * 127`` does not fit.

    Raises:
        Unsupported: This PyTorch lacks the operators, no product is exact, or all of them are slow.
    """
    try:
        exact = next((largest for largest in (127, 63) if _multiplies_exactly(largest)), None)
    except (AttributeError, RuntimeError, TypeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise Unsupported(
            f"precision='int8' needs oneDNN's quantised products, which this PyTorch ({torch.__version__}) does not "
            f"have for this processor: {reason}\n  {INSTEAD}"
        ) from error
    if exact is None:
        raise Unsupported(
            "precision='int8' is not supported on this processor, on which PyTorch's quantised products "
            f"({torch.__version__}) are wrong: they were compared with exact ones.\n  {INSTEAD}"
        )
    times = _times_float32(exact)
    if times > _SLOWEST:
        raise Unsupported(
            f"precision='int8' is not supported on this processor, on which a quantised product took {times:.0f} "
            f"times as long as one in float32.\n  {INSTEAD}"
        )
    return exact


def _multiplies_exactly(largest: int) -> bool:
    """Return whether products of integers are exact, with the values that saturate first among them."""
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for n, k in ((96, 64), (64, 512)):  # sums below 2 ** 24, which float32 holds exactly
            weight = torch.randint(-largest, largest + 1, (n, k), generator=generator).to(torch.int8)
            weight[0], weight[1], weight[2, ::2], weight[3, 1::2] = largest, -largest, largest, -largest
            packed = torch.ops.onednn.qlinear_prepack(weight, [ROWS_AT_ONCE, k])
            ones, zeros = torch.ones(n), torch.zeros(n, dtype=torch.int64)
            for m in (1, 7, 64):
                rows = torch.randint(0, 256, (m, k), generator=generator).to(torch.uint8)
                rows[0], rows[1:2], rows[2:3, ::2] = 255, 0, 255
                for zero in (0, 128):
                    expected = (rows.long() - zero) @ weight.long().T
                    if not torch.equal(
                        _multiply(rows, zero, packed, ones, zeros, torch.float32).long(), expected
                    ):
                        return False
    return True


def _times_float32(largest: int) -> float:
    """Return how many times as long as a product in float32 one in integers takes.

    Another process on the machine can delay every one of a few products, so slow ones are measured again. PyTorch's
    reference implementation is slow however often it is measured.
    """
    linear = nn.Linear(512, 256)
    rows = torch.zeros(32, 512)
    integers, scales = quantise_weight(linear.weight.detach(), largest)
    weight = torch.ops.onednn.qlinear_prepack(integers, [ROWS_AT_ONCE, 512])
    zeros = torch.zeros(256, dtype=torch.int64)
    plain = PlainLinear(linear)
    ours = theirs = math.inf
    with torch.inference_mode():
        for done in range(1, _MOST_MEASURED + 1):
            ours = min(
                ours,
                _seconds(lambda: _multiply(rows.to(torch.uint8), 128, weight, scales, zeros, torch.float32)),
            )
            theirs = min(theirs, _seconds(lambda: plain(rows)))
            if done >= _LEAST_MEASURED and ours <= _SLOWEST * theirs:
                break
    return ours / theirs


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _multiply(
    rows: Tensor, zero: int, weight: Tensor, scales: Tensor, zero_points: Tensor, dtype: torch.dtype
) -> Tensor:
    """Compute ``(rows - zero) W``, each output channel times its scale, in the dtype."""
    return torch.ops.onednn.qlinear_pointwise(  # type: ignore[no-any-return]
        rows, 1.0, zero, weight, scales, zero_points, None, 1.0, 0, dtype, "none", [], ""
    )
