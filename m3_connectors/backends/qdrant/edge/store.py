"""The descriptor of Qdrant Edge."""

from __future__ import annotations

from m3_connectors.backends.store import Calls, Store

STORE = Store(
    name="qdrant",
    schemes=("qdrant",),
    adapter="m3_connectors.backends.qdrant.edge.backend:EdgeBackend",
    takes_path=True,
    packages={"qdrant_edge": "qdrant-edge-py"},
    extra="qdrant",
    examples={"qdrant:DIR": "qdrant:./data"},
    calls=(Calls("m3_connectors.backends.qdrant.edge.connection", "_load", "client"),),
    disk="m3_connectors.backends.qdrant.edge.disk:disk_bytes",
    plan="m3_connectors.backends.qdrant.plan:FORMULA",
)
