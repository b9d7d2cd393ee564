"""Compares two rankings of the same queries: the difference, and whether it is significant."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.folder import EvaluationFolder, find_folders
from m3_connectors.evaluation.record import DatasetRecord, MethodRecord
from m3_connectors.evaluation.significance import (
    SIGNIFICANT,
    PairedTest,
    PairedValues,
    holm,
    paired_tests,
    resamples_for,
)


@dataclasses.dataclass(frozen=True)
class Ranking:
    """One method of one evaluation.

    Attributes:
        folder: The complete evaluation.
        method: The name of one of its methods or baselines.

    Raises:
        InvalidInput: The evaluation has no such method, or is incomplete.
    """

    folder: EvaluationFolder
    method: str

    def __post_init__(self) -> None:
        self.folder.require_complete()
        self.folder.record.method(self.method)

    @property
    def dataset(self) -> DatasetRecord:
        """The dataset of the evaluation."""
        return self.folder.record.dataset

    @property
    def record(self) -> MethodRecord:
        """The weights and candidates of the method."""
        return self.folder.record.method(self.method)

    @property
    def main_measure(self) -> str:
        """The main measure of the dataset, such as ``nDCG@10``."""
        return self.folder.record.protocol.measures[0]

    def values(self, measure: str) -> dict[str, float]:
        """Return the value of every query.

        Raises:
            InvalidInput: The evaluation lacks this measure, or lacks it for some queries.
        """
        known = self.folder.record.protocol.measures
        if measure not in known:
            raise InvalidInput(f"{self.folder.path} has no {measure}.\n  Use one of {', '.join(known)}.")
        return self.folder.values[self.method][measure]


Pair = tuple[Ranking, Ranking]
"""The rankings before and after, for the same dataset and split."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The test of one pair of rankings.

    Attributes:
        before, after: The rankings.
        measure: The name of the measure.
        test: The means, the difference, the interval and the p-value.
        adjusted_p_value: The p-value after Holm's correction for all comparisons that were made together.
    """

    before: Ranking
    after: Ranking
    measure: str
    test: PairedTest
    adjusted_p_value: float

    @property
    def real(self) -> bool:
        """Whether the difference is significant at 5 % for the whole family of comparisons."""
        return self.adjusted_p_value < SIGNIFICANT


def compare(pairs: Sequence[Pair], measure: str | None = None, *, seed: int = 0) -> list[Comparison]:
    """Test pairs of rankings; all p-values are corrected for the number of pairs.

    Copies of a query (the same text) are flipped and drawn as one, because their values are not independent.
    The number of resamples increases with the number of pairs.

    Args:
        pairs: The family of comparisons: all pairs that are considered.
        measure: The measure to compare; by default the main measure of each dataset.
        seed: The seed of all tests.

    Raises:
        InvalidInput: The rankings of a pair have different datasets or splits, or lack the measure.
    """
    measures = []
    values = []
    for before, after in pairs:
        check_comparable(before, after)
        name = measure or before.main_measure
        measures.append(name)
        values.append(PairedValues(before.values(name), after.values(name), query_texts(before.folder)))
    tests = paired_tests(values, resamples=resamples_for(len(pairs)), seed=seed)
    adjusted = holm([test.p_value for test in tests])
    return [
        Comparison(before, after, name, test, p_value)
        for (before, after), name, test, p_value in zip(pairs, measures, tests, adjusted, strict=True)
    ]


def check_comparable(before: Ranking, after: Ranking) -> None:
    """Check that two rankings can be compared.

    Raises:
        InvalidInput: Their datasets, splits, judgements or definitions of relevance differ.
    """
    one, other = before.folder.record, after.folder.record
    for what, first, second in (
        ("datasets", one.dataset.name, other.dataset.name),
        ("splits", one.dataset.split, other.dataset.split),
        ("texts or judgements", one.dataset.fingerprint[:12], other.dataset.fingerprint[:12]),
        ("kinds of judgements", one.protocol.relevance, other.protocol.relevance),
    ):
        if first != second:
            raise InvalidInput(
                f"{before.folder.path} and {after.folder.path} have different {what}: {first} and {second}.\n"
                "  Compare evaluations of the same dataset, split and judgements."
            )


def query_texts(folder: EvaluationFolder) -> dict[str, str]:
    """Return the normalised text of each query, equal for copies: one case, single spaces."""
    table = folder.queries()
    rows = zip(table["query_id"].to_pylist(), table["text"].to_pylist(), strict=True)
    return {query: " ".join(text.split()).casefold() for query, text in rows}


def pairs_of_trees(before: Path, after: Path, method: str) -> list[Pair]:
    """Pair the same method in two evaluations, or in two trees of evaluations, matched by their paths.

    Raises:
        InvalidInput: An evaluation of one tree has no counterpart in the other, or there is none.
    """
    first = {folder.path.relative_to(before): folder for folder in find_folders(before)}
    second = {folder.path.relative_to(after): folder for folder in find_folders(after)}
    if lone := sorted(first.keys() ^ second.keys()):
        there, where = (before, after) if lone[0] in first else (after, before)
        raise InvalidInput(
            f"{len(lone)} evaluations have no counterpart: {there / lone[0]} exists, but not "
            f"{where / lone[0]}.\n"
            "  Use two evaluations, or two trees with the same datasets."
        )
    return [(Ranking(first[path], method), Ranking(second[path], method)) for path in sorted(first)]


def pairs_of_methods(root: Path, methods: Sequence[str]) -> list[Pair]:
    """Pair the first method with each of the others, in every evaluation at or below a folder.

    Raises:
        InvalidInput: There are fewer than two methods, or an evaluation lacks one.
    """
    if len(set(methods)) < 2 or len(set(methods)) < len(methods):
        raise InvalidInput(
            f"methods are {', '.join(methods)}; a comparison needs two.\n  Use two or more different methods."
        )
    first, *others = methods
    return [
        (Ranking(folder, first), Ranking(folder, other)) for folder in find_folders(root) for other in others
    ]
