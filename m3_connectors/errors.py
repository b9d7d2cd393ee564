"""Every error that m3_connectors raises on purpose.

    M3Error
    ├── InvalidInput (ValueError)          wrong shape, dtype, NaN, empty id, k < 1, bad filter; nothing was sent
    ├── MissingDependency (ImportError)    an optional package is not installed; says the command that installs it
    ├── Unsupported (NotImplementedError)  the backend cannot do this; names a call that works
    ├── ModelMismatch                      the collection was written by another model; names both
    ├── ModelFormat                        a checkpoint lacks a file or holds a wrong shape; names the file
    ├── Diverged                           a training run's numbers are no longer finite; names the saved batch
    └── BackendError                       the store failed: ``.backend``, ``.operation``, ``.retryable``
        ├── NotFound                       what was asked for is not there, such as a model on the hub
        │   ├── CollectionNotFound         the store has no such collection
        │   └── DocumentNotFound           the collection has no such document
        ├── AlreadyExists                  a collection of that name is there already
        ├── Rejected                       the store refused the request
        ├── Corrupt                        stored data cannot be read back
        ├── Busy                           another process owns the data
        ├── StorageFull                    no space left on the store's disk
        ├── Unauthorised                   missing or wrong credentials, ours or the server's
        ├── Unavailable                    the store cannot be reached
        ├── TimedOut                       no answer within the deadline
        ├── Throttled                      the store asks to slow down: ``.retry_after_seconds``
        └── PartialWrite                   some documents were not written: ``.failed``

The first line of a message says what, where and with which value; the next line says what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

_E = TypeVar("_E", bound=Exception)


def _again(kind: type[_E], args: tuple[Any, ...], attributes: dict[str, Any]) -> _E:
    """An error as it was before it was pickled."""
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(attributes)
    return error


class M3Error(Exception):
    """Base of every error raised on purpose by this package."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are pickled by calling their class with ``args``, which is the message alone.
        return _again, (type(self), self.args, self.__dict__)


class InvalidInput(M3Error, ValueError):
    """The caller's input is wrong; raised before anything is sent or written."""


class MissingDependency(M3Error, ImportError):
    """An optional dependency is not installed.

    Args:
        package: The distribution that is missing.
        extra: The extra of m3-connectors that installs it.
    """

    def __init__(self, package: str, extra: str) -> None:
        self.package = package
        self.extra = extra
        super().__init__(f'{package} is not installed.\n  pip install "m3-connectors[{extra}]"')


class Unsupported(M3Error, NotImplementedError):
    """The backend cannot do what was asked; the message names a call that works."""


class ModelMismatch(M3Error):
    """The collection was written by another model than the encoder that opens it."""


class ModelFormat(M3Error):
    """A directory is not an M3 checkpoint, or one of its files has a wrong content."""


class Diverged(M3Error):
    """A training run gave a loss, a gradient or a weight that is not finite; nothing was written as a model."""


class BackendError(M3Error):
    """A store failed.

    Attributes:
        backend: Name of the backend, such as ``"qdrant"``.
        operation: What was being done, such as ``"upsert"``.
        retryable: Whether the same call may work later without a change.
    """

    retryable: bool = False

    def __init__(self, message: str, *, backend: str, operation: str) -> None:
        self.backend = backend
        self.operation = operation
        super().__init__(f"{backend} {operation}: {message}")


class NotFound(BackendError):
    """What was asked for is not there."""


class CollectionNotFound(NotFound):
    """The store has no such collection."""


class DocumentNotFound(NotFound):
    """The collection has no such document."""


class AlreadyExists(BackendError):
    """A collection of that name exists already."""


class Rejected(BackendError):
    """The store understood the request and refused it."""


class Corrupt(BackendError):
    """What is stored cannot be read back."""


class Busy(BackendError):
    """Another process owns the data."""

    retryable = True


class StorageFull(BackendError):
    """The store's disk is full."""


class Unauthorised(BackendError):
    """Credentials are missing, wrong or expired, or the server's own (its certificate) are not trusted."""


class Unavailable(BackendError):
    """The store cannot be reached."""

    retryable = True


class TimedOut(BackendError):
    """The store did not answer within the deadline."""

    retryable = True


class Throttled(BackendError):
    """The store asks its client to slow down.

    Attributes:
        retry_after_seconds: The pause that the store asked for, or None.
    """

    retryable = True

    def __init__(
        self, message: str, *, backend: str, operation: str, retry_after_seconds: float | None = None
    ) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(message, backend=backend, operation=operation)


class PartialWrite(BackendError):
    """Some documents of a call were not written; all the others were.

    Attributes:
        failed: Reason by document id.
    """

    def __init__(self, failed: Mapping[str, str], *, backend: str, operation: str) -> None:
        self.failed = dict(failed)
        first = next(iter(self.failed.items()), ("", ""))
        super().__init__(
            f"{len(self.failed)} documents were not written, the first {first[0]!r}: {first[1]}",
            backend=backend,
            operation=operation,
        )
