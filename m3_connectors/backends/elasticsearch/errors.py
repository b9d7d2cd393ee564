"""What the client's failures mean, in this package's errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import aiohttp
import elastic_transport
import elasticsearch

from m3_connectors.backends.elasticsearch.mapping import BACKEND
from m3_connectors.backends.endpoint import not_encrypted
from m3_connectors.backends.retry import asked_seconds
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

TOO_LARGE = 413


class TooLarge(Rejected):
    """The server takes no message of this size; smaller ones may pass."""


class TooMuch(Throttled):
    """The server has not the memory for a request of this size now; a smaller one may pass at once."""


class Blocked(Rejected):
    """The index takes no such request at all: it is closed, or may not be written to."""


def translated(error: Exception, operation: str, url: str) -> BackendError:
    """The error to raise for a failure of the client; its own stays the cause."""
    where = {"backend": BACKEND, "operation": operation}
    match error:
        case elasticsearch.UnsupportedProductError():
            return Rejected(f"{url} answers, but is not Elasticsearch.", **where)
        case elasticsearch.ApiError():
            headers = error.meta.headers
            return from_status(error.meta.status, error.body, operation, url, headers.get("retry-after"))
        case elastic_transport.ConnectionTimeout():
            return TimedOut(f"no answer from {url} in time.", **where)
        case elastic_transport.ConnectionError() if (why := _untrusted(error)) is not None:
            if "WRONG_VERSION_NUMBER" in why:
                return not_encrypted(url, BACKEND, operation)
            return Unauthorised(
                f"the certificate of {url} is not trusted: {why}\n"
                "  Name the authority that signed it (ca_certs='FILE.pem' or M3_ELASTICSEARCH_CA_CERTS), or its "
                "SHA-256 (fingerprint=).",
                **where,
            )
        case elastic_transport.ConnectionError() if "Bad status line" in error.message:
            return Rejected(
                f"{url} answers, but not in HTTP.\n  Give Elasticsearch's port, 9200 by default.", **where
            )
        case elastic_transport.ConnectionError():
            return Unavailable(
                f"no connection to {url}: {error.message}\n  Is the server up, and are host and port right?",
                **where,
            )
    # A broken or foreign answer: half of a message, a proxy's page.
    return Unavailable(f"{url} gave an answer that cannot be read: {error}", **where)


def _untrusted(error: elastic_transport.ConnectionError) -> str | None:
    """Why the server's certificate is not trusted, where that is the reason."""
    if isinstance(error.__context__, aiohttp.ServerFingerprintMismatch):
        # The client calls this a connection that broke.
        return "its certificate has another fingerprint."
    return str(error.message) if isinstance(error, elastic_transport.TlsError) else None


def from_status(
    status: int, body: Any, operation: str, url: str, retry_after: str | None = None
) -> BackendError:
    """The error of an answer, or of one item of a bulk answer.

    Args:
        status: Of HTTP.
        body: The answer, or the item's ``error``.
        operation: What was being done.
        url: Where.
        retry_after: The header of that name.
    """
    where = {"backend": BACKEND, "operation": operation}
    kind, reason = _reason(body)
    words = reason or f"{url} answered with status {status}."
    if kind == "index_not_found_exception":
        return CollectionNotFound(words, **where)
    if kind in (
        "resource_already_exists_exception",
        "invalid_index_name_exception",
        "invalid_alias_name_exception",
    ):
        return AlreadyExists(words, **where)
    if kind == "media_type_header_exception":
        return Rejected(f"{words}\n  Is {url} an Elasticsearch of 8.19 or 9.x?", **where)
    if kind == "index_closed_exception":
        return Blocked(f"the index is closed: {words}\n  Open it (POST /INDEX/_open).", **where)
    if kind == "cluster_block_exception":
        return _blocked(words, where)
    if status in (401, 403) or kind == "security_exception":
        return Unauthorised(f"{url} refused the credentials: {words}", **where)
    if kind == "illegal_argument_exception" and "creates data streams only" in words:
        return Rejected(f"{words}\n  Use another collection name.", **where)
    if "exceeds the maximum allowed limit" in words:  # of one operation: a 429, but no later try will pass
        return TooLarge(f"a document is too large for {url}: {words}", **where)
    if status == TOO_LARGE:
        return TooLarge(f"the message is too large for {url}: {words}", **where)
    if status == 429 or (status == 503 and retry_after is not None):
        # A server that names a pause wants the same again after it.
        of_size = kind == "circuit_breaking_exception" or "_bytes=" in words
        throttled = TooMuch if of_size and retry_after is None else Throttled
        return throttled(words, **where, retry_after_seconds=asked_seconds(retry_after))
    if status == 408:
        return TimedOut(words, **where)
    if status in (502, 503, 504):
        return Unavailable(words, **where)
    if "no space left on device" in words.lower():
        return StorageFull(words, **where)
    return Rejected(words, **where)


def _blocked(words: str, where: Mapping[str, str]) -> BackendError:
    if "flood-stage" in words or "disk usage" in words:
        return StorageFull(f"the server's disk is full: {words}\n  Free space on it.", **where)
    if "state not recovered" in words or "no master" in words:
        return Unavailable(f"the cluster is not ready: {words}", **where)
    return Blocked(
        f"the index is blocked: {words}\n"
        '  Lift it: PUT /INDEX/_settings {"index.blocks.read_only": null, "index.blocks.write": null}.',
        **where,
    )


def _reason(body: Any) -> tuple[str, str]:
    """Type and words of an error as the server gives it, in any of its forms."""
    error = body.get("error", body) if isinstance(body, Mapping) else body
    if not isinstance(error, Mapping):
        return "", str(error or "")
    kind, reason = str(error.get("type", "")), str(error.get("reason", ""))
    causes = error.get("root_cause") or []
    cause = error.get("caused_by") or (causes[0] if causes else {})
    if isinstance(cause, Mapping) and cause.get("reason") and cause["reason"] not in reason:
        # Of a failed search the outer words are "all shards failed".
        reason = f"{reason}: {cause['reason']}"
        kind = kind if kind not in ("search_phase_execution_exception", "") else str(cause.get("type", ""))
    return kind, reason
