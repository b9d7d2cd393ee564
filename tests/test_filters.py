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

from m3_connectors.backends.qdrant.edge.filters import edge_filter
from m3_connectors.backends.qdrant.edge.rows import payload_of
from m3_connectors.dates import parse_date
from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput
from m3_connectors.fields import fields_of
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
        ({"$not": [{"a": 1}]}, "must be a filter that is not empty"),
        ({"a": {"$gt": "tomorrow"}}, "Use a number or an ISO 8601 date"),
        ({"a": {"$gt": True}}, "Use a number or an ISO 8601 date"),
        ({"a": float("nan")}, "finite"),
        ({"a": float("inf")}, "finite"),
        ({"a": 2**63}, r"fit into 64 bits.*\n  Store larger ones as strings"),
        ({"a": {"$in": [1, -(2**63) - 1]}}, "fit into 64 bits"),
        ({"a": {"$gt": 10**30}}, "or use a float such as 1e30"),
        ({"a": {"$exists": 1}}, "True or False"),
        ({"a..b": 1}, "has the field"),
        ({"": 1}, "has the field"),
        ({'a"b': 1}, "has the field"),
        ({"a[0]": 1}, "has the field"),
        ({"a": "\ud800"}, "surrogate"),
        ({1: "a"}, "field names must be strings"),
        ([("a", 1)], "filter is list; it must be a mapping"),
        ("a = 1", "filter is str; it must be a mapping"),
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
        with pytest.raises(InvalidInput, match=f"nested more than {MAX_DEPTH} deep"):
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
        ({"a": 1}, [{"a": 1}, {"a": 1.0}, {"a": [0, 1]}, {"a": [[1]]}], [{"a": True}, {"a": "1"}, {"a": 1.5}]),
        ({"a": True}, [{"a": True}, {"a": [False, True]}], [{"a": 1}, {"a": "true"}, {"a": False}, {}]),
        ({"a": None}, [{}, {"a": None}, {"a": []}], [{"a": [None]}, {"a": {}}, {"a": ""}, {"a": 0}]),
        ({"a": {"$ne": "x"}}, [{}, {"a": "y"}, {"a": None}], [{"a": "x"}, {"a": ["x", "y"]}]),
        ({"a": {"$in": [1, "x"]}}, [{"a": 1}, {"a": "x"}], [{"a": "1"}, {}]),
        ({"a": {"$nin": [1, "x"]}}, [{"a": 2}, {}], [{"a": 1}, {"a": ["x"]}]),
        ({"a": {"$gt": 1, "$lte": 3}}, [{"a": 3}, {"a": 1.5}, {"a": [0, 9]}], [{"a": 1}, {"a": "2"}, {"a": True}]),
        ({"a.b": 1}, [{"a": {"b": 1}}, {"a.b": 1}], [{"a": 1}, {"a": {"c": 1}}, {"a": {"b": {"c": 1}}}, {"b": 1}]),
        ({"a.b": 1}, [{"a": [{"b": 1}]}, {"a": [[{"b": [2, 1]}], 3]}, {"a": [{"b": 2}, None, {"b": 1}]}], [{"a": [1]}]),
        ({"a.b.c": 1}, [{"a.b": {"c": 1}}, {"a": {"b.c": 1}}, {"a": [{"b": [{"c": 1}]}]}, {"a": 1, "a.b.c": 1}], []),
        ({"a.b": {"$ne": 1}}, [{"a": [{"b": 2}]}, {"a": []}], [{"a": [{"b": 2}, {"b": 1}]}, {"a.b": [1]}]),
        ({"a.b": {"$gt": 1, "$lt": 3}}, [{"a": [{"b": 0}, {"b": 9}]}, {"a.b": 2}], [{"a": [{"b": 3}]}]),
        ({"a.b": {"$exists": True}}, [{"a.b": 0}, {"a": [{}, {"b": {}}]}], [{"a": [{"b": None}, {"b": []}]}, {"a": 1}]),
        ({"a": {"$exists": True}}, [{"a.b": None}, {"a": [{"b": None}]}, {"a": [[]]}], [{"ab": 1}]),
        ({"a": 2**53 + 1}, [{"a": 2**53 + 1}], [{"a": 2**53}, {"a": 2.0**53}, {"a": 2**53 + 2}]),
        ({"a": {"$gt": 2**53}}, [{"a": 2**53 + 1}, {"a": 1e30}], [{"a": 2**53}, {"a": 2.0**53}, {"a": 7}]),
        ({"a": {"$lte": 2**63 - 1}}, [{"a": 2**63 - 1}, {"a": -1e30}, {"a": 0}], [{"a": 2.0**63}]),
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


