"""Training pairs, tokenised once and stored in memory-mapped arrays.

Distinct texts are tokenised once and stored in a compact cache. A pair consists of two text numbers, so that
equal passages and equal queries have equal numbers. The hard negatives of a line are a part of one long array,
which the pairs of the line share.
"""

from __future__ import annotations

import hashlib
import json
import logging
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tokenizers import Tokenizer

from m3_connectors.files import replacing
from m3_connectors.training.dense_teacher import text_key
from m3_connectors.training.pairs import PairFiles, fingerprint_files, read_lines

_log = logging.getLogger(__name__)

_CACHE_FORMAT = 6
_TOKENISE_AT_ONCE = 4096


@dataclass(frozen=True)
class HardNegatives:
    """The hard negatives of all pairs; those of pair i are ``texts[starts[i] : ends[i]]``.

    Attributes:
        starts: int64 ``[pairs]``.
        ends: int64 ``[pairs]``.
        texts: int32 ``[total]``, the text number of each negative.
        scores: float32 ``[total]``, the teacher's score of each negative; NaN without one.
        positive_scores: float32 ``[pairs]``, the teacher's score of each pair's passage; NaN without one.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    texts: NDArray[np.int32]
    scores: NDArray[np.float32]
    positive_scores: NDArray[np.float32]


@dataclass(frozen=True)
class PairStore:
    """All pairs of a folder, tokenised without special tokens.

    Attributes:
        tokens: uint16 or int32 ``[total]``, the concatenated texts (memory-mapped).
        offsets: int64 ``[texts + 1]``; the tokens of text i are ``tokens[offsets[i] : offsets[i + 1]]``.
        query: int32 ``[pairs]``, the text number of each pair's query.
        passage: int32 ``[pairs]``, the text number of each pair's passage.
        keys: uint64 ``[texts]``, ``text_key`` of each text.
        source: int16 ``[pairs]``, the position in ``sources``.
        query_language: int16 ``[pairs]``, the position in ``languages``.
        passage_language: int16 ``[pairs]``, the position in ``languages``.
        held_out: bool ``[pairs]``, whether the pair is excluded from training, for validation.
        alone: bool ``[pairs]``, whether it is a text without a query, which is then the passage and the query.
        sources: The names of the files, without suffix.
        languages: The language codes.
        hard: The hard negatives.
        unused: The number of lines with a key that is not used (``pairs.Line.unused``), by key.
        broken: The first messages of broken lines, which are skipped.
        broken_lines: The number of all broken lines.
        truncated_texts: The number of texts that have more tokens than the model has positions.
    """

    tokens: NDArray[Any]
    offsets: NDArray[np.int64]
    query: NDArray[np.int32]
    passage: NDArray[np.int32]
    keys: NDArray[np.uint64]
    source: NDArray[np.int16]
    query_language: NDArray[np.int16]
    passage_language: NDArray[np.int16]
    held_out: NDArray[np.bool_]
    alone: NDArray[np.bool_]
    sources: tuple[str, ...]
    languages: tuple[str, ...]
    hard: HardNegatives
    unused: Mapping[str, int]
    broken: tuple[str, ...]
    broken_lines: int
    truncated_texts: int

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.query)

    def text(self, number: int) -> NDArray[Any]:
        """Return the token ids of one text, without special tokens."""
        return self.tokens[self.offsets[number] : self.offsets[number + 1]]

    @property
    def pairs_by_source(self) -> dict[str, int]:
        """The number of pairs for training of each source."""
        counts = np.bincount(self.source[~np.asarray(self.held_out)], minlength=len(self.sources))
        return dict(zip(self.sources, counts.tolist(), strict=True))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of tokens of each text, without special tokens."""
        return np.diff(self.offsets)

    @property
    def cross_lingual(self) -> NDArray[np.bool_]:
        """Which pairs have a query in a different language than their passage."""
        return np.not_equal(self.query_language, self.passage_language)


_ARRAYS = (
    "tokens",
    "offsets",
    "query",
    "passage",
    "keys",
    "source",
    "query_language",
    "passage_language",
    "held_out",
    "alone",
)
_HARD_ARRAYS = tuple(field.name for field in fields(HardNegatives))
_BROKEN_NAMED = 10
"""Broken lines whose messages are kept."""


def open_pairs(
    folder: PairFiles,
    tokenizer: Tokenizer,
    cache: Path,
    *,
    longest: int,
    held_out_share: float,
    linked_sources: tuple[str, ...] = (),
) -> PairStore:
    """Open a folder of pairs with its token cache, which is created by the first call.

    Args:
        folder: The folder of the JSONL files, or files and folders.
        tokenizer: The tokenizer of the model.
        cache: The folder of the cache; it is rebuilt if the files, the tokenizer or a setting has changed.
        longest: Texts are truncated to this many tokens.
        held_out_share: The share of passages excluded from training, selected by a hash.
        linked_sources: The prefixes of sources whose pairs are held out in clusters: two pairs that share a
            text are both held out or both used, so that no translation of a held-out question is used for
            training.

    Returns:
        The pairs; their arrays are memory-mapped.
    """
    settings = {
        "format": _CACHE_FORMAT,
        "files": fingerprint_files(folder),
        "tokenizer": hashlib.sha256(tokenizer.to_str().encode()).hexdigest(),
        "longest": longest,
        "held_out_share": held_out_share,
        "linked_sources": list(linked_sources),
    }
    fingerprint = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    try:
        if kept := _open(cache, fingerprint):
            return kept
    except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
        _log.warning(f"{cache} is damaged and is made again: {error}")
    _build(folder, tokenizer, cache, fingerprint, longest, held_out_share, linked_sources)
    fresh = _open(cache, fingerprint)
    assert fresh is not None
    return fresh


