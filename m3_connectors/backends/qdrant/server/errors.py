"""Translate the failures of a Qdrant server (REST, gRPC and transport errors) into errors of this package.

The class of an error decides whether it is retried (``BackendError.retryable``): 408, 429, 5xx, broken
connections and their gRPC counterparts are; other 4xx and a full disk (507) are not.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator

import grpc
import httpx
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from m3_connectors.backends.endpoint import not_encrypted
from m3_connectors.backends.qdrant.payload import DATES, FLAGS, LARGE, keys_of
from m3_connectors.errors import (
    AlreadyExists,
    BackendError,
    CollectionNotFound,
    Corrupt,
    Rejected,
    StorageFull,
    Throttled,
    TimedOut,
    Unauthorised,
    Unavailable,
)

BACKEND = "qdrant"

_STATUS: dict[int, type[BackendError]] = {
    401: Unauthorised,
    403: Unauthorised,
    404: CollectionNotFound,
    408: TimedOut,
    409: AlreadyExists,
    504: TimedOut,
    507: StorageFull,
}
_CODES: dict[grpc.StatusCode, type[BackendError]] = {
    grpc.StatusCode.UNAUTHENTICATED: Unauthorised,
    grpc.StatusCode.PERMISSION_DENIED: Unauthorised,
    grpc.StatusCode.NOT_FOUND: CollectionNotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.DEADLINE_EXCEEDED: TimedOut,
    grpc.StatusCode.INVALID_ARGUMENT: Rejected,
    grpc.StatusCode.OUT_OF_RANGE: Rejected,
    grpc.StatusCode.UNIMPLEMENTED: Rejected,
    grpc.StatusCode.RESOURCE_EXHAUSTED: StorageFull,
}
"""All other codes (UNAVAILABLE, INTERNAL, ABORTED, UNKNOWN, CANCELLED by the peer) are retried. So is
FAILED_PRECONDITION: it means a shard without an active replica, which is a 500 over REST."""

_FULL = ("no space left", "os error 28", "out of disk", "disk is full", "not enough disk")
_LOCKED = "storage locked"
"""The beginning of the message of a write lock: 403 over REST, FAILED_PRECONDITION over gRPC. It is not about
keys."""

_IS_ALIAS = "alias with the same name already exists"
"""The server's message, with the status of bad input, when the name of a new collection is an alias."""

_TOO_LARGE = (
    "larger than allowed",
    "larger than max",
    "message length too large",
    "payload too large",
    # The batch limits of strict mode, if they were lowered after the collection was opened.
    'for "upsert limit"',
    'for "search batch size"',
)
_OVER_BUDGET = "please try to split your request"
"""The end of the server's message about a request that costs more than its rate limit allows in a whole
minute."""

_LATE = "{url} did not answer in time.\n  Check the load of the server, or raise timeout_seconds."


class TooLarge(Rejected):
    """One request was larger than the server (or a proxy) accepts; a half of it may succeed."""


class OverBudget(TooLarge):
    """One request costs more than the rate limit of a minute; unchanged, it can never succeed."""


class Locked(Rejected):
    """The server's storage is locked against writes."""


@contextlib.contextmanager
def translated(operation: str, url: str) -> Iterator[None]:
    """Convert errors of the clients into errors of this package, with the original error as their cause.

    Args:
        operation: The operation, such as ``"upsert"``.
        url: The server's URL, without secrets.
    """
    try:
        yield
    except TimeoutError as error:
        raise TimedOut(_LATE.format(url=url), backend=BACKEND, operation=operation) from error
    except UnexpectedResponse as error:
        raise _of_status(error, operation, url) from error
    except ResourceExhaustedResponse as error:
        raise _slow_down(f"{error}", operation, url, float(error.retry_after_s)) from error
    except QdrantException as error:
        raise Throttled(
            f"{url} refused the request: {error}\n  Repeat the call later.",
            backend=BACKEND,
            operation=operation,
        ) from error
    except ResponseHandlingException as error:
        raise _of_transport(error.source, operation, url) from error
    except grpc.RpcError as error:
        raise _of_rpc(error, operation, url) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _no_qdrant(operation, url, str(error)) from error


def _of_status(error: UnexpectedResponse, operation: str, url: str) -> BackendError:
    status = error.status_code or 0
    said = _said(error.content) or error.reason_phrase
    if operation == "connect" and status in (400, 404, 405):  # every Qdrant answers this request
        return _no_qdrant(operation, url, f"{status} {said}")
    if status == 429:
        return _slow_down(said, operation, url, None)
    return _error(
        _STATUS.get(status, Unavailable if status >= 500 else Rejected), said, f"{status}", operation, url
    )


def _of_rpc(error: grpc.RpcError, operation: str, url: str) -> BackendError:
    code, said = error.code(), error.details() or ""
    pause = _retry_after(error)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and (pause is not None or "rate limit" in said.lower()):
        return _slow_down(said, operation, url, pause)
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return _untrusted(operation, url, said)
    return _error(_CODES.get(code, Unavailable), said, code.name, operation, url)


