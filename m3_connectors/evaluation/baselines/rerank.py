"""A cross-encoder over the best of another run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from m3_connectors.errors import InvalidInput, MissingDependency
from m3_connectors.evaluation.baselines.options import model_and_options, run_name
from m3_connectors.evaluation.baselines.ranking import best
from m3_connectors.evaluation.baselines.sentence_models import fingerprint, not_found
from m3_connectors.evaluation.datasets.dataset import Dataset
from m3_connectors.evaluation.folder import EvaluationFolder, Run
from m3_connectors.evaluation.runs import method_run
from m3_connectors.methods import DENSE

if TYPE_CHECKING:
    from m3_connectors.encoder.encoder import M3Encoder

DEPTH = 100
"""Candidates of a query."""


class CrossEncoderRanking:
    """The baseline ``rerank:MODEL``: the 100 best of Dense, ranked by a cross-encoder of sentence-transformers.

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
        try:
            from sentence_transformers import CrossEncoder
        except ImportError:
            raise MissingDependency("sentence-transformers", "sentence-transformers") from None
        try:
            self._model = CrossEncoder(model)
        except (OSError, ValueError, RuntimeError) as error:
            raise not_found(model, error) from error
        if self._model.num_labels != 1:
            raise InvalidInput(
                f"{model} returns {self._model.num_labels} scores per pair; a re-ranker must return one.\n"
                "  Use another model."
            )
        self._of = options.get("of")
        self.name = run_name("rerank", model) + (f"-of-{self._of}" if self._of else "")
        self.requires = (self._of,) if self._of else ()
        self.description = (
            f"the {DEPTH} best of {self._of or DENSE.name}, ranked by the cross-encoder {model}, "
            f"weights {fingerprint(self._model)}"
        )

    def run(self, dataset: Dataset, folder: EvaluationFolder, encoder: M3Encoder) -> Run:
        """Rank the candidates of every query; see ``Baseline.run``.

        Raises:
            InvalidInput: The evaluation has no run of the name that was given.
        """
        from torch.nn import Identity

        run = method_run(folder, DENSE) if self._of is None else folder.run(self._of)
        candidates = {query: [id for id, _ in answer[:DEPTH]] for query, answer in run.items()}
        documents = dataset.documents.select({id for ids in candidates.values() for id in ids})
        ranked: Run = {}
        for query, ids in candidates.items():
            pairs = [(dataset.queries[query], documents[id].text) for id in ids]
            # Raw scores: a sigmoid rounds good answers to the same 1.0.
            scores = (
                self._model.predict(pairs, activation_fn=Identity(), show_progress_bar=False) if pairs else []
            )
            ranked[query] = best(ids, np.asarray(scores, dtype=np.float32), DEPTH)
        return ranked
