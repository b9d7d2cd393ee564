"""A dense model behind an OpenAI-compatible embedding endpoint, which most model servers offer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
from pydantic import SecretStr

from m3_connectors.backends.retry import RetryPolicy, retrying
from m3_connectors.backends.together import together
from m3_connectors.backends.urls import redacted
from m3_connectors.embeddings import Float32
from m3_connectors.errors import (
    BackendError,
    InvalidInput,
    MissingDependency,
    NotFound,
    Rejected,
    Throttled,
    TimedOut,
    Unauthorised,
    Unavailable,
)
from m3_connectors.evaluation.baselines.options import model_and_options, prefixes, run_name
from m3_connectors.evaluation.baselines.ranking import nearest
from m3_connectors.evaluation.datasets.dataset import Dataset
from m3_connectors.evaluation.folder import EvaluationFolder, Run

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
        try:
            import httpx  # noqa: F401
        except ImportError:
            raise MissingDependency("httpx", "eval") from None
        self._model, options = model_and_options(spec, ("query", "passage", "max_characters"))
        if "://" in self._model:  # else its texts would go to the default address
            raise InvalidInput(
                f"openai:{spec} names an address, not a model.\n"
                "  Set OPENAI_BASE_URL to the address, and use openai:MODEL."
            )
        self._base = os.environ.get("OPENAI_BASE_URL", _BASE).rstrip("/")
        self._server = redacted(self._base)
        if not self._base.startswith(("http://", "https://")):
            raise InvalidInput(
                f"OPENAI_BASE_URL is {self._server!r}.\n  Set it to a URL that begins with http:// or https://."
            )
        key = os.environ.get("OPENAI_API_KEY")
        self._key: SecretStr | None = SecretStr(key) if key else None
        self._prefixes = options.get("query", ""), options.get("passage", "")
        self._most = options.get("max_characters", "")
        if self._most and not (self._most.isdecimal() and int(self._most)):
            raise InvalidInput(f"max_characters is {self._most!r}.\n  Use an integer above 0.")
        self._retry_policy = retry_policy or RetryPolicy()
        self._dimension: int | None = None
        self.name = run_name("openai", self._model)
        cut = f", texts cut at {int(self._most):,} characters" if self._most else ""
        self.description = (
            f"{self._model} behind the embedding endpoint {self._server}, exact search by cosine"
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
        import httpx

        headers = {"Authorization": f"Bearer {self._key.get_secret_value()}"} if self._key else {}
        async with httpx.AsyncClient(headers=headers, timeout=self._retry_policy.timeout_seconds) as client:
            calls = [
                partial(
                    retrying,
                    self._retry_policy,
                    partial(self._one, client, texts[start : start + TEXTS_AT_ONCE]),
                )
                for start in range(0, len(texts), TEXTS_AT_ONCE)
            ]
            return np.concatenate(await together(calls, at_once=REQUESTS_AT_ONCE))

    async def _one(self, client: httpx.AsyncClient, texts: Sequence[str]) -> Float32:
        import httpx

        body = {"model": self._model, "input": list(texts), "encoding_format": "float"}
        try:
            response = await client.post(f"{self._base}/embeddings", json=body)
        except httpx.TimeoutException as error:
            raise TimedOut(
                f"{self._server} did not respond in time.\n  Try again later.", **_WHERE
            ) from error
        except httpx.TransportError as error:
            raise Unavailable(
                f"{self._server} cannot be reached: {str(error) or type(error).__name__}\n"
                "  Check OPENAI_BASE_URL, and that the server is running.",
                **_WHERE,
            ) from error
        if response.status_code != 200:
            raise self._refused(response)
        return self._vectors(response, len(texts))

    def _refused(self, response: httpx.Response) -> BackendError:
        said = f"{self._server} answered {response.status_code}: {_words(response)}"
        status = response.status_code
        if status in (401, 403):
            return Unauthorised(f"{said}\n  Check OPENAI_API_KEY.", **_WHERE)
        if status == 404:
            return NotFound(
                f"{said}\n  Check that it has the model {self._model}, and check OPENAI_BASE_URL.", **_WHERE
            )
        if status == 429:
            after = response.headers.get("Retry-After", "")
            return Throttled(
                f"{said}\n  Wait, or have the rate limit raised, then run the same command again.",
                retry_after_seconds=float(after) if after.isdecimal() else None,
                **_WHERE,
            )
        if status >= 500:
            return Unavailable(
                f"{said}\n  Check the log of the server, then run the same command again.", **_WHERE
            )
        return Rejected(
            f"{said}\n  If a text is too long, truncate with openai:{self._model}?max_characters=N.", **_WHERE
        )

    def _vectors(self, response: httpx.Response, count: int) -> Float32:
        try:
            rows = sorted(response.json()["data"], key=lambda row: row["index"])
            indexes = [row["index"] for row in rows]
            vectors = np.array([row["embedding"] for row in rows], dtype=np.float32)
        except (ValueError, KeyError, TypeError) as error:
            raise Rejected(
                f"{self._server} answered no embeddings: {_words(response)}\n"
                "  Check that OPENAI_BASE_URL is the base of an OpenAI-compatible API, such as http://host/v1.",
                **_WHERE,
            ) from error
        if indexes != list(range(count)) or vectors.ndim != 2:
            raise Rejected(
                f"{self._server} answered {len(rows)} embeddings for {count} texts.\n"
                f"  Check that the server supports lists of texts for the model {self._model}.",
                **_WHERE,
            )
        self._dimension = self._dimension or vectors.shape[1]
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if vectors.shape[1] != self._dimension or not np.isfinite(norms).all() or not norms.all():
            raise Rejected(
                f"{self._server} answered vectors of {vectors.shape[1]} dimensions after {self._dimension}, or not "
                f"finite, or all 0: they cannot be compared.\n  Check that {self._model} is an embedding model.",
                **_WHERE,
            )
        unit: Float32 = vectors / norms
        return unit


_WHERE: dict[str, Any] = {"backend": "embedding endpoint", "operation": "embed"}


def _words(response: httpx.Response) -> str:
    """The server's own words, in short."""
    try:
        error = response.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:300]
    except (ValueError, KeyError, TypeError):
        return response.text.strip()[:300] or "nothing"
