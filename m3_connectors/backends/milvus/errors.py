"""Translate errors of pymilvus and gRPC into errors of this package.

pymilvus raises two kinds: ``MilvusException`` if the server answered, and a plain ``grpc.RpcError`` if the
call itself failed (timeout, message too large). The code numbers of milvus-lite differ from the server's, so
the message decides where both use the same number.
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
    """The request or its response was larger than the server accepts; a half of it may succeed."""


class NotLoaded(BackendError):
    """The collection is not loaded in the server's memory; loading it fixes that."""


_BY_STATUS: dict[grpc.StatusCode, type[BackendError]] = {
    grpc.StatusCode.DEADLINE_EXCEEDED: TimedOut,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.UNAUTHENTICATED: Unauthorised,
    grpc.StatusCode.PERMISSION_DENIED: Unauthorised,
    grpc.StatusCode.RESOURCE_EXHAUSTED: TooLarge,
    # The channel's status for a connection that breaks in the middle of a response.
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
    ("file exists", AlreadyExists),  # milvus-lite, if two creations run at the same time
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
    # Responses that are too large: of the proxy, of the query nodes, and since 2026-08 of both (milvus
    # #52607).
    ("exceed the maxoutputsize limit", TooLarge),
    ("exceed the limit size", TooLarge),
    ("exceeds the configured maximum output size", TooLarge),
    # Codes 9 and 103, which milvus-lite may use for other errors.
    ("memory quota", Throttled),
    ("not fully loaded", Unavailable),
)


def translated(error: Exception, operation: str, where: str) -> BackendError:
    """Return the error to raise instead of ``error``, with the server's own message.

    Args:
        error: The error of pymilvus or gRPC.
        operation: The operation that failed.
        where: The server's address or the path of the data.
    """
    code, words = _code_and_words(error)
    if code == _CONNECT_FAILED and isinstance(error.__cause__, grpc.RpcError):
        # pymilvus only says "illegal connection params or server unavailable"; gRPC has the reason.
        code, reason = _code_and_words(error.__cause__)
        reason = reason.rpartition("last error: ")[2]
        words = f"no connection ({reason.removeprefix('UNKNOWN: ')})"
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            why = reason.rpartition("CERTIFICATE_VERIFY_FAILED: ")[2].removesuffix(": OK")
            return Unauthorised(
                f"the certificate of {where} is not trusted: {why}\n"
                "  Pass the CA certificate that signed it: ca_certs='FILE.pem' or M3_MILVUS_CA_CERTS.",
                backend=BACKEND,
                operation=operation,
            )
        if "WRONG_VERSION_NUMBER" in reason:
            return not_encrypted(where, BACKEND, operation)
    kind: type[BackendError] | None = None
    if isinstance(code, grpc.StatusCode):
        kind = _BY_STATUS.get(code)
        if kind is TooLarge and "rate limit" in words.lower():
            kind = Throttled  # gRPC has one status for both errors
    if kind is None:
        kind = next((found for text, found in _BY_WORDS if text in words.lower()), None)
    if kind is None and isinstance(code, int):
        kind = _BY_CODE.get(code)
    if kind is None and getattr(error, "retriable", False):
        # The server says (since pymilvus 3) that a retry may succeed: it is starting, or moves data.
        kind = Unavailable
    kind = kind or Rejected
    return kind(
        f"{words.strip().rstrip('.')} at {where}.{_ADVICE.get(kind, '')}",
        backend=BACKEND,
        operation=operation,
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
    Unauthorised: "\n  Use api_key=… (a token, or user:password) or username=… and password=….",
    StorageFull: "\n  Free space and repeat the call; acknowledged writes are stored.",
    CollectionNotFound: "\n  Create the collection, or list the collections with m3 collections URL.",
    AlreadyExists: "\n  Open it, or use another collection name.",
    TimedOut: "\n  Check the load of the server, or raise timeout_seconds.",
    Throttled: "\n  Send fewer requests at the same time, or repeat the call later.",
    TooLarge: "\n  Split long texts, or raise the message size limit of the server.",
    Rejected: "\n  See the log of the server for details.",
}
