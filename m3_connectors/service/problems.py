"""Failures as problem details (RFC 9457): the library's own message, never a stack trace."""

from __future__ import annotations

import dataclasses
import logging
import math
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from starlette.responses import Response

from m3_connectors import errors
from m3_connectors.errors import BackendError, M3Error, PartialWrite, Throttled

_log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


class Refused(M3Error):
    """A request that the service itself refuses.

    Args:
        status: The status of the answer.
        message: What happened, and in a second line what to do.
        kind: The name of the kind of problem, in one word.
        retry_after_seconds: When the same request may succeed.
    """

    def __init__(
        self, status: int, kind: str, message: str, *, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.retry_after_seconds = retry_after_seconds


_STATUS: dict[type[M3Error], int] = {
    errors.InvalidInput: 422,
    errors.Unsupported: 422,
    errors.MissingDependency: 422,
    errors.ModelMismatch: 409,
    errors.NotFound: 404,
    errors.AlreadyExists: 409,
    errors.Rejected: 422,
    errors.PartialWrite: 502,
    errors.Unauthorised: 502,
    errors.StorageFull: 507,
    errors.Busy: 503,
    errors.Unavailable: 503,
    errors.Throttled: 503,
    errors.TimedOut: 504,
}
"""The status of each kind of error; 500 for all others."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """What went wrong with a request.

    Attributes:
        status: The status of the answer.
        kind: The name of the kind of problem, which is stable.
        detail: What happened, and in further lines what to do.
        retry_after_seconds: When the same request may succeed.
        members: Further members of the body.
    """

    status: int
    kind: str
    detail: str
    retry_after_seconds: float | None = None
    members: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The body of the answer."""
        return {
            "type": f"urn:m3-connectors:problem:{self.kind}",
            "title": self.kind,
            "status": self.status,
            "detail": self.detail,
            **self.members,
        }

    @property
    def headers(self) -> dict[str, str]:
        """The headers that belong to it."""
        headers = {"Cache-Control": "no-store"}
        if self.retry_after_seconds is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_seconds)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status == 413:
            headers["Connection"] = "close"  # the rest of the body is not read
        return headers


def problem_of(error: Exception) -> Problem:
    """Return the problem of an error; one that this package does not raise on purpose is logged, without its text."""
    if isinstance(error, Refused):
        return Problem(error.status, error.kind, str(error), error.retry_after_seconds)
    if not isinstance(error, M3Error):
        frames = "".join(traceback.format_tb(error.__traceback__))
        # The message of an unknown error may contain the text of a document.
        _log.error("%s in a request; its message is not logged\n%s", type(error).__name__, frames)
        return Problem(
            500,
            "Bug",
            f"{type(error).__name__} in the service, which is a bug.\n"
            "  The log of the server says where: report it.",
        )
    status = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)
    after = error.retry_after_seconds if isinstance(error, Throttled) else None
    if after is None and isinstance(error, BackendError) and error.retryable:
        after = 1.0
    members = {"failed": error.failed} if isinstance(error, PartialWrite) else {}
    return Problem(status, type(error).__name__, str(error), after, members)


Dialect = Callable[[Problem], Mapping[str, Any]]
"""Returns the members by which a client of another server recognises an error."""


def response_of(problem: Problem, dialect: Dialect | None = None) -> Response:
    """Return the answer to a request that failed, which a client of another server understands too."""
    body = problem.to_dict() | dict(dialect(problem) if dialect else {})
    return Response(
        orjson.dumps(body, default=str),
        status_code=problem.status,
        media_type=MEDIA_TYPE,
        headers=problem.headers,
    )
