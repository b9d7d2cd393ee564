"""A stub server that has one collection and answers as a test specifies."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
from aiohttp import web

from m3_connectors.backends.elasticsearch.backend import ElasticsearchBackend
from m3_connectors.backends.elasticsearch.layout import index_body
from m3_connectors.backends.registry import backend_for
from m3_connectors.testing.worlds import World

Answer = Callable[[web.Request, bytes], "web.Response | None"]


@contextlib.asynccontextmanager
async def stub(world: World, answer: Answer, **options: Any) -> AsyncIterator[ElasticsearchBackend]:
    """Yield an open backend on a server that returns ``answer``, or success if it is None."""
    collection = "notes"

    async def handle(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        given = answer(request, body)
        if given is not None:
            return given
        if request.path.endswith("/_bulk"):
            return reply(
                {"items": [{"index": {"status": 201, "result": "created"}} for _ in operations(body)]}
            )
        if request.path.endswith("/_mget"):
            return reply({"docs": []})
        if request.path == f"/{collection}":
            return reply({"notes@1": index_body(world.schema, collection, None, None)})
        return reply({"hits": {"hits": [], "total": {"value": 0}}})

    application = web.Application(client_max_size=2**30)
    application.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    backend = backend_for(f"elasticsearch+http://127.0.0.1:{port}", collection, options)
    assert isinstance(backend, ElasticsearchBackend)
    try:
        await backend.open()
        yield backend
    finally:
        await backend.close()
        await runner.cleanup()


def reply(body: Any, status: int = 200, **headers: str) -> web.Response:
    product = {"x-elastic-product": "Elasticsearch", "content-type": "application/json"}
    return web.Response(body=orjson.dumps(body), status=status, headers={**product, **headers})


def error(status: int, kind: str, reason: str, **headers: str) -> web.Response:
    return reply({"error": {"type": kind, "reason": reason}, "status": status}, status, **headers)


def operations(body: bytes) -> list[str]:
    """Return the ids of the documents that a bulk request stores."""
    return [orjson.loads(line)["index"]["_id"] for line in body.splitlines()[::2]]
