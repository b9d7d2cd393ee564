"""What a Qdrant server and its collection say about themselves, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qdrant_client import models

from m3_connectors.backends.capabilities import Remark, ServerInfo
from m3_connectors.backends.qdrant.server_collection import INDEX_TYPES
from m3_connectors.backends.qdrant.server_connection import Connection
from m3_connectors.methods import ALL, METHODS, Method


def server_info(connection: Connection, info: models.CollectionInfo | None) -> ServerInfo:
    """The report.

    Args:
        connection: To the server, connected.
        info: What it says of the collection; None if there is none.
    """
    remarks = []
    details = {"transport": connection.transport}
    if connection.wire.name == "REST" and connection.no_grpc:
        remarks.append(
            Remark(
                f"{connection.no_grpc}: REST is slower, and takes at most 32 MB a document",
                "Open port 6334, or give grpc_port=… or M3_QDRANT_GRPC_PORT.",
                is_problem=False,
            )
        )
    if info is not None:
        details |= _details(info)
        remarks += _remarks(info)
    return ServerInfo(connection.url, connection.version, details, tuple(remarks))


def _details(info: models.CollectionInfo) -> Mapping[str, str]:
    details = {"state": f"{info.status.value}, {info.segments_count} segments"}
    if info.payload_schema:
        details["field indexes"] = ", ".join(
            f"{name} ({index.data_type.value})" for name, index in sorted(info.payload_schema.items())
        )
    return details


def _remarks(info: models.CollectionInfo) -> Iterator[Remark]:
    if info.status is models.CollectionStatus.RED:
        yield Remark("the collection is red: an operation on it failed", "See the server's log.")
    elif info.status is models.CollectionStatus.GREY:
        yield Remark(
            "the collection waits to be optimised (grey) since the server started",
            "Any write sets it going.",
            is_problem=False,
        )
    if isinstance(info.optimizer_status, models.OptimizersStatusOneOf1):
        yield Remark(f"the optimiser failed: {info.optimizer_status.error}", "See the server's log.")
    strict = info.config.strict_mode_config
    if strict is None or not strict.enabled:
        return
    if strict.unindexed_filtering_retrieve is False:
        declare = (
            f'Declare each: connect(…, indexes={{"FIELD": "TYPE"}}), TYPE one of {", ".join(INDEX_TYPES)}.'
        )
        if info.payload_schema:
            yield Remark("strict mode refuses filters on other fields than these", declare, is_problem=False)
        else:
            yield Remark("strict mode refuses filters on fields without an index, and none has one", declare)
    shallow = [method.name for method in METHODS.values() if not _fits(method, strict.max_query_limit)]
    if shallow:
        yield Remark(
            f"strict mode answers {strict.max_query_limit} points at most, too few for {', '.join(shallow)}",
            "Raise max_query_limit to 1000, or use methods of your own with shorter lists.",
            is_problem=ALL.name in shallow,
        )
    if strict.search_allow_exact is False:
        yield Remark(
            "strict mode refuses exact=True; scores are exact all the same",
            "Let the collection allow it: search_allow_exact.",
            is_problem=False,
        )


def _fits(method: Method, limit: int | None) -> bool:
    return limit is None or max(method.candidates.values()) <= limit
