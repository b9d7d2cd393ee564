"""Numbers that the paper reports, version 4 of arXiv 2402.03216, in per cent, as printed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

PAPER = "arXiv 2402.03216v4"
"""Version 1 reported less on MIRACL: it removed passages whose id equals the query's."""

M3 = "M3"


@dataclasses.dataclass(frozen=True)
class PublishedNumber:
    """One number of a table.

    Attributes:
        task: ``miracl/de``, or ``miracl`` for the mean over the languages; on the split that the paper
            reports.
        method: As the runs of an evaluation are named: ``all``, ``bm25-xlmr``, ``st-me5-large``, …
        measure: As ``PaperProtocol.measures`` names it.
        per_cent: The value as printed.
        source: Section of the paper, and table.
        model: ``M3``, or how a model of an ablation was trained. Of no meaning for BM25 and other people's
            models.
    """

    task: str
    method: str
    measure: str
    per_cent: float
    source: str
    model: str = M3


def numbers_by_task() -> dict[tuple[str, str, str], float]:
    """Task, method and measure to the published value from 0 to 1; without the ablations."""
    return {
        (number.task, number.method, number.measure): number.per_cent / 100
        for number in PUBLISHED_NUMBERS
        if number.model == M3
    }


_METHODS = ("dense", "sparse", "multi_vec", "dense_sparse", "all")


def _table(source: str, task: str, measure: str, values: Mapping[str, float]) -> Iterator[PublishedNumber]:
    for method, value in values.items():
        yield PublishedNumber(task, method, measure, value, source)


def _languages(
    source: str, family: str, method: str, measure: str, values: Mapping[str, float]
) -> Iterator[PublishedNumber]:
    for language, value in values.items():
        yield PublishedNumber(f"{family}/{language}", method, measure, value, source)


def _methods(*values: float) -> dict[str, float]:
    return dict(zip(_METHODS, values, strict=True))


def _spaced(text: str) -> dict[str, float]:
    """``ar 80.2 bn 81.5`` as a dict."""
    words = text.split()
    return dict(zip(words[::2], map(float, words[1::2]), strict=True))


_MIRACL = "section 4.1, table 1"
_MKQA = "section 4.2, table 2"
_MLDR = "section 4.3, table 3"
_NARRATIVEQA = "section 4.3, table 4"
_DISTILLATION = "section 4.4, table 5"
_STAGES = "section 4.4, table 6"

PUBLISHED_NUMBERS: tuple[PublishedNumber, ...] = (
    *_table(_MIRACL, "miracl", "nDCG@10", _methods(69.2, 53.9, 70.5, 70.4, 71.5)),
    *_table(
        _MIRACL,
        "miracl",
        "nDCG@10",
        {
            "bm25-xlmr": 31.9,
            "st-me5-large": 66.6,
            "st-e5-mistral-7b": 63.4,
            "openai-text-embedding-3-large": 54.9,
        },
    ),
    *_languages(
        _MIRACL,
        "miracl",
        "all",
        "nDCG@10",
        _spaced(
            "ar 80.2 bn 81.5 en 59.6 es 59.7 fa 63.4 fi 80.4 fr 61.2 hi 63.3 id 59.0 ja 75.2 ko 72.1 ru 71.7 sw 79.6 "
            "te 88.1 th 83.7 zh 64.9 de 59.8 yo 83.5"
        ),
    ),
    *_table(_MKQA, "mkqa", "Recall@100", _methods(75.1, 45.3, 75.3, 75.3, 75.5)),
    *_table(_MKQA, "mkqa", "Recall@100", {"bm25-xlmr": 39.9}),
    *_table(_MLDR, "mldr", "nDCG@10", _methods(52.5, 62.2, 57.6, 64.8, 65.0)),
    *_table(_MLDR, "mldr", "nDCG@10", {"bm25-xlmr": 53.6, "bm25-analysers": 64.1}),
    *_languages(
        _MLDR,
        "mldr",
        "all",
        "nDCG@10",
        _spaced(
            "ar 64.7 de 57.9 en 63.8 es 86.8 fr 83.9 hi 52.2 it 75.5 ja 60.1 ko 55.7 pt 85.4 ru 73.8 th 44.7 zh 40.0"
        ),
    ),
    PublishedNumber("mldr", "dense", "nDCG@10", 41.2, _MLDR, "M3 without fine-tuning on long texts"),
    PublishedNumber("mldr", "dense", "nDCG@10", 45.0, _MLDR, "M3 without fine-tuning on long texts, MCLS"),
    *_table(_NARRATIVEQA, "narrativeqa", "nDCG@10", _methods(48.7, 57.5, 55.4, 60.1, 61.7)),
    *(
        PublishedNumber(
            "miracl", method, "nDCG@10", value, _DISTILLATION, "M3 without self-knowledge distillation"
        )
        for method, value in (("dense", 68.7), ("sparse", 36.7), ("multi_vec", 69.3))
    ),
    PublishedNumber("miracl", "dense", "nDCG@10", 60.5, _STAGES, "fine-tuning only"),
    PublishedNumber("miracl", "dense", "nDCG@10", 66.1, _STAGES, "RetroMAE and fine-tuning"),
)