def _open(cache: Path, fingerprint: str) -> PairStore | None:
    """A cache as it was written; None if there is none, or another one."""
    index = cache / "index.json"
    names: dict[str, Any] = json.loads(index.read_text()) if index.exists() else {"fingerprint": None}
    if names["fingerprint"] != fingerprint:
        return None
    arrays = {name: np.load(cache / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
    hard = {name: np.load(cache / f"hard_{name}.npy", mmap_mode="r") for name in _HARD_ARRAYS}
    return PairStore(
        **arrays,
        hard=HardNegatives(**hard),
        sources=tuple(names["sources"]),
        languages=tuple(names["languages"]),
        unused=names["unused"],
        broken=tuple(names["broken"]),
        broken_lines=names["broken_lines"],
        truncated_texts=names["truncated_texts"],
    )


def _build(
    folder: PairFiles,
    tokenizer: Tokenizer,
    cache: Path,
    fingerprint: str,
    longest: int,
    held_out_share: float,
    linked_sources: tuple[str, ...],
) -> None:
    numbers: dict[str, int] = {}
    sources: dict[str, int] = {}
    languages: dict[str, int] = {}
    unused: Counter[str] = Counter()
    broken: list[str] = []
    broken_lines = 0
    rows: list[tuple[int, ...]] = []
    spans: list[tuple[int, int]] = []
    negatives, scores, positive_scores = array("i"), array("f"), array("f")
    for line in read_lines(folder):
        if line.broken:
            broken_lines += 1
            broken += [line.broken] if broken_lines <= _BROKEN_NAMED else []
            continue
        unused.update(line.unused)
        rows.extend(
            (
                numbers.setdefault(pair.query, len(numbers)),
                numbers.setdefault(pair.positive, len(numbers)),
                sources.setdefault(pair.source, len(sources)),
                languages.setdefault(pair.lang_q, len(languages)),
                languages.setdefault(pair.lang_p, len(languages)),
                int(pair.alone),
            )
            for pair in line.pairs
        )
        start = len(negatives)
        negatives.extend(numbers.setdefault(text, len(numbers)) for text in line.negatives)
        scores.extend(line.negative_scores)
        spans += [(start, len(negatives))] * len(line.pairs)
        positive_scores.extend(pair.score for pair in line.pairs)
    texts = list(numbers)
    columns = np.array(rows, np.int32).reshape(-1, 6).T
    query, passage, source, query_language, passage_language, alone = columns
    linked = np.array([name.startswith(linked_sources) if linked_sources else False for name in sources])
    groups = _clusters(query, passage, linked[source], len(texts))
    held_texts = np.array([_hash_share(texts[group]) < held_out_share for group in range(len(texts))])

    pieces = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.int32
    chunks: list[NDArray[Any]] = []
    lengths = np.zeros(len(texts), np.int64)
    truncated_texts = 0
    for start in range(0, len(texts), _TOKENISE_AT_ONCE):
        batch = tokenizer.encode_batch(texts[start : start + _TOKENISE_AT_ONCE], add_special_tokens=False)
        for number, encoding in enumerate(batch, start):
            ids = np.array(encoding.ids[:longest], pieces)
            truncated_texts += len(encoding.ids) > longest
            chunks.append(ids)
            lengths[number] = len(ids)

    cache.mkdir(parents=True, exist_ok=True)
    (cache / "index.json").unlink(missing_ok=True)
    arrays = {
        "tokens": np.concatenate(chunks) if chunks else np.zeros(0, pieces),
        "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "query": query,
        "passage": passage,
        "keys": np.array([text_key(text) for text in texts], np.uint64),
        "source": source.astype(np.int16),
        "query_language": query_language.astype(np.int16),
        "passage_language": passage_language.astype(np.int16),
        "held_out": held_texts[groups[passage]],
        "alone": alone.astype(np.bool_),
    }
    starts, ends = np.array(spans, np.int64).reshape(-1, 2).T
    hard = HardNegatives(
        starts,
        ends,
        np.array(negatives, np.int32),
        np.array(scores, np.float32),
        np.array(positive_scores, np.float32),
    )
    arrays |= {f"hard_{name}": getattr(hard, name) for name in _HARD_ARRAYS}
    for name, values in arrays.items():
        np.save(cache / f"{name}.npy", values)
    # The index is written last and atomically: a cache without an index is incomplete.
    names = {
        "fingerprint": fingerprint,
        "sources": list(sources),
        "languages": list(languages),
        "unused": unused,
        "broken": broken,
        "broken_lines": broken_lines,
        "truncated_texts": truncated_texts,
    }
    with replacing(cache / "index.json") as fresh:
        fresh.write_text(json.dumps(names))


def _clusters(
    query: NDArray[np.int32], passage: NDArray[np.int32], linked: NDArray[np.bool_], texts: int
) -> NDArray[np.int64]:
    """Return the first text number of each text's cluster; only linked pairs connect their two texts."""
    links = coo_array(
        (np.ones(linked.sum(), np.int8), (query[linked], passage[linked])), shape=(texts, texts)
    )
    _, label = connected_components(links, directed=False)
    first: NDArray[np.int64] = np.full(label.max() + 1 if texts else 0, texts, np.int64)
    np.minimum.at(first, label, np.arange(texts))
    by_text: NDArray[np.int64] = first[label]
    return by_text


def _hash_share(text: str) -> float:
    """Return a number in [0, 1) that depends only on the text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big") / 2**48
