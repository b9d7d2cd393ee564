"""Compares measured means with the published ones, and lists the deviations from the paper."""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

from m3_connectors.evaluation.datasets.catalogue import CATALOGUE
from m3_connectors.evaluation.datasets.dataset import PaperProtocol
from m3_connectors.evaluation.datasets.sizes import size_of
from m3_connectors.evaluation.folder import EvaluationFolder
from m3_connectors.evaluation.record import EvaluationRecord, MethodRecord
from m3_connectors.evaluation.simplex import direction
from m3_connectors.methods import METHODS

Published = Mapping[tuple[str, str, str], float]
"""The published numbers by task, method and measure, from 0 to 1 (``datasets.published.numbers_by_task``)."""

PAPER_RUNS = {f"{name}-paper": name for name in ("all", "dense_sparse")}
"""The names of runs with the paper's weights, and the paper's names of these methods."""


@dataclasses.dataclass(frozen=True)
class BesidePublished:
    """A measured mean and the published one.

    Attributes:
        task: A dataset, or a family such as ``miracl``: the mean over all its languages.
        method: The name of the run.
        measure: The name of the measure.
        model: The model of the vectors.
        fusion: The fusion of the evaluation's protocol.
        measured: The measured value, from 0 to 1.
        published: The published value, from 0 to 1.
        deviations: The deviations from the paper, for display; if there are any, the experiment is a
            different one.
    """

    task: str
    method: str
    measure: str
    model: str
    fusion: str
    measured: float
    published: float
    deviations: tuple[str, ...]

    @property
    def difference(self) -> float | None:
        """Measured minus published; None if the experiment differs from the paper's."""
        return None if self.deviations else self.measured - self.published


@dataclasses.dataclass(frozen=True)
class _Measured:
    """One run: its mean by measure, and its deviations from the paper by subject (weights, documents, …)."""

    means: Mapping[str, float]
    deviations: Mapping[str, str]


def beside_published(folders: Sequence[EvaluationFolder], published: Published) -> list[BesidePublished]:
    """Return what was measured on the paper's split with all its queries and, for a mean, in all languages.

    Partial measurements and datasets that the paper does not have are omitted. If weights, lists, lengths or
    the size of the dataset differ from the paper's, the row lists the deviations and has no difference.

    Args:
        folders: The complete evaluations.
        published: The numbers of the paper.
    """
    rows = []
    # Languages are averaged if the same model searched the same store in the same way.
    families: dict[tuple[str, str], dict[str, dict[str, _Measured]]] = defaultdict(dict)
    records: dict[tuple[str, str], EvaluationRecord] = {}
    for folder in folders:
        record = folder.record
        dataset, protocol = record.dataset, record.protocol
        entry = CATALOGUE.get(dataset.family)
        if entry is None or dataset.split != entry.splits[0] or protocol.limit_queries is not None:
            continue
        means = folder.means()
        runs = {
            method.name: _Measured(means[method.name], _deviations(record, method, entry.paper))
            for method in record.methods
        }
        rows += _beside(dataset.name, record, runs, published)
        if dataset.name != dataset.family:
            family = dataset.family, f"{record.model} {record.store.url} {protocol}"
            families[family][dataset.name] = runs
            records[family] = record
    for family, by_language in families.items():
        if by_language.keys() == set(CATALOGUE[family[0]].names()):
            rows += _beside(family[0], records[family], _mean(list(by_language.values())), published)
    return rows


def paper_weights(method: str, paper: PaperProtocol) -> tuple[float, float, float] | None:
    """Return the paper's weights for a method on a dataset; None if it has no specific ones."""
    return {"all": paper.all, "dense_sparse": paper.dense_sparse}.get(method)


def _deviations(record: EvaluationRecord, run: MethodRecord, paper: PaperProtocol) -> dict[str, str]:
    """Return the deviations from the paper, by subject."""
    found: dict[str, str] = {}
    dataset, protocol = record.dataset, record.protocol
    if size := size_of(dataset.family, dataset.name.partition("/")[2] or None, dataset.split):
        for what, here, whole in (
            ("documents", dataset.documents, size.documents),
            ("queries", dataset.queries, size.queries),
        ):
            if whole not in (None, here):
                found[what] = f"{here:,} of {whole:,} {what}"
    for what, cut, theirs in (
        ("queries cut", protocol.query_max_length, paper.query_max_length),
        ("documents cut", protocol.passage_max_length, paper.passage_max_length),
    ):
        if cut not in (None, theirs):
            at = f"{theirs:,}" if theirs else "the model's maximum"
            found[what] = f"{what} at {cut:,} tokens, not {at}"
    if run.weights is None:
        return found
    method = METHODS.get(PAPER_RUNS.get(run.name, run.name))
    if method is None:
        return found
    weights = paper_weights(method.name, paper) or tuple(method.weights)
    if direction(run.weights) != direction(weights):
        found["weights"] = f"weights {_numbers(run.weights)}, not {_numbers(weights)}"
    if run.candidates != method.candidates:
        found["candidates"] = f"candidates {run.candidates}, not {dict(method.candidates)}"
    if not protocol.exact_lists:
        found["lists"] = "approximate lists"
    return found


def _numbers(weights: Sequence[float]) -> str:
    return " ".join(f"{weight:g}" for weight in weights)


def _mean(languages: Sequence[Mapping[str, _Measured]]) -> dict[str, _Measured]:
    """Return the mean over languages, by run, of what all of them have."""
    means = {}
    for name, first in languages[0].items():
        if all(name in language for language in languages):
            runs = [language[name] for language in languages]
            values = {
                measure: statistics.fmean(run.means[measure] for run in runs) for measure in first.means
            }
            means[name] = _Measured(values, _joined([run.deviations for run in runs]))
    return means


def _joined(deviations: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return all deviations; those that are not the same in all languages with the number of languages."""
    joined = {}
    for what in dict.fromkeys(what for one in deviations for what in one):
        said = [one[what] for one in deviations if what in one]
        same = len(said) == len(deviations) and len(set(said)) == 1
        joined[what] = said[0] if same else f"{what} in {len(said)} of {len(deviations)} languages"
    return joined


def _beside(
    task: str, record: EvaluationRecord, runs: Mapping[str, _Measured], published: Published
) -> list[BesidePublished]:
    return [
        BesidePublished(
            task,
            name,
            measure,
            record.model.name,
            record.protocol.fusion,
            mean,
            published[number],
            tuple(run.deviations.values()),
        )
        for name, run in runs.items()
        for measure, mean in run.means.items()
        if (number := (task, PAPER_RUNS.get(name, name), measure)) in published
    ]
