"""Searches of a collection: hits, all candidates of a method for clients that fuse them, explanations of hits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import ConfigDict, Field
from starlette.responses import Response

from m3_connectors.documents import Hit
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.errors import InvalidInput
from m3_connectors.explanation import TokenSimilarities
from m3_connectors.index import AsyncIndex
from m3_connectors.methods import METHODS, Method
from m3_connectors.service.bodies import Body, Filter, Vectors
from m3_connectors.service.state import Service, TheService, json_answer

ROUTER = APIRouter(prefix="/v1/collections", tags=["search"])

MOST_EXPLAINED = 100

MOST_QUERY_ROWS, MOST_DOCUMENT_ROWS = 256, 512
"""How many rows of a query and of a document an explanation compares; what a query row matches best is always there."""

_DECIMALS = 4
"""Of similarities in an explanation: what a heat map can show, in half the bytes."""

Count = Annotated[int, Field(ge=1, le=10_000)]
TheWeights = tuple[float, float, float] | None


class SearchRequest(Body):
    """A query, as a text or as vectors."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"query": "When are plums ripe?", "k": 3},
                {
                    "query": "snow",
                    "method": "dense_sparse",
                    "weights": [1, 0.5, 0],
                    "filter": {"year": {"$gte": 2020}},
                    "offset": 0,
                    "min_score": 0.0,
                },
                {"query": "snow", "explain": True, "k": 1},
            ]
        }
    )

    query: str | None = None
    vectors: Vectors | None = None
    method: str = "all"
    weights: TheWeights = None
    filter: Filter = None
    k: Count = 10
    offset: Annotated[int, Field(ge=0, le=100_000)] = 0
    min_score: float | None = None
    group_by: Literal["parent"] | None = None
    exact: bool = False
    explain: bool = False


class CandidatesRequest(Body):
    """A query whose candidates the client fuses."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"query": "snow"},
                {"query": "snow", "method": "dense_sparse", "filter": {"year": 2021}},
            ]
        }
    )

    query: str
    method: str = "all"
    filter: Filter = None
    exact: bool = False


class ExplainRequest(Body):
    """A query and the id of any document, whether or not a search finds it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": "When are plums ripe?", "id": "1"}]})

    query: str
    id: str
    method: str = "all"
    weights: TheWeights = None


@ROUTER.post("/{name}/search")
async def search(name: str, request: SearchRequest, service: TheService) -> Response:
    """Return the best documents for a query, with the fused score and the three scores that it consists of."""
    index = await service.collections.get(name)
    if request.explain and request.k > MOST_EXPLAINED:
        raise InvalidInput(
            f"explain is true and k is {request.k}; at most {MOST_EXPLAINED} hits are explained.\n  Ask for fewer hits."
        )
    method = _method(index, request.method, request.weights)
    query, truncated = await _query(index, request, service)
    hits = await index.search(
        query,
        method=method,
        k=request.k,
        filter=request.filter,
        exact=request.exact,
        group_by=request.group_by,
        offset=request.offset,
        min_score=request.min_score,
    )
    found = [hit.to_dict() for hit in hits]
    if request.explain:
        await _explain(index, request.query or "", method, hits, found)
    return json_answer(
        {
            "method": method.name,
            "weights": list(method.weights),
            "query_truncated": truncated,
            "hits": found,
        }
    )


@ROUTER.post("/{name}/candidates")
async def candidates(name: str, request: CandidatesRequest, service: TheService) -> Response:
    """Return all candidates of a method with the scores that it can combine, so that a client tries other weights.

    The ids are in the order of a search. ``complete`` is false if the method has more candidates than its longest
    list; then these are the best by ``weights``, and a search with other weights may return others.
    """
    index = await service.collections.get(name)
    method = _method(index, request.method, None)
    usual = METHODS[method.name]  # with a weight of its own for each score, which tuned weights may lack
    encoded = await service.batcher.encode([request.query], usual.components)
    depth = max(method.candidates.values())
    hits = await index.search(encoded, method=method, k=depth, filter=request.filter, exact=request.exact)
    return json_answer(
        {
            "method": method.name,
            "weights": list(method.weights),
            "complete": len(method.candidates) == 1 or len(hits) < depth,
            "ids": [hit.document.id for hit in hits],
            "scores": {part: [getattr(hit.scores, part) for hit in hits] for part in usual.scored},
        }
    )


@ROUTER.post("/{name}/explain")
async def explain(name: str, request: ExplainRequest, service: TheService) -> Response:
    """Return how the score of a document is computed, down to the similarity of every two tokens.

    ``similarities`` has at most 256 rows of the query and 512 of the document, the first ones, and those that a row of
    the query matches best; ``document_positions`` says which, the counts how many there are.
    """
    index = await service.collections.get(name)
    method = _method(index, request.method, request.weights)
    explanation = await index.explain(request.query, request.id, method=method)
    pairs = explanation.similarities
    return json_answer(explanation.to_dict() | {"similarities": pairs and _similarities(pairs)})


def _method(index: AsyncIndex, name: str, weights: TheWeights) -> Method:
    if name not in index.methods:
        raise InvalidInput(f"unknown method {name!r:.60}.\n  Use one of {', '.join(index.methods)}.")
    method = index.methods[name]
    return method if weights is None else method.weighted(*weights)


async def _query(index: AsyncIndex, request: SearchRequest, service: Service) -> tuple[M3Embeddings, bool]:
    """Return the vectors of the query, and whether its text was cut."""
    if (request.query is None) == (request.vectors is None):
        given = "neither" if request.query is None else "both"
        raise InvalidInput(f"a search needs either query or vectors, but got {given}.\n  Send one of them.")
    if request.vectors is not None:
        if request.explain:
            raise InvalidInput(
                "explain is true, but the query has only vectors; its tokens have no names.\n"
                "  Send the query as a text."
            )
        return request.vectors.embeddings(service.model), False
    encoded = await service.batcher.encode([request.query or ""], index.schema.components)
    return encoded, bool(encoded.truncated_count)


async def _explain(
    index: AsyncIndex, query: str, method: Method, hits: list[Hit], found: list[dict[str, Any]]
) -> None:
    """Add an explanation to each hit."""
    for hit, answer in zip(hits, found, strict=True):
        answer["explanation"] = (await index.explain(query, hit.document.id, method=method)).to_dict()


def _similarities(pairs: TokenSimilarities) -> dict[str, Any]:
    rows, columns = pairs.values.shape
    asked = min(rows, MOST_QUERY_ROWS)
    positions = sorted({*range(min(columns, MOST_DOCUMENT_ROWS)), *pairs.best[:asked]})
    return {
        "query_tokens": pairs.query_tokens[:asked],
        "query_rows": rows,
        "document_tokens": [pairs.document_tokens[j] for j in positions],
        "document_positions": positions,
        "document_rows": columns,
        "values": np.ascontiguousarray(pairs.values[:asked, positions].round(_DECIMALS)),
    }
