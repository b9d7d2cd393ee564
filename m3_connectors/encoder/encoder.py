"""M3Encoder computes M3Embeddings from texts."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from m3_connectors.errors import InvalidInput, MissingDependency

try:
    import torch  # noqa: F401 (its absence is an error that says what to install)
except ImportError:
    raise MissingDependency("torch", "encoder") from None

from m3_connectors.embeddings import COMPONENTS, Component, M3Embeddings, ModelInfo
from m3_connectors.encoder.arguments import check_components, check_texts, is_whole
from m3_connectors.encoder.devices import Precision, choose_device, choose_dtype
from m3_connectors.encoder.int8 import largest_weight
from m3_connectors.encoder.loading import load
from m3_connectors.encoder.progress import reporter
from m3_connectors.encoder.runner import Runner
from m3_connectors.encoder.threads import set_threads
from m3_connectors.encoder.tokens import TextTokeniser
from m3_connectors.encoder.truncation import warn_if_cut

Progress = Callable[[int, int], object]
"""``progress(done, total)``, counted in texts."""

_WINDOW_TEXTS = 1024
"""The number of texts that ``encode`` tokenises, sorts and encodes together."""


class M3Encoder:
    """Computes dense, sparse and multi-vector representations of texts with an M3 checkpoint.

    The encoder is thread-safe: calls from several threads share the model and alternate batch by batch.

    Args:
        model: A directory, or a hub name such as ``BAAI/bge-m3``. Loading a directory never uses the network.
            The weights may be sharded. If the multi-vector head is narrower than the dense vectors
            (FlagEmbedding's ``colbert_dim``), its rows are padded with zeros to their width, which does not
            change any score.
        revision: The branch, tag or commit of the hub repository.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``; by default the best device available.
        precision: The dtype of the computation: ``"float32"``, ``"bfloat16"``, ``"float16"`` (GPUs only) or
            ``"auto"``: bfloat16 if the hardware supports it (CPUs with AVX-512-BF16 or AMX, CUDA), float16 on
            other GPUs, otherwise float32. ``"int8"`` (CPUs only) computes the layers' products in integers, which
            is faster and less exact; ``"auto"`` never chooses it. The output is always float32.
        max_length: The maximum number of tokens of a text, including ``<s>`` and ``</s>``; by default the
            model's maximum (8,192).
        token_budget: The maximum number of tokens in one forward pass; a higher value is faster up to a point
            and needs more memory.
        threads: The number of threads of PyTorch's CPU operators. PyTorch has one such setting for the whole
            process, which this argument changes. By default PyTorch's own, or fewer if the container has a
            CPU quota and the environment does not set ``OMP_NUM_THREADS``.

    Raises:
        InvalidInput: An argument is out of range.
        ModelFormat: The directory is not an M3 checkpoint, or a weight is not finite; the message names the
            file and the tensor.
        Unsupported: ``precision="int8"`` on a GPU, on a machine that lacks its operators or computes wrongly with
            them, or for a checkpoint whose vectors it would change too much.
        NotFound, Unauthorised, Unavailable: The hub has no such model, denies access, or cannot be reached.
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
            if value is not None and not (is_whole(value) and value >= 1):
                raise InvalidInput(
                    f"{name} is {value!r}; it must be a whole number of at least 1.\n  Omit it to use the default."
                )
        set_threads(threads)
        self._device = choose_device(device)
        self._dtype = choose_dtype(precision, self._device)
        if precision == "int8":
            largest_weight()  # raises where it cannot be used, before the checkpoint is read
        checkpoint = load(str(model), revision=revision, dtype=self._dtype)
        self._tokenise = TextTokeniser(checkpoint.tokenizer)
        self._model_max_length = checkpoint.model.config.max_length
        self._max_length = self._check_length(max_length, self._model_max_length)
        info = dataclasses.replace(checkpoint.info, precision="int8" if precision == "int8" else None)
        self._runner = Runner(
            checkpoint.model.to(self._device), self._tokenise, info, token_budget=token_budget
        )
        self.info: ModelInfo = info
        """The identity of the model, which is written into every result."""
        self.recommended_weights: Mapping[str, tuple[float, float, float]] = MappingProxyType(
            dict(checkpoint.recommended_weights)
        )
        """The ``(dense, sparse, multivector)`` weights distributed with the model, by method name."""

    @property
    def max_length(self) -> int:
        """The maximum number of tokens of a text, including ``<s>`` and ``</s>``."""
        return self._max_length

    @property
    def device(self) -> str:
        """The device of the model."""
        return str(self._device)

    @property
    def precision(self) -> str:
        """The dtype of the computation, or "int8"."""
        return self.info.precision or str(self._dtype).removeprefix("torch.")

    @property
    def token_budget(self) -> int:
        """The maximum number of tokens in one forward pass; it is reduced when memory runs out."""
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
            texts: The texts. The list may be empty, and so may each text.
            components: The components to compute; no others are computed.
            max_length: The maximum number of tokens of a text in this call.
            mcls: Whether to insert a CLS token every 256 tokens and use the mean of their last hidden states
                for the dense vector (paper, section 3.3, for long texts). Sparse weights and multi-vectors
                ignore the inserted tokens.
            progress: ``True`` shows a progress bar on stderr; a function is called with ``(done, total)``
                after each batch.

        Returns:
            One row per text, in the given order. Reading a component that was not requested raises ``InvalidInput``.

        Raises:
            InvalidInput: A text is not a string (the message says which), or an argument is out of range.
            ModelFormat: The output for a text is not finite (the message says for which).
        """
        texts = list(check_texts(texts, "encode"))
        wanted, limit = check_components(components), self._check_length(max_length, self._max_length)
        with reporter(progress, len(texts)) as report:
            parts = list(self._windows(texts, _WINDOW_TEXTS, wanted, limit, mcls, report))
        result = parts[0] if len(parts) == 1 else M3Embeddings.concatenate(parts)
        warn_if_cut(result, limit, self._model_max_length)
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
        """Encode any number of texts with bounded memory.

        Args:
            texts: An iterable. It is read in the calling thread, at most ``2 * batch_texts`` ahead of the
                results.
            components: As in ``encode``.
            max_length: As in ``encode``.
            mcls: As in ``encode``.
            batch_texts: The number of texts per result.

        Yields:
            The embeddings of the texts in order, ``batch_texts`` at a time; nothing for an empty iterable.

        Raises:
            InvalidInput: As in ``encode``, when the batch that contains the text is reached.
        """
        check_texts(texts, "encode_stream")
        if not (is_whole(batch_texts) and batch_texts >= 1):
            raise InvalidInput(
                f"batch_texts is {batch_texts!r}; it must be a whole number of at least 1.\n"
                "  Omit it to use the default."
            )
        wanted, limit = check_components(components), self._check_length(max_length, self._max_length)
        return self._stream(texts, batch_texts, wanted, limit, mcls)

    def token_strings(self, text: str) -> list[str]:
        """Return the tokens of the multi-vector rows of a text, with ``</s>`` last."""
        return self._tokenise.token_strings(text, self._max_length)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text before truncation, including ``<s>`` and ``</s>``."""
        return [text.token_count for text in self._tokenise(texts, self._max_length, mcls=False)]

    def token_spans(self, text: str) -> npt.NDArray[np.int64]:
        """Return where each token of a text begins and ends, int64 ``[tokens, 2]`` in characters; no special tokens."""
        return self._tokenise.token_spans(text)

    def id_to_token(self, id: int) -> str | None:
        """Return the token of an id, or None; used by ``M3Embeddings.lexical_weights``."""
        token: str | None = self._tokenise.tokenizer.id_to_token(id)
        return token

    def tokenizer_json(self) -> str:
        """Return the tokenizer as ``tokenizer.json`` has it, without truncation and padding."""
        content: str = self._tokenise.tokenizer.to_str()
        return content

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
            warned = warned or warn_if_cut(part, limit, self._model_max_length)
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
        """Encode window by window while the next is tokenised; yields at least one result, maybe empty."""
        source, read = iter(texts), 0

        def take() -> tuple[list[str], int]:
            nonlocal read
            window, first = list(itertools.islice(source, window_texts)), read
            read += len(window)
            return window, first

        with ThreadPoolExecutor(1, "m3-tokenise") as pool:  # a single window starts no thread
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

    def _check_length(self, asked: int | None, limit: int) -> int:
        if asked is None:
            return limit
        if not (is_whole(asked) and 3 <= asked <= self._model_max_length):
            raise InvalidInput(
                f"max_length is {asked!r}; for this model, it must be 3 to {self._model_max_length} tokens, "
                "including <s> and </s>.\n  Omit it to use the model's maximum."
            )
        return asked
