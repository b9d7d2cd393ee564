"""Fewer multi-vector rows for long documents: token pooling, by Ward's hierarchical clustering.

Rows of one document that lie close together are replaced by their mean, made unit length again (B. Clavié, A. Chaffin
and G. Adams, "Reducing the Footprint of Multi-Vector Retrieval with Minimal Performance Impact via Token Pooling",
2024, arXiv:2409.14683, section 2: hierarchical clustering by Ward's method lost least of three ways). It happens once,
before any store sees the rows, so that every store keeps and scores the same ones.

Ward's method needs the distances of all pairs: for 8,191 rows 1 GB, and seconds in which nothing else of the process
runs. A document is therefore clustered in blocks of about 1,024 consecutive rows, each by itself.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from m3_connectors.backends.schema import Storage
from m3_connectors.embeddings import Bool, Float32, Int64, M3Embeddings, MultiVectors

BLOCK_ROWS = 1024
"""Rows that are clustered at once: 4 MiB of distances, some hundredths of a second."""


def long_documents(storage: Storage, embeddings: M3Embeddings) -> Bool:
    """Which texts this storage pools, ``[n]``."""
    counts = embeddings.multivectors.counts.tolist() if "multivector" in embeddings.components else []
    return np.array([storage.pools(rows) for rows in counts], dtype=np.bool_)


def pool_long(storage: Storage, embeddings: M3Embeddings) -> M3Embeddings:
    """The embeddings with the rows of long documents pooled; all else as it was."""
    long = long_documents(storage, embeddings)
    if "multivector" not in embeddings.components or not long.any():
        return embeddings
    rows = [
        pool_rows(rows, storage.pool_factor) if is_long else rows
        for rows, is_long in zip(embeddings.multivectors, long, strict=True)
    ]
    pooled = MultiVectors.from_list(rows, embeddings.multivectors.dimension)
    return embeddings.replace(multivectors=pooled)


def pool_rows(rows: Float32, factor: int, *, block_rows: int = BLOCK_ROWS) -> Float32:
    """The rows of one text, pooled.

    Args:
        rows: float32 unit rows ``[t, d]``.
        factor: Rows that become one on average, >= 1; 1 leaves them as they are.
        block_rows: Rows that are clustered at once.

    Returns:
        float32 unit rows ``[ceil(t / factor), d]``, in the order of the first row of each cluster.
    """
    if factor == 1:
        return rows
    # Blocks of a multiple of the factor add up to the promised number of rows.
    step = max(1, block_rows // factor) * factor
    blocks = [rows[start : start + step] for start in range(0, len(rows), step)]
    return np.concatenate([_means(block, _clusters(block, -(-len(block) // factor))) for block in blocks])


def _clusters(rows: Float32, count: int) -> Int64:
    """The cluster of each row, 0 to ``count - 1``, numbered by their first rows."""
    if count == 1:
        return np.zeros(len(rows), dtype=np.int64)
    # On use: it takes a tenth of a second to import, and few collections pool.
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    # |a - b|² = 2 - 2 <a, b> for unit rows: one matrix product instead of all pairs one by one.
    distances = np.sqrt(np.maximum(2 - 2 * (rows @ rows.T), 0))
    merges = linkage(squareform(distances, checks=False), "ward")[: len(rows) - count, :2]
    # The tree is cut by the number of merges, not by their height: equal heights would leave fewer clusters.
    parents = np.repeat(np.arange(len(rows), len(rows) + len(merges)), 2)
    nodes = len(rows) + len(merges)
    joined = sp.coo_array(
        (np.ones(len(parents)), (merges.reshape(-1).astype(np.int64), parents)), (nodes, nodes)
    )
    labels = connected_components(joined, directed=False)[1][: len(rows)]
    _, first, labels = np.unique(labels, return_index=True, return_inverse=True)
    numbers: Int64 = np.argsort(np.argsort(first))[labels].astype(np.int64)
    return numbers


def _means(rows: Float32, clusters: Int64) -> Float32:
    """The mean of each cluster at unit length; its first row where the rows cancel each other out."""
    order = np.argsort(clusters, kind="stable")
    starts = np.flatnonzero(np.diff(clusters[order], prepend=-1))
    sums = np.add.reduceat(rows[order], starts, axis=0, dtype=np.float64)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    firsts = rows[order[starts]]
    means: Float32 = np.where(lengths > 1e-6, sums / np.maximum(lengths, 1e-6), firsts).astype(np.float32)
    return means
