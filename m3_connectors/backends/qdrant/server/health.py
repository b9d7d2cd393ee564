"""Describe a Qdrant server and its collection, and find their problems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qdrant_client import models

from m3_connectors.backends.capabilities import Remark, ServerInfo
from m3_connectors.backends.qdrant.server.collection import INDEX_TYPES, limits_of, links_of
from m3_connectors.backends.qdrant.server.connection import Connection
from m3_connectors.methods import ALL, METHODS, Method


def server_info(connection: Connection, info: models.CollectionInfo | None) -> ServerInfo:
    """Return the report.

    Args:
        connection: A connection to the server, already connected.
        info: The server's information about the collection; None if there is no collection.
    """
    remarks = []
    details = {"transport": connection.transport}
    if connection.wire.name == "REST" and connection.no_grpc:
        remarks.append(
            Remark(
                f"{connection.no_grpc}, so REST is used, which is slower and limited to 32 MB for a document",
                "Open port 6334, or set grpc_port=… or M3_QDRANT_GRPC_PORT.",
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
    if quantised := _quantised(info):
        details["quantisation"] = f"{quantised}; searches do not use it"
    replicas = info.config.params.replication_factor or 1
    if replicas > 1:
        confirmed = info.config.params.write_consistency_factor or 1
        details["replicas"] = f"{replicas}; {confirmed} must confirm a write"
    return details


def _quantised(info: models.CollectionInfo) -> str:
    """Return how the collection's vectors are quantised, in words; empty if they are not."""
    kinds = {"all vectors": info.config.quantization_config}
    vectors = info.config.params.vectors
    if isinstance(vectors, dict):
        kinds |= {name: params.quantization_config for name, params in vectors.items()}
    return ", ".join(
        f"{next(iter(kind.model_dump()))} of {name}" for name, kind in kinds.items() if kind is not None
    )


def _index_remarks(info: models.CollectionInfo) -> Iterator[Remark]:
    """Yield settings of an operator that change the cost of searches or their candidates, but no scores."""
    config = info.config
    if quantised := _quantised(info):
        yield Remark(
            f"the vectors are quantised ({quantised}), which searches do not use because its scores are not "
            "exact",
            "It wastes memory and disk; disable it with update_collection(quantization_config=Disabled).",
            is_problem=False,
        )
    vectors = config.params.vectors
    dense = vectors.get("dense") if isinstance(vectors, dict) else None
    exact = limits_of(info).exact
    if dense is not None and not links_of(info, dense):
        yield Remark(
            "the dense vectors have no graph (hnsw_config.m is 0), so "
            + ("each search scans all documents" if exact else "strict mode refuses every dense search"),
            "Set hnsw_config.m of the collection to 16" + ("." if exact else ", or allow exact searches."),
            is_problem=not exact,
        )
    elif config.optimizer_config.indexing_threshold == 0:
        yield Remark(
            "no graph is built (indexing_threshold is 0), so each search scans all documents",
            "Set indexing_threshold of the collection to 10000.",
            is_problem=False,
        )
    elif dense is not None and not exact and _scanned_points(info, dense) <= _IDS_AT_ONCE:
        yield Remark(
            f"full_scan_threshold covers only {_scanned_points(info, dense):,} documents, and strict mode "
            "refuses exact searches, so some dense scores are computed here from vectors that are read, "
            "which is slower",
            f"Raise hnsw_config.full_scan_threshold to {4 * dense.size * _IDS_AT_ONCE // 1000:,} or more.",
            is_problem=False,
        )
    if config.optimizer_config.prevent_unoptimized:
        yield Remark(
            "new documents become visible to searches only after the server has optimised them "
            "(prevent_unoptimized)",
            "Writes wait for that and take longer; disable it in the collection's optimizers_config.",
            is_problem=False,
        )


_IDS_AT_ONCE = 1000


def _scanned_points(info: models.CollectionInfo, dense: models.VectorParams) -> int:
    """Return about how many dense vectors are scanned one by one if no more of them pass a filter."""
    own = dense.hnsw_config.full_scan_threshold if dense.hnsw_config is not None else None
    kilobytes = info.config.hnsw_config.full_scan_threshold if own is None else own
    return int(1024 * kilobytes // (4 * dense.size))


def _remarks(info: models.CollectionInfo) -> Iterator[Remark]:
    if info.status is models.CollectionStatus.RED:
        yield Remark("the collection is red: an operation on it failed", "See the server's log.")
    elif info.status is models.CollectionStatus.GREY:
        yield Remark(
            "the collection has been waiting to be optimised (grey) since the server started",
            "Any write starts the optimiser.",
            is_problem=False,
        )
    if isinstance(info.optimizer_status, models.OptimizersStatusOneOf1):
        yield Remark(f"the optimiser failed: {info.optimizer_status.error}", "See the server's log.")
    yield from _index_remarks(info)
    strict = info.config.strict_mode_config
    if strict is None or not strict.enabled:
        return
    if strict.unindexed_filtering_retrieve is False:
        declare = (
            f'Declare each: connect(…, indexes={{"FIELD": "TYPE"}}), TYPE one of {", ".join(INDEX_TYPES)}.'
        )
        if info.payload_schema:
            yield Remark(
                "strict mode refuses filters on fields other than these indexed ones",
                declare,
                is_problem=False,
            )
        else:
            yield Remark(
                "strict mode refuses filters on fields without an index, and no field has one", declare
            )
    for name, what in (("write_rate_limit", "writes of documents"), ("read_rate_limit", "reads")):
        limit = getattr(strict, name)
        if limit is not None:
            yield Remark(
                f"strict mode limits {what} to {limit:,} a minute ({name})",
                f"Calls wait when the limit is reached, up to total_seconds; raise {name} to go faster.",
                is_problem=False,
            )
    shallow = [method.name for method in METHODS.values() if not _fits(method, strict.max_query_limit)]
    if shallow:
        yield Remark(
            f"strict mode returns at most {strict.max_query_limit} points, too few for {', '.join(shallow)}",
            "Raise max_query_limit to 1000, or use your own methods with shorter lists.",
            is_problem=ALL.name in shallow,
        )
    if strict.search_allow_exact is False:
        yield Remark(
            "strict mode refuses exact=True; scores are exact nevertheless",
            "To use exact=True, set search_allow_exact in the collection's strict mode.",
            is_problem=False,
        )


def _fits(method: Method, limit: int | None) -> bool:
    return limit is None or max(method.candidates.values()) <= limit
