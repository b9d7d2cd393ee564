"""Bulk writes: retried where that helps, split where too large; errors name each failed document."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from m3_connectors.backends.elasticsearch.connection import Connection, segment
from m3_connectors.backends.elasticsearch.errors import Blocked, TooLarge, TooMuch, from_status
from m3_connectors.backends.elasticsearch.layout import BACKEND
from m3_connectors.backends.retry import retrying
from m3_connectors.errors import (
    BackendError,
    CollectionNotFound,
    PartialWrite,
    StorageFull,
    Throttled,
    TimedOut,
    Unauthorised,
    Unavailable,
)

_OF_THE_INDEX = (CollectionNotFound, Unauthorised, StorageFull, Blocked, Throttled, TimedOut, Unavailable)
"""Errors whose cause is not a single document."""

_ANSWER = "items.*.result,items.*.status,items.*.error"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The results of the operations of one request.

    Attributes:
        results: ``created``, ``updated``, ``deleted`` or ``not_found``, by document id.
        failed: The error of each operation that was not done, by document id.
    """

    results: dict[str, str]
    failed: dict[str, BackendError]


async def write(
    connection: Connection,
    alias: str,
    operations: Mapping[str, bytes],
    operation: str,
    params: Mapping[str, str],
) -> Outcome:
    """Run the operations, which are given by document id.

    Raises:
        BackendError: The whole request failed.
    """
    left = dict(operations)
    results: dict[str, str] = {}
    failed: dict[str, BackendError] = {}
    path = f"/{segment(alias)}/_bulk"

    async def attempt() -> None:
        body = b"".join(left.values())
        try:
            answer = await connection.once(
                operation,
                "POST",
                path,
                body,
                require_alias="true",
                # An index template may set a pipeline, which would change the documents.
                pipeline="_none",
                filter_path=_ANSWER,
                **params,
            )
        except TooMuch as refused:
            refused.retryable = len(left) == 1
            raise
        again: list[BackendError] = []
        for id, item in zip(list(left), answer["items"], strict=True):
            (said,) = item.values()
            if "error" in said:
                error = from_status(said["status"], said["error"], operation, connection.url)
                failed[id] = error
                if error.retryable:
                    again.append(error)
                    continue
            else:
                results[id] = said["result"]
                failed.pop(id, None)
            del left[id]
        if again:
            too_much = next((reason for reason in again if isinstance(reason, TooMuch)), None)
            if too_much is not None and len(left) > 1:
                too_much.retryable = False
                raise too_much
            raise again[0]

    try:
        await retrying(connection.endpoint.patience, attempt)
    except (TooLarge, TooMuch) as error:
        if len(left) == 1 and isinstance(error, TooMuch):  # it cannot be split, and the retries are used up
            failed |= dict.fromkeys(left, error)
            return Outcome(results, failed)
        rest = await _halved(connection, alias, left, operation, error, params)
        # Earlier errors of other items remain valid; for the items that were split, the last result counts.
        before = {id: reason for id, reason in failed.items() if id not in left}
        return Outcome(results | rest.results, before | rest.failed)
    except BackendError:
        # Items that failed in every try are reported by id; if the request got no response, the caller sees
        # the error.
        if not all(id in failed for id in left):
            raise
    return Outcome(results, failed)


async def _halved(
    connection: Connection,
    alias: str,
    operations: Mapping[str, bytes],
    operation: str,
    error: TooLarge | TooMuch,
    params: Mapping[str, str],
) -> Outcome:
    ids = list(operations)
    if len(ids) == 1:
        return Outcome({}, {ids[0]: error})
    middle = len(ids) // 2
    first = await write(connection, alias, {id: operations[id] for id in ids[:middle]}, operation, params)
    if not first.results and all(isinstance(reason, TooMuch) for reason in first.failed.values()):
        # Nothing succeeded at any size, and each remaining document would wait as long for the same error.
        return Outcome({}, dict.fromkeys(ids, error))
    second = await write(connection, alias, {id: operations[id] for id in ids[middle:]}, operation, params)
    return Outcome(first.results | second.results, first.failed | second.failed)


def joined(outcomes: list[Outcome], operation: str) -> dict[str, str]:
    """Return the results of all requests of one call.

    Raises:
        PartialWrite: Some operations were not done; the error names them.
        BackendError: No operation was done, and the cause is the index and not a document.
    """
    results: dict[str, str] = {}
    failed: dict[str, BackendError] = {}
    for outcome in outcomes:
        results |= outcome.results
        failed |= outcome.failed
    if not failed:
        return results
    first = next(iter(failed.values()))
    if not results and isinstance(first, _OF_THE_INDEX):
        raise first
    reasons: dict[str, Any] = {id: str(error) for id, error in failed.items()}
    raise PartialWrite(reasons, backend=BACKEND, operation=operation)
