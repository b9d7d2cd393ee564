"""The protocol of a baseline: another ranking of the same documents for the same queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from m3_connectors.evaluation.folder import EvaluationFolder, Run

if TYPE_CHECKING:
    from m3_connectors.encoder.encoder import M3Encoder
    from m3_connectors.evaluation.datasets.dataset import Dataset


class Baseline(Protocol):
    """A ranking to compare the methods with; its run is stored with theirs."""

    @property
    def name(self) -> str:
        """The key of its run: a file name, such as ``bm25``."""

    @property
    def description(self) -> str:
        """A description for readers with everything that its ranking depends on; it distinguishes baselines of the same
        name."""

    @property
    def requires(self) -> Sequence[str]:
        """The names of the runs that it needs."""

    def run(self, dataset: Dataset, folder: EvaluationFolder, encoder: M3Encoder) -> Run:
        """Rank the documents for every query.

        Args:
            dataset: Documents and queries.
            folder: The evaluation so far: component scores and the runs of the methods and of the baselines
                that ran before this one, so that lists can be fused and re-ranked.
            encoder: The encoder of the evaluation; a baseline may use its tokenizer.

        Returns:
            Every query of the dataset with its documents and scores, best first; a query without results
            has an empty list. The folder keeps as many as ``folder.record.protocol.run_depth``.

        Raises:
            MissingDependency: What it needs is not installed; raised by its constructor, before hours of
                encoding.
        """
