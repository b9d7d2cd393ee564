"""What a baseline is to an evaluation: something else that ranks the same documents for the same queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from m3_connectors.evaluation.folder import EvaluationFolder, Run

if TYPE_CHECKING:
    from m3_connectors.encoder.encoder import M3Encoder
    from m3_connectors.evaluation.datasets.dataset import Dataset


class Baseline(Protocol):
    """A ranking to compare the methods with; its run stands beside theirs."""

    @property
    def name(self) -> str:
        """Key of its run: a file name, such as ``bm25``."""

    @property
    def description(self) -> str:
        """What it is, for people, with everything that its ranking depends on: another one of the same name is told
        from it by this."""

    @property
    def requires(self) -> Sequence[str]:
        """Names of the runs that have to be there before it."""

    def run(self, dataset: Dataset, folder: EvaluationFolder, encoder: M3Encoder) -> Run:
        """Rank.

        Args:
            dataset: Documents and queries.
            folder: The evaluation so far: component scores and the runs of the methods and of the baselines
                that were named before this one, so that lists can be fused and answers re-ranked.
            encoder: The evaluation's own, whose tokens a baseline may share.

        Returns:
            Every query of the dataset with its documents and scores, best first; a query without an answer
            has an empty list. The folder keeps as many as ``folder.record.protocol.run_depth``.

        Raises:
            MissingDependency: What it needs is not installed; raised by its constructor, before hours of
                encoding.
        """
