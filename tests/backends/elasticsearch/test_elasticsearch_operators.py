"""What an operator of a real Elasticsearch may set: index templates, mappings, settings and aliases.

Whatever they set, scores and filters are right, or the collection is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import anyio
import numpy as np
import pytest
from live_elasticsearch import Live, request

from m3_connectors.backends.base import Backend, Schema
from m3_connectors.backends.elasticsearch.backend import ElasticsearchBackend
from m3_connectors.backends.elasticsearch.connection import segment
from m3_connectors.backends.elasticsearch.layout import alias_of, first_index_of
from m3_connectors.errors import AlreadyExists, BackendError, Corrupt, NotFound, PartialWrite, Rejected
from m3_connectors.filters import parse_filter
from m3_connectors.methods import ALL, DENSE
from m3_connectors.testing.agreement import oracle_of
from m3_connectors.testing.conformance import runs
from m3_connectors.testing.conformance.approximate import ApproximateClauses
from m3_connectors.testing.servers.start import Running
from m3_connectors.testing.worlds import make_world


@pytest.fixture
def live(elasticsearch_store: Running) -> Iterator[Live]:
    made = Live(elasticsearch_store.url)
    yield made
    anyio.run(made.clean)


def index_of(backend: ElasticsearchBackend) -> str:
    return f"/{segment(first_index_of(alias_of(backend.collection)))}"


async def make_again(backend: ElasticsearchBackend, change: dict[str, Any], **settings: Any) -> None:
    """Put an index with other mappings or settings in the place of the collection's empty one."""
    path = index_of(backend)
    (found,) = (await request(backend, "GET", path)).values()
    mappings = found["mappings"]
    for name, value in change.items():
        if name == "properties":
            mappings["properties"] |= value
        else:
            mappings[name] = value
    body = {
        "mappings": mappings,
        "aliases": found["aliases"],
        "settings": {"number_of_replicas": 0, **settings},
    }
    await request(backend, "DELETE", path)
    await request(backend, "PUT", path, body)


def dense(dimension: int, **options: Any) -> dict[str, Any]:
    return {
        "dense": {
            "type": "dense_vector",
            "dims": dimension,
            "similarity": "max_inner_product",
            "index_options": options,
        }
    }


async def use_template(live: Live, backend: ElasticsearchBackend, template: dict[str, Any]) -> None:
    body = {"index_patterns": [f"{live.prefix}*"], "priority": 1000, "template": template}
    live.templates.append(live.prefix)
    await request(backend, "PUT", f"/_index_template/{live.prefix}", body)


class Quantised(ApproximateClauses):
    """B17 on a collection whose dense index was made another kind."""

    approximate_precisions = ("float16",)  # rows are in no index
    options: ClassVar[dict[str, Any]]

    @pytest.fixture(autouse=True)
    def _server(self, live: Live) -> None:
        self.live = live

    def make_backend(self, directory: Path, collection: str) -> Backend:
        options = self.options

        class Changed(ElasticsearchBackend):
            async def _create(self, schema: Schema) -> None:
                await super()._create(schema)
                await make_again(self, {"properties": dense(schema.model.dimension, **options)})
                await self._open()

        backend = self.live.backend(collection)
        backend.__class__ = Changed
        return backend


class TestInt8Graph(Quantised):
    options: ClassVar[dict[str, Any]] = {"type": "int8_hnsw"}


class TestInt4Graph(Quantised):
    options: ClassVar[dict[str, Any]] = {"type": "int4_hnsw"}


class TestBitsWithoutRescoring(Quantised):
    options: ClassVar[dict[str, Any]] = {"type": "bbq_hnsw", "rescore_vector": {"oversample": 0}}


class TestInt8Flat(Quantised):
    options: ClassVar[dict[str, Any]] = {"type": "int8_flat"}


class TestBitsFlat(Quantised):
    options: ClassVar[dict[str, Any]] = {"type": "bbq_flat", "rescore_vector": {"oversample": 0}}


@pytest.mark.parametrize("kind", ["int8_hnsw", "int4_hnsw", "bbq_hnsw"])
@runs
async def test_an_exact_search_is_the_true_list_after_the_dense_index_was_quantised(
    live: Live, kind: str
) -> None:
    world = make_world(201, documents=600, dimension=64, most_rows=2)
    backend = await live.filled(world)
    # On the open collection: no new open sees it.
    rescoring = {"rescore_vector": {"oversample": 0}} if kind == "bbq_hnsw" else {}
    mapping = {"properties": dense(64, type=kind, **rescoring)}
    await request(backend, "PUT", f"{index_of(backend)}/_mapping", mapping)
    await backend.optimize()
    oracle = await oracle_of(world)
    for query in world.queries:
        for raw in (None, *world.filters[::7]):
            filter = parse_filter(raw)
            got = await backend.candidates("dense", query, 50, filter=filter, exact=True)
            want = await oracle.candidates("dense", query, 50, filter=filter, exact=True)
            np.testing.assert_allclose(got.scores, want.scores, atol=1e-5)
    remarks = (await backend.server()).remarks
    assert any(kind in remark.what and not remark.is_problem for remark in remarks)
    await backend.close()


