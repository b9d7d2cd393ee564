"""Filters and ids of the Milvus adapter: exact for any metadata, and no text of a user is ever syntax."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymilvus import DataType, MilvusClient

from m3_connectors.backends.milvus import lite
from m3_connectors.backends.milvus.backend import MilvusBackend
from m3_connectors.backends.milvus.filters import EVERYTHING, answers, expression
from m3_connectors.backends.milvus.naming import digest, id_of, key_of
from m3_connectors.documents import Document
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.errors import InvalidInput
from m3_connectors.filters import And, Compare, Exists, Filter, Not, OneOf, Or, matches, parse_filter
from m3_connectors.testing.worlds import make_world

HOSTILE = (
    '"', "'", "\\", '\\"', "x'] or key in ['a','b", '" or key != "', "%", "_", "a%b", "\x00", "\n", "\r\n", "\t",
    "\u2028", "\x1b[2J", "$meta", '$meta["a"]', "{ids}", "key", "true", "not", "]", ")", "--", "\ufeff", "🇰🇪", "",
)  # fmt: skip
texts = st.sampled_from(HOSTILE) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
numbers = (
    st.integers(-3, 3)
    | st.sampled_from(
        [2**53, 2**53 - 1, -(2**53), 2**53 + 1, 2**63 - 1, -(2**63), 0.5, -0.0, 1.5, 1e300, 5e-324]
    )
    | st.floats(allow_nan=False, allow_infinity=False)
)
dates = st.sampled_from(
    ["2024-01-31", "2024-02-29T23:59:59.000001Z", "2024-03-01 00:00:00+02:00", "0001-01-01T00:00:00+14:00",
     "9999-12-31T23:59:59.999999-14:00", "2024-1-1", "2024-01-31T00:00:00.0000009Z", "2024-02-29T23:59+0000"]
)  # fmt: skip
scalars = st.none() | st.booleans() | numbers | dates | texts
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "a.b", ""]), inner, max_size=2)
    ),
    max_leaves=4,
)
FIELDS = ("a", "b", "a.a", "a.b", "b.a.b", "ключ", "a key-with_odd:sïgns $")
metadata = st.dictionaries(
    st.sampled_from(["a", "b", "a.b", "ключ", "a key-with_odd:sïgns $", ""]), values, max_size=4
)
fields = st.sampled_from(FIELDS)
bounds = st.sampled_from(
    [
        0,
        1,
        -1,
        0.5,
        2**53 - 1,
        2**53,
        -(2**53),
        2**53 + 1,
        2.0**53,
        2**63 - 1,
        -(2**63),
        2.0**63,
        1e300,
        1e-300,
    ]
) | st.sampled_from(
    [
        datetime.datetime(2024, 1, 31, tzinfo=datetime.UTC),
        datetime.datetime(2024, 2, 29, 22, tzinfo=datetime.timezone(datetime.timedelta(hours=-2))),
        datetime.datetime(1, 1, 1, tzinfo=datetime.UTC),
        datetime.datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=datetime.UTC),
    ]
)
filterable = st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | numbers | dates | texts
leaves = (
    st.builds(OneOf, fields, st.lists(filterable, min_size=1, max_size=3).map(tuple))
    | st.builds(Compare, fields, st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), bounds)
    | st.builds(Exists, fields)
)
filters = st.recursive(
    leaves,
    lambda inner: (
        st.builds(Not, inner)
        | st.builds(And, st.lists(inner, max_size=3).map(tuple))
        | st.builds(Or, st.lists(inner, max_size=3).map(tuple))
    ),
    max_leaves=5,
)
on_a_real_store = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

Find = Callable[[list[dict[str, Any]], Filter], set[str]]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusClient]:
    running = lite.acquire(tmp_path_factory.mktemp("filters") / "data.db")
    client = MilvusClient(running.uri, dedicated=True)
    yield client
    client.close()
    lite.release(running)


@pytest.fixture(params=["array, as on servers", "text, as in milvus-lite"])
def find(request: pytest.FixtureRequest, engine: MilvusClient) -> Find:
    """Keys that a filter finds in the engine among entities with these metadata, keyed by position."""
    as_array = request.param.startswith("array")
    name = "as_array" if as_array else "as_text"
    if not engine.has_collection(name):
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=True)
        schema.add_field("key", DataType.VARCHAR, max_length=64, is_primary=True)
        schema.add_field("dense", DataType.FLOAT_VECTOR, dim=2)
        if as_array:
            schema.add_field(
                "terms", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=4096, max_length=32
            )
        else:
            schema.add_field("terms", DataType.VARCHAR, max_length=65_535)
        engine.create_collection(name, schema=schema)
        indexes = MilvusClient.prepare_index_params()
        indexes.add_index("dense", index_type="FLAT", metric_type="IP")
        engine.create_index(name, indexes, sync=False)
        engine.load_collection(name)

    def found(all_metadata: list[dict[str, Any]], filter: Filter) -> set[str]:
        engine.delete(name, filter=EVERYTHING)
        rows = []
        for i, one in enumerate(all_metadata):
            said = answers(one)
            terms = list(said.terms) if as_array else " ".join(said.terms)
            rows.append({"key": str(i), "dense": [0.0, 1.0], "terms": terms, **said.bounds})
        engine.upsert(name, rows)
        query = expression(filter, terms_as_array=as_array)
        return {row["key"] for row in engine.query(name, filter=query, output_fields=["key"])}

    return found


@on_a_real_store
@given(all_metadata=st.lists(metadata, min_size=4, max_size=12), filter=filters)
def test_an_expression_holds_exactly_where_the_filter_matches(
    find: Find, all_metadata: list[dict[str, Any]], filter: Filter
) -> None:
    expected = {str(i) for i, one in enumerate(all_metadata) if matches(filter, one)}
    assert find(all_metadata, filter) == expected


@pytest.mark.parametrize(
    ("raw", "passing"),
    [
        ({"n": {"$gt": 1}}, {1, 2}),
        ({"$not": {"n": {"$gt": 1}}}, {0, 3, 4, 5}),
        ({"n": True}, {4}),
        ({"n": 1}, {0, 2}),
        ({"n": {"$exists": False}}, {5}),
        ({"n": {"$lte": 2}}, {0, 2}),
        ({"$not": {"n": {"$lte": 2}}}, {1, 3, 4, 5}),
    ],
)
def test_missing_fields_lists_and_booleans(find: Find, raw: dict[str, Any], passing: set[int]) -> None:
    world = [{"n": 1}, {"n": 2.5}, {"n": [1, 7]}, {"n": "2"}, {"n": True}, {"n": None}]
    filter = parse_filter(raw)
    assert filter is not None
    assert find(world, filter) == {str(i) for i in passing}


@given(filters, st.booleans())
def test_an_expression_holds_no_text_of_the_filter(filter: Filter, as_array: bool) -> None:
    allowed = set('0123456789abcdefghijklmnopqrstuvwxyz_ ()[]"%$!=<>-+.,')
    text = expression(filter, terms_as_array=as_array)
    assert set(text) <= allowed
    inside = text.split('"')[1::2]
    assert all(set(literal.strip("%").removeprefix("m3_")) <= set("0123456789abcdef") for literal in inside)


ids = (st.sampled_from(HOSTILE) | st.text(st.characters(exclude_categories=["Cs"]), max_size=40)).filter(
    lambda id: 1 <= len(id.encode()) <= 512
)


@given(ids)
def test_a_key_is_plain_and_gives_its_id_back(id: str) -> None:
    key = key_of(id)
    assert id_of(key) == id
    assert key.isascii()
    assert key.isprintable()
    assert not set(key) & set("\"'\\ \n")
    assert len(key) <= 3 * 512


@given(st.lists(st.tuples(texts, texts), unique=True, min_size=2, max_size=20))
def test_digests_of_different_texts_differ(pairs: list[tuple[str, str]]) -> None:
    assert len({digest(*pair) for pair in pairs}) == len(pairs)


@dataclasses.dataclass(frozen=True)
class Store:
    """A backend on an event loop of its own."""

    portal: BlockingPortal
    backend: MilvusBackend
    vectors: M3Embeddings


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    directory: Path = tmp_path_factory.mktemp("ids")
    world = make_world(51, documents=12, most_rows=2)
    backend = MilvusBackend.from_url(f"milvus:{directory}/data.db", "notes", {})
    with start_blocking_portal() as portal:
        portal.call(backend.create, world.schema)
        yield Store(portal, backend, world.embeddings)
        portal.call(backend.close)


@on_a_real_store
@given(st.lists(ids, unique=True, min_size=2, max_size=12), st.data())
def test_hostile_ids_are_stored_found_and_deleted_one_by_one(
    store: Store, chosen: list[str], data: st.DataObject
) -> None:
    call, backend = store.portal.call, store.backend
    documents = [Document(id, f"text of {id}", {"id": id, id: id}) for id in chosen]
    call(backend.upsert, documents, store.vectors[: len(chosen)])
    assert call(backend.fetch, chosen) == documents
    victim = data.draw(st.sampled_from(chosen))
    by_text = parse_filter({"id": victim})
    assert by_text is not None
    assert call(backend.count, by_text) == 1
    assert call(backend.delete, [victim]) == 1
    rest = [document for document in documents if document.id != victim]
    assert call(backend.fetch, chosen) == [document if document in rest else None for document in documents]
    assert call(backend.count) == len(rest)
    assert call(backend.delete, chosen) == len(rest)


def test_ids_that_cannot_be_are_refused_before_the_store_sees_them(store: Store) -> None:
    for bad in ("", "x" * 513, "\ud800", "é" * 257):
        with pytest.raises(InvalidInput):
            store.portal.call(store.backend.upsert, [Document(bad, "")], store.vectors[0])
        with pytest.raises(InvalidInput):
            store.portal.call(store.backend.delete, [bad])
