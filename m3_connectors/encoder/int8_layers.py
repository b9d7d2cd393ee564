"""The transformer layers of ``precision="int8"``: their four products are computed in integers.

Between the products everything is float32, because quantising reads float32 faster than bfloat16. Attention, the
embeddings, the three heads and the first layer's q, k and v keep the dtype in which the checkpoint was loaded.
(docs/encoder.md has the measurements that decided this.)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m3_connectors.encoder.int8 import INSTEAD, ROWS_AT_ONCE, Int8Linear, largest_weight
from m3_connectors.encoder.linear import FastLinear, PackedLinear, PlainLinear, packs
from m3_connectors.encoder.model import Attention, Layer, M3Model, Projection
from m3_connectors.errors import Unsupported

CALIBRATION_TEXTS = (
    "When does the first train to the airport leave on Sundays, and where do I change?",
    "The committee postponed its decision: prices had risen by 12.5 % since 2019, mainly for energy (gas, coal).",
    "def area(radius: float) -> float: return 3.14159 * radius ** 2  # see https://example.org/geometry?id=7",
    "Les pêcheurs réparaient leurs filets au bord du quai pendant que la marée montait lentement.",
    "Die Bibliothek schließt um 18 Uhr; ausgeliehene Bücher können bis Mitternacht zurückgegeben werden.",
    "La receta lleva dos cebollas, medio kilo de tomates y una cucharada de aceite de oliva.",
    "Учёные измерили температуру воды в озере на глубине ста метров.",
    "أعلنت الوزارة عن افتتاح ثلاث مدارس جديدة في المدينة هذا العام.",
    "किसान ने बारिश से पहले अपनी फसल काट ली और उसे बाज़ार ले गया।",
    "研究人员发现，这种植物可以在盐碱地里生长。",
    "この橋は百年前に建てられ、今も毎日使われている。",
    "그 박물관은 매주 월요일에 문을 닫습니다.",
)
"""Texts that show which channels are large, and on which the layers are compared with those in floating point."""

LEAST_COSINE = 0.98
"""The least cosine of the last hidden state of ``<s>`` with that in floating point; below, a checkpoint is refused."""

_LOWEST_GELU = -0.17
"""Below every value of GELU, whose minimum is -0.16997: its output takes all 256 steps from here to its maximum."""


class Int8Layer(nn.Module):
    """A layer equivalent to ``model.Layer``, without gradients.

    Args:
        layer: The layer that provides the weights.
        largest_hidden: float32 ``[d]``, the largest absolute value of each channel of its input in a sample; None
            to compute q, k and v in floating point.
        largest_mixed: The same of the input of its feed-forward block.
    """

    def __init__(self, layer: Layer, largest_hidden: Tensor | None, largest_mixed: Tensor) -> None:
        super().__init__()
        block = layer.attention
        own, dtype = (block.self.query, block.self.key, block.self.value), block.self.query.weight.dtype
        self.heads = block.heads
        self.qkv: FastLinear | Int8Linear
        if largest_hidden is None:
            self.qkv = PackedLinear(*own) if packs(dtype) else PlainLinear(*own)
        else:
            self.qkv = Int8Linear(*own, largest_inputs=largest_hidden, dtype=dtype)
        self.attention_output = Int8Linear(block.output.dense)
        self.attention_norm = _norm_in_float32(block.output)
        self.widen = Int8Linear(layer.intermediate.dense, largest_inputs=largest_mixed)
        self.output = Int8Linear(layer.output.dense, low=_LOWEST_GELU)
        self.output_norm = _norm_in_float32(layer.output)

    def forward(self, hidden: Tensor, lengths: Sequence[int], attention: Attention) -> Tensor:
        """Compute ``[tokens, d]`` from ``[tokens, d]``."""
        q, k, v = self._projections(hidden).view(len(hidden), 3, self.heads, -1).unbind(1)
        mixed = attention(q, k, v, lengths).view(hidden.shape)
        del q, k, v
        result = torch.empty_like(hidden)
        parts = zip(*(torch.split(rows, ROWS_AT_ONCE) for rows in (mixed, hidden, result)), strict=True)
        for inner, residual, out in parts:
            rows = self.attention_norm(self.attention_output.plus(inner.float(), residual.float()))
            out.copy_(self.output_norm(self.output.plus(self.widen.gelu(rows), rows)))
        return result

    def _projections(self, hidden: Tensor) -> Tensor:
        """Compute q, k and v, side by side, in the dtype of the input."""
        if not isinstance(self.qkv, Int8Linear):
            return self.qkv(hidden)  # type: ignore[no-any-return]
        qkv = hidden.new_empty(len(hidden), 3 * hidden.shape[1])
        parts = zip(torch.split(hidden, ROWS_AT_ONCE), torch.split(qkv, ROWS_AT_ONCE), strict=True)
        for rows, out in parts:
            self.qkv(rows.float(), out)
        return qkv


def _norm_in_float32(projection: Projection) -> nn.LayerNorm:
    norm = projection.LayerNorm
    copy = nn.LayerNorm(norm.normalized_shape, norm.eps)
    copy.load_state_dict({name: tensor.float() for name, tensor in norm.state_dict().items()})
    return copy.requires_grad_(False)


def quantise(model: M3Model, token_ids: Tensor, lengths: Sequence[int], attention: Attention) -> None:
    """Replace a model's layers in place by layers in integers, if their results stay near those of the layers.

    Args:
        model: The model on the CPU, in the dtype of its other parts.
        token_ids: ``[tokens]`` of ``CALIBRATION_TEXTS``.
        lengths: The number of tokens of each text.
        attention: As in ``M3Model.forward``.

    Raises:
        Unsupported: This machine lacks the operators (``largest_weight``), or the results differ by more than
            ``LEAST_COSINE`` permits.
    """
    largest_weight()
    first = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    with torch.inference_mode():
        inputs = _LargestInputs(model)
        expected = model(token_ids, lengths, attention=attention)[first]
        inputs.remove()
        for i, layer in enumerate(model.encoder.layer):  # ``model.layers`` would keep all of them in memory
            assert isinstance(layer, Layer)
            largest_hidden = inputs.of_attention[i] if i else None
            model.encoder.layer[i] = Int8Layer(layer, largest_hidden, inputs.of_feed_forward[i])
        found = model(token_ids, lengths, attention=attention)[first]
    if packs(model.colbert_linear.weight.dtype):
        model.colbert_linear = PackedLinear(model.colbert_linear)  # type: ignore[assignment]
    cosines = F.cosine_similarity(found.float(), expected.float(), dim=-1)
    if not bool((cosines >= LEAST_COSINE).all()):  # also for NaN
        raise Unsupported(
            f"precision='int8' does not suit this checkpoint: for {len(lengths)} fixed texts, the lowest cosine with "
            f"the vectors in floating point is {cosines.min():.3f}; at least {LEAST_COSINE} is needed.\n  {INSTEAD}"
        )


class _LargestInputs:
    """Keeps the largest absolute value of each channel that enters the layers' two blocks while a model runs."""

    def __init__(self, model: M3Model) -> None:
        self.of_attention: dict[int, Tensor] = {}
        self.of_feed_forward: dict[int, Tensor] = {}
        self._hooks = []
        for i, layer in enumerate(model.layers):
            places = (
                (layer.attention.self.query, self.of_attention),
                (layer.intermediate.dense, self.of_feed_forward),
            )
            for linear, kept in places:
                self._hooks.append(linear.register_forward_pre_hook(functools.partial(self._keep, kept, i)))

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    @staticmethod
    def _keep(kept: dict[int, Tensor], i: int, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kept[i] = inputs[0].float().abs().amax(0)
