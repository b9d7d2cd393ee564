"""What the benchmarks of ingestion share: a placeholder for an encoder, documents, memory over time, raw rows."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import scipy.sparse as sp

from m3_connectors import Document, Index
from m3_connectors.embeddings import COMPONENTS, Component, Float32, M3Embeddings, ModelInfo, MultiVectors
from m3_connectors.testing.servers.start import Running, start

Row = dict[str, Any]

_BANK = 4096
_SPARSE_TOKENS = 16
_WORDS = [
    "amber",
    "basin",
    "copper",
    "delta",
    "ember",
    "fjord",
    "garnet",
    "harbour",
    "island",
    "jasper",
    "kernel",
    "lantern",
    "meadow",
    "nickel",
    "orchard",
    "pepper",
    "quarry",
    "ribbon",
    "saddle",
    "timber",
    "umber",
    "valley",
    "walnut",
    "yonder",
    "zephyr",
]


class PlaceholderEncoder:
    """An encoder without a network: vectors depend only on the text, and cost far less than any store's write.

    Args:
        dimension: The width of vectors.
        rows: The number of multi-vector rows of every text.
        vocabulary_size: The number of token ids.

    Attributes:
        calls: How often ``encode`` was called.
        texts: How many texts were encoded.
    """

    recommended_weights: Mapping[str, tuple[float, float, float]] = {}

    def __init__(self, dimension: int = 256, rows: int = 4, vocabulary_size: int = 59_500) -> None:
        self.info = ModelInfo(
            "benchmark/placeholder",
            None,
            dimension,
            vocabulary_size,
            "placeholder",
            f"{dimension}-{rows}" * 4,
        )
        self._rows = rows
        bank = np.random.default_rng(0).standard_normal((_BANK, dimension), dtype=np.float32)
        self._bank = _unit(bank)
        self.calls = self.texts = 0

    def encode(self, texts: Sequence[str], *, components: Sequence[Component] = COMPONENTS) -> M3Embeddings:
        self.calls += 1
        self.texts += len(texts)
        seeds = _seeds(texts)
        sparse = self._sparse(seeds) if "sparse" in components else None
        rows = None
        if "multivector" in components:
            at = (
                seeds[:, :1] + np.arange(self._rows, dtype=np.uint64) * (seeds[:, 1:] | np.uint64(1))
            ) % _BANK
            rows = MultiVectors(
                self._bank[at.ravel()], np.arange(0, len(texts) * self._rows + 1, self._rows, dtype=np.int64)
            )
        dense = self.dense(texts, seeds) if "dense" in components else None
        return M3Embeddings(dense, sparse, rows, model=self.info)

    def dense(self, texts: Sequence[str], seeds: Any = None) -> Float32:
        """Return the dense vectors alone, float32 ``[n, dimension]``."""
        seeds = _seeds(texts) if seeds is None else seeds
        return _unit(self._bank[seeds[:, 0] % _BANK] + self._bank[seeds[:, 1] % _BANK])

    def token_spans(self, text: str) -> Any:
        spans = [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]
        return np.array(spans, dtype=np.int64).reshape(-1, 2)

    def token_strings(self, text: str) -> list[str]:
        return ["token"] * self._rows

    def id_to_token(self, id: int) -> str | None:
        return str(id)

    def _sparse(self, seeds: Any) -> sp.csr_array:
        count, size = len(seeds), self.info.vocabulary_size
        # Distinct and ascending within a text: one id of each of 16 equal parts of the vocabulary.
        part = size // _SPARSE_TOKENS
        steps = np.arange(_SPARSE_TOKENS, dtype=np.uint64)
        columns = (seeds[:, :1] >> steps) % np.uint64(part) + steps * np.uint64(part)
        weights = ((seeds[:, 1:] >> steps) % np.uint64(100)).astype(np.float32) / 200 + np.float32(0.01)
        pointers = np.arange(0, count * _SPARSE_TOKENS + 1, _SPARSE_TOKENS)
        return sp.csr_array(
            (weights.ravel(), columns.ravel().astype(np.int32), pointers), shape=(count, size)
        )


def _seeds(texts: Sequence[str]) -> Any:
    """Return two numbers for each text, uint64 ``[n, 2]``."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts)
    return np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)


def _unit(rows: Float32) -> Float32:
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def synthetic(number: int, version: int = 0) -> Document:
    """Return a seeded document of about 300 characters; all are different."""
    mixed = hashlib.blake2b(f"{number}/{version}".encode(), digest_size=48).digest()
    words = " ".join(_WORDS[byte % len(_WORDS)] for byte in mixed)
    return Document(
        f"document-{number:07d}",
        f"{number}, version {version}. {words}.",
        {"n": number, "group": number % 100},
    )


def text_files(folders: Iterable[Path], limit_bytes: int, endings: Sequence[str]) -> list[Path]:
    """Return a seeded sample of the files with these endings below folders, up to a total size."""
    found = sorted(
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix.lower() in endings and not path.is_symlink() and path.is_file()
    )
    sample: list[Path] = []
    left = limit_bytes
    for path in random.Random(0).sample(found, len(found)):
        if path.stat().st_size <= left:
            left -= path.stat().st_size
            sample.append(path)
    return sample


# -- stores


@contextlib.contextmanager
def running(store: str) -> Iterator[Running]:
    """Run a server of this name for the block."""
    server = start(store)
    try:
        yield server
    finally:
        server.stop()


def ids_of(index: Index) -> list[str]:
    """Return all ids of a collection, as its store lists them, with repetitions if there are any."""
    return list(index.scan_ids())


# -- memory over time


class MemoryTrace:
    """Calls ``on_sample`` with the seconds since the start and this process's memory, twice a second."""

    def __init__(self, on_sample: Callable[[float, Row], None], every_seconds: float = 0.5) -> None:
        self._on_sample, self._every = on_sample, every_seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def __enter__(self) -> MemoryTrace:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._every):
            self._on_sample(time.monotonic() - self._began, resident_memory())


def resident_memory() -> Row:
    """Return this process's resident memory in MiB: all of it, what it allocated, and what it maps of files.

    An embedded engine maps the files of its collection: the system counts the pages that it has read, and takes them
    back when it needs memory.
    """
    fields = dict(
        line.split(":") for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    )
    names = {"memory_mib": "VmRSS", "allocated_mib": "RssAnon", "mapped_mib": "RssFile"}
    return {name: round(int(fields[field].split()[0]) / 2**10, 1) for name, field in names.items()}


# -- rows and tables


class Rows:
    """A JSON Lines file of raw rows, compressed if its name ends in ``.gz``; each is written at once."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str]
        if path.suffix == ".gz":
            self._file = gzip.open(path, "wt", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
        else:
            self._file = path.open("w", encoding="utf-8")
        self.path = path

    def write(self, row: Row) -> Row:
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()
        return row

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    return [json.loads(line) for line in text.split("\n") if line]


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join(lines)


def log(message: str) -> None:
    """Tell the user how far the run is."""
    print(f"[{time.strftime('%H:%M:%S')}] {message}", file=sys.stderr, flush=True)
