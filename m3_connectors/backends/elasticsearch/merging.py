"""Each shard merged into one segment: a job of the server's that outlasts any deadline, so it is asked how it goes."""

from __future__ import annotations

import anyio

from m3_connectors.backends.elasticsearch.connection import Connection, segment
from m3_connectors.backends.elasticsearch.errors import from_status

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 5.0


async def merge(connection: Connection, alias: str) -> None:
    """Merge, and have searches use what came of it; until it is done, however long that is.

    Raises:
        BackendError: The server failed, or may not do it; or these credentials may not ask how it goes, and then it
            may have begun.
    """
    path = f"/{segment(alias)}"
    # A merge keeps the deleted documents that the last commit still needs; this makes a later one. Those of about the
    # last 30 s stay in any case, for replicas that have to catch up.
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
    # Searches that still use what was merged hold its place on the disk.
    await connection.request("optimize", "POST", f"{path}/_refresh")
