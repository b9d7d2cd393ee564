"""What an operator of Milvus may set (index types, metrics, aliases), on milvus-lite; and paths that are no database.

Whatever they set, scores are right, or the collection is refused with the reason.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from embedded_milvus import client as client
from embedded_milvus import embedded, filled
from pymilvus import MilvusClient

from m3_connectors.backends.base import Backend, Schema
from m3_connectors.backends.milvus.alterations import faults, notes
from m3_connectors.backends.milvus.backend import MilvusBackend
from m3_connectors.errors import AlreadyExists, Corrupt, M3Error, NotFound, Rejected, Unsupported
from m3_connectors.methods import ALL
from m3_connectors.testing.agreement import oracle_of
from m3_connectors.testing.conformance import runs
from m3_connectors.testing.conformance.approximate import ApproximateClauses
from m3_connectors.testing.worlds import make_world

WORLD = make_world(301, documents=40, dimension=64)


def index_again(client: MilvusClient, collection: str, kind: str, metric: str = "IP", **params: Any) -> None:
    """Make the dense index another kind, as an operator does."""
    client.release_collection(collection)
    client.drop_index(collection, "dense")
    made = client.prepare_index_params()
    made.add_index("dense", index_type=kind, metric_type=metric, params=params)
    client.create_index(collection, made)


class Quantised(ApproximateClauses):
    """B17 on a collection whose dense index was made another kind."""

    approximate_precisions = ("float16",)  # rows are in no index
    kind: ClassVar[str]
    params: ClassVar[dict[str, Any]]

    def make_backend(self, directory: Path, collection: str) -> Backend:
        kind, params = self.kind, self.params

        class Changed(MilvusBackend):
            async def _create(self, schema: Schema) -> None:
                await super()._create(schema)
                client = (await self._connection())._open_client("test")
                index_again(client, self.collection, kind, **params)
                await self._open()

        backend = embedded(directory, collection)
        backend.__class__ = Changed
        return backend


class TestScalarQuantisedGraph(Quantised):
    kind = "HNSW_SQ"
    params: ClassVar[dict[str, Any]] = {"M": 16, "efConstruction": 100, "sq_type": "SQ8"}


class TestScalarQuantisedLists(Quantised):
    kind = "IVF_SQ8"
    params: ClassVar[dict[str, Any]] = {"nlist": 8}


@pytest.mark.parametrize("kind", ["HNSW_SQ", "IVF_SQ8", "AUTOINDEX"])
@runs
async def test_scores_by_id_and_exact_lists_are_exact_on_a_quantised_index(
    tmp_path: Path, client: MilvusClient, kind: str
) -> None:
    world = make_world(302, documents=300, dimension=64, most_rows=2)
    backend = embedded(tmp_path)
    await backend.create(world.schema)
    await backend.upsert(world.documents, world.embeddings)
    await backend.optimize()
    index_again(client, "notes", kind, nlist=8)
    await backend.open()
    oracle = await oracle_of(world)
    ids = [document.id for document in world.documents]
    for query in world.queries:
        got = await backend.score("dense", query, ids)
        np.testing.assert_allclose(got, await oracle.score("dense", query, ids), atol=1e-6)
        listed = await backend.candidates("dense", query, 30, exact=True)
        assert list(listed.ids) == list((await oracle.candidates("dense", query, 30, exact=True)).ids)
    info = await backend.server()
    assert info.details["dense index"] == kind
    assert any(kind in remark.what and not remark.is_problem for remark in info.remarks)
    await backend.close()


@pytest.mark.parametrize("metric", ["COSINE", "L2"])
@runs
async def test_an_index_of_another_metric_is_refused_by_name(
    tmp_path: Path, client: MilvusClient, metric: str
) -> None:
    backend = await filled(embedded(tmp_path), WORLD)
    index_again(client, "notes", "FLAT", metric)
    with pytest.raises(Corrupt, match=f'"dense" uses the metric {metric}; it must use IP'):
        await backend.open()
    assert any(metric in remark.what and remark.is_problem for remark in (await backend.server()).remarks)
    client.release_collection("notes")
    client.drop_index("notes", "dense")
    await backend.open()  # as the error says
    oracle = await oracle_of(WORLD)
    for query in WORLD.queries:
        got, want = await backend.search(query, ALL, 10), await oracle.search(query, ALL, 10)
        np.testing.assert_allclose([hit.score for hit in got], [hit.score for hit in want], atol=1e-5)
    await backend.close()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"index_type": "SPARSE_INVERTED_INDEX", "metric_type": "BM25"}, "BM25"),
        ({"index_type": "AUTOINDEX", "metric_type": "IP"}, "AUTOINDEX"),
        (
            {"index_type": "SPARSE_WAND", "metric_type": "IP", "drop_ratio_build": "0.2"},
            "drop_ratio_build=0.2",
        ),
        (
            {"index_type": "SPARSE_INVERTED_INDEX", "metric_type": "IP", "quant_type": "int8"},
            "quant_type=int8",
        ),
        ({"index_type": "SPARSE_INVERTED_INDEX", "metric_type": "IP", "quant_type": "fp16"}, None),
        ({"index_type": "SPARSE_WAND", "metric_type": "IP", "drop_ratio_build": "0.0"}, None),
    ],
)
def test_sparse_indexes_of_servers_that_lose_weights_are_faults(
    given: dict[str, Any], says: str | None
) -> None:
    found = [fault.what for fault in faults({"sparse": given})]
    assert len(found) == (says is not None)
    assert says is None or says in found[0]


@pytest.mark.parametrize(
    ("kind", "noted"),
    [(kind, False) for kind in ("FLAT", "HNSW", "IVF_FLAT")]
    + [(kind, True) for kind in ("IVF_PQ", "SCANN", "DISKANN", "HNSW_PRQ", "IVF_RABITQ", "AUTOINDEX")],
)
def test_dense_indexes_that_may_be_quantised_are_noted(kind: str, noted: bool) -> None:
    assert bool(list(notes({}, {"dense": {"index_type": kind}}))) == noted


def test_documents_that_expire_are_a_problem() -> None:
    (remark,) = notes({"properties": {"collection.ttl.seconds": "60"}}, {})
    assert remark.is_problem
    assert "60 s" in remark.what


@runs
async def test_a_collection_works_through_an_alias_and_is_not_dropped_through_it(
    tmp_path: Path, client: MilvusClient
) -> None:
    backend, other = embedded(tmp_path), embedded(tmp_path, "other")
    await backend.create(WORLD.schema)
    await backend.upsert(WORLD.documents[:30], WORLD.embeddings[:30])
    client.create_alias("notes", "other")

    with pytest.raises(AlreadyExists, match='"other" is an alias of collection "notes"'):
        await other.create(WORLD.schema)
    assert await other.open() == WORLD.schema
    await other.upsert(WORLD.documents[30:], WORLD.embeddings[30:])
    assert await other.delete([WORLD.documents[0].id]) == 1
    assert await backend.count() == await other.count() == 39
    assert len(await other.search(WORLD.queries[0], ALL, 5)) == 5
    assert (await other.server()).details["alias of"] == "notes"

    with pytest.raises(Rejected, match='"other" is an alias of collection "notes"; nothing was removed'):
        await other.drop()
    assert await backend.count() == 39
    client.drop_alias("other")
    with pytest.raises(NotFound):
        await other.open()
    await backend.drop()
    await backend.close()
    await other.close()


@runs
async def test_an_alias_of_another_programs_collection_is_refused_and_left_alone(
    tmp_path: Path, client: MilvusClient
) -> None:
    client.create_collection("theirs", dimension=4)
    client.create_alias("theirs", "notes")
    backend = embedded(tmp_path)
    for call in (backend.open, backend.drop):
        with pytest.raises(Rejected, match="not created by m3-connectors"):
            await call()
    with pytest.raises(AlreadyExists):
        await backend.create(WORLD.schema)
    assert client.list_collections() == ["theirs"]
    await backend.close()


# -- paths that are no database


def _empty(path: Path) -> None:
    path.touch()


def _of_milvus_lite_2(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("create table collection_meta (id integer)")
    database.commit()
    database.close()


def _text(path: Path) -> None:
    path.write_text("hello\n")


def _directory_of_documents(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("mine")


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (_empty, Rejected, "is an empty file; a database is a directory"),
        (_of_milvus_lite_2, Unsupported, r"milvus-lite 2\.x writes"),
        (_text, Rejected, "is a file, but not a database of milvus-lite"),
        (_directory_of_documents, Rejected, "not a database of milvus-lite: it contains thesis.txt"),
    ],
)
@runs
async def test_a_path_that_is_no_database_is_named_and_left_as_it_is(
    tmp_path: Path, make: Any, error: type[M3Error], says: str
) -> None:
    path = tmp_path / "data.db"
    make(path)
    before = path.read_bytes() if path.is_file() else [entry.name for entry in path.iterdir()]
    backend = embedded(tmp_path)
    for call in (backend.server, backend.open, backend.drop):
        with pytest.raises(error, match=says):
            await call()
    with pytest.raises(error, match=says):
        await backend.create(WORLD.schema)
    assert (path.read_bytes() if path.is_file() else [entry.name for entry in path.iterdir()]) == before
    await backend.close()


@runs
async def test_a_path_below_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    backend = embedded(tmp_path / "file")
    with pytest.raises(Rejected, match=r"cannot be created because .*file is a file"):
        await backend.create(WORLD.schema)
    await backend.close()


@runs
async def test_an_empty_directory_becomes_a_database(tmp_path: Path) -> None:
    (tmp_path / "data.db").mkdir()
    backend = await filled(embedded(tmp_path), WORLD)
    await backend.close()
    assert await backend.open() == WORLD.schema
    await backend.close()
