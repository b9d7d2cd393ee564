"""The numbers of documents and queries of the catalogue's tasks, to detect an incomplete copy.

Each number stands in two public places, on the card of the dataset itself, or was counted by MTEB at our
commit:

- MIRACL: the metadata of ir_datasets 0.6.3, and MTEB's descriptive statistics of MIRACLRetrieval (dev); but
for German
  and Yoruba also the table of the paper's first version. The parts of a corpus: the loaders of ir_datasets
  and of others who copied the hub's own script.
- MKQA: the README of FlagEmbedding's C_MTEB/MKQA, which made the files. Passages of BeIR/nq: the metadata of
  ir_datasets, and public code that counts the file at our commit.
- MLDR: the card of the dataset, and MTEB's descriptive statistics of MultiLongDocRetrieval (dev).
- NarrativeQA: questions on the card of the dataset; documents of ``test`` in MTEB's descriptive statistics of
  NarrativeQARetrieval. Of the other splits no documents are known from two places: only the questions are
  checked.
"""

from __future__ import annotations

import dataclasses

from m3_connectors.evaluation.datasets.catalogue import MKQA


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of a complete task.

    Attributes:
        queries: The number of queries in its files, including those that cannot be measured.
        documents: The number of documents in its corpus; None if it is not certain.
        parts: The number of files of the corpus, if their names do not contain it.
    """

    queries: int
    documents: int | None = None
    parts: int | None = None


def size_of(family: str, language: str | None, split: str) -> Size | None:
    """The size of a task of the catalogue; None where the dataset has no such split."""
    return SIZES.get((family, language, split))


_MIRACL = """
    ar  2061414  5 2896 3495
    bn   297265  1  411 1631
    en 32893221 66  799 2863
    es 10373953 21  648 2162
    fa  2207172  5  632 2107
    fi  1883509  4 1271 2897
    fr 14636953 30  343 1143
    hi   506264  2  350 1169
    id  1446315  3  960 4071
    ja  6953614 14  860 3477
    ko  1486752  3  213  868
    ru  9543918 20 1252 4683
    sw   131924  1  482 1901
    te   518079  2  828 3452
    th   542166  2  733 2972
    zh  4934368 10  393 1312
    de 15866222 32  305    0
    yo    49043  1  119    0
"""
"""Language, passages, files of passages, questions of dev and of train."""

_MLDR = """
    ar   7607 200 200  1817
    de  10000 200 200  1847
    en 200000 800 200 10000
    es   9551 200 200  2254
    fr  10000 200 200  1608
    hi   3806 200 200  1618
    it  10000 200 200  2151
    ja  10000 200 200  2262
    ko   6176 200 200  2198
    pt   6569 200 200  1845
    ru  10000 200 200  1864
    th  10000 200 200  1970
    zh 200000 800 200 10000
"""
"""Language, documents, questions of test, dev and train."""


def _sizes() -> dict[tuple[str, str | None, str], Size]:
    sizes: dict[tuple[str, str | None, str], Size] = {
        ("narrativeqa", None, "test"): Size(10_557, 355),
        ("narrativeqa", None, "validation"): Size(3_461),
        ("narrativeqa", None, "train"): Size(32_747),
    }
    for language, *numbers in map(str.split, _MIRACL.strip().splitlines()):
        documents, parts, dev, train = map(int, numbers)
        sizes["miracl", language, "dev"] = Size(dev, documents, parts)
        if train:
            sizes["miracl", language, "train"] = Size(train, documents, parts)
    for language, *numbers in map(str.split, _MLDR.strip().splitlines()):
        documents, *queries = map(int, numbers)
        for split, count in zip(("test", "dev", "train"), queries, strict=True):
            sizes["mldr", language, split] = Size(count, documents)
    for language in MKQA.languages:
        sizes["mkqa", language, "test"] = Size(6_619, 2_681_468)
    return sizes


SIZES = _sizes()
