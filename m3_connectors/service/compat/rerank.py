"""The re-ranking of Cohere and Jina: ``/v1/rerank`` and ``/v2/rerank``."""

from __future__ import annotations

import uuid
from typing import Annotated

from fastapi import APIRouter
from pydantic import ConfigDict, Field
from starlette.responses import Response

from m3_connectors.service.bodies import LenientBody, Many, tokens_of
from m3_connectors.service.compat.openai import error
from m3_connectors.service.pairs import relevance, score_pairs
from m3_connectors.service.state import TheService, json_answer

__all__ = ["PATHS", "ROUTER", "error"]

ROUTER = APIRouter(tags=["as Cohere and Jina"])
PATHS = ("/v1/rerank", "/v2/rerank")


class TextDocument(LenientBody):
    """A document with its text."""

    text: str


class RerankRequest(LenientBody):
    """Documents to order by their relevance for a query. ``model`` is not compared."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "bge-m3", "query": "snow", "documents": ["ice", {"text": "plums"}], "top_n": 1}
            ]
        }
    )

    query: str
    documents: Many[str | TextDocument]
    model: str | None = None
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = False


@ROUTER.post("/v1/rerank")
@ROUTER.post("/v2/rerank")
async def rerank(request: RerankRequest, service: TheService) -> Response:
    """Return the documents, best first, by the weighted mean of all three scores."""
    service.check_count(len(request.documents), "documents")
    method = service.method("all", None)
    texts = [one if isinstance(one, str) else one.text for one in request.documents]
    scores, encoded = await score_pairs(service, [(request.query, text) for text in texts], method)
    ranked = sorted(enumerate(scores), key=lambda one: (-one[1].fused, one[0]))[: request.top_n]
    tokens = 0 if encoded is None else tokens_of(encoded)
    cut = 0 if encoded is None else encoded.truncated_count
    return json_answer(
        {
            "id": str(uuid.uuid4()),
            "model": service.model.name,
            "results": [
                {"index": i, "relevance_score": relevance(one.fused, method)}
                | ({"document": {"text": texts[i]}} if request.return_documents else {})
                for i, one in ranked
            ],
            "usage": {"total_tokens": tokens},
            "meta": {"tokens": {"input_tokens": tokens}, "truncated_texts": cut},
        }
    )