_TEMPLATES: dict[str, tuple[dict[str, Any], str]] = {
    "source disabled": ({"mappings": {"_source": {"enabled": False}}}, "_source"),
    "source without texts": ({"mappings": {"_source": {"excludes": ["text"]}}}, "_source"),
    "source of some fields": ({"mappings": {"_source": {"includes": ["metadata"]}}}, "_source"),
    "routing": ({"mappings": {"_routing": {"required": True}}}, "routing"),
    "a number is a keyword": (
        {"mappings": {"properties": {"numbers": {"properties": {"year": {"type": "keyword"}}}}}},
        "numbers.year",
    ),
    "a field hidden": ({"mappings": {"runtime": {"terms": {"type": "keyword"}}}}, "terms"),
    "long terms ignored": ({"settings": {"index.mapping.ignore_above": 10}}, "ignore_above"),
    "pipeline": ({"settings": {"index.final_pipeline": "nowhere"}}, "final_pipeline"),
}


@pytest.mark.parametrize(("template", "says"), _TEMPLATES.values(), ids=_TEMPLATES)
@runs
async def test_a_template_that_would_lose_something_is_refused_by_create(
    live: Live, template: dict[str, Any], says: str
) -> None:
    backend = live.backend()
    await use_template(live, backend, template)
    with pytest.raises(Rejected, match=says):
        await backend.create(make_world(202, documents=2).schema)
    assert await request(backend, "GET", f"/{live.prefix}*") == {}  # nothing is left behind
    await backend.close()


@runs
async def test_templates_of_other_programs_change_no_answer(live: Live) -> None:
    world = make_world(203, documents=60)
    backend = live.backend()
    template = {
        "mappings": {
            "dynamic": False,
            "dynamic_templates": [{"texts": {"match": "*", "mapping": {"type": "keyword"}}}],
            "properties": {
                "dense": {"type": "dense_vector", "dims": 24, "similarity": "cosine"},
                "text": {"type": "text"},
                "host": {"type": "keyword"},
            },
        },
        "settings": {
            "index.default_pipeline": "nowhere",
            "index.mapping.exclude_source_vectors": False,
            "index.mapping.ignore_malformed": True,
            "index.number_of_shards": 3,
            "index.sort.field": "host",
        },
        "aliases": {f"{live.prefix}-everything": {}},
    }
    await use_template(live, backend, template)
    await backend.create(world.schema)
    await backend.upsert(world.documents, world.embeddings)
    await backend.open()
    for raw in world.filters:
        assert await backend.count(parse_filter(raw)) == len(world.passing(raw)), raw
    assert await backend.fetch([document.id for document in world.documents]) == world.documents
    oracle = await oracle_of(world)
    for query in world.queries:
        got = await backend.search(query, ALL, 10)
        want = await oracle.search(query, ALL, 10)
        np.testing.assert_allclose([hit.score for hit in got], [hit.score for hit in want], atol=1e-5)
    await backend.drop()  # the alias of all collections does not keep it
    assert await request(backend, "GET", f"/{live.prefix}*") == {}
    await backend.close()


@runs
async def test_fields_beyond_the_limit_are_named_even_where_a_template_ignores_them(live: Live) -> None:
    world = make_world(204, documents=40)
    backend = live.backend()
    settings = {
        "index.mapping.total_fields.ignore_dynamic_beyond_limit": True,
        "index.mapping.total_fields.limit": 18,
    }
    await use_template(live, backend, {"settings": settings})
    await backend.create(world.schema)
    with pytest.raises(PartialWrite, match="Limit of total fields"):
        await backend.upsert(world.documents, world.embeddings)
    await request(
        backend,
        "PUT",
        f"{index_of(backend)}/_settings",
        {"index.mapping.total_fields.ignore_dynamic_beyond_limit": True},
    )
    with pytest.raises(Corrupt, match="ignore_dynamic_beyond_limit"):
        await backend.open()
    assert any(remark.is_problem for remark in (await backend.server()).remarks)
    await backend.close()


_CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "similarity": (
        {"properties": {"dense": {"type": "dense_vector", "dims": 24, "similarity": "cosine"}}},
        "similarity",
    ),
    "precision": (
        {"properties": {"dense": {"type": "dense_vector", "dims": 24, "element_type": "byte"}}},
        "similarity|element_type",
    ),
    "not indexed": (
        {"properties": {"terms": {"type": "keyword", "index": False}}},
        '"index" of the field "terms"',
    ),
    "short terms": (
        {"properties": {"terms": {"type": "keyword", "ignore_above": 20}}},
        '"ignore_above" of the field "terms"',
    ),
    "no dynamic templates": ({"dynamic_templates": []}, "dynamic templates"),
    "numbers switched off": (
        {"properties": {"numbers": {"type": "object", "enabled": False}}},
        '"(enabled|dynamic)" of the field "numbers"',
    ),
}


