"""The routes of Hugging Face's text-embeddings-inference (TEI).

``/embed_all`` returns the rows of the multi-vector head, which are what late interaction compares; TEI returns the
hidden states, which M3 was not trained to compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import ConfigDict
from starlette.responses import Response

from m3_connectors import __version__
from m3_connectors.embeddings import Component, M3Embeddings
from m3_connectors.errors import InvalidInput
from m3_connectors.scoring import dense_scores
from m3_connectors.service.batching import check_whole
from m3_connectors.service.bodies import LenientBody, Many, sparse_rows
from m3_connectors.service.pairs import relevance, score_pairs
from m3_connectors.service.problems import Problem
from m3_connectors.service.state import Service, TheService, json_answer

ROUTER = APIRouter(tags=["as text-embeddings-inference"])
PATHS = ("/", "/embed", "/embed_sparse", "/embed_all", "/rerank", "/similarity", "/info")

_KINDS = {413: "Validation", 422: "Validation", 400: "Validation", 429: "Overloaded", 503: "Unhealthy"}


def error(problem: Problem) -> Mapping[str, Any]:
    """Return the members by which TEI's clients read an error."""
    return {"error": problem.detail, "error_type": _KINDS.get(problem.status, "Backend")}


class EmbedRequest(LenientBody):
    """Texts to embed."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"inputs": "What is BGE M3?"}, {"inputs": ["one", "two"], "truncate": True}]
        }
    )

    inputs: str | Many[str]
    truncate: bool | None = False
    truncation_direction: Literal["Right", "right"] | None = "Right"
    normalize: bool | None = True
    prompt_name: str | None = None
    dimensions: int | None = None


class Sentences(LenientBody):
    """A sentence and those that it is compared with."""

    source_sentence: str
    sentences: Many[str]


class SimilarityParameters(LenientBody):
    """How texts are encoded."""

    truncate: bool | None = False


class SimilarityRequest(LenientBody):
    """Sentences to compare."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"inputs": {"source_sentence": "snow", "sentences": ["ice", "plums"]}}]
        }
    )

    inputs: Sentences
    parameters: SimilarityParameters | None = None


class AnyRequest(LenientBody):
    """What clients send to the root: texts to embed, or sentences to compare."""

    model_config = EmbedRequest.model_config

    inputs: str | Many[str] | Sentences
    truncate: bool | None = False
    truncation_direction: Literal["Right", "right"] | None = "Right"
    normalize: bool | None = True
    prompt_name: str | None = None
    dimensions: int | None = None


class RerankRequest(LenientBody):
    """Texts to order by their relevance for a query."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"query": "snow", "texts": ["ice", "plums"], "return_text": True}]}
    )

    query: str
    texts: Many[str]
    truncate: bool | None = False
    raw_scores: bool | None = False
    return_text: bool | None = False


@ROUTER.post("/embed")
async def embed(request: EmbedRequest, service: TheService) -> Response:
    """Return the dense vector of each text."""
    return await _embed(request, service)


@ROUTER.post("/embed_sparse")
async def embed_sparse(request: EmbedRequest, service: TheService) -> Response:
    """Return the token weights of each text."""
    encoded = await _encoded(request, service, "sparse")
    return json_answer(
        [
            [{"index": i, "value": value} for i, value in zip(ids.tolist(), _short(weights), strict=True)]
            for ids, weights in sparse_rows(encoded)
        ]
    )


@ROUTER.post("/embed_all")
async def embed_all(request: EmbedRequest, service: TheService) -> Response:
    """Return the multi-vector rows of each text, one for each token but the first."""
    encoded = await _encoded(request, service, "multivector")
    return json_answer([np.ascontiguousarray(rows) for rows in encoded.multivectors])


@ROUTER.post("/similarity")
async def similarity(request: SimilarityRequest, service: TheService) -> Response:
    """Return the dense score of each sentence for the source sentence."""
    truncate = bool(request.parameters and request.parameters.truncate)
    return await _similar(request.inputs, truncate, service)


@ROUTER.post("/rerank")
async def rerank(request: RerankRequest, service: TheService) -> Response:
    """Return the texts, best first, by all three scores: their weighted mean, or with ``raw_scores`` their sum."""
    service.check_count(len(request.texts), "texts")
    method = service.method("all", None)
    pairs = [(request.query, text) for text in request.texts]
    scores, _ = await score_pairs(service, pairs, method, truncate=bool(request.truncate))
    ranked = sorted(enumerate(scores), key=lambda one: (-one[1].fused, one[0]))
    return json_answer(
        [
            {"index": i, "score": one.fused if request.raw_scores else relevance(one.fused, method)}
            | ({"text": request.texts[i]} if request.return_text else {})
            for i, one in ranked
        ]
    )


@ROUTER.get("/info")
async def info(service: TheService) -> Response:
    """Return what is served, and its limits."""
    encoder = service.encoder
    return json_answer(
        {
            "model_id": service.model.name,
            "model_sha": service.model.revision,
            "model_dtype": getattr(encoder, "precision", "float32"),
            "model_type": {"embedding": {"pooling": "cls"}},
            "max_concurrent_requests": None,
            "max_input_length": getattr(encoder, "max_length", None),
            "max_batch_tokens": service.batcher.budget,
            "max_batch_requests": None,
            "max_client_batch_size": service.settings.max_texts,
            "auto_truncate": False,
            "tokenization_workers": 1,
            "version": __version__,
            "sha": None,
            "docker_label": None,
            "model": service.model.to_json(),
        }
    )


@ROUTER.post("/")
async def root(request: AnyRequest, service: TheService) -> Response:
    """Embed texts, or compare sentences: ``InferenceClient`` sends both to the URL that it is given."""
    if isinstance(request.inputs, Sentences):
        return await _similar(request.inputs, bool(request.truncate), service)
    return await _embed(EmbedRequest(**request.model_dump()), service)


async def _embed(request: EmbedRequest, service: Service) -> Response:
    # normalize is read and changes nothing: M3's dense vector is a unit vector by definition, and some clients
    # send false by default.
    return json_answer((await _encoded(request, service, "dense")).dense)


async def _encoded(request: EmbedRequest, service: Service, component: Component) -> M3Embeddings:
    for name in ("prompt_name", "dimensions"):
        if getattr(request, name) not in (None, service.model.dimension):
            raise InvalidInput(f"{name} is {getattr(request, name)!r:.40}; M3 has none.\n  Leave it out.")
    texts = [request.inputs] if isinstance(request.inputs, str) else request.inputs
    service.check_count(len(texts), "texts")
    return check_whole(await service.batcher.encode(texts, [component]), bool(request.truncate))


async def _similar(inputs: Sentences, truncate: bool, service: Service) -> Response:
    service.check_count(len(inputs.sentences), "sentences")
    texts = [inputs.source_sentence, *inputs.sentences]
    encoded = check_whole(await service.batcher.encode(texts, ["dense"]), truncate)
    return json_answer(dense_scores(encoded.dense[0], encoded.dense[1:]))


def _short(values: np.ndarray[Any, np.dtype[np.float32]]) -> list[np.float32]:
    """Return the values as float32, which are written with fewer digits."""
    return list(values)
