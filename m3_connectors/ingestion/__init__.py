"""Store the documents of sources in a collection: cut into chunks, resumable, and provable with a ledger."""

from __future__ import annotations

from m3_connectors.ingestion.chunking import Chunking
from m3_connectors.ingestion.ledger import Ledger, ledger_path
from m3_connectors.ingestion.pipeline import IngestReport, Origin, ingest
from m3_connectors.ingestion.verifying import Verification, verify, verify_dropped

__all__ = [
    "Chunking",
    "IngestReport",
    "Ledger",
    "Origin",
    "Verification",
    "ingest",
    "ledger_path",
    "verify",
    "verify_dropped",
]
