"""Measured means beside the published ones."""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

from m3_connectors.evaluation.datasets.catalogue import CATALOGUE
from m3_connectors.evaluation.folder import EvaluationFolder


@dataclasses.dataclass(frozen=True)
class BesidePublished:
    """A mean beside the one that was published.

    Attributes:
        task: A dataset, or a family such as ``miracl``: the mean over all its languages.
        method: Name of the run.
        measure: In what.
        measured: Here, from 0 to 1.
        published: There, from 0 to 1.
    """

    task: str
    method: str
    measure: str
    measured: float
    published: float

    @property
    def difference(self) -> float:
        """Measured minus published."""
        return self.measured - self.published


def beside_published(
    folders: Sequence[EvaluationFolder], published: Mapping[tuple[str, str, str], float]
) -> list[BesidePublished]:
    """What was measured as it was published: on the paper's split, all of its queries, and for a mean all languages.

    Anything less is another number and is left out, and so are datasets that the paper does not have.

    Args:
        folders: Complete evaluations.
        published: By task, method and measure, from 0 to 1, as ``datasets.published.numbers_by_task`` gives them.
    """
    rows = []
    # Languages belong to one mean if the same model searched the same store in the same way.
    families: dict[tuple[str, str], dict[str, dict[str, dict[str, float]]]] = defaultdict(dict)
    for folder in folders:
        dataset, protocol = folder.record.dataset, folder.record.protocol
        entry = CATALOGUE.get(dataset.family)
        if entry is None or dataset.split != entry.splits[0] or protocol.limit_queries is not None:
            continue
        means = folder.means()
        rows += _beside(dataset.name, means, published)
        if dataset.name != dataset.family:
            alike = f"{folder.record.model} {folder.record.store.url} {protocol}"
            families[dataset.family, alike][dataset.name] = means
    for (family, _), by_language in families.items():
        if by_language.keys() == set(CATALOGUE[family].names()):
            rows += _beside(family, _mean(list(by_language.values())), published)
    return rows


def _mean(languages: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """The mean over languages of what all of them have, by method and measure."""
    return {
        method: {
            measure: statistics.fmean(language[method][measure] for language in languages)
            for measure in measures
        }
        for method, measures in languages[0].items()
        if all(method in language for language in languages)
    }


def _beside(
    task: str, means: Mapping[str, Mapping[str, float]], published: Mapping[tuple[str, str, str], float]
) -> list[BesidePublished]:
    return [
        BesidePublished(task, method, measure, mean, published[task, method, measure])
        for method, measures in means.items()
        for measure, mean in measures.items()
        if (task, method, measure) in published
    ]
