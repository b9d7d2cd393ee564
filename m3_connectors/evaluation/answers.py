"""Relevance by answer strings, as in MKQA: a relevant passage contains the tokens of an answer in sequence.

The rule is DPR's, in the version that the paper's scripts use (FlagEmbedding, ``C_MTEB/MKQA``): text and
answer are decomposed (NFD) and cut into runs of letters, digits and marks, and single other signs; case does
not count, nor does what stands between tokens. One deviation: an answer without a token is found nowhere,
where the scripts find it in every passage.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from m3_connectors.errors import InvalidInput, MissingDependency

if TYPE_CHECKING:
    import regex

    from m3_connectors.evaluation.datasets.dataset import Dataset, Qrels


def tokens(text: str) -> list[str]:
    """Return the tokens of a text: lower-case runs of letters, digits and marks, and single other characters.

    Raises:
        MissingDependency: regex is not installed.
    """
    return [token.lower() for token in _pattern().findall(unicodedata.normalize("NFD", text))]


def has_answer(answers: Iterable[str], text: str) -> bool:
    """Return whether a text contains the tokens of one of the answers in sequence."""
    joined = _joined(text)
    return any(_in(_joined(answer), joined) for answer in answers)


def judge(dataset: Dataset, found: Mapping[str, Iterable[str]]) -> Qrels:
    """Judge the documents that were found by the answers of the dataset, reading the corpus once.

    Args:
        dataset: A dataset with answers.
        found: The ids of documents by query id, from all rankings that will be measured with these
            judgements.

    Returns:
        For every query of the dataset, the grade of each document found for it: 1 if it has an answer, else
            0. With
        ``relevance="answers"``, ``Recall@k`` is 1 for a query with such a document in its first k (paper,
        4.2).

    Raises:
        InvalidInput: The dataset has no answers, or a document or a query is not in the dataset.
        MissingDependency: regex is not installed.
    """
    if not dataset.answers:
        raise InvalidInput(
            f"{dataset.name} has judgements of documents, not answers.\n"
            "  Measure it with its judgements, or use a dataset with answers, such as MKQA."
        )
    strangers = [query for query in found if query not in dataset.queries]
    if strangers:
        raise InvalidInput(
            f"{strangers[0]!r} is not a query of {dataset.name}.\n"
            "  Check that the run belongs to this dataset."
        )
    queries_of: dict[str, list[str]] = {}
    for query, ids in found.items():
        for id in ids:
            queries_of.setdefault(id, []).append(query)
    answers = {query: [_joined(answer) for answer in dataset.answers[query]] for query in found}
    qrels: Qrels = {query: {} for query in dataset.queries}
    for document in dataset.documents:
        queries = queries_of.pop(document.id, ())
        text = _joined(document.text) if queries else ""
        for query in queries:
            qrels[query][document.id] = int(any(_in(answer, text) for answer in answers[query]))
    if queries_of:
        raise InvalidInput(
            f"{len(queries_of):,} of the documents found are not in {dataset.name}, such as "
            f"{next(iter(queries_of))!r}.\n  Check that the run belongs to this dataset."
        )
    return {query: dict(sorted(grades.items())) for query, grades in qrels.items()}


def unify_punctuation(text: str) -> str:
    """Prepare MKQA's passages as the paper does: one form of each hyphen, quote and slash; no controls.

    The case is not changed.
    """
    return text.translate(_punctuation()).replace(" . . . ", " ... ")


def _joined(text: str) -> str:
    """Join tokens with line breaks, which no token contains, so that a subsequence is a substring."""
    return "\n".join(["", *tokens(text), ""])


def _in(answer: str, text: str) -> bool:
    return answer != "\n" and answer in text


@functools.cache
def _pattern() -> regex.Pattern[str]:
    try:
        import regex
    except ImportError:
        raise MissingDependency("regex", "eval") from None
    return regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")


@functools.cache
def _punctuation() -> dict[int, str]:
    controls = [*range(0x01, 0x09), 0x0E, 0x0F, *range(0x11, 0x1C), 0xAD]
    kinds = {
        "": map(chr, controls),
        " ": "\x0b\x0c\x85",
        "-": "‐‑⁃‒–—―−－⁻",
        '"': "“”„‟",
        "'": "‘’‚‛՚Ꞌꞌ＇`´′‵",
        "''": "″‶",
        "'''": "‴‷",
        "''''": "⁗",
        "...": "…",
        "/": "⁄∕",
    }
    return {ord(sign): unified for unified, signs in kinds.items() for sign in signs}
