"""Merge each shard into one segment, in a task of the server that is polled until it completes."""

from __future__ import annotations

import anyio

from m3_connectors.backends.elasticsearch.connection import Connection, segment
from m3_connectors.backends.elasticsearch.errors import from_status

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 5.0


async def merge(connection: Connection, alias: str) -> None:
    """Merge the segments, make searches use the result, and return when that is done, however long it takes.

    Raises:
        BackendError: The server failed, or refuses to merge; or these credentials may not read the state of
            the task, in which case the merge may have started.
    """
    path = f"/{segment(alias)}"
    # A merge keeps deleted documents that the last commit still refers to; a flush makes a newer commit.
    # Documents deleted in about the last 30 s remain in any case, for replicas that have to catch up.
    await connection.request("optimize", "POST", f"{path}/_flush")
    begun = await connection.request(
        "optimize", "POST", f"{path}/_forcemerge", max_num_segments="1", wait_for_completion="false"
    )
    pause = _FIRST_PAUSE_SECONDS
    while True:
        told = await connection.request("optimize", "GET", f"/_tasks/{segment(begun['task'])}")
        if told["completed"]:
            break
        await anyio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    failures = told.get("response", {}).get("_shards", {}).get("failures", [])
    error = told.get("error") or (failures[0]["reason"] if failures else None)
    if error:
        raise from_status(500, error, "optimize", connection.url)
    # Searches that still use the old segments keep their files on the disk.
    await connection.request("optimize", "POST", f"{path}/_refresh")
