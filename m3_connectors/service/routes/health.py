"""Whether the service lives, whether it can answer, and what it counts."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from m3_connectors import __version__
from m3_connectors.service.metrics import MEDIA_TYPE
from m3_connectors.service.problems import Refused
from m3_connectors.service.state import TheService, json_answer

ROUTER = APIRouter(tags=["health"])


@ROUTER.get("/healthz")
async def healthz() -> Response:
    """Answer as long as the process serves requests; a container without an answer should be restarted."""
    return json_answer({"status": "ok", "version": __version__})


@ROUTER.get("/readyz")
async def readyz(service: TheService) -> Response:
    """Answer 200 if the model is loaded and the stores of all collections in use answer, otherwise 503."""
    if not service.is_ready:
        raise Refused(
            503, "NotReady", "the service is starting or stopping.\n  Ask again.", retry_after_seconds=1
        )
    await service.collections.check()
    return json_answer({"status": "ready", "model": service.model.name})


@ROUTER.get("/metrics")
async def metrics(service: TheService) -> Response:
    """Return the counters in the text format of Prometheus."""
    return Response(service.metrics.text(), media_type=MEDIA_TYPE)
