"""``m3 index`` gives a new collection of a compact precision its first texts, from which it learns its centre."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from m3_connectors import M3Encoder, connect
from m3_connectors.cli.app import main
from m3_connectors.embeddings import M3Embeddings


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The texts of each call of an encoder."""
    calls: list[list[str]] = []
    real = M3Encoder.encode

    def encode(self: M3Encoder, texts: Sequence[str], **choices: Any) -> M3Embeddings:
        calls.append(list(texts))
        return real(self, texts, **choices)

    monkeypatch.setattr(M3Encoder, "encode", encode)
    return calls


def command(checkpoint: Path, folder: Path, *options: str) -> list[str]:
    texts = ["the quick brown fox " * (1000 if n == 3 else 2) + f"of {n}" for n in range(25)]
    lines = [json.dumps({"id": str(n), "text": text}) for n, text in enumerate(texts)]
    (folder / "notes.jsonl").write_text("\n".join(lines))
    url = f"qdrant:{folder}/store"
    return ["index", url, str(folder / "notes.jsonl"), "--model", str(checkpoint), *options]


@pytest.mark.filterwarnings("ignore:.*truncated")
def test_a_compact_collection_learns_from_the_first_twenty_texts(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[list[str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    call = command(checkpoint, tmp_path, "--multivector-dtype", "int2")
    assert main(call) == 0
    sample, *batches = encoded
    texts = [text for batch in batches for text in batch]
    assert len(texts) == 25
    assert sample == [text[:2000] for text in texts[:20]]
    # The documents that were read for it are stored, and are traced to their file like all others.
    with connect(f"qdrant:{tmp_path}/store", create=False) as index:
        assert index.count() == 25
    encoded.clear()
    assert main(call) == 0
    assert sum(map(len, encoded)) == 25, "an existing collection has its centre"


@pytest.mark.filterwarnings("ignore:.*truncated")
@pytest.mark.parametrize(
    "options",
    [(), ("--multivector-dtype", "float32"), ("--multivector-dtype", "int2", "--components", "dense")],
)
def test_no_other_collection_has_a_text_encoded_twice(
    options: tuple[str, ...],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    encoded: list[list[str]],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command(checkpoint, tmp_path, *options)) == 0
    assert sum(map(len, encoded)) == 25
