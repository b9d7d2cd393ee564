"""The application: the routes behind the gate, and what is started and stopped with them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import anyio
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from m3_connectors import __version__
from m3_connectors.errors import M3Error
from m3_connectors.index import Encoder
from m3_connectors.methods import Weights
from m3_connectors.service.batching import BatchedEncoder, Batcher, BatchRecord
from m3_connectors.service.collections import Collections
from m3_connectors.service.compat import openai, rerank, tei, vllm
from m3_connectors.service.gate import Gate
from m3_connectors.service.keys import Keys
from m3_connectors.service.metrics import Metrics
from m3_connectors.service.problems import Dialect, Problem, problem_of, response_of
from m3_connectors.service.routes import collections, encode, health, model, page, score, search
from m3_connectors.service.settings import Settings
from m3_connectors.service.state import Service

_OWN = (page, health, model, encode, score, search, collections)
_OTHERS = (tei, openai, rerank, vllm)


def create_app(
    settings: Settings,
    encoder: Encoder,
    *,
    keys: Keys | None = None,
    weights: Mapping[str, Weights] | None = None,
) -> ASGIApp:
    """Return the application of a service, for any ASGI server that supports lifespans.

    Args:
        settings: The stores and the limits.
        encoder: The model, which encodes for all collections.
        keys: The API keys; None accepts every request.
        weights: The weights of methods given by name, as for ``connect``.
    """
    metrics = Metrics()

    def count(batch: BatchRecord) -> None:
        metrics.batches.inc()
        metrics.batch_texts.observe(batch.texts)
        metrics.encoded_tokens.inc(batch.tokens)
        metrics.encoding_seconds.inc(batch.seconds)

    batcher = Batcher(encoder, max_waiting_tokens=settings.max_waiting_tokens, on_batch=count)
    metrics.waiting_tokens.set_function(lambda: batcher.waiting_tokens)
    opened = Collections(settings.urls, BatchedEncoder(encoder, batcher), weights=weights)
    service = Service(settings, encoder, batcher, opened, keys or Keys({}), metrics)
    return Gate(_routes(service), service)


def _routes(service: Service) -> FastAPI:
    app = FastAPI(
        title="m3 serve",
        version=__version__,
        description="Dense, sparse and multi-vector retrieval with BGE-M3. Errors are problem details (RFC 9457).",
        docs_url=None,  # these pages load their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # it would name a host that the client sent, and may lead from https to http
        lifespan=_lifespan(service),
    )
    app.state.service = service
    dialects: dict[str, Dialect] = {}
    for own in _OWN:
        app.include_router(own.ROUTER)
    for other in _OTHERS:
        app.include_router(other.ROUTER)
        dialects |= dict.fromkeys(other.PATHS, other.error)

    async def answer(request: Request, error: Exception) -> Response:
        response = response_of(_problem(error), dialects.get(request.url.path))
        if isinstance(error, HTTPException) and error.headers:
            response.headers.update(error.headers)  # such as Allow
        return response

    for kind in (M3Error, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)
    return app


def _lifespan(service: Service) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service.batcher.run)
            service.is_ready = True
            try:
                yield
            finally:
                # The server calls this when the requests that it took are answered.
                service.is_ready = False
                service.batcher.close()
                with anyio.CancelScope(shield=True):
                    await service.collections.close()

    return lifespan


def _problem(error: Exception) -> Problem:
    if isinstance(error, RequestValidationError):
        # Without the input: it may be a document, and the client has it.
        reasons = [
            {"loc": [str(part) for part in reason["loc"]], "msg": str(reason["msg"])}
            for reason in error.errors()
        ]
        first = reasons[0] if reasons else {"loc": [], "msg": "it cannot be read"}
        where: Any = first["loc"]
        detail = f"{'.'.join(where)}: {first['msg']}.\n  Compare the request with /openapi.json."
        return Problem(422, "InvalidRequest", detail, members={"errors": reasons[:20]})
    if isinstance(error, HTTPException):
        return Problem(
            error.status_code,
            "HttpError",
            f"{error.detail}.\n  GET /openapi.json lists the routes and what they take.",
        )
    return problem_of(error)
