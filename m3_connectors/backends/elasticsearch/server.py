"""What an Elasticsearch server is and can do, found by asking it and never by its edition's name."""

from __future__ import annotations

import re
from typing import Any

from m3_connectors.backends.capabilities import ServerInfo
from m3_connectors.backends.elasticsearch.connection import Connection
from m3_connectors.errors import Rejected, Unauthorised

OLDEST = (8, 19)

_SCORING = {"lang-painless": "scripts", "rank-vectors": "multi-vectors", "rank-rrf": "fusion retrievers"}
"""Optional modules that score in the server. None is needed, and none is used: sparse weights are rounded there."""

_PAID = ("enterprise", "trial")


async def server_info(connection: Connection) -> ServerInfo:
    """Version, licence, optional modules and health.

    Raises:
        BackendError: The server cannot be reached, or refuses the credentials altogether.
    """
    # Not GET /, which an Elasticsearch of a few modules lacks; and first, so that wrong credentials are an error.
    health = await connection.request("describe", "GET", "/_cluster/health")
    nodes = await _told(connection, "/_nodes", filter_path="nodes.*.version,nodes.*.modules.name")
    licence = (await _told(connection, "/_license")).get("license", {}).get("type")
    found = list(nodes.get("nodes", {}).values())
    versions = sorted({node["version"] for node in found})
    modules = {module["name"] for node in found for module in node.get("modules", ())}
    scoring = [what for name, what in _SCORING.items() if name in modules and _licensed(name, licence)]
    details = {"nodes": str(len(found)), "health": str(health.get("status")), "licence": licence}
    details["scoring in the server"] = ", ".join(scoring) or "none (none is needed)"
    problems = [
        f"Elasticsearch {version} is older than {OLDEST[0]}.{OLDEST[1]}: upgrade it."
        for version in versions
        if _numbers(version) < OLDEST
    ]
    if health.get("status") == "red":
        problems.append(
            "a part of the data is unavailable (health is red): see GET /_cluster/allocation/explain."
        )
    known = {name: value for name, value in details.items() if value}
    return ServerInfo(connection.url, ", ".join(versions) or None, known, tuple(problems))


async def _told(connection: Connection, path: str, **params: str) -> Any:
    """An answer, empty where these credentials may not have it or the server has no such thing."""
    try:
        return await connection.request("describe", "GET", path, None, **params)
    except (Unauthorised, Rejected):
        return {}


def _licensed(module: str, licence: str | None) -> bool:
    return module == "lang-painless" or licence in _PAID


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
