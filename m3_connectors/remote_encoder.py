"""RemoteEncoder: the encoder of a machine that has no model, whose texts ``m3 serve`` encodes on another."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, TypeVar

import anyio
from pydantic import BaseModel, Field, PositiveInt, ValidationError

from m3_connectors.backends.retry import RetryPolicy
from m3_connectors.embeddings import COMPONENTS, Component, Int64, M3Embeddings, ModelInfo
from m3_connectors.encoder.arguments import (
    check_components,
    check_strings,
    check_texts,
    is_whole,
    require_unicode,
)
from m3_connectors.encoder.progress import reporter
from m3_connectors.encoder.tokens import TextTokeniser, vocabulary_fingerprint, vocabulary_of
from m3_connectors.encoder.truncation import warn_if_cut
from m3_connectors.errors import InvalidInput, ModelMismatch
from m3_connectors.event_loop import Loop
from m3_connectors.model_server import ModelServer

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

KEY_VARIABLE = "M3_MODEL_KEY"
"""The environment variable of the API key, for the command line."""

_MOST_TEXTS = 256
_NOT_OURS = "Check the URL: it must be that of m3 serve, of this version or a later one."


_Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Described(BaseModel):
    """What the server says of its model."""

    model: ModelInfo
    max_length: PositiveInt
    recommended_weights: dict[str, tuple[_Weight, _Weight, _Weight]]
    max_texts: PositiveInt = _MOST_TEXTS
    """The most texts of a request; earlier versions do not say."""


class RemoteEncoder:
    """Encodes texts on a server that runs ``m3 serve``; used wherever ``M3Encoder`` is, without PyTorch.

    Texts are sent in batches, several at a time; the server joins them with those of other clients. A batch that the
    server refuses for a time, or that is lost on the way, is sent again: encoding changes nothing, so this is safe. An
    answer with vectors of another model than at the beginning is refused.

    The encoder is thread-safe. Close it, or use it as a context manager, to close its connections.

    Args:
        address: The server, such as ``http://host:8080``.
        api_key: An API key of the server that may read.
        batch_characters: The number of characters of a batch; a longer text is sent alone.
        concurrency: The number of batches that are under way at a time.
        retry_policy: Timeouts and retries of each batch.

    Raises:
        InvalidInput: The address is not valid, or a number is out of range.
        Unauthorised: The server does not accept the key.
        NotFound, Rejected: There is another server at this address.
        Unavailable, TimedOut, Throttled: It did not answer in time, tried again and again.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        batch_characters: int = 16_384,
        concurrency: int = 4,
        retry_policy: RetryPolicy | None = None,
    ) -> None:
        for name, value in (("batch_characters", batch_characters), ("concurrency", concurrency)):
            if not (is_whole(value) and value >= 1):
                raise InvalidInput(
                    f"{name} is {value!r}; it must be a whole number of at least 1.\n  Omit it to use the default."
                )
        self._server = ModelServer(
            address,
            named_by="the address",
            key=api_key,
            key_variable=f"api_key ({KEY_VARIABLE} on the command line)",
            offer="m3 serve of this version or a later one",
            kind="encoder",
            operation="encode",
            retry_policy=retry_policy or RetryPolicy(),
        )
        if "@" in address or "?" in address:
            raise InvalidInput(
                f"the address is {self._server.name}, with a name, a key or a question in it.\n"
                "  Give only http://HOST:PORT, and the key as api_key."
            )
        self._batch_characters = batch_characters
        self._concurrency = concurrency
        self._lock = threading.Lock()
        self._loop = Loop()
        self._client = self._server.client()
        self._finalizer = weakref.finalize(self, _close, self._loop, self._client)
        try:
            described = _Described.model_validate_json(self._run(partial(self._read, "v1/model")).content)
            self.info = described.model
            """The identity of the server's model, which is written into every result."""
            self.recommended_weights: Mapping[str, tuple[float, float, float]] = MappingProxyType(
                described.recommended_weights
            )
            """The ``(dense, sparse, multivector)`` weights distributed with the model, by method name."""
            self._max_length = described.max_length
            self._most_texts = min(_MOST_TEXTS, described.max_texts)
        except ValidationError as error:
            self.close()
            raise self._server.wrong_answer("without the description of an M3 model.", _NOT_OURS) from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RemoteEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<RemoteEncoder {self._server.name}>"

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        self._finalizer()

    @property
    def max_length(self) -> int:
        """The maximum number of tokens of a text, including ``<s>`` and ``</s>``."""
        return self._max_length

    def encode(
        self,
        texts: Iterable[str],
        *,
        components: Sequence[Component] = COMPONENTS,
        progress: bool | Callable[[int, int], object] = False,
    ) -> M3Embeddings:
        """Encode texts.

        Args:
            texts: The texts. The list may be empty, and so may each text.
            components: The components to compute; no others are computed.
            progress: ``True`` shows a progress bar on stderr; a function is called with ``(done, total)`` after each
                batch.

        Returns:
            One row per text, in the given order. Reading a component that was not requested raises ``InvalidInput``.

        Raises:
            InvalidInput: A text is not a string (the message says which), or an argument is out of range.
            ModelMismatch: The server has another model than at the beginning.
            Rejected: The server refused a text.
            Unauthorised, Unavailable, TimedOut, Throttled: The server did not encode a batch, tried again and again.
        """
        texts = list(check_texts(texts, "encode"))
        check_strings(texts)
        for i, text in enumerate(texts):
            require_unicode(text, i)
        wanted = check_components(components)
        chosen = [name for name in COMPONENTS if name in wanted]
        with reporter(progress, len(texts)) as report:
            parts = self._run(partial(self._encode, list(self._batches(texts)), chosen, report))
        result = parts[0] if len(parts) == 1 else M3Embeddings.concatenate(parts)
        warn_if_cut(result, self._max_length, self._max_length)
        return result

    def token_strings(self, text: str) -> list[str]:
        """Return the tokens of the multi-vector rows of a text, with ``</s>`` last."""
        return self._tokenise.token_strings(text, self._max_length)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text before truncation, including ``<s>`` and ``</s>``."""
        return [text.token_count for text in self._tokenise(texts, self._max_length, mcls=False)]

    def token_spans(self, text: str) -> Int64:
        """Return where each token of a text begins and ends, int64 ``[tokens, 2]`` in characters; no special tokens."""
        return self._tokenise.token_spans(text)

    def id_to_token(self, id: int) -> str | None:
        """Return the token of an id, or None; used by ``M3Embeddings.lexical_weights``."""
        token: str | None = self._tokenise.tokenizer.id_to_token(id)
        return token

    @property
    def _tokenise(self) -> TextTokeniser:
        with self._lock:
            return self._fetched_tokeniser

    @cached_property
    def _fetched_tokeniser(self) -> TextTokeniser:
        """The server's tokenizer, fetched when tokens are asked for: texts are cut and named on this machine."""
        from tokenizers import Tokenizer

        content = self._run(partial(self._read, "v1/tokenizer")).text
        try:
            tokenizer = Tokenizer.from_str(content)
        except Exception as error:  # the library raises plain Exception for every malformed file
            raise self._server.wrong_answer("with something else than a tokenizer.", _NOT_OURS) from error
        if vocabulary_fingerprint(vocabulary_of(tokenizer)) != self.info.vocabulary_fingerprint:
            raise self._other_model("has the tokenizer of another model")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return TextTokeniser(tokenizer)

    def _batches(self, texts: list[str]) -> Iterator[list[str]]:
        """Yield the texts in order, as batches; at least one, maybe empty."""
        batch: list[str] = []
        characters = 0
        for text in texts:
            if batch and (len(batch) == self._most_texts or characters + len(text) > self._batch_characters):
                yield batch
                batch, characters = [], 0
            batch.append(text)
            characters += len(text)
        yield batch

    async def _encode(
        self, batches: list[list[str]], components: list[Component], report: Callable[[int], object]
    ) -> list[M3Embeddings]:
        parts: dict[int, M3Embeddings] = {}
        waiting = iter(enumerate(batches))
        failures: list[Exception] = []

        async def work() -> None:
            for number, batch in waiting:
                try:
                    parts[number] = await self._encode_batch(batch, components)
                    report(len(batch))
                except Exception as error:  # noqa: BLE001 (raised below, alone, and not as a group)
                    failures.append(error)
                    tasks.cancel_scope.cancel()
                    return

        async with anyio.create_task_group() as tasks:
            for _ in itertools.repeat(None, min(self._concurrency, len(batches))):
                tasks.start_soon(work)
        if failures:
            raise failures[0]
        return [parts[number] for number in range(len(batches))]

    async def _encode_batch(self, batch: list[str], components: list[Component]) -> M3Embeddings:
        response = await self._server.post(
            self._client,
            "v1/encode",
            {"texts": batch, "components": components},
            "Check the texts of this batch, or send fewer characters at a time with batch_characters.",
            accept="application/x-safetensors",
        )
        try:
            embeddings = M3Embeddings.from_bytes(response.content)
        except InvalidInput as error:
            raise self._server.wrong_answer("with something else than embeddings.", _NOT_OURS) from error
        if embeddings.model is None or not self._is_served_by(embeddings.model):
            raise self._other_model(f"now has the model {embeddings.model}")
        if len(embeddings) != len(batch) or not set(components) <= set(embeddings.components):
            raise self._server.wrong_answer(
                f"with {len(embeddings)} rows of {', '.join(embeddings.components)}, not with {len(batch)} of "
                f"{', '.join(components)}.",
                _NOT_OURS,
            )
        # The name may differ where the fingerprints agree; one name is written into every result.
        return embeddings.replace(model=self.info)

    def _is_served_by(self, found: ModelInfo) -> bool:
        """Return whether this is still the same model, computed in the same precision, maybe under another name."""
        return found.matches(self.info) and (found.weights_fingerprint, found.precision) == (
            self.info.weights_fingerprint,
            self.info.precision,
        )

    async def _read(self, path: str) -> httpx.Response:
        return await self._server.get(self._client, path, _NOT_OURS)

    def _other_model(self, found: str) -> ModelMismatch:
        return ModelMismatch(
            f"{self._server.name} {found}; this encoder was made for {self.info}.\n"
            "  Make a new RemoteEncoder, and encode with one model what is compared."
        )

    def _run(self, call: Callable[[], Awaitable[T]]) -> T:
        if not self._finalizer.alive:
            raise InvalidInput(f"{self!r} is closed.\n  Make a new one.")
        return self._loop.run(call)


def _close(loop: Loop, client: httpx.AsyncClient) -> None:
    if not loop.is_current:  # as it is where the last reference was dropped there
        loop.run(client.aclose)
    loop.stop()
