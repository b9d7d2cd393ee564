"""M3Encoder: texts in, M3Embeddings out."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

import torch

from m3_connectors.embeddings import COMPONENTS, Component, M3Embeddings, ModelInfo
from m3_connectors.encoder.devices import Precision, choose_device, choose_dtype
from m3_connectors.encoder.loading import load
from m3_connectors.encoder.progress import reporter
from m3_connectors.encoder.runner import Runner
from m3_connectors.encoder.tokens import TextTokeniser
from m3_connectors.errors import InvalidInput

Progress = Callable[[int, int], object]
"""``progress(done, total)``, in texts."""

_WINDOW_TEXTS = 1024
"""Texts that ``encode`` tokenises, sorts and encodes together."""


class TruncationWarning(UserWarning):
    """Texts were longer than the maximum and were cut.

    ``M3Embeddings.truncated`` says which; ``token_counts`` and ``kept_token_counts`` say how much of each is lost.
    """


class M3Encoder:
    """An M3 checkpoint that turns texts into dense, sparse and multi-vector representations.

    Safe under threads: calls from several threads share the model and take turns batch by batch.

    Args:
        model: A directory, or a hub name such as ``BAAI/bge-m3``. A directory never touches the network. The weights
            may be in shards. A multi-vector head that is narrower than the dense vectors (FlagEmbedding's
            ``colbert_dim``) gives rows that are padded with zeros to their width: no score changes.
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
        ModelFormat: The directory is no M3 checkpoint, or a weight is not a finite number; names file and tensor.
        NotFound, Unauthorised, Unavailable: The hub has no such model, refuses it, or cannot be reached.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "BAAI/bge-m3",
        *,
        revision: str | None = None,
        device: str | None = None,
        precision: Precision = "auto",
        max_length: int | None = None,
        token_budget: int | None = None,
        threads: int | None = None,
    ) -> None:
        for name, value in (("token_budget", token_budget), ("threads", threads)):
            if value is not None and not (_is_whole(value) and value >= 1):
                raise InvalidInput(f"{name} is {value!r}; it must be a whole number of at least 1.")
        if threads is not None:
            torch.set_num_threads(threads)
        self._device = choose_device(device)
        self._dtype = choose_dtype(precision, self._device)
        checkpoint = load(str(model), revision=revision, dtype=self._dtype)
        self._tokenise = TextTokeniser(checkpoint.tokenizer)
        self._model_max_length = checkpoint.model.config.max_length
        self._max_length = self._check_length(max_length, self._model_max_length)
        self._runner = Runner(
            checkpoint.model.to(self._device), self._tokenise, checkpoint.info, token_budget=token_budget
        )
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
        return self._runner.token_budget

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
            One row per text, in the given order. Reading a component that was not asked for raises ``InvalidInput``.

        Raises:
            InvalidInput: A text is no string (says which), or an argument is out of its range.
            ModelFormat: The model computes no finite numbers for a text (says which).
        """
        texts = list(_check_texts(texts, "encode"))
        wanted, limit = _check_components(components), self._check_length(max_length, self._max_length)
        with reporter(progress, len(texts)) as report:
            parts = list(self._windows(texts, _WINDOW_TEXTS, wanted, limit, mcls, report))
        result = parts[0] if len(parts) == 1 else M3Embeddings.concatenate(parts)
        self._warn_if_cut(result, limit)
        return result

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
        _check_texts(texts, "encode_stream")
        if not (_is_whole(batch_texts) and batch_texts >= 1):
            raise InvalidInput(f"batch_texts is {batch_texts!r}; it must be a whole number of at least 1.")
        wanted, limit = _check_components(components), self._check_length(max_length, self._max_length)
        return self._stream(texts, batch_texts, wanted, limit, mcls)

    def token_strings(self, text: str) -> list[str]:
        """The tokens behind the multi-vector rows of a text, ``</s>`` last."""
        return self._tokenise.token_strings(text, self._max_length)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, ``<s>`` and ``</s>`` included, however many the model reads of them."""
        return [text.token_count for text in self._tokenise(texts, self._max_length, mcls=False)]

    def id_to_token(self, id: int) -> str | None:
        """The token of an id, or None; for ``M3Embeddings.lexical_weights``."""
        token: str | None = self._tokenise.tokenizer.id_to_token(id)
        return token

    def _stream(
        self,
        texts: Iterable[str],
        batch_texts: int,
        wanted: frozenset[Component],
        limit: int,
        mcls: bool,
    ) -> Iterator[M3Embeddings]:
        warned = False
        for part in self._windows(texts, batch_texts, wanted, limit, mcls, lambda _: None):
            warned = warned or self._warn_if_cut(part, limit)
            if len(part):
                yield part

    def _windows(
        self,
        texts: Iterable[str],
        window_texts: int,
        wanted: frozenset[Component],
        limit: int,
        mcls: bool,
        report: Callable[[int], object],
    ) -> Iterator[M3Embeddings]:
        """Encode window by window, the next one being tokenised meanwhile; at least one, maybe empty."""
        source, read = iter(texts), 0

        def take() -> tuple[list[str], int]:
            nonlocal read
            window, first = list(itertools.islice(source, window_texts)), read
            read += len(window)
            return window, first

        with ThreadPoolExecutor(1, "m3-tokenise") as pool:  # without a second window, no thread is started
            window, first = take()
            tokenised = self._tokenise(window, limit, mcls=mcls, first_index=first)
            while True:
                job, running = None, first
                if len(window) == window_texts:
                    window, first = take()
                    if window:
                        job = pool.submit(self._tokenise, window, limit, mcls=mcls, first_index=first)
                yield self._runner.run(tokenised, wanted, report, first_index=running)
                if job is None:
                    return
                tokenised = job.result()

    def _warn_if_cut(self, result: M3Embeddings, limit: int) -> bool:
        """One warning, seen from who called encode or iterates over encode_stream."""
        cut = result.truncated_count
        if cut:
            more = ", or raise max_length" if limit < self._model_max_length else ""
            # The lengths are not in it: one text a call, each of another length, would be one warning each.
            warnings.warn(
                f"{cut} text{'s are' if cut > 1 else ' is'} longer than {limit} tokens and cut there; "
                "M3Embeddings.truncated says which, and token_counts how long they are.\n"
                f"  Split long texts into passages{more}.",
                TruncationWarning,
                stacklevel=3,
            )
        return cut > 0

    def _check_length(self, asked: int | None, limit: int) -> int:
        if asked is None:
            return limit
        if not (_is_whole(asked) and 3 <= asked <= self._model_max_length):
            raise InvalidInput(
                f"max_length is {asked!r}; this model takes 3 to {self._model_max_length} tokens, "
                "<s> and </s> included."
            )
        return asked


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_texts(texts: Iterable[str], call: str) -> Iterable[str]:
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
        raise InvalidInput(
            f"texts is {type(texts).__name__} {texts!r:.60}; it must be a list of strings.\n"
            f"  Put a single text into a list: {call}([text])."
        )
    return texts


def _check_components(components: Sequence[Component]) -> frozenset[Component]:
    if isinstance(components, str) or not components or not set(components) <= set(COMPONENTS):
        raise InvalidInput(
            f"components is {components!r}; it must be a tuple of one or more of {', '.join(COMPONENTS)}."
        )
    return frozenset(components)
