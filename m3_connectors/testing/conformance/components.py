"""B28: adding a component to the documents that are stored."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from m3_connectors.backends.base import Backend, Schema
from m3_connectors.backends.capabilities import Capability
from m3_connectors.backends.checks import reduced
from m3_connectors.documents import Document
from m3_connectors.embeddings import COMPONENTS, Component, M3Embeddings
from m3_connectors.errors import InvalidInput, Unsupported
from m3_connectors.methods import ALL, DENSE
from m3_connectors.testing.agreement import METHODS_TO_COMPARE, compare_search, oracle_of
from m3_connectors.testing.conformance.suite import Suite, runs
from m3_connectors.testing.worlds import World, make_world

_ADDED: tuple[Component, ...] = ("multivector", "sparse")


class ComponentClauses(Suite):
    """B28: adding a component to the documents that are stored."""

    @runs
    async def test_b28_a_collection_with_an_added_component_equals_one_created_with_it(
        self, tmp_path: Path
    ) -> None:
        for component in _ADDED:
            world = make_world(28)
            less = _without(world, component)
            async with self._added(tmp_path, less, component) as backend:
                if backend is None:
                    continue
                half = await backend.lacking(component, len(world.documents) // 2)
                assert len(half) == len(world.documents) // 2
                await backend.rewrite(half, _of(world, half))
                if Capability.PERSISTENT in backend.capabilities:  # the program ended half-way
                    await backend.close()
                    backend = self.make_backend(tmp_path, "conformance")
                    await backend.open()
                assert (backend.schema.components, backend.schema.adding) == (
                    less.schema.components,
                    component,
                )
                assert backend.schema.written == COMPONENTS
                oracle = await oracle_of(less)
                for query in less.queries:
                    await compare_search(backend, oracle, query, DENSE, 5)
                with pytest.raises(InvalidInput, match=component):
                    await backend.search(world.queries[0], ALL, 5)
                with pytest.raises(InvalidInput, match=component):
                    await backend.upsert(less.documents[:1], less.embeddings[:1])
                left = await backend.lacking(component, 1000)
                assert _ids(half, left) == _ids(world.documents)
                await backend.rewrite(left, _of(world, left))
                await backend.record(world.schema)
                assert await backend.lacking(component, 1) == []
                complete = await oracle_of(world)
                for query in world.queries:
                    for method in METHODS_TO_COMPARE:
                        await compare_search(backend, complete, query, method, 7)
                await backend.drop()
                await backend.close()

    @runs
    async def test_b28_a_document_that_was_replaced_or_deleted_meanwhile_is_left_alone(
        self, tmp_path: Path
    ) -> None:
        for component in _ADDED:
            world = make_world(29, documents=6)
            async with self._added(tmp_path, _without(world, component), component) as backend:
                if backend is None:
                    continue
                deleted, replaced, *_ = read = await backend.lacking(component, 10)
                await backend.delete([deleted.id])
                now = Document(replaced.id, f"{replaced.text} as rewritten", {"n": 1})
                other = next(document for document in world.documents if document.id != replaced.id)
                await backend.upsert([now], _of(world, [other]))
                await backend.rewrite(read, _of(world, read))
                await backend.record(world.schema)
                assert await backend.fetch([deleted.id, replaced.id]) == [None, now]
                assert await backend.count() == 5
                await backend.upsert([other], _of(world, [other]))
                scores = await backend.score(component, world.queries[0], [replaced.id, other.id])
                assert scores[0] == pytest.approx(scores[1], abs=1e-6)
                await backend.drop()
                await backend.close()

    @contextlib.asynccontextmanager
    async def _added(
        self, directory: Path, less: World, component: Component
    ) -> AsyncIterator[Backend | None]:
        """Store a world without a component, and begin to add it; None if the store refuses, as it should say."""
        async with self.stored(directory, less) as backend:
            begun = dataclasses.replace(less.schema, adding=component)
            if Capability.ADD_COMPONENT not in backend.capabilities:
                for call in (backend.record(begun), backend.lacking(component, 1)):
                    with pytest.raises(Unsupported, match="add_component"):
                        await call
                assert backend.schema == less.schema
                yield None
            elif component not in backend.addable:
                yield None
            else:
                await backend.record(begun)
                await backend.record(begun)
                yield backend


def _without(world: World, component: Component) -> World:
    kept = tuple(name for name in COMPONENTS if name != component)
    storage = dataclasses.replace(world.schema.storage, components=kept)
    return dataclasses.replace(
        world,
        schema=Schema(world.schema.model, storage),
        embeddings=reduced(world.embeddings, kept),
        queries=[reduced(query, kept) for query in world.queries],
    )


def _of(world: World, documents: list[Document]) -> M3Embeddings:
    position = {document.id: i for i, document in enumerate(world.documents)}
    return M3Embeddings.concatenate([world.embeddings[position[document.id]] for document in documents])


def _ids(*lists: list[Document]) -> set[str]:
    return {document.id for documents in lists for document in documents}
