"""``/v1/encode``: all three outputs of the model, or some, as JSON, safetensors or Arrow."""

from __future__ import annotations

from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Header
from pydantic import ConfigDict, Field
from starlette.responses import Response

from m3_connectors.embeddings import COMPONENTS, Component
from m3_connectors.service import arrow
from m3_connectors.service.batching import check_whole
from m3_connectors.service.bodies import Body, Many, to_dict
from m3_connectors.service.problems import Refused
from m3_connectors.service.state import TheService, json_answer

ROUTER = APIRouter(tags=["model"])

SAFETENSORS = "application/x-safetensors"
JSON = "application/json"


class EncodeRequest(Body):
    """Texts to encode."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"texts": ["What is BGE M3?"]},
                {"texts": ["Plums ripen in late summer.", "Snow falls."], "components": ["dense", "sparse"]},
            ]
        }
    )

    texts: Many[str]
    components: Annotated[tuple[Component, ...], Field(min_length=1, fail_fast=True)] = COMPONENTS
    truncate: bool = True
    """Whether to cut texts that are longer than the model's maximum; ``truncated`` says which were."""


@ROUTER.post(
    "/v1/encode", responses={200: {"content": {kind: {} for kind in (JSON, SAFETENSORS, arrow.MEDIA_TYPE)}}}
)
async def encode(
    request: EncodeRequest, service: TheService, accept: Annotated[str, Header()] = JSON
) -> Response:
    """Return dense vectors, token weights and multi-vectors of texts.

    ``Accept`` chooses the format: ``application/json``; ``application/x-safetensors``, which ``M3Embeddings.load``
    reads; or ``application/vnd.apache.arrow.stream``, one row for each text.
    """
    service.check_count(len(request.texts), "texts")
    kind = _chosen(accept)
    embeddings = check_whole(
        await service.batcher.encode(request.texts, request.components), request.truncate
    )
    if kind == SAFETENSORS:
        return Response(await anyio.to_thread.run_sync(embeddings.to_bytes), media_type=kind)
    if kind == arrow.MEDIA_TYPE:
        return Response(await anyio.to_thread.run_sync(arrow.stream, embeddings), media_type=kind)
    return json_answer(to_dict(embeddings, service.model))


def _chosen(accept: str) -> str:
    """Return the first known media type that a client accepts; its weights (q) are not compared."""
    for part in accept.split(","):
        kind = part.partition(";")[0].strip().lower()
        if kind in (JSON, SAFETENSORS, arrow.MEDIA_TYPE):
            return kind
        if kind in ("", "*/*", "application/*"):
            return JSON
    raise Refused(
        406,
        "NotAcceptable",
        f"Accept is {accept!r:.100}.\n  Accept {JSON}, {SAFETENSORS} or {arrow.MEDIA_TYPE}.",
    )
