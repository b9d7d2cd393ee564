"""vLLM's ``/pooling``: token embeddings, and the other outputs of M3 by its tasks."""

from __future__ import annotations

import time
import uuid
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import ConfigDict
from starlette.responses import Response

from m3_connectors.embeddings import M3Embeddings
from m3_connectors.service.batching import check_whole
from m3_connectors.service.bodies import LenientBody, Many, tokens_of
from m3_connectors.service.compat.openai import check_dimensions, error, texts_of, written
from m3_connectors.service.state import TheService, json_answer

__all__ = ["PATHS", "ROUTER", "error"]

ROUTER = APIRouter(tags=["as vLLM"])
PATHS = ("/pooling",)


class PoolingRequest(LenientBody):
    """Texts, and which output is asked for: multi-vector rows (``token_embed``) or dense vectors (``embed``)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "bge-m3", "input": "What is BGE M3?"},
                {"model": "bge-m3", "input": ["one", "two"], "task": "embed"},
            ]
        }
    )

    input: str | Many[str] | Many[int] | Many[Many[int]]
    model: str | None = None
    task: Literal["token_embed", "embed"] | None = "token_embed"
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = None
    truncate_prompt_tokens: Literal[-1] | None = None


@ROUTER.post("/pooling")
async def pooling(request: PoolingRequest, service: TheService) -> Response:
    """Return the multi-vector rows of each text (one for each token but the first), or its dense vector."""
    texts = texts_of(request.input)
    check_dimensions(request.dimensions, service)
    service.check_count(len(texts), "texts")
    is_dense = request.task == "embed"
    encoded = await service.batcher.encode(texts, ["dense" if is_dense else "multivector"])
    check_whole(encoded, truncate=request.truncate_prompt_tokens == -1)
    tokens = tokens_of(encoded)
    return json_answer(
        {
            "id": f"pool-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": service.model.name,
            "data": [
                {"index": i, "object": "pooling", "data": _data(rows, request.encoding_format)}
                for i, rows in enumerate(encoded.dense if is_dense else _rows(encoded))
            ],
            "usage": {
                "prompt_tokens": tokens,
                "total_tokens": tokens,
                "completion_tokens": 0,
                "prompt_tokens_details": None,
            },
        }
    )


def _rows(encoded: M3Embeddings) -> list[Any]:
    return list(encoded.multivectors)


def _data(rows: Any, encoding: str | None) -> Any:
    return written(rows, encoding)
