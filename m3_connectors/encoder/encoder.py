"""M3Encoder: texts in, M3Embeddings out."""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

import numpy as np
import torch

from m3_connectors.embeddings import COMPONENTS, Component, M3Embeddings, ModelInfo, MultiVectors
from m3_connectors.encoder import heads
from m3_connectors.encoder.attention import fused_attention, tiled_attention
from m3_connectors.encoder.batching import by_budget, is_out_of_memory
from m3_connectors.encoder.devices import Precision, choose_device, choose_dtype
from m3_connectors.encoder.linear import speed_up
from m3_connectors.encoder.loading import load
from m3_connectors.encoder.progress import reporter
from m3_connectors.encoder.tokens import TextTokeniser, TokenisedText
from m3_connectors.errors import InvalidInput

Progress = Callable[[int, int], object]
"""``progress(done, total)``, in texts."""

_WINDOW_TEXTS = 1024
"""Texts that ``encode`` tokenises, sorts and encodes together."""
_TOKEN_BUDGET = {"cpu": 4096}
_TOKEN_BUDGET_GPU = 65_536


class TruncationWarning(UserWarning):
    """Texts were longer than the maximum and were cut; ``M3Embeddings.truncated`` says which."""


class M3Encoder:
    """An M3 checkpoint that turns texts into dense, sparse and multi-vector representations.

    Safe under threads: calls from several threads share the model and take turns batch by batch.

    Args:
        model: A directory, or a hub name such as ``BAAI/bge-m3``. A directory never touches the network.
        revision: Branch, tag or commit of the hub repository.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``; by default the best that is there.
        precision: Of the model's arithmetic: ``"float32"``, ``"bfloat16"``, ``"float16"`` (GPUs only), or
            ``"auto"``: bfloat16 where the machine computes in it (CPUs with AVX-512-BF16 or AMX, CUDA), float16
            on other GPUs, else float32. Outputs are float32 in any case.
        max_length: Most tokens of a text, ``<s>`` and ``</s>`` included; by default the model's own (8,192).
        token_budget: Most tokens in one forward pass; more is faster up to a point and takes more memory.
        threads: Threads of PyTorch's CPU operators. PyTorch has one such number for the whole process, and this
            sets it.

    Raises:
        InvalidInput: An argument is out of its range.
        ModelFormat: The directory is no M3 checkpoint; names the file.
        NotFound, Unauthorised, Unavailable: The hub has no such model, refuses it, or cannot be reached.
    """

    def __init__(
        self,
        model: str = "BAAI/bge-m3",
        *,
        revision: str | None = None,
        device: str | None = None,
        precision: Precision = "auto",
        max_length: int | None = None,
        token_budget: int | None = None,
        threads: int | None = None,
    ) -> None:
        for name, value in (("token_budget", token_budget), ("threads", threads)):
            if value is not None and value < 1:
                raise InvalidInput(f"{name} is {value}; it must be at least 1.")
        if threads is not None:
            torch.set_num_threads(threads)
        self._device = choose_device(device)
        self._dtype = choose_dtype(precision, self._device)
        checkpoint = load(str(model), revision=revision, dtype=self._dtype)
        self._model = checkpoint.model.to(self._device)
        speed_up(self._model)
        self._attention = tiled_attention if self._device.type == "cpu" else fused_attention
        self._tokenise = TextTokeniser(checkpoint.tokenizer)
        self._model_max_length = checkpoint.model.config.max_length
        self._max_length = self._check_length(max_length, self._model_max_length)
        self._token_budget = token_budget or _TOKEN_BUDGET.get(self._device.type, _TOKEN_BUDGET_GPU)
        self._turn = threading.Lock()
        self.info: ModelInfo = checkpoint.info
        """Who this model is; written into every result."""
        self.recommended_weights: Mapping[str, tuple[float, float, float]] = MappingProxyType(
            dict(checkpoint.recommended_weights)
        )
        """``(dense, sparse, multivector)`` weights that the model ships with, by method name."""

    @property
    def max_length(self) -> int:
        """Most tokens of a text, ``<s>`` and ``</s>`` included."""
        return self._max_length

    @property
    def device(self) -> str:
        """Where the model computes."""
        return str(self._device)

    @property
    def precision(self) -> str:
        """The dtype of its arithmetic."""
        return str(self._dtype).removeprefix("torch.")

    @property
    def token_budget(self) -> int:
        """Most tokens in one forward pass; smaller than asked for once memory ran out."""
        return self._token_budget

    def encode(
        self,
        texts: Iterable[str],
        *,
        components: Sequence[Component] = COMPONENTS,
        max_length: int | None = None,
        mcls: bool = False,
        progress: bool | Progress = False,
    ) -> M3Embeddings:
        """Encode texts.

        Args:
            texts: The texts; may be empty, and so may each of them.
            components: What to compute; nothing else is.
            max_length: Most tokens of a text in this call.
            mcls: Insert a CLS every 256 tokens and let the dense vector be the mean of their last hidden states
                (paper, section 3.3, for long texts). Sparse and multi-vectors skip the inserted tokens.
            progress: ``True`` for a bar on stderr, or a function called with ``(done, total)`` after each batch.

        Returns:
            One row per text, in the given order; a component that was not asked for is None.

        Raises:
            InvalidInput: A text is no string (says which), or an argument is out of its range.
        """
        if isinstance(texts, (str, bytes)):
            raise InvalidInput(
                "texts is a single string; encode takes a list of texts.\n  Call encode([text])."
            )
        texts = list(texts)
        with reporter(progress, len(texts)) as report:
            parts = list(self._windows(texts, _WINDOW_TEXTS, components, max_length, mcls, report))
        return parts[0] if len(parts) == 1 else M3Embeddings.concatenate(parts)

    def encode_stream(
        self,
        texts: Iterable[str],
        *,
        components: Sequence[Component] = COMPONENTS,
        max_length: int | None = None,
        mcls: bool = False,
        batch_texts: int = 256,
    ) -> Iterator[M3Embeddings]:
        """Encode any number of texts in bounded memory.

        Args:
            texts: Any iterable; read in the calling thread, at most ``2 * batch_texts`` ahead of the results.
            components: As in ``encode``; so are max_length and mcls.
            batch_texts: Texts of one result.

        Yields:
            The texts' embeddings in order, ``batch_texts`` at a time; nothing for an empty iterable.

        Raises:
            InvalidInput: As ``encode`` does, at the batch that holds the text.
        """
        if isinstance(texts, (str, bytes)):
            raise InvalidInput("texts is a single string; encode_stream takes an iterable of texts.")
        if batch_texts < 1:
            raise InvalidInput(f"batch_texts is {batch_texts}; it must be at least 1.")
        windows = self._windows(texts, batch_texts, components, max_length, mcls, lambda _: None)
        return (part for part in windows if len(part))

    def token_strings(self, text: str) -> list[str]:
        """The tokens behind the multi-vector rows of a text, ``</s>`` last."""
        return self._tokenise.token_strings(text, self._max_length)

    def id_to_token(self, id: int) -> str | None:
        """The token of an id, or None; for ``M3Embeddings.lexical_weights``."""
        token: str | None = self._tokenise.tokenizer.id_to_token(id)
        return token

    def _windows(
        self,
        texts: Iterable[str],
        window_texts: int,
        components: Sequence[Component],
        max_length: int | None,
        mcls: bool,
        report: Callable[[int], object],
    ) -> Iterator[M3Embeddings]:
        """Encode window by window, the next one being tokenised meanwhile; at least one, maybe empty."""
        wanted = _check_components(components)
        limit = self._check_length(max_length, self._max_length)
        return self._run_windows(iter(texts), window_texts, wanted, limit, mcls, report)

    def _run_windows(
        self,
        source: Iterator[str],
        window_texts: int,
        wanted: frozenset[Component],
        limit: int,
        mcls: bool,
        report: Callable[[int], object],
    ) -> Iterator[M3Embeddings]:
        warned = False
        read = 0
        with ThreadPoolExecutor(1, "m3-tokenise") as pool:

            def tokenise_next() -> tuple[int, Callable[[], list[TokenisedText]]]:
                nonlocal read
                window = list(itertools.islice(source, window_texts))
                job = pool.submit(self._tokenise, window, limit, mcls=mcls, first_index=read)
                read += len(window)
                return len(window), job.result

            ahead = tokenise_next()
            while True:
                size, tokenised = ahead
                window = tokenised()
                more = size == window_texts
                if more:
                    ahead = tokenise_next()
                    more = ahead[0] > 0
                cut = sum(text.truncated for text in window)
                if cut and not warned:
                    warned = True
                    warnings.warn(_cut_message(cut, limit), TruncationWarning, stacklevel=4)
                yield self._encode_window(window, wanted, report)
                if not more:
                    return

    def _encode_window(
        self, texts: list[TokenisedText], wanted: frozenset[Component], report: Callable[[int], object]
    ) -> M3Embeddings:
        n, d = len(texts), self.info.dimension
        offsets = np.cumsum([0, *(text.multivector_count for text in texts)], dtype=np.int64)
        dense = np.empty((n, d), np.float32) if "dense" in wanted else None
        rows = np.empty((offsets[-1], d), np.float32) if "multivector" in wanted else None
        token_offsets = np.cumsum([0, *(len(text.ids) for text in texts)], dtype=np.int64)
        weights = np.empty(token_offsets[-1], np.float32) if "sparse" in wanted else None
        pending = by_budget([len(text.ids) for text in texts], self._token_budget)[::-1]
        while pending:
            batch = pending.pop()
            try:
                with self._turn:
                    outputs = self._encode_batch([texts[i] for i in batch], wanted)
            except Exception as error:
                if len(batch) == 1 or not is_out_of_memory(error):
                    raise
                self._token_budget = max(1, self._token_budget // 2)
                lengths = [len(texts[i].ids) for i in batch]
                smaller = by_budget(lengths, min(self._token_budget, sum(lengths) // 2))
                pending.extend([batch[j] for j in part] for part in reversed(smaller))
                continue
            batch_dense, batch_weights, batch_rows = outputs
            if dense is not None:
                dense[batch] = batch_dense
            _scatter(batch_weights, weights, token_offsets, batch)
            _scatter(batch_rows, rows, offsets, batch)
            report(len(batch))
        sparse = None
        if weights is not None:
            ids = np.concatenate([text.ids for text in texts]) if texts else np.empty(0, np.int64)
            sparse = heads.sparse_matrix(
                weights,
                ids,
                np.repeat(np.arange(n), np.diff(token_offsets)),
                shape=(n, self.info.vocabulary_size),
                without=self._tokenise.unweighted_ids,
            )
        return M3Embeddings(
            dense=dense,
            sparse=sparse,
            multivectors=None if rows is None else MultiVectors(rows, offsets),
            truncated=np.array([text.truncated for text in texts], dtype=np.bool_),
            model=self.info,
        )

    @torch.inference_mode()
    def _encode_batch(self, texts: list[TokenisedText], wanted: frozenset[Component]) -> _Outputs:
        """One forward pass; each output end to end, or None if it is not wanted."""
        lengths = [len(text.ids) for text in texts]
        starts = np.cumsum([0, *lengths[:-1]])
        cls_rows = np.concatenate([text.cls + start for text, start in zip(texts, starts, strict=True)])
        ids, positions = (
            torch.from_numpy(np.concatenate(parts)).to(self._device)
            for parts in ([text.ids for text in texts], [self._tokenise.positions(text) for text in texts])
        )
        hidden = self._model(ids, lengths, positions=positions, attention=self._attention)
        dense = weights = rows = None
        if "dense" in wanted:
            cls_texts = np.repeat(np.arange(len(texts)), [len(text.cls) for text in texts])
            cls_rows_, cls_texts_ = (torch.from_numpy(x).to(self._device) for x in (cls_rows, cls_texts))
            dense = heads.dense_vectors(hidden, cls_rows_, cls_texts_, len(texts)).cpu().numpy()
        if "sparse" in wanted:
            weights = heads.token_weights(hidden, self._model.sparse_linear).cpu().numpy()
        if "multivector" in wanted:
            kept = torch.ones(len(hidden), dtype=torch.bool)
            kept[torch.from_numpy(cls_rows)] = False
            head = self._model.colbert_linear
            rows = heads.multivector_rows(hidden[kept.to(self._device)], head).cpu().numpy()
        return dense, weights, rows

    def _check_length(self, asked: int | None, limit: int) -> int:
        if asked is None:
            return limit
        if not 3 <= asked <= self._model_max_length:
            raise InvalidInput(
                f"max_length is {asked}; this model takes 3 to {self._model_max_length} tokens, "
                "<s> and </s> included."
            )
        return asked


_Outputs = tuple["heads.Float32 | None", "heads.Float32 | None", "heads.Float32 | None"]


def _check_components(components: Sequence[Component]) -> frozenset[Component]:
    if isinstance(components, str) or not components or not set(components) <= set(COMPONENTS):
        raise InvalidInput(
            f"components is {components!r}; it must be a tuple of one or more of {', '.join(COMPONENTS)}."
        )
    return frozenset(components)


def _scatter(
    source: heads.Float32 | None, target: heads.Float32 | None, offsets: heads.Int64, batch: list[int]
) -> None:
    """Put the parts of a batch, end to end in ``source``, where their texts belong in ``target``."""
    if source is None or target is None:
        return
    at = 0
    for i in batch:
        size = offsets[i + 1] - offsets[i]
        target[offsets[i] : offsets[i + 1]] = source[at : at + size]
        at += size


def _cut_message(cut: int, limit: int) -> str:
    return (
        f"{cut} text{'s are' if cut > 1 else ' is'} longer than {limit} tokens and cut there (the first so far; "
        "M3Embeddings.truncated says which).\n  Split long texts into passages, or raise max_length."
    )
