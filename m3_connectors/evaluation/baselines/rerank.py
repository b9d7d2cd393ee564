"""A cross-encoder that re-ranks the best documents of another run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from m3_connectors.cross_encoder import CrossEncoder
from m3_connectors.documents import Document
from m3_connectors.evaluation.baselines.options import model_and_options, run_name
from m3_connectors.evaluation.baselines.ranking import best
from m3_connectors.evaluation.datasets.dataset import Dataset
from m3_connectors.evaluation.folder import EvaluationFolder, Run
from m3_connectors.evaluation.runs import method_run
from m3_connectors.methods import DENSE

if TYPE_CHECKING:
    from m3_connectors.encoder.encoder import M3Encoder

DEPTH = 100
"""The number of candidates per query."""


class CrossEncoderRanking:
    """The baseline ``rerank:MODEL``: the best 100 of Dense, re-ranked by a cross-encoder of sentence-transformers.

    Args:
        spec: A name on the hub or a directory; ``?of=RUN`` takes the candidates of another run of the
            evaluation, a method's or an earlier baseline's.

    Raises:
        InvalidInput: An unknown option, or the model gives more than one score.
        MissingDependency: sentence-transformers is not installed.
        NotFound: The weights cannot be had; says why.
    """

    def __init__(self, spec: str) -> None:
        model, options = model_and_options(spec, ("of",))
        self._model = CrossEncoder(model)
        self._of = options.get("of")
        self.name = run_name("rerank", model) + (f"-of-{self._of}" if self._of else "")
        self.requires = (self._of,) if self._of else ()
        self.description = (
            f"the {DEPTH} best of {self._of or DENSE.name}, ranked by the cross-encoder {model}, "
            f"weights {self._model.fingerprint}"
        )

    def run(self, dataset: Dataset, folder: EvaluationFolder, encoder: M3Encoder) -> Run:
        """Rank the candidates of every query; see ``Baseline.run``.

        Raises:
            InvalidInput: The evaluation has no run of the name that was given.
        """
        run = method_run(folder, DENSE) if self._of is None else folder.run(self._of)
        candidates = {query: [id for id, _ in answer[:DEPTH]] for query, answer in run.items()}
        documents = dataset.documents.select({id for ids in candidates.values() for id in ids})
        ranked: Run = {}
        for query, ids in candidates.items():
            # The text alone: what the other baselines rank by.
            texts = [Document(id, documents[id].text) for id in ids]
            scores = self._model.score(dataset.queries[query], texts)
            ranked[query] = best(ids, np.asarray(scores, dtype=np.float32), DEPTH)
        return ranked
