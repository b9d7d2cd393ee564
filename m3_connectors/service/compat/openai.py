"""OpenAI's ``/v1/embeddings`` and ``/v1/models``."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import ConfigDict
from starlette.responses import Response

from m3_connectors.errors import InvalidInput
from m3_connectors.service.batching import check_whole
from m3_connectors.service.bodies import LenientBody, Many, tokens_of
from m3_connectors.service.problems import Problem
from m3_connectors.service.state import Service, TheService, json_answer

ROUTER = APIRouter(tags=["as OpenAI"])
PATHS = ("/v1/embeddings", "/v1/models")


def error(problem: Problem) -> Mapping[str, Any]:
    """Return the member by which OpenAI's clients read an error."""
    kind = "invalid_request_error" if problem.status < 500 else "server_error"
    return {"error": {"message": problem.detail, "type": kind, "param": None, "code": problem.kind}}


class EmbeddingsRequest(LenientBody):
    """Texts to embed. ``model`` is not compared: the answer names the model that was used."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "bge-m3", "input": "What is BGE M3?"},
                {"model": "bge-m3", "input": ["one", "two"], "encoding_format": "base64"},
            ]
        }
    )

    input: str | Many[str] | Many[int] | Many[Many[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = None


@ROUTER.post("/v1/embeddings")
async def embeddings(request: EmbeddingsRequest, service: TheService) -> Response:
    """Return the dense vector of each text."""
    texts = texts_of(request.input)
    check_dimensions(request.dimensions, service)
    service.check_count(len(texts), "texts")
    encoded = check_whole(await service.batcher.encode(texts, ["dense"]), truncate=False)
    tokens = tokens_of(encoded)
    return json_answer(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": i, "embedding": written(row, request.encoding_format)}
                for i, row in enumerate(encoded.dense)
            ],
            "model": service.model.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


@ROUTER.get("/v1/models")
async def models(service: TheService) -> Response:
    """Return the one model that is served."""
    one = {"id": service.model.name, "object": "model", "created": 0, "owned_by": "m3-connectors"}
    return json_answer({"object": "list", "data": [one]})


def texts_of(given: str | list[str] | list[int] | list[list[int]]) -> list[str]:
    """Return the texts of ``input``.

    Raises:
        InvalidInput: They are token ids, which are those of another tokenizer.
    """
    texts = [given] if isinstance(given, str) else given
    if not all(isinstance(text, str) for text in texts):
        raise InvalidInput(
            f"input has {len(texts)} items that are token ids; they are not those of this model.\n"
            "  Send texts (LangChain: check_embedding_ctx_length=False)."
        )
    return [text for text in texts if isinstance(text, str)]


def check_dimensions(asked: int | None, service: Service) -> None:
    """Raise InvalidInput if vectors of another width are asked for."""
    if asked not in (None, service.model.dimension):
        raise InvalidInput(
            f"dimensions is {asked}; the vectors of {service.model.name} have {service.model.dimension}.\n"
            "  Leave it out: M3 was not trained for vectors that are cut."
        )


def written(values: np.ndarray[Any, np.dtype[np.float32]], encoding: str | None) -> Any:
    """Return float32 values as a list, or as base64 of their little-endian bytes."""
    if encoding == "base64":
        return base64.b64encode(values.astype("<f4").tobytes()).decode()
    return np.ascontiguousarray(values)
