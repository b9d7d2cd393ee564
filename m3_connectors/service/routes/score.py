"""``/v1/score``: the component scores of pairs of texts."""

from __future__ import annotations

import dataclasses

from fastapi import APIRouter
from pydantic import ConfigDict
from starlette.responses import Response

from m3_connectors.service.bodies import Body, Many
from m3_connectors.service.pairs import score_pairs
from m3_connectors.service.state import TheService, json_answer

ROUTER = APIRouter(tags=["model"])


class ScoreRequest(Body):
    """Pairs of a query and a text."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"pairs": [["When are plums ripe?", "Plums ripen in late summer."]]},
                {
                    "pairs": [["snow", "Snow falls."], ["snow", "Plums ripen."]],
                    "method": "all",
                    "weights": [0.2, 0.4, 0.4],
                },
            ]
        }
    )

    pairs: Many[tuple[str, str]]
    method: str = "all"
    weights: tuple[float, float, float] | None = None
    truncate: bool = True


@ROUTER.post("/v1/score")
async def score(request: ScoreRequest, service: TheService) -> Response:
    """Return the dense, sparse and multi-vector score of each pair, and their weighted sum."""
    service.check_count(len(request.pairs), "pairs")
    method = service.method(request.method, request.weights)
    scores, _ = await score_pairs(service, request.pairs, method, truncate=request.truncate)
    return json_answer(
        {
            "method": method.name,
            "weights": list(method.weights),
            "scores": [dataclasses.asdict(one) for one in scores],
        }
    )