DATES = {
    # JavaScript, Python, Go, .NET, Java, Postgres, Ruby and git, and what RFC 3339 and ISO 8601 allow beside them.
    "2024-01-31": "2024-01-31T00:00:00+00:00",
    "2024-01-31T10:00": "2024-01-31T10:00:00+00:00",
    "2024-01-31T10:00Z": "2024-01-31T10:00:00+00:00",
    "2024-01-31 10:00:00": "2024-01-31T10:00:00+00:00",
    "2024-01-31T10:00:00.000Z": "2024-01-31T10:00:00+00:00",
    "2024-01-31T10:00:00.5": "2024-01-31T10:00:00.500000+00:00",
    "2024-01-31T10:00:00.1234567Z": "2024-01-31T10:00:00.123456+00:00",
    "2024-01-31T10:00:00.9999999+02:00": "2024-01-31T10:00:00.999999+02:00",
    "2024-01-31T10:00:00.123456789Z": "2024-01-31T10:00:00.123456+00:00",
    "2024-01-31T10:00:00,25Z": "2024-01-31T10:00:00.250000+00:00",
    "2024-01-31T10:00:00+0200": "2024-01-31T10:00:00+02:00",
    "2024-01-31T10:00:00+02": "2024-01-31T10:00:00+02:00",
    "2024-01-31T10:00:00-00:00": "2024-01-31T10:00:00+00:00",
    "2024-01-31T10:00:00+02:00[Europe/Berlin]": "2024-01-31T10:00:00+02:00",
    "1880-01-31T10:00:00+00:53:28": "1880-01-31T10:00:00+00:53:28",
    "2024-01-31 10:00:00 +0200": "2024-01-31T10:00:00+02:00",
    "2024-01-31t10:00:00z": "2024-01-31T10:00:00+00:00",
    "20240131T100000Z": "2024-01-31T10:00:00+00:00",
    "20240131T1000": "2024-01-31T10:00:00+00:00",
    "20240131T100000.123-0530": "2024-01-31T10:00:00.123000-05:30",
    "2024-01-31T24:00:00": "2024-02-01T00:00:00+00:00",
    "2016-12-31T23:59:60Z": "2017-01-01T00:00:00+00:00",
    "2017-01-01T00:59:60.5+01:00": "2017-01-01T01:00:00.500000+01:00",
}
NO_DATES = [
    "", "2024", "2024-01", "20240131", "2024-1-1", "2024-02-30", "2024-13-01", "0000-01-01", "+02024-01-31", "24-01-31",
    "2024-W05-3", "2024-031", "2024-01-31T10", "2024-01-31T25:00", "2024-01-31T24:00:01", "2024-01-31T10:60",
    "2024-01-31T10:00:60Z", "2024-01-31T23:59:60+02:00", "2024-01-31T10:00:00.", "2024-01-31T10:00.5",
    "2024-01-31T10:00:00 UTC", "2024-01-31T10:00:00+24:00", "2024-01-31T10:00:00+02:60", "2024-01-31Z",
    "2024-01-31  10:00", " 2024-01-31", "2024-01-31\n", "9999-12-31T24:00", "٢٠٢٤-01-31", "20240131T10:00:00",
    "31.01.2024", "Wed, 31 Jan 2024 10:00:00 GMT", "1706695200",
]  # fmt: skip


@pytest.mark.parametrize(("text", "instant"), DATES.items())
def test_dates_in_common_formats_are_read(text: str, instant: str) -> None:
    date = parse_date(text)
    assert date is not None
    assert date.isoformat() == instant
    assert passes({"a": {"$gte": text, "$lte": instant}}, {"a": [text]})


