"""Delete documents behind the back of an ingestion and run it again, with LangChain's ``index()`` and with ours.

    python benchmarks/ingestion_langchain.py --langchain ./langchain      # see ingestion.py for the folder

The case is langchain#39937: a record manager lists 1,178 documents, the store holds 36 of them, and four complete runs
report all of them as skipped. Both sides print what each run reports and what the store counts afterwards.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

from fixtures import PACKAGES, RESULTS
from ingesting import PlaceholderEncoder, Row, Rows, read_rows, synthetic, table

DOCUMENTS, LEFT, RUNS = 1178, 36, 4


def _uuid_of(document: Any) -> str:
    """Return an id that Qdrant accepts."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, document.page_content))


def theirs(folder: str) -> list[Row]:
    from langchain_classic.indexes import SQLRecordManager
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.indexing import index
    from langchain_qdrant import QdrantVectorStore
    from qdrant_client import QdrantClient, models

    encoder = PlaceholderEncoder()

    class Given(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            vectors: list[list[float]] = encoder.encode(texts, components=("dense",)).dense.tolist()
            return vectors

        def embed_query(self, text: str) -> list[float]:
            return self.embed_documents([text])[0]

    client = QdrantClient(path=f"{folder}/qdrant")
    vectors = models.VectorParams(size=256, distance=models.Distance.COSINE)
    client.create_collection("notes", vectors_config=vectors)
    store = QdrantVectorStore(client=client, collection_name="notes", embedding=Given())
    records = SQLRecordManager("qdrant/notes", db_url=f"sqlite:///{folder}/records.sqlite")
    records.create_schema()
    documents = [
        Document(page_content=one.text, metadata={"source": one.id})
        for one in map(synthetic, range(DOCUMENTS))
    ]

    def crawl() -> Row:
        before = encoder.texts
        said = index(documents, records, store, cleanup="full", source_id_key="source", key_encoder=_uuid_of)
        return {"reported": dict(said), "encoded": encoder.texts - before, "stored": _counted()}

    def _counted() -> int:
        count: int = client.count("notes", exact=True).count
        return count

    rows = [{"step": "first run", **crawl()}]
    points, _ = client.scroll("notes", limit=DOCUMENTS, with_payload=False)
    client.delete("notes", points_selector=[point.id for point in points[LEFT:]])
    rows.append({"step": f"{DOCUMENTS - LEFT:,} documents deleted in the store", "stored": _counted()})
    rows += [{"step": f"run {n + 2}", **crawl()} for n in range(RUNS)]
    return rows


def ours(folder: str) -> list[Row]:
    from m3_connectors import connect
    from m3_connectors.ingestion import Ledger, ingest

    encoder = PlaceholderEncoder()
    documents = [synthetic(number) for number in range(DOCUMENTS)]
    with (
        connect(f"qdrant:{folder}/data", "notes", encoder=encoder) as index,
        Ledger(Path(folder) / "ledger.sqlite") as ledger,
    ):

        def crawl() -> Row:
            before = encoder.texts
            report = ingest(documents, index, ledger=ledger, sync=[""])
            said: Row = {
                "documents": report.documents,
                "unchanged": report.unchanged,
                "removed": report.removed,
            }
            if report.missing is not None:
                said["missing in the store"] = report.missing.missing
            return {"reported": said, "encoded": encoder.texts - before, "stored": index.count()}

        rows = [{"step": "first run", **crawl()}]
        index.delete([document.id for document in documents[LEFT:]])
        rows.append({"step": f"{DOCUMENTS - LEFT:,} documents deleted in the store", "stored": index.count()})
        rows += [{"step": f"run {n + 2}", **crawl()} for n in range(RUNS)]
        # Some of them only: the store holds as many documents as the ledger knows, but not the same ones.
        index.delete([document.id for document in documents[:10]])
        index.add([synthetic(number) for number in range(DOCUMENTS, DOCUMENTS + 10)])
        rows.append({"step": "10 others in place of 10 documents", "stored": index.count()})
        rows.append({"step": f"run {RUNS + 2}", **crawl()})
        report = ingest(documents, index, ledger=ledger, sync=[""], check=True)
        assert report.missing is not None
        said = {"documents": report.documents, "missing in the store": report.missing.missing}
        rows.append({"step": f"run {RUNS + 3} with check", "reported": said, "stored": index.count()})
    return rows


def report(path: Path) -> str:
    _, *rows = read_rows(path)
    sides: dict[str, list[Row]] = {}
    for row in rows:
        sides.setdefault(row["side"], []).append(row)
    steps = list(dict.fromkeys(row["step"] for row in rows))
    lines = []
    for step in steps:
        cells: list[Any] = [step]
        for name in ("LangChain", "ours"):
            (row,) = [one for one in sides.get(name, []) if one["step"] == step] or [{}]
            said = ", ".join(f"{key} {value}" for key, value in row.get("reported", {}).items())
            cells += [said, f"{row['stored']:,}" if row else ""]
        lines.append(cells)
    header = ["step", "LangChain's index() reports", "its store holds", "ours reports", "our store holds"]
    return table(header, lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    today = datetime.datetime.now(datetime.UTC).date()
    parser.add_argument(
        "--langchain", type=Path, help="folder with LangChain's packages; without it, only ours runs"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / f"ingestion-langchain-{today}.jsonl")
    parser.add_argument("--report", type=Path, help="only print the table of this file")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps({"LangChain": theirs, "ours": ours}[options.side](folder)))
        return 0
    if options.report is None:
        from m3_connectors.environment import environment

        with Rows(options.out) as rows:
            rows.write(environment(*PACKAGES))
            for side in ("LangChain", "ours") if options.langchain else ("ours",):
                paths = [str(options.langchain.resolve())] if side == "LangChain" else []
                paths += filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
                done = subprocess.run(
                    [sys.executable, __file__, "--side", side],
                    stdout=subprocess.PIPE,
                    check=True,
                    text=True,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                )
                for row in json.loads(done.stdout.splitlines()[-1]):
                    rows.write({"kind": "step", "side": side, **row})
    print(report(options.report or options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
