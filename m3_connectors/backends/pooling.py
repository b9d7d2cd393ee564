"""Fewer multi-vector rows for long or for all documents: token pooling with Ward's hierarchical clustering.

Similar rows of one document are replaced by their mean, normalised to unit length (B. Clavié, A. Chaffin and
G. Adams, "Reducing the Footprint of Multi-Vector Retrieval with Minimal Performance Impact via Token
Pooling", 2024, arXiv:2409.14683, section 2: hierarchical clustering with Ward's method lost the least quality
of three methods). Pooling happens once, before a store receives the rows, so that every store keeps and
scores the same rows.

Ward's method needs the distances of all pairs. For 8,191 rows that is 1 GB, and seconds in which no other
thread of the process runs. A document is therefore clustered in blocks of about 1,024 consecutive rows, each
separately.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from m3_connectors.backends.schema import Storage
from m3_connectors.embeddings import Bool, Float32, Int64, M3Embeddings, MultiVectors

BLOCK_ROWS = 1024
"""The number of rows that are clustered together: 4 MiB of distances and a few hundredths of a second."""


def long_documents(storage: Storage, embeddings: M3Embeddings) -> Bool:
    """Return which texts this storage pools, bool ``[n]``."""
    counts = embeddings.multivectors.counts.tolist() if "multivector" in embeddings.components else []
    return np.array([storage.pools(rows) for rows in counts], dtype=np.bool_)


def pool_long(storage: Storage, embeddings: M3Embeddings) -> M3Embeddings:
    """Return the embeddings with the rows of long documents pooled; everything else is unchanged."""
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
    """Return the pooled rows of one text.

    Args:
        rows: float32 unit rows ``[t, d]``.
        factor: The average number of rows that become one, >= 1; 1 leaves the rows unchanged.
        block_rows: The number of rows that are clustered together.

    Returns:
        float32 unit rows ``[ceil(t / factor), d]``, in the order of the first row of each cluster.
    """
    if factor == 1 or len(rows) == 1:
        return rows
    # The block size is a multiple of the factor, so that the blocks together give the promised number of
    # rows.
    step = max(1, block_rows // factor) * factor
    blocks = [rows[start : start + step] for start in range(0, len(rows), step)]
    return np.concatenate([_means(block, _clusters(block, -(-len(block) // factor))) for block in blocks])


def _clusters(rows: Float32, count: int) -> Int64:
    """Return the cluster of each row, 0 to ``count - 1``, numbered in the order of their first rows."""
    if count == 1:
        return np.zeros(len(rows), dtype=np.int64)
    # Imported here because the import takes a tenth of a second and few collections use pooling.
    from scipy.cluster.hierarchy import linkage
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial.distance import squareform

    # |a - b|² = 2 - 2 <a, b> for unit rows: one matrix product instead of a loop over all pairs.
    distances = np.sqrt(np.maximum(2 - 2 * (rows @ rows.T), 0))
    merges = linkage(squareform(distances, checks=False), "ward")[: len(rows) - count, :2]
    # The tree is cut at a number of merges and not at a height: merges of equal height would leave fewer
    # clusters.
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
    """Return the mean of each cluster at unit length, or its first row if the rows cancel each other out."""
    order = np.argsort(clusters, kind="stable")
    starts = np.flatnonzero(np.diff(clusters[order], prepend=-1))
    sums = np.add.reduceat(rows[order], starts, axis=0, dtype=np.float64)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    firsts = rows[order[starts]]
    means: Float32 = np.where(lengths > 1e-6, sums / np.maximum(lengths, 1e-6), firsts).astype(np.float32)
    return means
