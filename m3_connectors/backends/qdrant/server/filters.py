"""Convert a filter tree into a filter of a Qdrant server."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from qdrant_client import models

from m3_connectors.backends.qdrant.conditions import translate
from m3_connectors.filters import Filter


def server_filter(filter: Filter) -> models.Filter:
    """Return the same condition as a filter of the server."""
    return translate(filter, _ServerDialect())


class _ServerDialect:
    def all_of(self, parts: Sequence[models.Filter]) -> models.Filter:
        return models.Filter(must=list(parts))

    def any_of(self, parts: Sequence[models.Filter]) -> models.Filter:
        return models.Filter(should=list(parts))

    def none_of(self, part: models.Filter) -> models.Filter:
        return models.Filter(must_not=[part])

    def is_empty(self, key: str) -> models.Filter:
        return models.Filter(must=[models.IsEmptyCondition(is_empty=models.PayloadField(key=key))])

    def equals(self, key: str, text: str) -> models.Filter:
        return models.Filter(must=[models.FieldCondition(key=key, match=models.MatchValue(value=text))])

    def is_among(self, key: str, texts: Sequence[str]) -> models.Filter:
        return models.Filter(must=[models.FieldCondition(key=key, match=models.MatchAny(any=list(texts)))])

    def in_range(self, key: str, bounds: dict[str, float]) -> models.Filter:
        return models.Filter(must=[models.FieldCondition(key=key, range=models.Range(**bounds))])

    def in_time(self, key: str, bounds: dict[str, datetime.datetime]) -> models.Filter:
        return models.Filter(must=[models.FieldCondition(key=key, range=models.DatetimeRange(**bounds))])
