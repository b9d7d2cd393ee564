"""Every error that m3_connectors raises on purpose.

    M3Error
    ├── InvalidInput (ValueError)          wrong shape, dtype, id, k or filter, NaN; nothing was sent
    ├── MissingDependency (ImportError)    an optional package is not installed; says how to install it
    ├── Unsupported (NotImplementedError)  the backend cannot do this; names a call that works
    ├── ModelMismatch                      the collection was written by a different model; names both
    ├── ModelFormat                        a checkpoint lacks a file or has a wrong shape; names the file
    ├── Diverged                           training produced a value that is not finite; names the saved batch
    ├── AnotherRankFailed                  another process of the same training run ended before this one
    └── BackendError                       the store failed: ``.backend``, ``.operation``, ``.retryable``
        ├── NotFound                       the requested item does not exist, such as a model on the hub
        │   ├── CollectionNotFound         the store has no such collection
        │   └── DocumentNotFound           the collection has no such document
        ├── AlreadyExists                  a collection of that name already exists
        ├── Rejected                       the store refused the request
        ├── Corrupt                        stored data cannot be decoded
        ├── Busy                           another process has the data open
        ├── StorageFull                    no space is left on the store's disk
        ├── Unauthorised                   missing or wrong credentials, or an untrusted server certificate
        ├── Unavailable                    the store cannot be reached
        ├── TimedOut                       no response within the timeout
        ├── Throttled                      the store limits the request rate: ``.retry_after_seconds``
        └── PartialWrite                   some documents were not written: ``.failed``

The first line of a message says what happened, where and with which value; the next line says what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

_E = TypeVar("_E", bound=Exception)


def _again(kind: type[_E], args: tuple[Any, ...], attributes: dict[str, Any]) -> _E:
    """Restore an error from its pickled parts."""
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(attributes)
    return error


class M3Error(Exception):
    """The base class of every error that this package raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are pickled by calling their class with ``args``, which is the message alone.
        return _again, (type(self), self.args, self.__dict__)


class InvalidInput(M3Error, ValueError):
    """The caller's input is invalid; raised before anything is sent or written."""


class MissingDependency(M3Error, ImportError):
    """An optional dependency is not installed.

    Args:
        package: The distribution that is missing.
        extra: The extra that installs it; None if there is none.
        distribution: The distribution of the extra.
    """

    def __init__(self, package: str, extra: str | None, distribution: str = "m3-connectors") -> None:
        self.package = package
        self.extra = extra
        wanted = f'"{distribution}[{extra}]"' if extra else package
        super().__init__(f"{package} is not installed.\n  pip install {wanted}")


class Unsupported(M3Error, NotImplementedError):
    """The backend does not support the operation; the message names a call that works."""


class ModelMismatch(M3Error):
    """The collection was written by a different model than the encoder that opens it."""


class ModelFormat(M3Error):
    """A directory is not an M3 checkpoint, or one of its files has unexpected content."""


class Diverged(M3Error):
    """A training run produced a loss, gradient or weight that is not finite; no model was written."""


class AnotherRankFailed(M3Error):
    """Another process of the same training run ended; its message says why."""


class BackendError(M3Error):
    """A store failed or refused an operation.

    Attributes:
        backend: The name of the backend, such as ``"qdrant"``.
        operation: The operation that failed, such as ``"upsert"``.
        retryable: Whether the same call may succeed later without a change.
    """

    retryable: bool = False

    def __init__(self, message: str, *, backend: str, operation: str) -> None:
        self.backend = backend
        self.operation = operation
        super().__init__(f"{backend} {operation}: {message}")


class NotFound(BackendError):
    """The requested item does not exist."""


class CollectionNotFound(NotFound):
    """The store has no such collection."""


class DocumentNotFound(NotFound):
    """The collection has no such document."""


class AlreadyExists(BackendError):
    """A collection of that name already exists."""


class Rejected(BackendError):
    """The store understood the request and refused it."""


class Corrupt(BackendError):
    """Stored data cannot be decoded."""


class Busy(BackendError):
    """Another process has the data open."""

    retryable = True


class StorageFull(BackendError):
    """The store's disk is full."""


class Unauthorised(BackendError):
    """Credentials are missing, wrong or expired, or the server's certificate is not trusted."""


class Unavailable(BackendError):
    """The store cannot be reached."""

    retryable = True


class TimedOut(BackendError):
    """The store did not respond within the timeout."""

    retryable = True


class Throttled(BackendError):
    """The store refused the request because the client sends too many.

    Attributes:
        retry_after_seconds: The delay that the store requested, or None.
    """

    retryable = True

    def __init__(
        self, message: str, *, backend: str, operation: str, retry_after_seconds: float | None = None
    ) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(message, backend=backend, operation=operation)


class PartialWrite(BackendError):
    """Some documents of a call were not written; all others were.

    Attributes:
        failed: The reason for each document id.
    """

    def __init__(self, failed: Mapping[str, str], *, backend: str, operation: str) -> None:
        self.failed = dict(failed)
        first = next(iter(self.failed.items()), ("", ""))
        super().__init__(
            f"{len(self.failed)} documents were not written, the first {first[0]!r}: {first[1]}",
            backend=backend,
            operation=operation,
        )
