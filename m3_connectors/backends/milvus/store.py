"""The descriptor of Milvus, embedded and as a server."""

from __future__ import annotations

from m3_connectors.backends.store import Calls, Store

STORE = Store(
    name="milvus",
    schemes=("milvus", "milvus+http", "milvus+https"),
    adapter="m3_connectors.backends.milvus.backend:MilvusBackend",
    takes_path=True,
    packages={"pymilvus": "pymilvus", "milvus_lite": "milvus-lite"},
    extra="milvus",
    examples={"milvus:FILE": "milvus:./data.db", "milvus+http:": "milvus+http://localhost"},
    calls=(Calls("m3_connectors.backends.milvus.connection", "Connection._open_client", "client"),),
    disk="m3_connectors.backends.milvus.disk:disk_bytes",
    plan="m3_connectors.backends.milvus.plan:FORMULA",
    server="m3_connectors.testing.servers.milvus:MilvusServer",
    ports={"port": 19530},
)
