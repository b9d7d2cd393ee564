"""Compare our ingestion with that of LangChain's vector stores: the same documents, vectors and server.

    pip install --no-deps --target ./langchain langchain-core==1.8.4 langchain-qdrant==1.1.0 …   # see LANGCHAIN below
    python benchmarks/ingestion.py --langchain ./langchain
    python benchmarks/ingestion.py --langchain ./langchain --stores elasticsearch --documents 2000
    python benchmarks/ingestion.py --report benchmarks/results/ingestion-2025-01-31.jsonl

Neither side runs a model: an encoder returns vectors that it takes from a table, so what is measured is everything
around the model and the store. Each measurement is a process of its own with an empty collection; it ends when the
store counts all documents. The order of the contestants is different in every round, and ratios are of one round.

| contestant | what it does |
|---|---|
| ours, dense | ``Index.add`` into a collection of dense vectors only, which is what LangChain stores |
| ours, dense, ledger | ``ingest`` into such a collection: with a ledger, so that it can be resumed |
| ours, all | ``ingest`` of dense, sparse and multi-vectors (``--rows`` rows a document, float16) |
| LangChain | ``add_documents`` with its defaults |
| LangChain, 512 | ``add_documents`` with batches of 512 documents, which is what we send |
| LangChain, index() | ``index`` of langchain-core with a record manager in SQLite, its counterpart of our ledger |

The stores are: ``qdrant-edge``, where both write a folder without a server (ours with Qdrant Edge, langchain-qdrant
with ``QdrantClient(path=…)``, the only embedded engine that it supports); ``milvus``, the server of milvus-lite; and
``elasticsearch``, a real server. Both sides use the same server.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fixtures import PACKAGES, RESULTS, place_of
from ingesting import PlaceholderEncoder, Row, Rows, log, read_rows, synthetic, table

LANGCHAIN = (
    "langchain-core",
    "langchain-classic",
    "langchain-qdrant",
    "langchain-milvus",
    "langchain-elasticsearch",
)
STORES = ("qdrant-edge", "milvus", "elasticsearch")
OURS = ("ours, dense", "ours, dense, ledger", "ours, all")
THEIRS = ("LangChain", "LangChain, 512", "LangChain, index()")

_DEADLINE_SECONDS = 120.0


# -- one measurement, in a process of its own


def ours(task: Row) -> Row:
    from m3_connectors import Storage, connect
    from m3_connectors.ingestion import Ledger, ingest

    encoder = PlaceholderEncoder(task["dimension"], task["rows"])
    documents = [synthetic(number) for number in range(task["documents"])]
    dense = task["contestant"] != "ours, all"
    storage = Storage(components=("dense",)) if dense else Storage()
    with connect(task["url"], task["collection"], encoder=encoder, storage=storage) as index:
        if task["contestant"] == "ours, dense":
            began = time.monotonic()
            index.add(iter(documents))
        else:
            with Ledger(Path(task["folder"]) / "ledger.sqlite") as ledger:
                began = time.monotonic()
                ingest(documents, index, ledger=ledger)
        return _ended(began, index.count, len(documents))


def theirs(task: Row) -> Row:
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings

    encoder = PlaceholderEncoder(task["dimension"], task["rows"])

    class Given(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            vectors: list[list[float]] = encoder.dense(texts).tolist()
            return vectors

        def embed_query(self, text: str) -> list[float]:
            return self.embed_documents([text])[0]

    made = [synthetic(number) for number in range(task["documents"])]
    documents = [Document(page_content=one.text, metadata=dict(one.metadata)) for one in made]
    ids = [str(uuid.uuid5(uuid.NAMESPACE_URL, one.id)) for one in made]
    store, count = _THEIRS[task["store"]](task, Given())
    batch = {"milvus": "batch_size", "qdrant-edge": "batch_size"}.get(task["store"])
    options: Row = {}
    if task["contestant"] == "LangChain, 512":
        options = (
            {batch: 512} if batch else {"bulk_kwargs": {"chunk_size": 512, "max_chunk_bytes": 50_000_000}}
        )
    if task["contestant"] == "LangChain, index()":
        from langchain_classic.indexes import SQLRecordManager
        from langchain_core.indexing import index

        records = SQLRecordManager("scale", db_url=f"sqlite:///{task['folder']}/records.sqlite")
        records.create_schema()
        for document, one in zip(documents, made, strict=True):
            document.metadata["source"] = one.id
        began = time.monotonic()
        said = index(
            documents,
            records,
            store,
            cleanup="incremental",
            source_id_key="source",
            key_encoder=_uuid_of,
        )
        assert said["num_added"] == len(documents), said
    else:
        began = time.monotonic()
        store.add_documents(documents, ids=ids, **options)
    return _ended(began, count, len(documents))


def _uuid_of(document: Any) -> str:
    """Return an id that every store accepts."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, document.page_content))


