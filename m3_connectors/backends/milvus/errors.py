"""What pymilvus and gRPC raise, as this package's errors.

Both kinds reach the caller of pymilvus: ``MilvusException`` where the server answered, and a raw ``grpc.RpcError``
where the call itself failed (deadline, message too large). Code numbers of milvus-lite are not the server's, so the
words decide where a number is shared.
"""

from __future__ import annotations

import grpc
from pymilvus.exceptions import MilvusException

from m3_connectors.backends.endpoint import not_encrypted
from m3_connectors.errors import (
    AlreadyExists,
    BackendError,
    CollectionNotFound,
    Rejected,
    StorageFull,
    Throttled,
    TimedOut,
    Unauthorised,
    Unavailable,
)

BACKEND = "milvus"

COLLECTION_NOT_FOUND = 100
COLLECTION_NOT_LOADED = 101
_CONNECT_FAILED = 2
_RATE_LIMIT = 8
_UNAUTHENTICATED = 1800


class TooLarge(Rejected):
    """The request, or its answer, was larger than the server takes; halves of it may pass."""


class NotLoaded(BackendError):
    """The collection is not in the server's memory; loading it mends that."""


_BY_STATUS: dict[grpc.StatusCode, type[BackendError]] = {
    grpc.StatusCode.DEADLINE_EXCEEDED: TimedOut,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.UNAUTHENTICATED: Unauthorised,
    grpc.StatusCode.PERMISSION_DENIED: Unauthorised,
    grpc.StatusCode.RESOURCE_EXHAUSTED: TooLarge,
    # What the channel makes of a connection that breaks in the middle of an answer.
    grpc.StatusCode.INTERNAL: Unavailable,
    grpc.StatusCode.UNKNOWN: Unavailable,
}

_BY_CODE: dict[int, type[BackendError]] = {
    _CONNECT_FAILED: Unavailable,
    _RATE_LIMIT: Throttled,
    COLLECTION_NOT_FOUND: CollectionNotFound,
    COLLECTION_NOT_LOADED: NotLoaded,
    _UNAUTHENTICATED: Unauthorised,
}

_BY_WORDS: tuple[tuple[str, type[BackendError]], ...] = (
    ("no space left", StorageFull),
    ("disk quota", StorageFull),
    ("disk limit", StorageFull),
    ("already exist", AlreadyExists),
    ("duplicate collection", AlreadyExists),
    ("file exists", AlreadyExists),  # milvus-lite, of two creations at the same time
    ("auth check failure", Unauthorised),
    ("unauthenticated", Unauthorised),
    ("permission deny", Unauthorised),
    ("closed channel", Unavailable),
    ("should create connection first", Unavailable),
    ("retry timeout", TimedOut),
    ("wait for flush timeout", TimedOut),
    ("retry run out", Unavailable),
    ("rate limit", Throttled),
    ("larger than max", TooLarge),
    # Answers: of the proxy, of the query nodes, and as of 2026-08 of both (milvus #52607).
    ("exceed the maxoutputsize limit", TooLarge),
    ("exceed the limit size", TooLarge),
    ("exceeds the configured maximum output size", TooLarge),
    # Code 9 and 103, which milvus-lite may use for others.
    ("memory quota", Throttled),
    ("not fully loaded", Unavailable),
)


def translated(error: Exception, operation: str, where: str) -> BackendError:
    """The error to raise instead of ``error``, in the server's own words.

    Args:
        error: What pymilvus or gRPC raised.
        operation: What was being done.
        where: The server's address or the data's path.
    """
    code, words = _code_and_words(error)
    if code == _CONNECT_FAILED and isinstance(error.__cause__, grpc.RpcError):
        # pymilvus says "illegal connection params or server unavailable"; gRPC knew why.
        code, reason = _code_and_words(error.__cause__)
        reason = reason.rpartition("last error: ")[2]
        words = f"no connection ({reason.removeprefix('UNKNOWN: ')})"
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            why = reason.rpartition("CERTIFICATE_VERIFY_FAILED: ")[2].removesuffix(": OK")
            return Unauthorised(
                f"the certificate of {where} is not trusted: {why}\n"
                "  Give the authority that signed it: ca_certs='FILE.pem' or M3_MILVUS_CA_CERTS.",
                backend=BACKEND,
                operation=operation,
            )
        if "WRONG_VERSION_NUMBER" in reason:
            return not_encrypted(where, BACKEND, operation)
    kind: type[BackendError] | None = None
    if isinstance(code, grpc.StatusCode):
        kind = _BY_STATUS.get(code)
        if kind is TooLarge and "rate limit" in words.lower():
            kind = Throttled  # gRPC has one status for both
    if kind is None:
        kind = next((found for text, found in _BY_WORDS if text in words.lower()), None)
    if kind is None and isinstance(code, int):
        kind = _BY_CODE.get(code)
    if kind is None and getattr(error, "retriable", False):
        # The server's own word (since pymilvus 3) that the same call may pass later: it is starting, or moves data.
        kind = Unavailable
    advice = _ADVICE.get(kind, "") if kind else ""
    return (kind or Rejected)(
        f"{words.strip().rstrip('.')} at {where}.{advice}", backend=BACKEND, operation=operation
    )


def _code_and_words(error: Exception) -> tuple[int | grpc.StatusCode | None, str]:
    if isinstance(error, MilvusException):
        return error.code, str(error.message)
    if isinstance(error, grpc.RpcError):
        code = error.code() if callable(getattr(error, "code", None)) else None
        details = error.details() if callable(getattr(error, "details", None)) else ""
        return code, f"{code.name if code else 'gRPC'}: {details or error}"
    return None, f"{type(error).__name__}: {error}"


_ADVICE: dict[type[BackendError], str] = {
    Unavailable: "\n  Is the server up, and are host and port right?",
    Unauthorised: "\n  Give api_key= (a token, or user:password) or username= and password=.",
    StorageFull: "\n  Free some space and repeat the call; what was acknowledged is stored.",
}
