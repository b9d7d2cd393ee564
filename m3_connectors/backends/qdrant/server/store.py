"""The descriptor of a Qdrant server."""

from __future__ import annotations

from m3_connectors.backends.store import Calls, Store

STORE = Store(
    name="qdrant",
    schemes=("qdrant+http", "qdrant+https"),
    adapter="m3_connectors.backends.qdrant.server.backend:QdrantBackend",
    packages={"qdrant_client": "qdrant-client"},
    extra="qdrant",
    examples={"qdrant+http:": "qdrant+http://localhost"},
    calls=(
        Calls("m3_connectors.backends.qdrant.server.grpc", "unary", "grpc"),
        Calls("qdrant_client.http.api_client", "AsyncApiClient.send_inner", "coroutine"),
    ),
    plan="m3_connectors.backends.qdrant.plan:FORMULA",
    ports={"port": 6333, "grpc_port": 6334},
)
