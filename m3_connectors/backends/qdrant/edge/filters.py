"""Convert a filter tree into a filter of the engine in this process."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import qdrant_edge as engine

from m3_connectors.backends.qdrant.conditions import translate
from m3_connectors.backends.qdrant.payload import date_form
from m3_connectors.filters import Filter


def edge_filter(filter: Filter) -> engine.Filter:
    """Return the same condition as a filter of the engine."""
    return translate(filter, _EdgeDialect())


class _EdgeDialect:
    def all_of(self, parts: Sequence[engine.Filter]) -> engine.Filter:
        return engine.Filter(must=list(parts))

    def any_of(self, parts: Sequence[engine.Filter]) -> engine.Filter:
        return engine.Filter(should=list(parts))

    def none_of(self, part: engine.Filter) -> engine.Filter:
        return engine.Filter(must_not=[part])

    def is_empty(self, key: str) -> engine.Filter:
        return engine.Filter(must=[engine.IsEmptyCondition(key)])

    def equals(self, key: str, text: str) -> engine.Filter:
        return engine.Filter(must=[engine.FieldCondition(key, match=engine.MatchValue(text))])

    def is_among(self, key: str, texts: Sequence[str]) -> engine.Filter:
        return engine.Filter(must=[engine.FieldCondition(key, match=engine.MatchAny(list(texts)))])

    def in_range(self, key: str, bounds: dict[str, float]) -> engine.Filter:
        return engine.Filter(must=[engine.FieldCondition(key, range=engine.RangeFloat(**bounds))])

    def in_time(self, key: str, bounds: dict[str, datetime.datetime]) -> engine.Filter:
        spelled = {name: date_form(bound) for name, bound in bounds.items()}
        return engine.Filter(must=[engine.FieldCondition(key, range=engine.RangeDateTime(**spelled))])
