"""Dynamic batching: the texts of concurrent requests are encoded together, within the encoder's token budget."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import anyio
import anyio.from_thread
import anyio.to_thread

from m3_connectors.documents import check_unicode
from m3_connectors.embeddings import COMPONENTS, Component, M3Embeddings, ModelInfo
from m3_connectors.errors import InvalidInput
from m3_connectors.index import Encoder
from m3_connectors.service.problems import Refused

_TOKEN_BUDGET = 4096
"""For encoders that do not name theirs."""

_LINGER_SECONDS = 0.002

_LEARNING_RATE = 0.1


@dataclasses.dataclass(frozen=True)
class BatchRecord:
    """One batch that was encoded: its number of texts, tokens and seconds."""

    texts: int
    tokens: int
    seconds: float


@dataclasses.dataclass(eq=False)
class _Job:
    """The texts of one request, of which the first ``taken`` were given to the encoder."""

    texts: list[str]
    sizes: list[int]
    components: frozenset[Component]
    taken: int = 0
    parts: list[M3Embeddings] = dataclasses.field(default_factory=list)
    error: Exception | None = None
    done: anyio.Event = dataclasses.field(default_factory=anyio.Event)

    @property
    def waiting_tokens(self) -> int:
        return sum(self.sizes[self.taken :])

    def result(self) -> M3Embeddings:
        whole = self.parts[0] if len(self.parts) == 1 else M3Embeddings.concatenate(self.parts)
        unwanted = [name for name in whole.components if name not in self.components]
        return whole.replace(**{_FIELDS[name]: None for name in unwanted}) if unwanted else whole


_FIELDS: Mapping[Component, str] = {"dense": "dense", "sparse": "sparse", "multivector": "multivectors"}


@dataclasses.dataclass(frozen=True)
class _Part:
    """Some texts of a job in a batch."""

    job: _Job
    start: int
    stop: int

    @property
    def texts(self) -> list[str]:
        return self.job.texts[self.start : self.stop]


class Batcher:
    """Encodes the texts of many callers with one encoder, which runs in one thread at a time.

    While the encoder runs, texts wait; when it is free, they are encoded together, as many as its token budget takes.
    Callers take turns batch by batch, so that one with many texts does not hold up the others. When the last batch
    was shared by several callers and the next one is not full, it waits up to 2 ms for those that ask again.

    Args:
        encoder: The encoder. If it has ``token_budget`` or ``max_length``, they are respected.
        max_waiting_tokens: The tokens that may wait; a caller beyond is refused. By default 64 budgets.
        linger_seconds: How long a batch that is not full waits for others at most.
        on_batch: Called with a record of each batch.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        max_waiting_tokens: int | None = None,
        linger_seconds: float = _LINGER_SECONDS,
        on_batch: Callable[[BatchRecord], object] = lambda _: None,
    ) -> None:
        self._encoder = encoder
        self._max_waiting_tokens = max_waiting_tokens
        self._linger_seconds = linger_seconds
        self._on_batch = on_batch
        self._jobs: deque[_Job] = deque()
        self._waiting_tokens = 0
        self._arrived = anyio.Event()
        self._closing = False
        self._was_shared = False
        self._turn = anyio.CapacityLimiter(1)
        # Learned from the batches; tokens are only counted by the encoder itself, which would otherwise do it twice.
        self._bytes_per_token = 4.0
        self._tokens_per_second = 1000.0

    @property
    def budget(self) -> int:
        """The tokens of one batch."""
        return int(getattr(self._encoder, "token_budget", _TOKEN_BUDGET))

    @property
    def waiting_tokens(self) -> int:
        """The tokens that wait for the encoder, estimated."""
        return self._waiting_tokens

    async def encode(
        self, texts: Sequence[str], components: Sequence[Component] = COMPONENTS
    ) -> M3Embeddings:
        """Encode texts together with those of other callers.

        A caller that is cancelled drops out: texts of it that still wait are not encoded.

        Raises:
            InvalidInput: A text is not valid Unicode; no other caller is affected.
            Refused: Too many tokens wait already (429), or the service is shutting down (503).
        """
        for i, text in enumerate(texts):
            check_unicode(text, f"text {i}")
        if not texts:
            return await anyio.to_thread.run_sync(self._encode, [], tuple(components), limiter=self._turn)
        job = _Job(list(texts), [self._estimate(text) for text in texts], frozenset(components))
        self._admit(job)
        self._jobs.append(job)
        self._waiting_tokens += job.waiting_tokens
        self._arrived.set()
        try:
            await job.done.wait()
        except BaseException:
            self._drop(job)
            raise
        if job.error is not None:
            raise job.error
        return job.result()

    async def run(self) -> None:
        """Encode what arrives, until ``close`` was called and everything that had arrived is encoded."""
        while True:
            if not self._jobs:
                if self._closing:
                    return
                self._arrived = anyio.Event()
                await self._arrived.wait()
                continue
            if self._was_shared:
                await self._linger()
            if batch := self._take():
                self._was_shared = len(batch) > 1
                await self._run_batch(batch)

    def close(self) -> None:
        """Refuse new texts; ``run`` returns when those that wait are encoded."""
        self._closing = True
        self._arrived.set()

    async def _linger(self) -> None:
        with anyio.move_on_after(self._linger_seconds):
            while self._waiting_tokens < self.budget and not self._closing:
                self._arrived = anyio.Event()
                await self._arrived.wait()

    def _admit(self, job: _Job) -> None:
        if self._closing:
            raise Refused(
                503, "ShuttingDown", "the service is shutting down.\n  Try again.", retry_after_seconds=1
            )
        limit = self._max_waiting_tokens or 64 * self.budget
        # One that is larger than the limit would otherwise never be admitted.
        if self._jobs and self._waiting_tokens + job.waiting_tokens > limit:
            raise Refused(
                429,
                "Overloaded",
                f"about {self._waiting_tokens:,} tokens wait for the encoder, and at most {limit:,} may wait.\n"
                "  Send the request again after the time in Retry-After.",
                retry_after_seconds=min(60.0, self._waiting_tokens / self._tokens_per_second),
            )

    def _drop(self, job: _Job) -> None:
        if job in self._jobs:
            self._jobs.remove(job)
            self._waiting_tokens -= job.waiting_tokens

    def _take(self) -> list[_Part]:
        """Take texts for a batch, from each job in turn; a text that exceeds the budget gets a batch of its own."""
        budget, batch = self.budget, list[_Part]()
        room = budget
        begun, passed = list[_Job](), list[_Job]()
        while self._jobs and room > 0:
            job = self._jobs.popleft()
            start = job.taken
            while job.taken < len(job.texts) and (job.sizes[job.taken] <= room or room == budget):
                room -= job.sizes[job.taken]
                job.taken += 1
            if job.taken > start:
                batch.append(_Part(job, start, job.taken))
            if job.taken < len(job.texts):
                (begun if job.taken > start else passed).append(job)
        self._jobs.extendleft(reversed(passed))  # those that got nothing come first next time
        self._jobs.extend(begun)
        self._waiting_tokens -= sum(sum(part.job.sizes[part.start : part.stop]) for part in batch)
        return batch

    async def _run_batch(self, batch: Sequence[_Part]) -> None:
        texts = [text for part in batch for text in part.texts]
        components = tuple(name for name in COMPONENTS if any(name in part.job.components for part in batch))
        begun = time.perf_counter()
        try:
            whole = await anyio.to_thread.run_sync(self._encode, texts, components, limiter=self._turn)
        except Exception as error:  # noqa: BLE001 (it is raised where the result is awaited)
            if len(batch) == 1:
                self._fail(batch[0].job, error)
                return
            for part in batch:  # so that the text of one caller does not fail the others
                await self._run_batch([part])
            return
        self._learn(texts, whole, time.perf_counter() - begun)
        start = 0
        for part in batch:
            count = part.stop - part.start
            part.job.parts.append(whole[start : start + count])
            start += count
            if part.stop == len(part.job.texts):
                part.job.done.set()

    def _fail(self, job: _Job, error: Exception) -> None:
        self._drop(job)
        job.error = error
        job.done.set()

    def _encode(self, texts: list[str], components: tuple[Component, ...]) -> M3Embeddings:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the answers say which texts were cut
            return self._encoder.encode(texts, components=components)

    def _estimate(self, text: str) -> int:
        """Return the probable number of tokens."""
        most = int(getattr(self._encoder, "max_length", 8192))
        return min(most, 2 + int(len(text.encode()) / self._bytes_per_token))

    def _learn(self, texts: Sequence[str], result: M3Embeddings, seconds: float) -> None:
        counts = result.kept_token_counts
        size = sum(len(text.encode()) for text in texts)
        tokens = sum(map(self._estimate, texts)) if counts is None else int(counts.sum())
        if counts is not None and not result.truncated_count and size:
            words = max(1, tokens - 2 * len(texts))
            self._bytes_per_token += _LEARNING_RATE * (max(0.5, size / words) - self._bytes_per_token)
        rate = tokens / max(seconds, 1e-6)
        self._tokens_per_second += _LEARNING_RATE * (rate - self._tokens_per_second)
        self._on_batch(BatchRecord(len(texts), tokens, seconds))


