"""Masked auto-encoding of single texts through the state of ``<s>`` (section 3.3; ``training.retromae``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from m3_connectors.errors import InvalidInput
from m3_connectors.training.forward import POSITIONS, WORDS, TouchedRows
from m3_connectors.training.retromae import RetroMAEHeads, choose, tied_cross_entropy, visible
from m3_connectors.training.stages.stage import Outcome, Stage, StageInputs
from m3_connectors.training.statistics import group_counts
from m3_connectors.training.texts import TextBatch, TextSampler
from m3_connectors.training.tokenizer import FIRST_PIECE, MASK


class RetroMAE(Stage):
    """L_enc + L_dec: the masked tokens from the encoder, every token from the decoder."""

    judged_by = ()
    extra: RetroMAEHeads

    def __init__(self, inputs: StageInputs) -> None:
        data, self._run, self._settings = inputs.config.data, inputs.config.run, inputs.config.retromae
        self._model = inputs.model
        self._encoder = inputs.encoder
        self._tokenizer = inputs.tokenizer
        self._shifted_share = data.shifted_share
        mask = inputs.tokenizer.token_to_id(MASK)
        if mask is None:
            raise InvalidInput(
                f"the tokenizer has no token {MASK}, which retromae puts in the place of the masked tokens.\n"
                f"  Add {MASK} as a special token with a row in the word embeddings, or leave out the stage."
            )
        self._mask = mask
        self.sampler = TextSampler(
            inputs.store,
            usable=self._predictable,
            queries=self._settings.queries,
            source_weights=data.source_weights or inputs.store.pairs_by_source,
            groups=data.groups,
            language_exponent=data.language_exponent,
            seed=self._run.seed,
        )
        left_out = "; ".join(f"{part} ({reason})" for part, reason in self.sampler.left_out.items())
        self.warnings = [f"these texts are not used for training: {left_out}."] if left_out else []
        config = inputs.model.config
        self.extra = RetroMAEHeads(config)
        words = inputs.model.embeddings.word_embeddings.weight
        self.extra.initialise(words, config.initializer_range, self._run.seed)

    def _predictable(self, ids: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which tokens can be masked and predicted: all but the special ones."""
        predictable: NDArray[np.bool_] = (ids >= FIRST_PIECE) & (ids != self._mask)
        return predictable

    def _rng(self, step: int, what: int, text: int = 0) -> np.random.Generator:
        return np.random.default_rng([self._run.seed, what, step, text])

    def _masked(self, batch: TextBatch, step: int) -> list[NDArray[np.bool_]]:
        """Return which tokens of each text the encoder does not see."""
        rng, ratio = self._rng(step, 4), self._settings.encoder_mask_ratio
        return [choose(self._predictable(text), ratio, rng) for text in batch.texts]

    def _first_positions(self, batch: TextBatch, step: int) -> list[int]:
        rng = self._rng(step, 3)
        shifted, drawn = rng.random((2, len(batch.texts)))
        room = self._model.config.max_length
        return [
            int(share * (room - len(text) + 1)) if moved < self._shifted_share else 0
            for text, moved, share in zip(batch.texts, shifted, drawn, strict=True)
        ]

    def loss(self, step: int, share_done: float) -> Outcome:
        """Compute L_enc + L_dec of a step, each the mean over the tokens that it predicts."""
        batch = self.sampler.batch(step)
        masked, positions = self._masked(batch, step), self._first_positions(batch, step)
        rng, share = self._rng(step, 5), self._settings.decoder_share
        predicted = [choose(self._predictable(text), share, rng) for text in batch.texts]
        inputs = [
            np.where(hidden, self._mask, text) for text, hidden in zip(batch.texts, masked, strict=True)
        ]
        (states,), tables = self._encoder.apply(_states, inputs, positions, all_words=True)
        decoded = self._decoded(batch, states, tables, positions, predicted, step)
        in_encoder, in_decoder = np.concatenate(masked), np.concatenate(predicted)
        ids = np.concatenate(batch.texts)
        targets = torch.from_numpy(np.concatenate([ids[in_encoder], ids[in_decoder]])).to(states.device)
        hidden = torch.cat([states[torch.from_numpy(in_encoder).to(states.device)], decoded])
        words, bias, first = tables[WORDS].values, self.extra.bias, int(in_encoder.sum())
        weights = torch.full_like(targets, 1 / (len(targets) - first), dtype=bias.dtype)
        weights[:first] = 1 / max(1, first)
        # The products with all word embeddings are split between the ranks.
        ranks = self._encoder.ranks
        shares = ranks.ranges([1] * len(targets))
        here = slice(shares[ranks.rank].start, shares[ranks.rank].stop)
        own_loss, own_losses = tied_cross_entropy(
            _with(self.extra.transform, states.dtype, hidden[here]), words, bias, targets[here], weights[here]
        )
        loss, (losses,) = ranks.total(own_loss), ranks.gather([own_losses], [list(map(len, shares))])
        parts = {"encoder": losses[:first].mean().item()} if first else {}
        parts["decoder"] = losses[first:].mean().item()
        counts = {
            "source": batch.source,
            "texts": len(batch.texts),
            "tokens": batch.tokens,
            "masked": first,
            "predicted": len(targets) - first,
            **group_counts(batch.longest, batch.texts),
        }
        return Outcome(loss, parts, tables, counts)

    def _decoded(
        self,
        batch: TextBatch,
        states: Tensor,
        tables: Mapping[str, TouchedRows],
        first_positions: Sequence[int],
        predicted: Sequence[NDArray[np.bool_]],
        step: int,
    ) -> Tensor:
        """Return the decoder's states ``[predicted tokens, d]``, computed in the sub-batches of the encoder."""
        device, dtype = states.device, states.dtype
        lengths = np.array([len(text) for text in batch.texts])
        starts = torch.from_numpy(np.cumsum(lengths) - lengths).to(device)
        owner = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)).to(device)
        sentence = states[starts]
        places = tables[POSITIONS]
        embeddings = self._model.embeddings
        positions = torch.from_numpy(
            np.concatenate([np.arange(n) + at for n, at in zip(lengths, first_positions, strict=True)])
        ).to(device)
        local = torch.searchsorted(places.numbers, positions + embeddings.first_position)
        context = _with(
            embeddings,
            dtype,
            torch.from_numpy(np.concatenate(batch.texts)).to(device),
            local - embeddings.first_position,
            replaced={"word_embeddings.weight": tables[WORDS], "position_embeddings.weight": places},
        ).index_copy(0, starts, sentence)
        rows = torch.from_numpy(np.flatnonzero(np.concatenate(predicted))).to(device)
        queries = sentence[owner[rows]] + F.embedding(local[rows], places.values).to(dtype)

        def decode(queries: Tensor, context: Tensor, texts: range) -> Tensor:
            def seen(text: int) -> NDArray[np.bool_]:
                number = texts[text]
                return visible(
                    np.flatnonzero(predicted[number]),
                    int(lengths[number]),
                    self._settings.decoder_mask_ratio,
                    self._rng(step, 6, number),
                )

            counts = [int(predicted[number].sum()) for number in texts]
            tokens = [int(lengths[number]) for number in texts]
            return _with(self.extra.decoder, dtype, queries, context, counts, tokens, seen)

        ranks = self._encoder.ranks
        shares = ranks.ranges(lengths.tolist())
        own = shares[ranks.rank]
        # A rank without a text decodes the first one and keeps no row of it.
        texts = own or range(1)
        parts = self._encoder.sub_batches(lengths[texts.start : texts.stop].tolist())
        outputs, first = [], texts.start
        row_ends = np.cumsum([0, *(int(chosen.sum()) for chosen in predicted)])
        token_ends = np.cumsum([0, *lengths])
        for count in parts:
            last = first + count
            here = (
                queries[row_ends[first] : row_ends[last]],
                context[token_ends[first] : token_ends[last]],
                range(first, last),
            )
            outputs.append(
                decode(*here) if len(parts) == 1 else checkpoint(decode, *here, use_reentrant=False)
            )
            first = last
        counts = [int(row_ends[share.stop] - row_ends[share.start]) for share in shares]
        (decoded,) = ranks.gather([torch.cat(outputs)[: counts[ranks.rank]]], [counts])
        return decoded

    def batch_record(self, step: int) -> dict[str, Any]:
        """Return the tokens of a batch, and which of them the encoder did not see."""
        batch = self.sampler.batch(step)
        masked, positions = self._masked(batch, step), self._first_positions(batch, step)
        return {
            "source": batch.source,
            "texts": [
                {
                    "position": position,
                    "ids": text.tolist(),
                    "tokens": [self._tokenizer.id_to_token(int(id)) for id in text],
                    "masked": np.flatnonzero(hidden).tolist(),
                }
                for text, hidden, position in zip(batch.texts, masked, positions, strict=True)
            ],
        }


def _states(hidden: Tensor, starts: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return (hidden,)


def _with(
    module: nn.Module, dtype: torch.dtype, *inputs: Any, replaced: Mapping[str, TouchedRows] | None = None
) -> Tensor:
    """Call a module with its float32 weights in the dtype of the products, some tables replaced by their rows."""
    rows = {name: table.values for name, table in (replaced or {}).items()}
    working = {name: rows.get(name, value).to(dtype) for name, value in module.named_parameters()}
    return functional_call(module, working, inputs)  # type: ignore[no-any-return]
