"""What a Qdrant server's failures mean: REST, gRPC and transport errors as this package's own.

Which of them are tried again is decided by their class (``BackendError.retryable``): 408, 429, 5xx, broken
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
"""Everything else (UNAVAILABLE, INTERNAL, ABORTED, UNKNOWN, CANCELLED by the other side) is worth another try;
FAILED_PRECONDITION too: a shard without an active replica, which is a 500 over REST."""

_FULL = ("no space left", "os error 28", "out of disk", "disk is full", "not enough disk")
_LOCKED = "storage locked"
"""How a write lock begins to speak: 403 over REST, FAILED_PRECONDITION over gRPC. No key opens it."""

_IS_ALIAS = "alias with the same name already exists"
"""What the server says, as bad input, of a collection to create whose name is an alias."""

_TOO_LARGE = (
    "larger than allowed",
    "larger than max",
    "message length too large",
    "payload too large",
    # Strict mode's batch limits, where they were lowered after the collection was opened.
    'for "upsert limit"',
    'for "search batch size"',
)
_OVER_BUDGET = "please try to split your request"
"""How the server ends what it says of a request that costs more than its rate limit allows in a whole minute."""


class TooLarge(Rejected):
    """One message held more than the server (or a proxy before it) takes; half of it may pass."""


class OverBudget(TooLarge):
    """One request costs more than the collection's rate limit allows in a minute: as it is, it can never pass."""


class Locked(Rejected):
    """Somebody locked the server's storage against writes."""


@contextlib.contextmanager
def translated(operation: str, url: str) -> Iterator[None]:
    """Raise what the clients raise as this package's errors, their cause kept.

    Args:
        operation: What is being done, such as ``"upsert"``.
        url: Where, without secrets.
    """
    try:
        yield
    except TimeoutError as error:
        raise TimedOut(f"no answer in time from {url}.", backend=BACKEND, operation=operation) from error
    except UnexpectedResponse as error:
        raise _of_status(error, operation, url) from error
    except ResourceExhaustedResponse as error:
        raise _slow_down(f"{error}", operation, url, float(error.retry_after_s)) from error
    except QdrantException as error:
        raise Throttled(f"{url}: {error}", backend=BACKEND, operation=operation) from error
    except ResponseHandlingException as error:
        raise _of_transport(error.source, operation, url) from error
    except grpc.RpcError as error:
        raise _of_rpc(error, operation, url) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _no_qdrant(operation, url, str(error)) from error


def _of_status(error: UnexpectedResponse, operation: str, url: str) -> BackendError:
    status = error.status_code or 0
    said = _said(error.content) or error.reason_phrase
    if operation == "connect" and status in (400, 404, 405):  # the greeting of every Qdrant
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
    """The error of a rate limit: worth another try later, unless the request is more than a minute's worth."""
    if _OVER_BUDGET in said.lower():
        limit = "write_rate_limit" if "write rate limit" in said.lower() else "read_rate_limit"
        return OverBudget(
            f"{url} refuses it for good: {said.strip()[:500]}\n"
            f"  This is the smallest request for it: raise {limit} in the collection's strict mode.",
            backend=BACKEND,
            operation=operation,
        )
    message = f"{url} asks to slow down: {said}"
    return Throttled(message, backend=BACKEND, operation=operation, retry_after_seconds=seconds)


def _error(kind: type[BackendError], said: str, code: str, operation: str, url: str) -> BackendError:
    """The error of a class, unless the server's words say that it is a more special one."""
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
    remedy = _declare_index(said) or _REMEDIES.get(kind, "")
    return kind(f"{url} answered {code}: {said.strip()[:500]}{remedy}", backend=BACKEND, operation=operation)


def _declare_index(said: str) -> str:
    """What to do where strict mode refuses a filter on a field without the index that it needs; else nothing."""
    found = re.search(r'index required but not found for "(.*)" of one of .*\[(.*?)\]', said, re.IGNORECASE)
    if found is None:
        return ""
    tree, *names = keys_of(found[1])
    as_asked = "keyword" if "keyword" in found[2].lower() else "number"
    kind = {DATES: "date", FLAGS: "bool", LARGE: "number"}.get(tree, as_asked)
    return (
        f'\n  Declare the field when you connect: indexes={{"{".".join(names)}": "{kind}"}} (keyword, number, date or '
        "bool, by what you compare it with); the index is made at once, of what is stored too."
    )


_REMEDIES: dict[type[BackendError], str] = {
    Locked: "\n  Lift the server's write lock, and repeat the call; reading works meanwhile.",
    Unauthorised: "\n  Give a valid key (api_key=… or M3_QDRANT_API_KEY) that may do this.",
    StorageFull: "\n  Free some space there and repeat the call; what was acknowledged is safe.",
}


def optimiser_failed(said: str, url: str) -> BackendError:
    """The error of an optimiser that gave up; the same call fails again until its cause is mended."""
    kind = StorageFull if any(words in said.lower() for words in _FULL) else Rejected
    message = f"the optimiser of {url} failed: {said.strip()[:500]}{_REMEDIES.get(kind) or _SEE_LOG}"
    return kind(message, backend=BACKEND, operation="optimize")


_SEE_LOG = "\n  See the server's log; searches are right meanwhile, only slower."


def not_ours(point: str, collection: str) -> Corrupt:
    """The error of a point that another program wrote, or wrote over."""
    return Corrupt(
        f'point {point} of collection "{collection}" lacks our payload: another program changed it.\n'
        "  Remove that point, or index its document again.",
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
        return TimedOut(f"no answer in time from {url}.", backend=BACKEND, operation=operation)
    if isinstance(source, httpx.TransportError):
        message = (
            f"no connection to {url} ({text.rstrip('.')}).\n  Is the server up, and are host and port right?"
        )
        return Unavailable(message, backend=BACKEND, operation=operation)
    return _no_qdrant(operation, url, text)


def _untrusted(operation: str, url: str, said: str) -> Unauthorised:
    return Unauthorised(
        f"the certificate of {url} is not trusted: {said}\n"
        "  Give the authority that signed it: ca_certs='FILE.pem' or M3_QDRANT_CA_CERTS.",
        backend=BACKEND,
        operation=operation,
    )


def _no_qdrant(operation: str, url: str, said: str) -> Rejected:
    return Rejected(
        f"{url} does not answer as Qdrant does: {' '.join(said.split())[:300]}\n"
        "  Give the address of Qdrant's REST interface (port 6333 by default).",
        backend=BACKEND,
        operation=operation,
    )


def _said(content: bytes) -> str:
    """The server's own words: ``{"status": {"error": …}}``, or the answer's first characters."""
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
