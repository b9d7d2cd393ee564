"""A dense model behind an OpenAI-compatible embedding endpoint, which most model servers offer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import anyio
import numpy as np

from m3_connectors.backends.retry import RetryPolicy
from m3_connectors.backends.together import together
from m3_connectors.embeddings import Float32
from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.baselines.options import model_and_options, prefixes, run_name
from m3_connectors.evaluation.baselines.ranking import nearest
from m3_connectors.evaluation.datasets.dataset import Dataset
from m3_connectors.evaluation.folder import EvaluationFolder, Run
from m3_connectors.model_server import ModelServer, words_of

if TYPE_CHECKING:
    import httpx

    from m3_connectors.encoder.encoder import M3Encoder

TEXTS_AT_ONCE = 64
"""The number of texts in one request."""

REQUESTS_AT_ONCE = 4
"""The maximum number of concurrent requests."""

_BASE = "https://api.openai.com/v1"


class EmbeddingEndpoint:
    """The baseline ``openai:MODEL``: exact search by inner product of unit vectors from ``OPENAI_BASE_URL``.

    The key is that of ``OPENAI_API_KEY``; a server of one's own may need none.

    Args:
        spec: The model's name there; ``?query=…&passage=…`` are prefixes, ``max_characters=N`` cuts longer
            texts, which such servers refuse.
        retry_policy: Timeouts and retries.

    Raises:
        InvalidInput: An unknown option, an address instead of a model, or the address is none.
        MissingDependency: httpx is not installed.
    """

    requires = ()

    def __init__(self, spec: str, retry_policy: RetryPolicy | None = None) -> None:
        self._model, options = model_and_options(spec, ("query", "passage", "max_characters"))
        if "://" in self._model:  # else its texts would go to the default address
            raise InvalidInput(
                f"openai:{spec} names an address, not a model.\n"
                "  Set OPENAI_BASE_URL to the address, and use openai:MODEL."
            )
        self._server = ModelServer(
            os.environ.get("OPENAI_BASE_URL", _BASE),
            named_by="OPENAI_BASE_URL",
            key=os.environ.get("OPENAI_API_KEY"),
            key_variable="OPENAI_API_KEY",
            offer=f"the model {self._model}",
            kind="embedding endpoint",
            operation="embed",
            retry_policy=retry_policy or RetryPolicy(),
        )
        self._prefixes = options.get("query", ""), options.get("passage", "")
        self._most = options.get("max_characters", "")
        if self._most and not (self._most.isdecimal() and int(self._most)):
            raise InvalidInput(f"max_characters is {self._most!r}.\n  Use an integer above 0.")
        self._dimension: int | None = None
        self.name = run_name("openai", self._model)
        cut = f", texts cut at {int(self._most):,} characters" if self._most else ""
        self.description = (
            f"{self._model} behind the embedding endpoint {self._server.name}, exact search by cosine"
            f"{cut}{prefixes(*self._prefixes)}"
        )

    def run(self, dataset: Dataset, folder: EvaluationFolder, encoder: M3Encoder) -> Run:
        """Rank the corpus for every query; see ``Baseline.run``.

        Raises:
            Unauthorised, NotFound, Rejected: The server refused: the key, the model, or a text.
            Unavailable, TimedOut, Throttled: It did not answer in time, tried again and again.
        """
        query, passage = self._prefixes
        depth = folder.record.protocol.run_depth
        return nearest(dataset, depth, partial(self.embed, prefix=query), partial(self.embed, prefix=passage))

    def embed(self, texts: Sequence[str], prefix: str = "") -> Float32:
        """Unit vectors of texts, float32 ``[n, d]``."""
        cut = slice(int(self._most) if self._most else None)
        # The servers refuse an empty text.
        given = [prefix + text[cut] or " " for text in texts]
        return anyio.run(self._all, given)

    async def _all(self, texts: Sequence[str]) -> Float32:
        async with self._server.client() as client:
            calls = [
                partial(self._one, client, texts[start : start + TEXTS_AT_ONCE])
                for start in range(0, len(texts), TEXTS_AT_ONCE)
            ]
            return np.concatenate(await together(calls, at_once=REQUESTS_AT_ONCE))

    async def _one(self, client: httpx.AsyncClient, texts: Sequence[str]) -> Float32:
        body = {"model": self._model, "input": list(texts), "encoding_format": "float"}
        too_long = f"If a text is too long, truncate with openai:{self._model}?max_characters=N."
        response = await self._server.post(client, "embeddings", body, too_long)
        return self._vectors(response, len(texts))

    def _vectors(self, response: httpx.Response, count: int) -> Float32:
        try:
            rows = sorted(response.json()["data"], key=lambda row: row["index"])
            indexes = [row["index"] for row in rows]
            vectors = np.array([row["embedding"] for row in rows], dtype=np.float32)
        except (ValueError, KeyError, TypeError) as error:
            raise self._server.wrong_answer(
                f"no embeddings: {words_of(response)}",
                "Check that OPENAI_BASE_URL is the base of an OpenAI-compatible API, such as http://host/v1.",
            ) from error
        if indexes != list(range(count)) or vectors.ndim != 2:
            raise self._server.wrong_answer(
                f"{len(rows)} embeddings for {count} texts.",
                f"Check that the server supports lists of texts for the model {self._model}.",
            )
        self._dimension = self._dimension or vectors.shape[1]
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if vectors.shape[1] != self._dimension or not np.isfinite(norms).all() or not norms.all():
            raise self._server.wrong_answer(
                f"vectors of {vectors.shape[1]} dimensions after {self._dimension}, or not finite, or all 0: they "
                "cannot be compared.",
                f"Check that {self._model} is an embedding model.",
            )
        unit: Float32 = vectors / norms
        return unit
