"""The descriptor of Elasticsearch."""

from __future__ import annotations

from m3_connectors.backends.store import Calls, Store

STORE = Store(
    name="elasticsearch",
    schemes=("elasticsearch+http", "elasticsearch+https"),
    adapter="m3_connectors.backends.elasticsearch.backend:ElasticsearchBackend",
    packages={"elasticsearch": "elasticsearch"},
    extra="elasticsearch",
    examples={"elasticsearch+http:": "elasticsearch+http://localhost"},
    calls=(Calls("m3_connectors.backends.elasticsearch.connection", "_Node.perform_request", "coroutine"),),
    disk="m3_connectors.backends.elasticsearch.disk:disk_bytes",
    plan="m3_connectors.backends.elasticsearch.plan:FORMULA",
    server="m3_connectors.testing.servers.elasticsearch:ElasticsearchServer",
    ports={"port": 9200},
)