def _qdrant(task: Row, embeddings: Any) -> tuple[Any, Callable[[], int]]:
    from langchain_qdrant import QdrantVectorStore
    from qdrant_client import QdrantClient, models

    client = QdrantClient(path=f"{task['folder']}/qdrant")
    vectors = models.VectorParams(size=task["dimension"], distance=models.Distance.COSINE)
    client.create_collection(task["collection"], vectors_config=vectors)
    store = QdrantVectorStore(client=client, collection_name=task["collection"], embedding=embeddings)
    return store, lambda: client.count(task["collection"], exact=True).count


def _milvus(task: Row, embeddings: Any) -> tuple[Any, Callable[[], int]]:
    from langchain_milvus import Milvus
    from pymilvus import MilvusClient

    uri = task["url"].partition("+")[2]
    store = Milvus(
        embedding_function=embeddings,
        connection_args={"uri": uri},
        collection_name=task["collection"],
        consistency_level="Strong",
        auto_id=False,
    )
    client = MilvusClient(uri=uri)

    def count() -> int:
        rows = client.query(task["collection"], output_fields=["count(*)"], consistency_level="Strong")
        return int(rows[0]["count(*)"])

    return store, count


def _elasticsearch(task: Row, embeddings: Any) -> tuple[Any, Callable[[], int]]:
    from elasticsearch import Elasticsearch
    from langchain_elasticsearch import DenseVectorStrategy, ElasticsearchStore

    client = Elasticsearch(task["url"].partition("+")[2], request_timeout=120)
    store = ElasticsearchStore(
        index_name=task["collection"], embedding=embeddings, client=client, strategy=DenseVectorStrategy()
    )
    return store, lambda: int(client.count(index=task["collection"])["count"])


_THEIRS: dict[str, Callable[[Row, Any], tuple[Any, Callable[[], int]]]] = {
    "qdrant-edge": _qdrant,
    "milvus": _milvus,
    "elasticsearch": _elasticsearch,
}


def _ended(began: float, count: Callable[[], int], expected: int) -> Row:
    returned = time.monotonic() - began
    while (found := count()) != expected:
        if time.monotonic() - began > returned + _DEADLINE_SECONDS:
            raise SystemExit(f"{found} of {expected} documents counted after {_DEADLINE_SECONDS:.0f} s")
        time.sleep(0.02)
    return {
        "returned_seconds": round(returned, 3),
        "seconds": round(time.monotonic() - began, 3),
        "counted": found,
    }


# -- all measurements


