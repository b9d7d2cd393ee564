"""Reciprocal rank fusion, the usual way to combine a dense and a sparse list without their scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.folder import EvaluationFolder, Run
from m3_connectors.evaluation.runs import queries_of

if TYPE_CHECKING:
    from m3_connectors.encoder.encoder import M3Encoder
    from m3_connectors.evaluation.datasets.dataset import Dataset

K = 60
"""The constant of Cormack, Clarke and Büttcher (SIGIR 2009)."""


class ReciprocalRankFusion:
    """Fuse the dense and the sparse list of the evaluation by rank: the sum of ``1 / (k + rank)``.

    A document that is missing from a list gets nothing from it. Equal sums are in the order of their ids.

    Args:
        k: How little the first ranks stand out: a whole number >= 0, or one as text (``rrf:20``).

    Raises:
        InvalidInput: k is none.
    """

    requires = ()

    def __init__(self, k: int | str = K) -> None:
        if not str(k).isdecimal():
            raise InvalidInput(f"k of reciprocal rank fusion is {k!r}.\n  Use an integer >= 0.")
        self._k = int(k)
        self.name = "rrf" if self._k == K else f"rrf-{self._k}"
        self.description = f"reciprocal rank fusion of the dense and the sparse list, k = {self._k}"

    def run(self, dataset: Dataset, folder: EvaluationFolder, encoder: M3Encoder) -> Run:
        """The fused lists of every query, see ``Baseline.run``; neither texts nor the encoder are needed."""
        run: Run = {query: [] for query in folder.asked}
        depth = folder.record.protocol.run_depth  # the lists together are 20 times as long
        for query, table in queries_of(folder):
            sums = np.zeros(len(table))
            for column in ("dense_rank", "sparse_rank"):
                ranks = table[column].cast("float64").to_numpy()  # NaN where there is none
                sums += np.nan_to_num(1 / (self._k + ranks), nan=0.0)
            best = np.argsort(-sums, kind="stable")[:depth]  # ids ascend in the table
            ids = table["document_id"].take(best).to_pylist()
            run[query] = list(zip(ids, sums[best].tolist(), strict=True))
        return run