def _slow_down(said: str, operation: str, url: str, seconds: float | None) -> BackendError:
    """Return the error of a rate limit: retryable, unless the request exceeds the limit of a minute."""
    if _OVER_BUDGET in said.lower():
        limit = "write_rate_limit" if "write rate limit" in said.lower() else "read_rate_limit"
        return OverBudget(
            f"{url} can never accept this request: {said.strip()[:500]}\n"
            f"  The request cannot be made smaller. Raise {limit} in the collection's strict mode.",
            backend=BACKEND,
            operation=operation,
        )
    message = f"{url} asks for fewer requests: {said}\n  Send fewer requests at the same time."
    return Throttled(message, backend=BACKEND, operation=operation, retry_after_seconds=seconds)


def _error(kind: type[BackendError], said: str, code: str, operation: str, url: str) -> BackendError:
    """Return the error of this class, or of a more specific one if the server's message says so."""
    lower = said.lower()
    if any(words in lower for words in _FULL):
        kind = StorageFull
    elif _LOCKED in lower:
        kind = Locked
    elif _IS_ALIAS in lower:
        kind = AlreadyExists
    elif code in ("413", "400", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED") and (
        code == "413" or any(w in lower for w in _TOO_LARGE)
    ):
        kind = TooLarge
    remedy = _declare_index(said) or _REMEDIES.get(kind, _OTHERWISE)
    return kind(f"{url} answered {code}: {said.strip()[:500]}{remedy}", backend=BACKEND, operation=operation)


def _declare_index(said: str) -> str:
    """Return what to do if strict mode refuses a filter on a field without an index; else ``""``."""
    found = re.search(r'index required but not found for "(.*)" of one of .*\[(.*?)\]', said, re.IGNORECASE)
    if found is None:
        return ""
    tree, *names = keys_of(found[1])
    as_asked = "keyword" if "keyword" in found[2].lower() else "number"
    kind = {DATES: "date", FLAGS: "bool", LARGE: "number"}.get(tree, as_asked)
    return (
        f'\n  Declare the field when you connect: indexes={{"{".".join(names)}": "{kind}"}} (keyword, '
        "number, date or bool, depending on what you compare it with); the index is built at once, also "
        "for stored documents."
    )


_REMEDIES: dict[type[BackendError], str] = {
    Locked: "\n  Remove the server's write lock and repeat the call; reads still work.",
    Unauthorised: "\n  Use a valid API key with the required rights (api_key=… or M3_QDRANT_API_KEY).",
    StorageFull: "\n  Free space on the server's disk and repeat the call; acknowledged writes are stored.",
    CollectionNotFound: "\n  Create the collection, or list the collections with m3 collections URL.",
    AlreadyExists: "\n  Open it, or use another collection name.",
    TimedOut: "\n  Check the load of the server, or raise timeout_seconds.",
    Unavailable: "\n  Check the server and its log, and repeat the call.",
    TooLarge: "\n  Split long texts, or raise the limit on the server (or on a proxy in front of it).",
}
_OTHERWISE = "\n  See the log of the server for details."


def optimiser_failed(said: str, url: str) -> BackendError:
    """Return the error of an optimiser that failed; a retry fails again until the cause is fixed."""
    kind = StorageFull if any(words in said.lower() for words in _FULL) else Rejected
    message = f"the optimiser of {url} failed: {said.strip()[:500]}{_REMEDIES.get(kind) or _SEE_LOG}"
    return kind(message, backend=BACKEND, operation="optimize")


_SEE_LOG = "\n  See the server's log; searches are correct in the meantime, only slower."


def not_ours(point: str, collection: str) -> Corrupt:
    """Return the error for a point that another program wrote or changed."""
    return Corrupt(
        f'point {point} of collection "{collection}" lacks the payload of m3-connectors: another program '
        "changed it.\n"
        "  Delete that point, or index its document again.",
        backend=BACKEND,
        operation="read",
    )


def _of_transport(source: Exception, operation: str, url: str) -> BackendError:
    text = f"{source}" or type(source).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return _untrusted(operation, url, text)
    if "WRONG_VERSION_NUMBER" in text:
        return not_encrypted(url, BACKEND, operation)
    if isinstance(source, httpx.TimeoutException):
        return TimedOut(_LATE.format(url=url), backend=BACKEND, operation=operation)
    if isinstance(source, httpx.TransportError):
        message = (
            f"no connection to {url} ({text.rstrip('.')}).\n  Is the server up, and are host and port right?"
        )
        return Unavailable(message, backend=BACKEND, operation=operation)
    return _no_qdrant(operation, url, text)


def _untrusted(operation: str, url: str, said: str) -> Unauthorised:
    return Unauthorised(
        f"the certificate of {url} is not trusted: {said}\n"
        "  Pass the certificate of the CA that signed it: ca_certs='FILE.pem' or M3_QDRANT_CA_CERTS.",
        backend=BACKEND,
        operation=operation,
    )


def _no_qdrant(operation: str, url: str, said: str) -> Rejected:
    return Rejected(
        f"{url} does not look like a Qdrant server: {' '.join(said.split())[:300]}\n"
        "  Use the address of Qdrant's REST interface (port 6333 by default).",
        backend=BACKEND,
        operation=operation,
    )


def _said(content: bytes) -> str:
    """Return the server's message: ``{"status": {"error": …}}``, or the first characters of the response."""
    try:
        return str(json.loads(content)["status"]["error"])
    except (ValueError, KeyError, TypeError):
        return content[:300].decode("utf-8", "replace").strip()


def _retry_after(error: grpc.RpcError) -> float | None:
    for key, value in error.trailing_metadata() or ():
        if key == "retry-after":
            with contextlib.suppress(ValueError):
                return float(value)
    return None
