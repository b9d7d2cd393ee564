"""Filters: what is refused, what they mean, and that Qdrant Edge understands them the same way."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import qdrant_edge as engine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m3_connectors.backends.qdrant.filters import edge_filter
from m3_connectors.backends.qdrant.points import payload_of
from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput
from m3_connectors.filters import (
    MAX_DEPTH,
    And,
    Compare,
    Exists,
    Filter,
    Not,
    OneOf,
    Or,
    matches,
    parse_date,
    parse_filter,
)


def passes(raw: dict[str, Any], metadata: dict[str, Any]) -> bool:
    return matches(parse_filter(raw), metadata)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"$xor": [{"a": 1}]}, r"unknown operator '\$xor'"),
        ({"a": {"$like": "b"}}, r"unknown operator '\$like'"),
        ({"a": {"gte": 1}}, "unknown operator 'gte'"),
        ({"a": {}}, "is empty"),
        ({"a": [1, 2]}, "is list"),
        ({"a": {"$in": []}}, "at least one"),
        ({"a": {"$in": "text"}}, "at least one"),
        ({"$or": []}, "at least one"),
        ({"$and": {"a": 1}}, "at least one"),
        ({"$not": [{"a": 1}]}, "give a filter"),
        ({"a": {"$gt": "tomorrow"}}, "number or an ISO 8601 date"),
        ({"a": {"$gt": True}}, "number or an ISO 8601 date"),
        ({"a": float("nan")}, "finite"),
        ({"a": 2**53}, "less than 2"),
        ({"a": {"$exists": 1}}, "True or False"),
        ({"a..b": 1}, "has the field"),
        ({"": 1}, "has the field"),
        ({'a"b': 1}, "has the field"),
        ({"a[0]": 1}, "has the field"),
        ({"a": "\ud800"}, "surrogate"),
        ({1: "a"}, "fields are strings"),
        ([("a", 1)], "give a mapping"),
        ("a = 1", "give a mapping"),
    ],
)
def test_bad_filters_are_refused_by_name(raw: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        parse_filter(raw)


def nested(depth: int) -> dict[str, Any]:
    raw: dict[str, Any] = {"a": 1}
    for _ in range(depth - 1):
        raw = {"$not": raw}
    return raw


def test_filters_are_nested_so_deep_that_every_store_takes_them() -> None:
    assert passes(nested(MAX_DEPTH), {"a": 1}) == (MAX_DEPTH % 2 == 1)
    tree: Filter = OneOf("a", (1,))
    for _ in range(MAX_DEPTH):
        tree = Or((tree,))
    for too_deep in (nested(MAX_DEPTH + 1), nested(500), tree):
        with pytest.raises(InvalidInput, match=f"more than {MAX_DEPTH} conditions"):
            parse_filter(too_deep)


@pytest.mark.parametrize("date", ["0001-01-01T00:00:00+02:00", "9999-12-31T23:59:59-00:01"])
def test_a_bound_that_is_no_date_in_utc_is_refused_by_name(date: str) -> None:
    for bound in (date, datetime.datetime.fromisoformat(date)):
        with pytest.raises(InvalidInput, match=r"filter\['a'\].* is .* years 1 to 9999 in UTC"):
            parse_filter({"a": {"$gt": bound}})
    with pytest.raises(InvalidInput, match="years 1 to 9999"):
        parse_filter(Not(Compare("a", "$gt", datetime.datetime.fromisoformat(date))))
    assert passes({"a": {"$lt": "0001-01-01"}}, {"a": "0001-01-01T00:00:00+02:00"})


def test_no_filter_passes_everything() -> None:
    assert parse_filter(None) is None
    assert parse_filter({}) is None
    assert matches(None, {"a": 1})


def test_a_parsed_filter_is_left_as_it_is() -> None:
    parsed = parse_filter({"a": 1, "b": {"$gt": 2}})
    assert parsed == And((OneOf("a", (1,)), Compare("b", "$gt", 2)))
    assert parse_filter(parsed) is parsed


@pytest.mark.parametrize(
    ("raw", "yes", "no"),
    [
        ({"a": "x"}, [{"a": "x"}, {"a": ["y", "x"]}], [{}, {"a": "X"}, {"a": None}, {"a": {"x": 1}}, {"b": "x"}]),
        ({"a": 1}, [{"a": 1}, {"a": 1.0}, {"a": [0, 1]}], [{"a": True}, {"a": "1"}, {"a": [[1]]}, {"a": 1.5}]),
        ({"a": True}, [{"a": True}, {"a": [False, True]}], [{"a": 1}, {"a": "true"}, {"a": False}, {}]),
        ({"a": None}, [{}, {"a": None}, {"a": []}], [{"a": [None]}, {"a": {}}, {"a": ""}, {"a": 0}]),
        ({"a": {"$ne": "x"}}, [{}, {"a": "y"}, {"a": None}], [{"a": "x"}, {"a": ["x", "y"]}]),
        ({"a": {"$in": [1, "x"]}}, [{"a": 1}, {"a": "x"}], [{"a": "1"}, {}]),
        ({"a": {"$nin": [1, "x"]}}, [{"a": 2}, {}], [{"a": 1}, {"a": ["x"]}]),
        ({"a": {"$gt": 1, "$lte": 3}}, [{"a": 3}, {"a": 1.5}, {"a": [0, 9]}], [{"a": 1}, {"a": "2"}, {"a": True}]),
        ({"a.b": 1}, [{"a": {"b": 1}}], [{"a.b": 1}, {"a": [{"b": 1}]}, {"a": 1}, {"a": {"c": 1}}]),
        ({"a": {"$exists": True}}, [{"a": 0}, {"a": {}}, {"a": [None]}], [{}, {"a": None}, {"a": []}]),
        ({"$or": [{"a": 1}, {"b": 1}]}, [{"a": 1}, {"b": 1}], [{"a": 2}]),
        ({"$not": {"a": 1, "b": 1}}, [{"a": 1}, {}], [{"a": 1, "b": 1}]),
        ({"a": {"$gte": "2024-01-31"}}, [{"a": "2024-01-31T00:00:00Z"}], [{"a": "2024-01-31T01:00:00+02:00"}]),
        ({"a": {"$lt": datetime.date(2024, 3, 1)}}, [{"a": "2024-02-29"}], [{"a": "2024-02-30"}, {"a": 1}, {"a": "x"}]),
    ],
)  # fmt: skip
def test_meaning(raw: dict[str, Any], yes: list[dict[str, Any]], no: list[dict[str, Any]]) -> None:
    assert [passes(raw, metadata) for metadata in yes] == [True] * len(yes)
    assert [passes(raw, metadata) for metadata in no] == [False] * len(no)


# -- the same meaning in the engine

KEYS = st.sampled_from(["a", "b", "a b", "日本", "x-y", "$c", "id", "*", "ключ"])
FIELDS = st.lists(KEYS, min_size=1, max_size=3).map(".".join).filter(lambda field: not field.startswith("$"))
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.integers(-(2**53) + 1, 2**53 - 1),
    st.sampled_from([0.5, -0.0, 2.0, 0.1, 0.30000000000000004, 1e-9, 1e15]),
    st.floats(-1e6, 1e6).map(lambda value: round(value, 12)),
)
DATES = st.one_of(
    st.datetimes().map(lambda date: date.isoformat()),
    st.datetimes(timezones=st.timezones()).map(lambda date: date.isoformat(" ")),
    st.dates().map(str),
    st.sampled_from(
        ["2024-1-1", "2024-02-30", "2024-01-01T10:00", "2016-12-31T23:59:60Z", "2024-01-01T24:00:00"]
    ),
)
STRINGS = st.one_of(
    st.sampled_from(["", "x", "X", "true", "1", "x\x00", '"', "\\", "é", "e\u0301"]),
    st.text(max_size=4),
    DATES,
)
STRINGS = STRINGS.filter(lambda text: not any("\ud800" <= letter <= "\udfff" for letter in text))
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, STRINGS)
VALUES = st.one_of(LEAVES, st.lists(st.one_of(LEAVES, st.lists(LEAVES, max_size=2)), max_size=3))
METADATA = st.recursive(
    st.dictionaries(KEYS, VALUES, max_size=4),
    lambda inner: st.dictionaries(KEYS, st.one_of(VALUES, inner, st.lists(inner, max_size=2)), max_size=4),
    max_leaves=6,
)
BOUNDS = st.one_of(NUMBERS, DATES.map(parse_date).filter(bool))
SCALARS = st.one_of(st.booleans(), NUMBERS, STRINGS)
FILTERS: st.SearchStrategy[Filter] = st.recursive(
    st.one_of(
        st.builds(OneOf, FIELDS, st.lists(SCALARS, max_size=3).map(tuple)),
        st.builds(Compare, FIELDS, st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), BOUNDS),
        st.builds(Exists, FIELDS),
    ),
    lambda inner: st.one_of(
        st.builds(And, st.lists(inner, max_size=3).map(tuple)),
        st.builds(Or, st.lists(inner, max_size=3).map(tuple)),
        st.builds(Not, inner),
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[engine.EdgeShard]:
    place = str(tmp_path_factory.mktemp("filters"))
    config = engine.EdgeConfig({"dense": engine.EdgeVectorParams(1, engine.Distance.Dot)})
    shard = engine.EdgeShard.create(place, config)
    yield shard
    shard.close()


def found(edge: engine.EdgeShard, filter: Filter) -> set[int]:
    request = engine.ScrollRequest(
        limit=1000, filter=edge_filter(filter), with_payload=False, with_vector=False
    )
    return {record.id for record in edge.scroll(request)[0]}  # type: ignore[misc]


def store(edge: engine.EdgeShard, metadata: list[dict[str, Any]]) -> None:
    edge.update(engine.UpdateOperation.delete_points_by_filter(engine.Filter(must=[])))
    points = [
        engine.Point(i, {"dense": [1.0]}, payload_of(Document(str(uuid.uuid4()), "", each)))
        for i, each in enumerate(metadata)
    ]
    edge.update(engine.UpdateOperation.upsert_points(points))


def leaves(filter: Filter) -> list[Filter]:
    match filter:
        case And(parts) | Or(parts):
            return [leaf for part in parts for leaf in leaves(part)]
        case Not(part):
            return leaves(part)
    return [filter]


@st.composite
def questions(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[Filter]]:
    """Some metadata, and filters of which many ask for a value that is really there."""
    metadata = draw(st.lists(METADATA, min_size=1, max_size=6))
    filters = draw(st.lists(FILTERS, min_size=1, max_size=6))
    for each in metadata:
        for key, value in each.items():
            if key.startswith("$"):
                continue
            item = value[0] if isinstance(value, list) and value else value
            if isinstance(item, bool | str | int | float):
                filters.append(OneOf(key, (item,)))
            bound = parse_date(item) or item
            if isinstance(bound, int | float | datetime.datetime) and not isinstance(bound, bool):
                filters.append(Compare(key, draw(st.sampled_from(["$gt", "$gte", "$lt", "$lte"])), bound))
    return metadata, filters


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(questions())
def test_edge_means_the_same(
    edge: engine.EdgeShard, question: tuple[list[dict[str, Any]], list[Filter]]
) -> None:
    metadata, filters = question
    store(edge, metadata)
    for filter in filters:
        want = {i for i, each in enumerate(metadata) if matches(filter, each)}
        assert found(edge, filter) == want, filter


def test_edge_tells_apart_what_it_would_confuse(edge: engine.EdgeShard) -> None:
    values: list[Any] = [
        1,
        1.0,
        True,
        "1",
        "true",
        0,
        False,
        None,
        [],
        [True],
        [1],
        0.3,
        0.30000000000000004 + 1e-15,
    ]
    store(edge, [{"a": value} for value in values])
    for filter, want in (
        (OneOf("a", (1,)), [1, 1.0, [1]]),
        (OneOf("a", (True,)), [True, [True]]),
        (OneOf("a", ("true",)), ["true"]),
        (OneOf("a", (False,)), [False]),
        (Not(Exists("a")), [None, []]),
        (OneOf("a", (0.3,)), [0.3]),
    ):
        assert [values[i] for i in sorted(found(edge, filter))] == want
        assert repr([values[i] for i in sorted(found(edge, filter))]) == repr(want)


def test_edge_finds_long_decimals_again(edge: engine.EdgeShard) -> None:
    # The engine reads one decimal of 16 and 17 digits in eight back one bit off.
    values = [0.3700278293818019 + i / 7e3 for i in range(200)]
    store(edge, [{"a": value} for value in values])
    for i, value in enumerate(values):
        assert found(edge, OneOf("a", (value,))) == {i}
        assert found(edge, Compare("a", "$gt", value)) == set(range(i + 1, 200))
        assert found(edge, Compare("a", "$gte", value)) == set(range(i, 200))
        assert found(edge, Compare("a", "$lt", value)) == set(range(i))
        assert found(edge, Compare("a", "$lte", value)) == set(range(i + 1))
