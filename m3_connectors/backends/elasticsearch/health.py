"""Describe an Elasticsearch server and find its problems; features are detected, not assumed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import elasticsearch

from m3_connectors.backends.capabilities import Remark, ServerInfo
from m3_connectors.backends.elasticsearch.alterations import dense_index, faults, notes
from m3_connectors.backends.elasticsearch.connection import Connection, segment
from m3_connectors.backends.elasticsearch.layout import BACKEND, our_index, properties_of, read_schema
from m3_connectors.errors import (
    BackendError,
    CollectionNotFound,
    Corrupt,
    Rejected,
    Unauthorised,
    Unsupported,
)

OLDEST = (8, 19)

_SCORING = {
    "lang-painless": "painless scripts",
    "rank-vectors": "rank_vectors",
    "rank-rrf": "fusion retrievers",
}
"""Optional modules for scoring in the server. None is needed or used, because they score rounded sparse
weights."""

_PAID = ("enterprise", "trial")

_UNITS = {"b": 0, "kb": 1, "mb": 2, "gb": 3, "tb": 4, "pb": 5}


async def server_info(connection: Connection, alias: str, collection: str) -> ServerInfo:
    """Return version, licence, modules and health of the server, and the state of the collection's index.

    Raises:
        BackendError: The server cannot be reached, or refuses the credentials for every request.
    """
    remarks: list[Remark] = []
    # GET / is not used because a reduced Elasticsearch lacks it. This call is first, so that bad credentials
    # raise.
    health: dict[str, Any] = {}
    try:
        health = await connection.request("describe", "GET", "/_cluster/health")
    except Unauthorised as error:
        if not isinstance(error.__cause__, elasticsearch.AuthorizationException):
            raise
        remarks.append(
            Remark(
                "these credentials may not read the state of the cluster",
                "Grant the privilege monitor if you want a complete report; nothing else needs it.",
                is_problem=False,
            )
        )
    except (Rejected, CollectionNotFound) as error:
        if not from_elasticsearch(error):
            raise
        remarks.append(
            Remark(
                "this server does not report its cluster (typical for serverless), so health, version and "
                "disks are unknown",
                "Nothing needs to be done: only this report uses them.",
                is_problem=False,
            )
        )
    nodes = await _told(connection, "/_nodes", filter_path="nodes.*.version,nodes.*.modules.name")
    licence = (await _told(connection, "/_license")).get("license", {})
    settings = await _told(
        connection,
        "/_cluster/settings",
        include_defaults="true",
        filter_path="*.cluster.routing.allocation.disk",
    )
    disks = await _told(connection, "/_nodes/stats/fs", filter_path="nodes.*.name,nodes.*.fs.total")
    found = list(nodes.get("nodes", {}).values())
    versions = sorted({node["version"] for node in found})
    details = {
        "transport": _transport(connection),
        "cluster": _cluster(health, len(found)),
        "licence": _licence(licence),
        "scoring in the server": _scoring(found, licence.get("type")),
    }
    remarks += _of_versions(versions)
    remarks += _of_cluster(health, licence)
    remarks += disk_remarks(settings, disks)
    index, of_index = await _index(connection, alias, collection)
    details |= index
    known = {name: value for name, value in details.items() if value}
    return ServerInfo(connection.url, ", ".join(versions) or None, known, (*remarks, *of_index))


async def check_version(connection: Connection, operation: str) -> None:
    """Refuse servers that are too old; a server whose version these credentials cannot read is accepted.

    Raises:
        Unsupported: A node is older than ``OLDEST``.
    """
    nodes = await _told(connection, "/_nodes/_all/_none", operation, filter_path="nodes.*.version")
    for version in sorted({node["version"] for node in nodes.get("nodes", {}).values()}):
        if _is_old(version):
            oldest = ".".join(map(str, OLDEST))
            raise Unsupported(
                f"{connection.url} is Elasticsearch {version}; m3-connectors needs {oldest} or 9.x, which "
                f"can search sparse vectors without pruning.\n  Update the server to {oldest} or 9.x."
            )


def from_elasticsearch(error: BackendError) -> bool:
    """Whether an error is a response of Elasticsearch, and not of a proxy or another program."""
    cause = error.__cause__
    return isinstance(cause, elasticsearch.ApiError) and "x-elastic-product" in cause.meta.headers


async def _told(connection: Connection, path: str, operation: str = "describe", **params: str) -> Any:
    """Return a response; empty if these credentials may not read it or the server does not support it."""
    try:
        return await connection.request(operation, "GET", path, None, divisible=False, **params)
    except (Unauthorised, Rejected, CollectionNotFound):
        return {}


def _transport(connection: Connection) -> str:
    endpoint = connection.endpoint
    if not endpoint.tls:
        return "HTTP, not encrypted"
    return "HTTPS" if endpoint.verify else "HTTPS, certificate not verified"


def _cluster(health: Mapping[str, Any], nodes: int) -> str:
    if not health:
        return ""
    return f"{health['cluster_name']}, {health['status']}, {nodes or health['number_of_nodes']} nodes"


def _licence(licence: Mapping[str, Any]) -> str:
    return f"{licence['type']}, {licence['status']}" if licence else ""


def _scoring(nodes: list[Any], licence: str | None) -> str:
    if not nodes:
        return ""
    modules = {module["name"] for node in nodes for module in node.get("modules", ())}
    here = [
        what
        for name, what in _SCORING.items()
        if name in modules and (name == "lang-painless" or licence in _PAID)
    ]
    return f"{', '.join(here)} (not used)" if here else "none (none is needed)"


def _is_old(version: str) -> bool:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < OLDEST


def _of_versions(versions: list[str]) -> Iterator[Remark]:
    for version in versions:
        if _is_old(version):
            oldest = ".".join(map(str, OLDEST))
            yield Remark(f"Elasticsearch {version} is older than {oldest}", f"Update it to {oldest} or 9.x.")
    if len(versions) > 1:
        yield Remark(
            f"the nodes have different versions: {', '.join(versions)}",
            "Finish the update.",
            is_problem=False,
        )


def _of_cluster(health: Mapping[str, Any], licence: Mapping[str, Any]) -> Iterator[Remark]:
    if health.get("status") == "red":
        yield Remark(
            "some of the cluster's data is unavailable (red)",
            "See GET /_cluster/allocation/explain.",
        )
    if licence.get("status", "active") != "active":
        yield Remark(
            f"the licence ({licence['type']}) is {licence['status']}",
            "Renew it, or use the free basic licence, which is sufficient: POST /_license/start_basic.",
        )


async def _index(connection: Connection, alias: str, collection: str) -> tuple[dict[str, str], list[Remark]]:
    """Return the state of the index behind an alias and its problems; both are empty if there is no index."""
    path = segment(alias)
    answer = await _told(connection, f"/{path}", flat_settings="true")
    if not answer:
        return {}, []
    try:
        name = our_index(answer, collection, "describe")
    except Rejected as error:
        what, _, remedy = str(error).removeprefix(f"{BACKEND} describe: ").partition("\n  ")
        return {}, [Remark(what.rstrip("."), remedy, is_problem=False)]
    index = answer[name]
    settings = index["settings"]
    health = await _told(connection, f"/_cluster/health/{path}", timeout="1s")
    remarks = list(_of_index(f"/{path}", settings, health))
    with contextlib.suppress(Corrupt):  # opening the collection reports it
        remarks += faults(index, properties_of(read_schema(answer, collection)), alias)
    remarks += notes(index, alias)
    copies, shards = (settings.get(f"index.number_of_{what}") for what in ("replicas", "shards"))
    state = f"{health['status']}, " if health else ""
    others = sorted(set(index.get("aliases", {})) - {alias})
    also = f", also called {', '.join(others)}" if others else ""
    return {
        "index": f"{name}: {state}{shards} shards, {copies} replicas{also}",
        "dense index": dense_index(index),
    }, remarks


def _of_index(path: str, settings: Mapping[str, str], health: Mapping[str, Any]) -> Iterator[Remark]:
    if settings.get("index.verified_before_close") == "true":
        yield Remark("the index is closed", f"Open it: POST {path}/_open.")
    for block, why in {
        "read_only_allow_delete": "the disk of the server was full",
        "read_only": "a user set it",
        "write": "a user set it",
        "read": "a user set it",
    }.items():
        if settings.get(f"index.blocks.{block}") == "true":
            yield Remark(
                f"the index is blocked (index.blocks.{block}): {why}",
                f"{'Free space on the disk, then ' if block.endswith('delete') else ''}PUT {path}/_settings "
                f'{{"index.blocks.{block}": null}}',
            )
    if health.get("status") == "red":
        yield Remark(
            "some of the collection's data is unavailable (red)", "See GET /_cluster/allocation/explain."
        )
    elif health.get("status") == "yellow":
        yield Remark(
            f"{health['unassigned_shards']} replicas have no node (yellow), so the loss of one node may lose "
            "data",
            f'Add a node; on a single node, use PUT {path}/_settings {{"index.number_of_replicas": 0}}',
            is_problem=False,
        )


def disk_remarks(settings: Mapping[str, Any], nodes: Mapping[str, Any]) -> Iterator[Remark]:
    """Yield a finding for each node whose disk is beyond a watermark; the worst watermark counts.

    Args:
        settings: The response of ``/_cluster/settings`` with defaults; explicit settings take precedence.
        nodes: The response of ``/_nodes/stats/fs``.
    """
    disk: dict[str, Any] = {}
    marks: dict[str, Any] = {}
    for level in ("defaults", "persistent", "transient"):
        found = (
            settings.get(level, {})
            .get("cluster", {})
            .get("routing", {})
            .get("allocation", {})
            .get("disk", {})
        )
        disk |= found
        marks |= _flat(found.get("watermark", {}))
    if disk.get("threshold_enabled") == "false" or not marks:
        return
    for node in nodes.get("nodes", {}).values():
        total, free = (node["fs"]["total"][f"{what}_in_bytes"] for what in ("total", "available"))
        where = f"node {node['name']} has {free / 2**30:,.1f} GiB of free disk space"
        if free < _must_be_free(marks, "flood_stage", total):
            yield Remark(
                f"{where}, beyond the flood-stage watermark: its indices are read-only",
                "Free space on the disk.",
            )
        elif free < _must_be_free(marks, "high", total):
            yield Remark(
                f"{where}, beyond the high watermark: its shards are moved to other nodes",
                "Free space on the disk.",
            )
        elif free < _must_be_free(marks, "low", total):
            yield Remark(
                f"{where}, beyond the low watermark: it gets no new shards",
                "Free space on the disk.",
                is_problem=False,
            )


def _must_be_free(marks: Mapping[str, str], stage: str, total: int) -> int:
    """Return the free bytes below which a stage begins; settings are the share in use, or free bytes."""
    mark = str(marks.get(stage, "100%"))
    if mark.endswith("%") or mark.replace(".", "", 1).isdigit():
        used = float(mark.rstrip("%")) / (100 if mark.endswith("%") else 1)
        headroom = _bytes(str(marks.get(f"{stage}.max_headroom", "-1")))
        wanted = round(total * (1 - used))
        return wanted if headroom < 0 else min(wanted, headroom)
    return _bytes(mark)


def _bytes(size: str) -> int:
    number = size.lower().rstrip("bkmgtp")
    return round(float(number) * float(1024 ** _UNITS.get(size.lower()[len(number) :], 0)))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