@pytest.mark.parametrize("text", NO_DATES)
def test_what_is_no_date(text: str) -> None:
    assert parse_date(text) is None
    assert not passes({"a": {"$lt": "9999-12-31"}}, {"a": text})
    with pytest.raises(InvalidInput, match="ISO 8601"):
        parse_filter({"a": {"$lt": text}})


@given(st.datetimes(timezones=st.none() | st.timezones()))
def test_every_date_that_python_writes_is_read_as_it_was(date: datetime.datetime) -> None:
    found = parse_date(date.isoformat())
    assert found is not None
    assert found - (date if date.tzinfo else date.replace(tzinfo=datetime.UTC)) == datetime.timedelta()
    assert parse_date(date.isoformat(" ")) == found


def test_a_key_of_very_many_dots_is_one_name() -> None:
    key = ".".join("a" * 100_000)
    assert fields_of({key: 1}) == {key: [1]}
    assert passes({key: 1}, {key: 1})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (OneOf('a"b', (1,)), "has the field"),
        (Not(OneOf("a", (2**63,))), "64 bits"),
        (Or((Compare("a", "$gt", 2**70),)), "64 bits"),
    ],
)
def test_filter_trees_built_in_code_are_checked_too(tree: Filter, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        parse_filter(tree)


# -- the same meaning in the engine


def in_utc(date: datetime.datetime | None) -> bool:
    try:
        return date is not None and bool(date.astimezone(datetime.UTC))
    except OverflowError:
        return False


NAMES = st.sampled_from(["a", "b", "a b", "日本", "x-y", "$c", "id", "*", "ключ"])
KEYS = st.lists(NAMES, min_size=1, max_size=2).map(".".join)
FIELDS = st.lists(NAMES, min_size=1, max_size=3).map(".".join).filter(lambda field: not field.startswith("$"))
LARGE = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.builds(
        lambda size, step: size + step,
        st.sampled_from([2**53, -(2**53), 2**62, 1768907725507217522]),
        st.integers(-2, 2),
    ),
    st.sampled_from([2**63 - 1, -(2**63), 2.0**53, -(2.0**53), 2.0**63, -(2.0**63), 1e18, 1e30, -1.7e308]),
)
NUMBERS = st.one_of(
    st.integers(-3, 3),
    LARGE,
    st.sampled_from([0.5, -0.0, 2.0, 0.1, 0.30000000000000004, 1e-9, 1e15]),
    st.floats(-1e6, 1e6).map(lambda value: round(value, 12)),
)
WRITTEN_DATES = st.one_of(
    st.datetimes().map(lambda date: date.isoformat()),
    st.datetimes(timezones=st.timezones()).map(lambda date: date.isoformat(" ")),
    st.dates().map(str),
    st.sampled_from([*DATES, *NO_DATES, "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-00:00:01"]),
)
STRINGS = st.one_of(
    st.sampled_from(["", "x", "X", "true", "1", "x\x00", '"', "\\", "é", "e\u0301"]),
    st.text(max_size=4),
    WRITTEN_DATES,
)
STRINGS = STRINGS.filter(lambda text: not any("\ud800" <= letter <= "\udfff" for letter in text))
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, STRINGS)
VALUES = st.one_of(LEAVES, st.lists(st.one_of(LEAVES, st.lists(LEAVES, max_size=2)), max_size=3))
METADATA = st.recursive(
    st.dictionaries(KEYS, VALUES, max_size=4),
    lambda inner: st.dictionaries(KEYS, st.one_of(VALUES, inner, st.lists(inner, max_size=2)), max_size=4),
    max_leaves=6,
)
BOUNDS = st.one_of(NUMBERS, WRITTEN_DATES.map(parse_date).filter(in_utc))
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
    operators = st.sampled_from(["$gt", "$gte", "$lt", "$lte"])
    for field, items in (pair for each in metadata for pair in fields_of(each).items()):
        for item in () if field.startswith("$") else items[:1]:
            filters.append(OneOf(field, (item,)))
            bound = parse_date(item) or item
            if isinstance(bound, int | float | datetime.datetime) and not isinstance(bound, bool):
                filters.append(Compare(field, draw(operators), bound))
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


def test_edge_distinguishes_similar_values(edge: engine.EdgeShard) -> None:
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
