"""What the routes of one service share."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import orjson
from fastapi import Depends, Request
from starlette.responses import Response

from m3_connectors.embeddings import ModelInfo
from m3_connectors.index import Encoder
from m3_connectors.methods import METHODS, Method, get_method
from m3_connectors.service.batching import Batcher
from m3_connectors.service.collections import Collections
from m3_connectors.service.keys import Keys
from m3_connectors.service.metrics import Metrics
from m3_connectors.service.problems import Refused
from m3_connectors.service.settings import Settings


@dataclasses.dataclass
class Service:
    """The parts of a service.

    Attributes:
        settings: Its limits.
        encoder: The model.
        batcher: Encodes texts, in batches with those of other requests.
        collections: The collections.
        keys: The API keys.
        metrics: The counters.
        is_ready: Whether it takes requests.
    """

    settings: Settings
    encoder: Encoder
    batcher: Batcher
    collections: Collections
    keys: Keys
    metrics: Metrics
    is_ready: bool = False

    @property
    def model(self) -> ModelInfo:
        """The identity of the model."""
        return self.encoder.info

    def method(self, name: str, weights: tuple[float, float, float] | None) -> Method:
        """Return the method of a name, with these weights or those distributed with the model.

        Raises:
            InvalidInput: There is no such method, or a weight is not valid.
        """
        chosen = weights or self.encoder.recommended_weights.get(name)
        method = get_method(name)
        return METHODS[method.name].weighted(*chosen) if chosen else method

    def check_count(self, count: int, what: str) -> None:
        """Raise Refused if a request has more texts, pairs or documents than the service takes."""
        if count > self.settings.max_texts:
            raise Refused(
                413,
                "TooMany",
                f"the request has {count:,} {what}, and the service takes at most {self.settings.max_texts:,}.\n"
                "  Send them in several requests.",
            )


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _may_write(request: Request) -> None:
    if request.scope["m3.access"] != "write":
        raise Refused(403, "ReadOnlyKey", "this API key only reads.\n  Use a key that may write.")


TheService = Annotated[Service, Depends(_service)]
"""The parameter of a route that uses the service."""

WRITES = Depends(_may_write)
"""The dependency of a route that changes a collection."""


def json_answer(content: Any) -> Response:
    """Return an answer in JSON; arrays of float32 are written with the digits that give the same float32 again."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
    return Response(body, media_type="application/json")
