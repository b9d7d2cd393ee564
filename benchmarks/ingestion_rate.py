"""Compare the tokens per second of an ingestion with those of its encoder alone, on real texts.

    python benchmarks/ingestion_rate.py --model models/m3-tiny --corpora DIR --documentation /usr/share/doc

``--corpora`` is a folder with BEIR corpora (``corpus.jsonl``, also ``.gz``) at any depth, which are stored whole;
``--documentation`` are folders of HTML, Markdown and text, which are cut into chunks of 512 tokens with an overlap of
64. The texts are given in blocks. Each block is encoded by ``encode_stream`` alone, and ingested into each store with
a ledger, in an order that changes from block to block; a ratio compares an ingestion with the encoder on the same
block. The encoder alone encodes the same chunks; to cut them is part of the ingestion only.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import random
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from fixtures import EMBEDDED, PACKAGES, RESULTS, SERVERS, place_of
from ingesting import Row, Rows, log, read_rows, table, text_files

from m3_connectors import Document, Index, M3Encoder, connect
from m3_connectors.environment import describe, environment
from m3_connectors.ingestion import Chunking, Ledger, ingest
from m3_connectors.readers import read_documents

ENDINGS = (".html", ".htm", ".md", ".txt", ".rst")
WHOLE, CUT = Chunking(), Chunking("tokens", 512, 64)


def documents_of(sources: Sequence[Path], skipped: list[str]) -> Iterator[Document]:
    # One source at a time, because ids of different corpora collide: each has its own prefix.
    for number, source in enumerate(sources):
        for document in read_documents(
            [source], on_dead_letter=lambda _, letter: skipped.append(letter.reason)
        ):
            if document.text.strip():
                yield Document(f"{number}/{document.id}", document.text, document.metadata)


def blocks_of(documents: Iterable[Document], characters: int) -> Iterator[list[Document]]:
    block: list[Document] = []
    size = 0
    for document in documents:
        block.append(document)
        size += len(document.text)
        if size >= characters:
            yield block
            block, size = [], 0
    if block:
        yield block


def run(options: argparse.Namespace, rows: Rows) -> None:
    encoder = M3Encoder(str(options.model))
    names = ("block_characters", "documentation_bytes")
    settings = {name: getattr(options, name) for name in names}
    rows.write(environment(*PACKAGES, model=options.model.name, precision=encoder.precision, **settings))
    groups: list[tuple[str, list[Path], Chunking]] = []
    if options.corpora:
        corpora = sorted([*options.corpora.rglob("corpus.jsonl.gz"), *options.corpora.rglob("corpus.jsonl")])
        groups.append(("corpora, whole", corpora, WHOLE))
    if options.documentation:
        files = text_files(options.documentation, options.documentation_bytes, ENDINGS)
        groups.append(("documentation, tokens:512:64", files, CUT))
    encoder.encode(["a text before the clock starts"] * 64)
    rng = random.Random(0)
    with contextlib.ExitStack() as stack:
        stores: dict[str, Callable[[list[Document], Chunking], Row]] = {}
        for store in options.stores:
            place = stack.enter_context(place_of(store, options.directory))
            name = f"rate-{uuid.uuid4().hex[:8]}"
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            index = stack.enter_context(connect(place.url, name, encoder=encoder, **place.options))
            ledger = stack.enter_context(Ledger(Path(folder) / "ledger.sqlite"))
            stores[store] = partial(_ingested, index, ledger)
        for group, sources, chunking in groups:
            skipped: list[str] = []
            documents = list(documents_of(sources, skipped))
            rng.shuffle(documents)  # so that the blocks of a run that ends early are a sample
            deadline = time.monotonic() + options.seconds
            for number, block in enumerate(blocks_of(documents, options.block_characters)):
                if time.monotonic() > deadline:
                    log(f"{group}: the time is over")
                    break
                chunks = [part for one in block for part in chunking.chunks(one, encoder.token_spans)]
                tokens = 0
                for contestant in rng.sample([None, *stores], len(stores) + 1):
                    if contestant is None:
                        row, tokens = _alone(encoder, [chunk.text for chunk in chunks])
                    else:
                        row = stores[contestant](block, chunking)
                    about = {
                        "kind": "block",
                        "group": group,
                        "block": number,
                        "contestant": contestant or "encoder",
                    }
                    rows.write({**about, "documents": len(block), "chunks": len(chunks), **row})
                rows.write({"kind": "tokens", "group": group, "block": number, "tokens": tokens})
                log(
                    f"{group}, block {number + 1}: {len(block):,} documents, {len(chunks):,} chunks, {tokens:,} tokens"
                )
            rows.write(
                {
                    "kind": "group",
                    "group": group,
                    "files": len(sources),
                    "skipped": len(skipped),
                    "documents": len(documents),
                }
            )


def _alone(encoder: M3Encoder, texts: list[str]) -> tuple[Row, int]:
    began = time.monotonic()
    tokens = 0
    for part in encoder.encode_stream(texts):
        assert part.kept_token_counts is not None
        tokens += int(part.kept_token_counts.sum())
    return {"seconds": round(time.monotonic() - began, 3)}, tokens


def _ingested(index: Index, ledger: Ledger, block: list[Document], chunking: Chunking) -> Row:
    began = time.monotonic()
    report = ingest(block, index, ledger=ledger, chunking=chunking)
    seconds = time.monotonic() - began
    if report.documents != len({one.id for one in block}):
        raise SystemExit(f"{report.documents} of {len(block)} documents stored: {report}")
    return {"seconds": round(seconds, 3), "encoder_busy_share": round(report.encoder_busy_share, 3)}


def report(path: Path) -> str:
    machine, *rows = read_rows(path)
    tokens = {(row["group"], row["block"]): row["tokens"] for row in rows if row["kind"] == "tokens"}
    seconds: dict[tuple[str, str], dict[int, float]] = {}
    busy: dict[tuple[str, str], list[float]] = {}
    amounts: dict[str, list[int]] = {}
    for row in rows:
        if row["kind"] == "block":
            seconds.setdefault((row["group"], row["contestant"]), {})[row["block"]] = row["seconds"]
            if "encoder_busy_share" in row:
                busy.setdefault((row["group"], row["contestant"]), []).append(row["encoder_busy_share"])
            else:
                amounts.setdefault(row["group"], [0, 0])
                amounts[row["group"]][0] += row["documents"]
                amounts[row["group"]][1] += row["chunks"]
    lines = []
    for (group, contestant), own in sorted(
        seconds.items(), key=lambda item: (item[0][0], item[0][1] != "encoder")
    ):
        alone = seconds[group, "encoder"]
        ratios = [alone[block] / own[block] for block in own]
        total = sum(tokens[group, block] for block in own)
        shown = "" if contestant == "encoder" else f"{sum(alone[b] for b in own) / sum(own.values()):.1%}"
        span = (
            ""
            if contestant == "encoder"
            else f"{min(ratios):.1%} to {max(ratios):.1%}, median {np.median(ratios):.1%}"
        )
        share = f"{np.mean(busy[group, contestant]):.1%}" if (group, contestant) in busy else ""
        documents, chunks = amounts[group]
        amount = f"{documents:,} documents, {chunks:,} chunks" if contestant == "encoder" else ""
        lines.append(
            [group, amount, contestant, f"{total:,}", f"{total / sum(own.values()):,.0f}", shown, span, share]
        )
    header = [
        "texts",
        "amount",
        "contestant",
        "tokens",
        "tokens/s",
        "of the encoder's rate",
        "by block",
        "encoder busy",
    ]
    groups = "; ".join(
        f"{row['group']}: {row['files']:,} files of {row['documents']:,} documents, {row['skipped']:,} records skipped"
        for row in rows
        if row["kind"] == "group"
    )
    load = machine["load_average"][0]
    return f"{machine['model']}, {describe(machine)}; load average {load:.1f}; {groups}.\n\n{table(header, lines)}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    today = datetime.datetime.now(datetime.UTC).date()
    parser.add_argument("--model", type=Path, default=Path("models/m3-tiny"))
    parser.add_argument("--corpora", type=Path, help="folder with BEIR corpora")
    parser.add_argument("--documentation", type=Path, nargs="+", help="folders of HTML, Markdown and text")
    parser.add_argument(
        "--documentation-bytes", type=int, default=10_000_000, help="the most to read of these"
    )
    parser.add_argument("--block-characters", type=int, default=2_000_000)
    parser.add_argument(
        "--seconds", type=float, default=3600.0, help="begin no block of a group after this time"
    )
    parser.add_argument(
        "--stores",
        nargs="+",
        default=["qdrant-edge", "milvus", "elasticsearch"],
        help=f"any of {', '.join([*EMBEDDED, *SERVERS])}, or a URL for connect",
    )
    parser.add_argument("--directory", help="folder for the data of embedded stores during the run")
    parser.add_argument("--out", type=Path, default=RESULTS / f"ingestion-rate-{today}.jsonl")
    parser.add_argument("--report", type=Path, help="only print the table of this file")
    options = parser.parse_args()
    if options.report is None:
        if not options.corpora and not options.documentation:
            parser.error("give --corpora or --documentation")
        with Rows(options.out) as rows:
            run(options, rows)
    print(report(options.report or options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
