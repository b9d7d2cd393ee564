"""Writes: bulk requests that are repeated where that helps, cut where they are too large, and that name what failed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from m3_connectors.backends.elasticsearch.connection import Connection, segment
from m3_connectors.backends.elasticsearch.errors import Blocked, TooLarge, TooMuch, from_status
from m3_connectors.backends.elasticsearch.mapping import BACKEND
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
"""Errors that say nothing about one document."""

_ANSWER = "items.*.result,items.*.status,items.*.error"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of the operations of one request.

    Attributes:
        results: ``created``, ``updated``, ``deleted`` or ``not_found``, by document id.
        failed: The error of each that was not done, by document id.
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
    """Do the operations, each given by the id of its document.

    Raises:
        BackendError: The request as a whole failed.
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
                # An index template may name one, which would change documents on their way into the index.
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
        if len(left) == 1 and isinstance(error, TooMuch):  # smaller it cannot be, and patience has ended
            failed |= dict.fromkeys(left, error)
            return Outcome(results, failed)
        rest = await _halved(connection, alias, left, operation, error, params)
        # What an earlier try said of the others stands; of what is halved the last word counts.
        before = {id: reason for id, reason in failed.items() if id not in left}
        return Outcome(results | rest.results, before | rest.failed)
    except BackendError:
        # Items that were refused to the last are named; a request that got no answer at all is the caller's to see.
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
        # It takes nothing, however small: each other document would wait as long again for the same answer.
        return Outcome({}, dict.fromkeys(ids, error))
    second = await write(connection, alias, {id: operations[id] for id in ids[middle:]}, operation, params)
    return Outcome(first.results | second.results, first.failed | second.failed)


def joined(outcomes: list[Outcome], operation: str) -> dict[str, str]:
    """The results of all requests of one call.

    Raises:
        PartialWrite: Something was not done; names it.
        BackendError: Nothing was done, for a reason that lies in the index and not in the documents.
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
