"""Collections of one test on a real Elasticsearch, and requests to it that bypass the adapter."""

from __future__ import annotations

import uuid
from typing import Any

from live_servers import RUN

from m3_connectors.backends.elasticsearch.backend import ElasticsearchBackend
from m3_connectors.backends.elasticsearch.connection import segment
from m3_connectors.backends.registry import backend_for
from m3_connectors.testing.worlds import World

_ONE_NODE = {"replicas": 0}


class Live:
    """Backends of one test, whose collections are named after it and dropped at its end."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.prefix = f"{uuid.uuid4().hex[:12]}-{RUN}"
        self.templates: list[str] = []

    def backend(self, collection: str = "notes", **options: Any) -> ElasticsearchBackend:
        backend = backend_for(self.url, f"{self.prefix}-{collection}", {**_ONE_NODE, **options})
        assert isinstance(backend, ElasticsearchBackend)
        return backend

    async def filled(self, world: World, collection: str = "notes", **options: Any) -> ElasticsearchBackend:
        """Return a backend whose collection has the documents of a world."""
        backend = self.backend(collection, **options)
        await backend.create(world.schema)
        await backend.upsert(world.documents, world.embeddings)
        return backend

    async def clean(self) -> None:
        """Remove the indices and index templates of the test."""
        backend = self.backend()
        for name in await request(backend, "GET", f"/{self.prefix}*"):
            await request(backend, "DELETE", f"/{segment(name)}")
        for name in self.templates:
            await request(backend, "DELETE", f"/_index_template/{name}")
        await backend.close()


async def request(
    backend: ElasticsearchBackend, method: str, path: str, body: Any = None, **params: str
) -> Any:
    """Send a request to the server that bypasses the adapter."""
    return await backend._connection.once("test", method, path, body, **params)
