"""Cross-encoders of sentence-transformers as re-rankers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput, MissingDependency, NotFound


class CrossEncoder:
    """A re-ranker: a cross-encoder reads the query and a document together and gives one score.

    It can be used by several threads, one after another.

    Args:
        model: A name on the hub or a directory.

    Raises:
        InvalidInput: The model gives more than one score for a pair, or is no cross-encoder.
        MissingDependency: sentence-transformers is not installed.
        NotFound: The weights cannot be loaded; the message says why.
    """

    def __init__(self, model: str) -> None:
        try:
            from sentence_transformers import CrossEncoder as Model
        except ImportError:
            raise MissingDependency("sentence-transformers", "sentence-transformers") from None
        try:
            self._model = Model(model)
        except (OSError, ValueError, RuntimeError) as error:
            raise not_loaded(model, error) from error
        if self._model.num_labels != 1:
            raise InvalidInput(
                f"{model} gives {self._model.num_labels} scores for a pair; a re-ranker gives one.\n"
                "  Choose a model with one label."
            )
        _check_has_a_head(model, self._model.model)
        self.name = model
        """The name or directory that it was loaded from."""

    def score(self, query: str, documents: Sequence[Document]) -> list[float]:
        """Return the model's raw score of each document, before any sigmoid (which rounds good answers to 1.0)."""
        from torch.nn import Identity

        if not documents:
            return []
        pairs = [(query, document.text) for document in documents]
        scores = self._model.predict(pairs, activation_fn=Identity(), show_progress_bar=False)
        return [float(score) for score in scores]

    @property
    def fingerprint(self) -> str:
        """The start of a SHA-256 digest of the weights."""
        return weights_fingerprint(self._model)


def _check_has_a_head(name: str, model: Any) -> None:
    """Refuse an encoder or a language model: transformers gives it a classifier with random weights."""
    kind = "ForSequenceClassification"
    saved = getattr(model.config, "architectures", None) or []
    if saved and type(model).__name__.endswith(kind) and not any(one.endswith(kind) for one in saved):
        raise InvalidInput(
            f"{name} is not a cross-encoder: its config.json has the architecture {', '.join(saved)}, without a "
            "classifier, so that its scores would be random.\n"
            "  Choose a re-ranker, such as BAAI/bge-reranker-v2-m3."
        )


def weights_fingerprint(model: Any) -> str:
    """Return the start of a SHA-256 digest of a torch module's weights.

    A directory whose model was trained again keeps its name but gets another fingerprint.
    """
    import torch

    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def not_loaded(name: str, error: Exception) -> NotFound:
    """Return the error for a model whose weights cannot be loaded."""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return NotFound(
        f"{name} cannot be loaded: {reason}\n"
        "  Is it a name on the hub, and is the hub reachable? A directory works too.",
        backend="sentence-transformers",
        operation="load",
    )