@pytest.mark.parametrize(("change", "says"), _CHANGES.values(), ids=_CHANGES)
@runs
async def test_an_index_that_was_made_again_otherwise_is_refused_by_open(
    live: Live, change: dict[str, Any], says: str
) -> None:
    backend = live.backend()
    await backend.create(make_world(205, documents=2).schema)
    await make_again(backend, change)
    with pytest.raises(Corrupt, match=says):
        await backend.open()
    assert any(remark.is_problem for remark in (await backend.server()).remarks)
    await backend.close()


@runs
async def test_the_doctor_names_settings_that_surprise(live: Live) -> None:
    backend = live.backend()
    await backend.create(make_world(206, documents=2).schema)
    assert not [remark for remark in (await backend.server()).remarks if "index." in remark.what]
    settings = {
        "index.max_result_window": 500,
        "index.refresh_interval": "-1",
        "index.translog.durability": "async",
        "index.default_pipeline": "nowhere",
    }
    await request(backend, "PUT", f"{index_of(backend)}/_settings", settings)
    said = " ".join(remark.what for remark in (await backend.server()).remarks)
    assert all(name in said for name in settings)
    never = live.backend(refresh="wait_for")
    with pytest.raises(Rejected, match="refresh_interval"):
        await never.open()
    await never.close()
    await backend.close()


# -- aliases


async def add_alias(backend: ElasticsearchBackend, alias: str, index: str = "", **options: Any) -> None:
    name = index or first_index_of(alias_of(backend.collection))
    await request(
        backend,
        "POST",
        "/_aliases",
        {"actions": [{"add": {"index": name, "alias": alias, **options}}]},
    )


@runs
async def test_a_collection_works_through_another_alias_and_is_not_dropped_through_it(live: Live) -> None:
    world = make_world(207, documents=6)
    backend, other = live.backend(), live.backend("other")
    await backend.create(world.schema)
    await backend.upsert(world.documents[:4], world.embeddings[:4])
    await add_alias(backend, other.collection)

    with pytest.raises(AlreadyExists, match="other"):
        await other.create(world.schema)
    assert await other.open() == world.schema
    await other.upsert(world.documents[4:], world.embeddings[4:])
    assert await other.delete([world.documents[0].id]) == 1
    assert await backend.count() == await other.count() == 5
    assert len(await other.search(world.queries[0], DENSE, 5)) == 5

    with pytest.raises(Rejected, match=r"alias of the index .*-notes@1.* nothing was removed"):
        await other.drop()
    assert await backend.count() == 5
    await backend.drop()  # by its own name, with all its aliases
    with pytest.raises(NotFound):
        await other.open()
    await other.drop()  # there is none
    await backend.close()
    await other.close()


@runs
async def test_an_index_of_another_name_goes_with_its_only_alias(live: Live) -> None:
    backend, other = live.backend(), live.backend("other")
    await backend.create(make_world(208, documents=2).schema)
    await add_alias(backend, other.collection)
    name = first_index_of(alias_of(backend.collection))
    remove = {"actions": [{"remove": {"index": name, "alias": backend.collection}}]}
    await request(backend, "POST", "/_aliases", remove)
    await other.drop()
    assert await request(backend, "GET", f"/{live.prefix}*") == {}
    await backend.close()
    await other.close()


@runs
async def test_an_alias_of_several_indices_is_refused_and_nothing_is_removed(live: Live) -> None:
    world = make_world(209, documents=2)
    backend, second, both = live.backend(), live.backend("second"), live.backend("both")
    for collection in (backend, second):
        await collection.create(world.schema)
        await add_alias(collection, both.collection)
    with pytest.raises(AlreadyExists):
        await both.create(world.schema)
    for call in (both.open, both.drop):
        with pytest.raises(Rejected, match=r"alias of several indices .*notes@1, .*second@1"):
            await call()
    assert len(await request(backend, "GET", f"/{live.prefix}*")) == 2
    said = [remark.what for remark in (await both.server()).remarks]
    assert any("alias of several indices" in what for what in said)
    for collection in (backend, second, both):
        await collection.close()


@pytest.mark.parametrize("options", [{"filter": {"term": {"bucket": 1}}}, {"routing": "1"}], ids=str)
@runs
async def test_an_alias_that_shows_a_part_is_refused(live: Live, options: dict[str, Any]) -> None:
    backend, part = live.backend(), live.backend("part")
    await backend.create(make_world(210, documents=2).schema)
    await add_alias(backend, part.collection, **options)
    with pytest.raises(Corrupt, match="alias"):
        await part.open()
    with pytest.raises(BackendError, match="nothing was removed"):
        await part.drop()
    await backend.close()
    await part.close()
