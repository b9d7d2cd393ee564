"""Change 1 % and remove 1 % of the documents of a file, ingest it again with ``sync``, and compare with a full run.

    python benchmarks/ingestion_sync.py                             # 100,000 documents, a placeholder for the encoder
    python benchmarks/ingestion_sync.py --model models/m3-tiny
    python benchmarks/ingestion_sync.py --report benchmarks/results/ingestion-sync-2025-01-31.jsonl

The documents come from a JSON Lines file, so reading and hashing all of them is part of both runs. Texts are counted as
they are given to the encoder. At the end, all ids and the changed texts are compared with the file. The exit status is
1 if any other document was encoded, or the store differs from the file.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fixtures import EMBEDDED, PACKAGES, RESULTS, SERVERS, place_of
from ingesting import PlaceholderEncoder, Row, Rows, ids_of, log, read_rows, synthetic, table

from m3_connectors import Document, M3Embeddings, M3Encoder, connect
from m3_connectors.environment import describe, environment
from m3_connectors.ingestion import Ledger, Origin, ingest
from m3_connectors.readers import read_documents


class Counted:
    """An encoder that counts what it is given."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self.texts: list[str] = []

    def encode(self, texts: Sequence[str], **options: Any) -> M3Embeddings:
        self.texts += texts
        embeddings: M3Embeddings = self._encoder.encode(texts, **options)
        return embeddings

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)


def write(path: Path, documents: dict[int, Document]) -> None:
    lines = (json.dumps({"id": d.id, "text": d.text, **d.metadata}) + "\n" for d in documents.values())
    path.write_text("".join(lines))


def run(options: argparse.Namespace, rows: Rows) -> None:
    rows.write(environment(*PACKAGES, documents=options.documents, model=options.model and options.model.name))
    for store in options.stores:
        encoder = Counted(M3Encoder(str(options.model)) if options.model else PlaceholderEncoder())
        with place_of(store, options.directory) as place, tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            path = folder / "documents.jsonl"
            with (
                connect(place.url, "sync", encoder=encoder, **place.options) as index,
                Ledger(folder / "ledger.sqlite") as ledger,
            ):

                def measured(what: str) -> Row:
                    encoder.texts.clear()
                    began = time.monotonic()
                    documents = read_documents([path], on_dead_letter=lambda _, letter: sys.exit(str(letter)))
                    origin = Origin("file", "file")
                    report = ingest(documents, index, ledger=ledger, origin=lambda: origin, sync=["file"])
                    row = {
                        "kind": "run",
                        "store": store,
                        "run": what,
                        "seconds": round(time.monotonic() - began, 3),
                        "encoded": len(encoder.texts),
                        "read": report.read,
                        "documents": report.documents,
                        "unchanged": report.unchanged,
                        "replaced": report.replaced,
                        "removed": report.removed,
                    }
                    log(str(row))
                    return row

                documents = {number: synthetic(number) for number in range(options.documents)}
                write(path, documents)
                rows.write(measured("first"))
                rng = random.Random(0)
                touched = rng.sample(range(options.documents), options.documents // 50)
                changed, removed = touched[::2], touched[1::2]
                documents |= {number: synthetic(number, version=1) for number in changed}
                for number in removed:
                    del documents[number]
                write(path, documents)
                row = measured("1 % changed, 1 % removed")
                only = set(encoder.texts) == {documents[number].text for number in changed}
                got = [one for i in range(0, len(changed), 500) for one in index.get([documents[n].id for n in changed[i : i + 500]])]
                ids = ids_of(index)
                well = {
                    "only_changed_encoded": only and len(encoder.texts) == len(changed),
                    "ids_right": sorted(ids) == sorted(one.id for one in documents.values()),
                    "changed_texts_right": got == [documents[number] for number in changed],
                }
                rows.write({**row, **well})
                rows.write(measured("nothing changed"))
                index.drop()


def report(path: Path) -> tuple[str, bool]:
    machine, *rows = read_rows(path)
    full = {row["store"]: row["seconds"] for row in rows if row["run"] == "first"}
    checks = ("only_changed_encoded", "ids_right", "changed_texts_right")
    lines = [
        [
            row["store"],
            row["run"],
            *(f"{row[name]:,}" for name in ("read", "encoded", "replaced", "removed", "unchanged")),
            f"{row['seconds']:.2f}",
            f"{row['seconds'] / full[row['store']]:.1%}",
            "yes" if all(row.get(name, True) for name in checks) else "NO",
        ]
        for row in rows
    ]
    header = ["store", "run", "read", "encoded", "replaced", "removed", "unchanged", "seconds", "of the first", "right"]
    what = machine["model"] or "a placeholder for the encoder"
    well = all(row.get(name, True) for row in rows for name in checks)
    return f"{what}, {describe(machine)}; load average {machine['load_average'][0]:.1f}.\n\n{table(header, lines)}", well


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    today = datetime.datetime.now(datetime.UTC).date()
    parser.add_argument("--model", type=Path, help="without it, vectors come from a placeholder")
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument(
        "--stores", nargs="+", default=["qdrant-edge"], help=f"any of {', '.join([*EMBEDDED, *SERVERS])}, or a URL"
    )
    parser.add_argument("--directory", help="folder for the data of embedded stores during the run")
    parser.add_argument("--out", type=Path, default=RESULTS / f"ingestion-sync-{today}.jsonl")
    parser.add_argument("--report", type=Path, help="only print the table of this file")
    options = parser.parse_args()
    if options.report is None:
        with Rows(options.out) as rows:
            run(options, rows)
    text, well = report(options.report or options.out)
    print(text)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
