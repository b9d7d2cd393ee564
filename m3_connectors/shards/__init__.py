"""Embeddings kept in a folder of Parquet files: a backup of a collection, or a copy for another store."""

from __future__ import annotations

from m3_connectors.shards.changes import changes_of, stored_as
from m3_connectors.shards.contents import ContentIndex
from m3_connectors.shards.folder import EmbeddingsFolder, Part, is_embeddings_folder
from m3_connectors.shards.writing import ShardWriter

__all__ = [
    "ContentIndex",
    "EmbeddingsFolder",
    "Part",
    "ShardWriter",
    "changes_of",
    "is_embeddings_folder",
    "stored_as",
]
