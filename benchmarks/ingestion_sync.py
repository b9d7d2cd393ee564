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
import dataclasses
import datetime
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fixtures import EMBEDDED, PACKAGES, RESULTS, SERVERS, place_of
from ingesting import PlaceholderEncoder, Row, Rows, ids_of, log, read_rows, synthetic, table

from m3_connectors import Document, Index, M3Embeddings, M3Encoder, connect
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


@dataclasses.dataclass
class Place:
    """A store, a file, and the ledger between them."""

    store: str
    index: Index
    ledger: Ledger
    encoder: Counted
    path: Path

    def ingested(self, what: str) -> Row:
        self.encoder.texts.clear()
        began = time.monotonic()
        documents = read_documents([self.path], on_dead_letter=lambda _, letter: sys.exit(str(letter)))
        origin = Origin("file", "file")
        report = ingest(documents, self.index, ledger=self.ledger, origin=lambda: origin, sync=["file"])
        seconds = round(time.monotonic() - began, 3)
        counts = {
            name: getattr(report, name) for name in ("read", "documents", "unchanged", "replaced", "removed")
        }
        row = {"kind": "run", "store": self.store, "run": what, "seconds": seconds, **counts}
        return {**row, "encoded": len(self.encoder.texts)}

    def compared(self, documents: dict[int, Document], changed: list[int]) -> Row:
        expected = [documents[number] for number in changed]
        got: list[Document | None] = []
        for start in range(0, len(changed), 500):
            got += self.index.get([one.id for one in expected[start : start + 500]])
        encoded = sorted(self.encoder.texts)
        return {
            "only_changed_encoded": encoded == sorted(one.text for one in expected),
            "ids_right": sorted(ids_of(self.index)) == sorted(one.id for one in documents.values()),
            "changed_texts_right": got == expected,
        }


def run(options: argparse.Namespace, rows: Rows) -> None:
    rows.write(
        environment(*PACKAGES, documents=options.documents, model=options.model and options.model.name)
    )
    for store in options.stores:
        encoder = Counted(M3Encoder(str(options.model)) if options.model else PlaceholderEncoder())
        with (
            place_of(store, options.directory) as place,
            tempfile.TemporaryDirectory() as folder,
            connect(place.url, "sync", encoder=encoder, **place.options) as index,
            Ledger(Path(folder) / "ledger.sqlite") as ledger,
        ):
            for row in _runs(
                Place(store, index, ledger, encoder, Path(folder) / "all.jsonl"), options.documents
            ):
                log(str(rows.write(row)))
            index.drop()


def _runs(place: Place, count: int) -> Iterator[Row]:
    documents = {number: synthetic(number) for number in range(count)}
    write(place.path, documents)
    yield place.ingested("first")
    touched = random.Random(0).sample(range(count), count // 50)
    changed, removed = touched[::2], touched[1::2]
    documents |= {number: synthetic(number, version=1) for number in changed}
    for number in removed:
        del documents[number]
    write(place.path, documents)
    row = place.ingested("1 % changed, 1 % removed")
    yield {**row, **place.compared(documents, changed)}
    yield place.ingested("nothing changed")


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
    header = [
        "store",
        "run",
        "read",
        "encoded",
        "replaced",
        "removed",
        "unchanged",
        "seconds",
        "of the first",
        "right",
    ]
    what = machine["model"] or "a placeholder for the encoder"
    well = all(row.get(name, True) for row in rows for name in checks)
    return (
        f"{what}, {describe(machine)}; load average {machine['load_average'][0]:.1f}.\n\n{table(header, lines)}",
        well,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    today = datetime.datetime.now(datetime.UTC).date()
    parser.add_argument("--model", type=Path, help="without it, vectors come from a placeholder")
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument(
        "--stores",
        nargs="+",
        default=["qdrant-edge"],
        help=f"any of {', '.join([*EMBEDDED, *SERVERS])}, or a URL",
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