def run(options: argparse.Namespace, rows: Rows) -> None:
    from m3_connectors.environment import environment

    names = ("documents", "dimension", "rows", "rounds")
    own = options.langchain and [str(options.langchain.resolve())]
    versions = _versions(own) if own else {}
    rows.write(environment(*PACKAGES, **{name: getattr(options, name) for name in names}, langchain=versions))
    contestants = [*OURS, *(THEIRS if own else ())]
    rng = random.Random(0)
    for store in options.stores:
        with place_of(store, options.directory) as place:
            for number in range(options.rounds):
                for contestant in rng.sample(contestants, len(contestants)):
                    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
                        url = place.url if place.session else f"qdrant:{folder}/data"
                        task = {
                            "store": store,
                            "contestant": contestant,
                            "round": number,
                            "url": url,
                            "folder": folder,
                            "collection": f"c{uuid.uuid4().hex[:12]}",
                            **{name: getattr(options, name) for name in ("documents", "dimension", "rows")},
                        }
                        done = _measured(task, own or [] if contestant in THEIRS else [])
                    kept = {name: task[name] for name in ("store", "contestant", "round", "documents")}
                    row = rows.write({"kind": "run", **kept, **done})
                    rate = (
                        "failed"
                        if "error" in row
                        else f"{row['documents'] / row['seconds']:,.0f} documents/s"
                    )
                    log(f"{store}, round {number + 1}, {contestant}: {rate}")


def _measured(task: Row, packages: Sequence[str]) -> Row:
    paths = [*packages, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    done = subprocess.run(
        [sys.executable, __file__, "--task", json.dumps(task)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    if done.returncode:
        log(done.stderr[-2000:])
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def _versions(paths: list[str]) -> dict[str, str]:
    from importlib.metadata import distributions

    found = {one.metadata["Name"].lower(): one.version for one in distributions(path=paths)}
    return {
        name: found[name]
        for name in sorted(found)
        if name.startswith(("langchain", "pymilvus", "qdrant", "elastic"))
    }


def report(path: Path) -> str:
    """Return the table in Markdown."""
    from m3_connectors.environment import describe

    machine, *rows = read_rows(path)
    lines = []
    for store in dict.fromkeys(row["store"] for row in rows):
        rates: dict[str, dict[int, float]] = {}
        for row in rows:
            if row["store"] == store and "seconds" in row:
                rates.setdefault(row["contestant"], {})[row["round"]] = row["documents"] / row["seconds"]
        for contestant in [*OURS, *THEIRS]:
            if own := rates.get(contestant):
                ratios = [_ratio(own, rates.get(other, {})) for other in (*THEIRS,)]
                shown = ["" if contestant in THEIRS else ratio for ratio in ratios]
                median = np.median(list(own.values()))
                span = f"{min(own.values()):,.0f} to {max(own.values()):,.0f}"
                lines.append([store, contestant, f"{median:,.0f}", span, *shown])
        failed = [row for row in rows if row["store"] == store and "error" in row]
        lines += [
            [store, row["contestant"], f"failed: {row['error'][:80]}", "", "", "", ""] for row in failed
        ]
    header = ["store", "contestant", "documents/s", "rounds", *(f"× {other}" for other in THEIRS)]
    versions = ", ".join(f"{name} {version}" for name, version in machine["langchain"].items())
    return (
        f"{machine['documents']:,} documents of about 300 characters, dense vectors of {machine['dimension']:,} "
        f"dimensions (all: also {machine['rows']} rows), {machine['rounds']} rounds; {describe(machine)}; load average "
        f"{machine['load_average'][0]:.1f}; {versions}.\n\n{table(header, lines)}"
    )


def _ratio(own: dict[int, float], other: dict[int, float]) -> str:
    ratios = [own[number] / other[number] for number in own.keys() & other.keys()]
    return f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "–"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    today = datetime.datetime.now(datetime.UTC).date()
    parser.add_argument("--stores", nargs="+", default=list(STORES), choices=STORES)
    parser.add_argument(
        "--langchain", type=Path, help="folder with LangChain's packages; without it, only ours run"
    )
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--dimension", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=16, help="multi-vector rows of a document (ours, all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", help="folder for the data of embedded stores during the run")
    parser.add_argument("--out", type=Path, default=RESULTS / f"ingestion-{today}.jsonl")
    parser.add_argument("--report", type=Path, help="only print the table of this file")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        task = json.loads(options.task)
        print(json.dumps(theirs(task) if task["contestant"] in THEIRS else ours(task)))
        return 0
    if options.report is None:
        with Rows(options.out) as rows:
            run(options, rows)
    print(report(options.report or options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
