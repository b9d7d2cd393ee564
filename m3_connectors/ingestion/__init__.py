"""Store the documents of sources in a collection: cut into chunks, resumable, and provable with a ledger."""

from __future__ import annotations

from m3_connectors.ingestion.chunking import Chunking
from m3_connectors.ingestion.copying import ingest_collection
from m3_connectors.ingestion.embedded import ingest_embedded
from m3_connectors.ingestion.failures import RefusedDocument, Wait
from m3_connectors.ingestion.ledger import Ledger, ledger_path
from m3_connectors.ingestion.origin import Origin
from m3_connectors.ingestion.pipeline import IngestReport, aingest, ingest
from m3_connectors.ingestion.progress import IngestProgress
from m3_connectors.ingestion.ray import ingest_on_ray
from m3_connectors.ingestion.saving import EmbeddingsKeeper, SavedReport
from m3_connectors.ingestion.sharding import Shard
from m3_connectors.ingestion.verifying import Verification, verify, verify_dropped
from m3_connectors.shards import EmbeddingsFolder, ShardWriter

__all__ = [
    "EmbeddingsFolder",
    "EmbeddingsKeeper",
    "SavedReport",
    "ShardWriter",
    "ingest_embedded",
    "Chunking",
    "IngestProgress",
    "IngestReport",
    "Ledger",
    "Origin",
    "RefusedDocument",
    "Shard",
    "Verification",
    "Wait",
    "aingest",
    "ingest",
    "ingest_collection",
    "ingest_on_ray",
    "ledger_path",
    "verify",
    "verify_dropped",
]
