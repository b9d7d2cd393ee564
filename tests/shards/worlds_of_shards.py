"""Random embeddings for tests of shards, and what must be equal after a way through files."""

from __future__ import annotations

import numpy as np

from m3_connectors.backends.pooling import pool_long
from m3_connectors.backends.schema import Storage
from m3_connectors.documents import Document, canonical_metadata
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.shards import EmbeddingsFolder, Part
from m3_connectors.testing.worlds import World, make_world


def world_of(seed: int, storage: Storage, documents: int = 40, most_rows: int = 20) -> World:
    """Return a world of this storage, whose embeddings have token counts."""
    world = make_world(
        seed, documents=documents, storage=storage, components=storage.components, most_rows=most_rows
    )
    rng = np.random.default_rng(seed)
    kept = rng.integers(3, 20, size=documents)
    counts = kept + rng.integers(0, 3, size=documents)
    embeddings = world.embeddings.replace(
        truncated=counts > kept, token_counts=counts, kept_token_counts=kept
    )
    return World(world.schema, world.documents, embeddings, world.queries, world.filters)


def as_held(world: World) -> M3Embeddings:
    """Return the embeddings as a collection of this world holds them."""
    return world.schema.precision.rounded(pool_long(world.schema.storage, world.embeddings))


def joined(parts: list[Part]) -> Part:
    documents = [document for some, _ in parts for document in some]
    return documents, M3Embeddings.concatenate([vectors for _, vectors in parts])


def read_all(folder: EmbeddingsFolder) -> dict[str, tuple[Document, M3Embeddings]]:
    return {
        document.id: (document, vectors[i])
        for documents, vectors in folder.parts()
        for i, document in enumerate(documents)
    }


def assert_same(
    found: tuple[Document, M3Embeddings], document: Document, embeddings: M3Embeddings, precision: str
) -> None:
    """Text, metadata and all numbers are equal, bit for bit."""
    there, vectors = found
    assert there == Document(document.id, document.text, canonical_metadata(document.metadata))
    assert vectors.components == embeddings.components
    assert vectors.model == embeddings.model
    assert vectors.dense.tobytes() == embeddings.dense.tobytes()
    if "sparse" in vectors.components:
        assert (vectors.sparse != embeddings.sparse).nnz == 0
        assert vectors.sparse.nnz == embeddings.sparse.nnz
    if "multivector" in vectors.components:
        assert vectors.multivectors.rows.tobytes() == embeddings.multivectors.rows.tobytes()
        kept = vectors.multivectors.encoded
        assert (None if kept is None else kept.precision) == (
            precision if precision.startswith("int") else None
        )


def assert_counts(vectors: M3Embeddings, embeddings: M3Embeddings) -> None:
    """The counts of tokens are equal."""
    assert vectors.truncated.tolist() == embeddings.truncated.tolist()
    for name in ("token_counts", "kept_token_counts"):
        found, wanted = getattr(vectors, name), getattr(embeddings, name)
        assert (found is None) == (wanted is None)
        assert found is None or found.tolist() == wanted.tolist()