class BatchedEncoder:
    """An encoder for the indexes of a service, whose texts join the batches of others.

    It encodes in the worker threads that an ``AsyncIndex`` starts on the event loop of the batcher.
    """

    def __init__(self, encoder: Encoder, batcher: Batcher) -> None:
        self._encoder = encoder
        self._batcher = batcher

    @property
    def info(self) -> ModelInfo:
        """The identity of the model."""
        return self._encoder.info

    @property
    def recommended_weights(self) -> Mapping[str, tuple[float, float, float]]:
        """The weights by method name that are distributed with the model."""
        return self._encoder.recommended_weights

    def encode(self, texts: Sequence[str], *, components: Sequence[Component] = COMPONENTS) -> M3Embeddings:
        """Return one row for each text."""
        return anyio.from_thread.run(self._batcher.encode, texts, components)

    def token_strings(self, text: str) -> list[str]:
        """Return the token of each multi-vector row of the text."""
        return self._encoder.token_strings(text)

    def id_to_token(self, id: int) -> str | None:
        """Return the token of an id, or None if there is no such id."""
        return self._encoder.id_to_token(id)


def check_whole(embeddings: M3Embeddings, truncate: bool) -> M3Embeddings:
    """Return embeddings, whose texts may have been cut only if the caller allowed it.

    Raises:
        InvalidInput: A text was longer than the model's maximum; the message says which.
    """
    if truncate or not embeddings.truncated_count:
        return embeddings
    i = int(embeddings.truncated.argmax())
    counts = embeddings.token_counts
    tokens = "too many" if counts is None else f"{int(counts[i]):,}"
    raise InvalidInput(
        f"text {i} has {tokens} tokens, more than the model reads.\n  Split it, or send truncate: true."
    )
