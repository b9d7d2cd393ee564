"""What a ``RemoteEncoder`` needs to know of the model: its identity, its limits and its tokenizer."""

from __future__ import annotations

import anyio.to_thread
from fastapi import APIRouter
from starlette.responses import Response

from m3_connectors.errors import NotFound
from m3_connectors.service.state import TheService, json_answer

ROUTER = APIRouter(tags=["model"])


@ROUTER.get("/v1/model")
async def model(service: TheService) -> Response:
    """Return the identity of the model, the most tokens of a text and texts of a request, and its weights by method."""
    return json_answer(
        {
            "model": service.model.to_json(),
            "max_length": int(getattr(service.encoder, "max_length", 8192)),
            "max_texts": service.settings.max_texts,
            "recommended_weights": {name: list(w) for name, w in service.encoder.recommended_weights.items()},
        }
    )


@ROUTER.get("/v1/tokenizer", responses={200: {"content": {"application/json": {}}}})
async def tokenizer(service: TheService) -> Response:
    """Return the tokenizer as ``tokenizer.json``, with which a client names and counts tokens."""
    content = getattr(service.encoder, "tokenizer_json", None)
    if content is None:
        raise NotFound(
            f"{type(service.encoder).__name__} does not offer its tokenizer.\n"
            "  Serve an encoder that does, such as M3Encoder.",
            backend="service",
            operation="tokenizer",
        )
    return Response(await anyio.to_thread.run_sync(content), media_type="application/json")
