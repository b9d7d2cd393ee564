"""How far a run is."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class IngestProgress:
    """What a run has done so far; given to ``progress`` after each batch.

    Attributes:
        read: The number of documents read.
        unchanged: The number of those that the store held already.
        documents: The number of documents stored.
        chunks: The number of chunks stored for them.
        refused: The number of documents that are left out.
        tokens: The number of tokens encoded of what is stored; 0 if the encoder does not count them.
        chunks_under_way: The number of chunks between reading and the store's acknowledgement.
        waiting_bytes: The size of the vectors that wait for the store or are being written.
        batches: The number of batches stored.
        encoding_seconds: For how long texts were being encoded.
        writing_seconds: For how long batches were being written.
        waited_seconds: For how long the store was down.
        seconds: The time since the run began.
    """

    read: int = 0
    unchanged: int = 0
    documents: int = 0
    chunks: int = 0
    refused: int = 0
    tokens: int = 0
    chunks_under_way: int = 0
    waiting_bytes: int = 0
    batches: int = 0
    encoding_seconds: float = 0.0
    writing_seconds: float = 0.0
    waited_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def encoder_busy_share(self) -> float:
        """The share of the time in which texts were being encoded, 0 to 1."""
        return min(self.encoding_seconds / self.seconds, 1.0) if self.seconds else 0.0

    @property
    def seconds_per_write(self) -> float | None:
        """How long the store took to write a batch, on average; None before the first."""
        return self.writing_seconds / self.batches if self.batches else None

    @property
    def tokens_per_second(self) -> float | None:
        """The number of tokens stored per second; None if the encoder does not count them."""
        return self.tokens / self.seconds if self.tokens and self.seconds else None
