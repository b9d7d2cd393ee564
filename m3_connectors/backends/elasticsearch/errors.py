"""Translate the errors of the client into errors of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import aiohttp
import elastic_transport
import elasticsearch

from m3_connectors.backends.elasticsearch.layout import BACKEND
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
    """The server does not accept a request of this size; a smaller one may succeed."""


class Replaced(Rejected):
    """The document is no longer the version that the operation was for."""


class TooMuch(Throttled):
    """The server currently lacks memory for a request of this size; a smaller one may succeed immediately."""


class Blocked(Rejected):
    """The index refuses all such requests: it is closed, or it is read-only."""


def translated(error: Exception, operation: str, url: str) -> BackendError:
    """Return the error to raise for a failure of the client; the original error remains its cause."""
    where = {"backend": BACKEND, "operation": operation}
    match error:
        case elasticsearch.UnsupportedProductError():
            return Rejected(
                f"{url} answers, but it is not Elasticsearch.\n"
                "  Check host and port; Elasticsearch listens on 9200 by default.",
                **where,
            )
        case elasticsearch.ApiError():
            headers = error.meta.headers
            return from_status(error.meta.status, error.body, operation, url, headers.get("retry-after"))
        case elastic_transport.ConnectionTimeout():
            return TimedOut(
                f"{url} did not answer in time.\n  Check the load of the server, or raise timeout_seconds.",
                **where,
            )
        case elastic_transport.ConnectionError() if (why := _untrusted(error)) is not None:
            if "WRONG_VERSION_NUMBER" in why:
                return not_encrypted(url, BACKEND, operation)
            return Unauthorised(
                f"the certificate of {url} is not trusted: {why}\n"
                "  Pass the CA certificate that signed it (ca_certs='FILE.pem' or "
                "M3_ELASTICSEARCH_CA_CERTS), or its "
                "SHA-256 (fingerprint=…).",
                **where,
            )
        case elastic_transport.ConnectionError() if "Bad status line" in error.message:
            return Rejected(
                f"{url} answers, but not with HTTP.\n  Use the port of Elasticsearch, 9200 by default.",
                **where,
            )
        case elastic_transport.ConnectionError():
            return Unavailable(
                f"no connection to {url}: {error.message}\n  Is the server up, and are host and port right?",
                **where,
            )
    # The response is incomplete, or comes from another program, such as the error page of a proxy.
    return Unavailable(
        f"{url} sent a response that cannot be read: {error}\n  Check whether a proxy answers in its place.",
        **where,
    )


def _untrusted(error: elastic_transport.ConnectionError) -> str | None:
    """Return why the server's certificate is not trusted; None if that is not the reason of the error."""
    if isinstance(error.__context__, aiohttp.ServerFingerprintMismatch):
        # The client reports this as a broken connection.
        return "its certificate has another fingerprint."
    return str(error.message) if isinstance(error, elastic_transport.TlsError) else None


def from_status(
    status: int, body: Any, operation: str, url: str, retry_after: str | None = None
) -> BackendError:
    """Return the error for a response, or for one item of a bulk response.

    Args:
        status: The HTTP status.
        body: The body of the response, or the item's ``error``.
        operation: The operation that failed.
        url: The server's URL.
        retry_after: The ``Retry-After`` header.
    """
    where = {"backend": BACKEND, "operation": operation}
    kind, reason = _reason(body)
    words = reason or f"{url} answered with status {status}."
    if kind == "index_not_found_exception":
        return CollectionNotFound(
            f"{words}\n  Create the collection, or list the collections with m3 collections URL.", **where
        )
    if kind in (
        "resource_already_exists_exception",
        "invalid_index_name_exception",
        "invalid_alias_name_exception",
    ):
        return AlreadyExists(f"{words}\n  Use another collection name.", **where)
    if kind == "version_conflict_engine_exception":
        return Replaced(f"{words}\n  Repeat the call.", **where)
    if kind == "media_type_header_exception":
        return Rejected(
            f"{words}\n  Check that {url} is Elasticsearch 8.19 or 9.x; update it if it is older.", **where
        )
    if kind == "index_closed_exception":
        return Blocked(f"the index is closed: {words}\n  Open it (POST /INDEX/_open).", **where)
    if kind == "cluster_block_exception":
        return _blocked(words, where)
    if status in (401, 403) or kind == "security_exception":
        return Unauthorised(
            f"{url} refused the credentials: {words}\n"
            "  Use an API key (api_key=…) or a user (username=…, password=…) with the required privileges.",
            **where,
        )
    if kind == "illegal_argument_exception" and "creates data streams only" in words:
        return Rejected(f"{words}\n  Use another collection name.", **where)
    # The limit of one operation: the status is 429, but no retry succeeds.
    if "exceeds the maximum allowed limit" in words:
        return TooLarge(
            f"a document is too large for {url}: {words}\n"
            "  Split the text into several documents, or give the server more heap.",
            **where,
        )
    if status == TOO_LARGE:
        return TooLarge(
            f"the request is too large for {url}: {words}\n"
            "  Write shorter documents, or raise http.max_content_length of the server (or of a proxy).",
            **where,
        )
    if status == 429 or (status == 503 and retry_after is not None):
        # A server that sends Retry-After expects the same request again after the pause.
        of_size = kind == "circuit_breaking_exception" or "_bytes=" in words
        throttled = TooMuch if of_size and retry_after is None else Throttled
        advice = "" if retry_after is not None else "\n  Send fewer or smaller requests at the same time."
        return throttled(f"{words}{advice}", **where, retry_after_seconds=asked_seconds(retry_after))
    if status == 408:
        return TimedOut(
            f"{words}\n  Check the load of the server, and repeat the call; writes are safe to repeat.",
            **where,
        )
    if status in (502, 503, 504):
        return Unavailable(
            f"{words}\n  Check the server, and any proxy in front of it, and repeat the call.", **where
        )
    if "no space left on device" in words.lower():
        return StorageFull(f"{words}\n  Free space on the server's disk, then repeat the call.", **where)
    return Rejected(f"{words}\n  See the log of {url} for details.", **where)


def _blocked(words: str, where: Mapping[str, str]) -> BackendError:
    if "flood-stage" in words or "disk usage" in words:
        return StorageFull(
            f"the disk of the server is full: {words}\n  Free space on it, then repeat the call.", **where
        )
    if "state not recovered" in words or "no master" in words:
        return Unavailable(
            f"the cluster is not ready: {words}\n  See GET /_cluster/health, and repeat the call later.",
            **where,
        )
    return Blocked(
        f"the index is blocked: {words}\n"
        '  Remove it: PUT /INDEX/_settings {"index.blocks.read_only": null, "index.blocks.write": null}.',
        **where,
    )


def _reason(body: Any) -> tuple[str, str]:
    """Return the type and the reason of an error, in any of the forms that the server uses."""
    error = body.get("error", body) if isinstance(body, Mapping) else body
    if not isinstance(error, Mapping):
        return "", str(error or "")
    kind, reason = str(error.get("type", "")), str(error.get("reason", ""))
    causes = error.get("root_cause") or []
    cause = error.get("caused_by") or (causes[0] if causes else {})
    if isinstance(cause, Mapping) and cause.get("reason") and cause["reason"] not in reason:
        # The outer reason of a failed search is only "all shards failed".
        reason = f"{reason}: {cause['reason']}"
        kind = kind if kind not in ("search_phase_execution_exception", "") else str(cause.get("type", ""))
    return kind, reason
