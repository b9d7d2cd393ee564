"""Any dense model of sentence-transformers, with its prefixes from training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from m3_connectors.cross_encoder import not_loaded, weights_fingerprint
from m3_connectors.embeddings import Float32
from m3_connectors.errors import InvalidInput, MissingDependency
from m3_connectors.evaluation.baselines.options import model_and_options, prefixes, run_name
from m3_connectors.evaluation.baselines.ranking import nearest
from m3_connectors.evaluation.datasets.dataset import Dataset
from m3_connectors.evaluation.folder import EvaluationFolder, Run

if TYPE_CHECKING:
    from m3_connectors.encoder.encoder import M3Encoder

_WIKIPEDIA = "Instruct: Given a question, retrieve Wikipedia passages that answer the question\nQuery: "
_WEB = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "


@dataclasses.dataclass(frozen=True)
class Published:
    """How the authors of a model in the paper's tables use it.

    Attributes:
        model: Name on the hub.
        query: What stands before a query.
        query_of: The same where a family of datasets has its own.
        passage: What stands before a passage.
        similarity: How two vectors are compared.
        pooling: None where the repository says it itself to sentence-transformers.
    """

    model: str
    query: str = ""
    query_of: dict[str, str] = dataclasses.field(default_factory=dict)
    passage: str = ""
    similarity: Literal["cosine", "dot"] = "cosine"
    pooling: Literal["cls", "mean"] | None = None


PUBLISHED = {
    "me5-large": Published("intfloat/multilingual-e5-large", query="query: ", passage="passage: "),
    "mcontriever": Published("facebook/mcontriever-msmarco", similarity="dot", pooling="mean"),
    "mdpr": Published("castorini/mdpr-tied-pft-msmarco", similarity="dot", pooling="cls"),
    "e5-mistral-7b": Published(
        "intfloat/e5-mistral-7b-instruct", query=_WEB, query_of={"miracl": _WIKIPEDIA, "mkqa": _WIKIPEDIA}
    ),
}
"""The dense models of the paper's tables, by the short name for ``st:``; their hub names work too."""


class SentenceModel:
    """The baseline ``st:MODEL``: exact search over the vectors of a model of sentence-transformers.

    Args:
        spec: A short name of ``PUBLISHED``, a name on the hub or a directory; ``?query=…&passage=…`` are
            prefixes, percent-encoded. Without them a model that is not in ``PUBLISHED`` uses the prompts of
            its own configuration.

    Raises:
        InvalidInput: An unknown option, or the model compares vectors neither by cosine nor by inner product.
        MissingDependency: sentence-transformers is not installed.
        NotFound: The weights cannot be had; says why.
    """

    requires = ()

    def __init__(self, spec: str) -> None:
        given, options = model_and_options(spec, ("query", "passage"))
        # One run name for a published model, whichever of its names is given.
        short = next((short for short, one in PUBLISHED.items() if given in (short, one.model)), given)
        published = PUBLISHED.get(short)
        model = given if published is None else published.model
        self._model = load(model, published)
        self._published = published
        self._prefixes = options
        similarity = str(self._model.similarity_fn_name if published is None else published.similarity)
        if similarity not in ("cosine", "dot"):
            raise InvalidInput(
                f"{model} compares vectors by {similarity}; only cosine and dot are supported.\n"
                "  Use another model."
            )
        self._unit = similarity == "cosine"
        self.name = run_name("st", short)
        length = self._model.max_seq_length
        self.description = (
            f"{model} by sentence-transformers, exact search by {similarity}"
            f"{f', texts cut at {length} tokens' if length else ''}{self._described_prefixes()}"
            f", weights {weights_fingerprint(self._model)}"
        )

    def run(self, dataset: Dataset, folder: EvaluationFolder, encoder: M3Encoder) -> Run:
        """Rank the corpus for every query; see ``Baseline.run``."""
        queries, passages = self._model.encode_query, self._model.encode_document
        if self._published is not None or self._prefixes:
            queries = passages = self._model.encode
        query, passage = self._prompts(dataset.family)
        return nearest(
            dataset,
            folder.record.protocol.run_depth,
            lambda texts: self._embed(queries, texts, query),
            lambda texts: self._embed(passages, texts, passage),
        )

    def _described_prefixes(self) -> str:
        if self._published is not None:
            # Of the dataset's family, which the evaluation records.
            return ("" if self._prefixes else ", prefixes as published") + prefixes(*self._prompts(""))
        own = {} if self._prefixes else dict(self._model.prompts)
        asked = prefixes(self._prefixes.get("query"), self._prefixes.get("passage"))
        return asked or (f", prompts {own}" if any(own.values()) else "")

    def _prompts(self, family: str) -> tuple[str | None, str | None]:
        if self._published is None:
            return self._prefixes.get("query"), self._prefixes.get("passage")
        query = self._published.query_of.get(family, self._published.query)
        return self._prefixes.get("query", query), self._prefixes.get("passage", self._published.passage)

    def _embed(self, encode: Callable[..., Any], texts: Sequence[str], prompt: str | None) -> Float32:
        vectors = encode(list(texts), prompt=prompt, normalize_embeddings=self._unit, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)


def load(name: str, published: Published | None) -> Any:
    """Return a SentenceTransformer with the published pooling.

    Raises:
        MissingDependency: sentence-transformers is not installed.
        NotFound: The weights cannot be had; says why.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise MissingDependency("sentence-transformers", "sentence-transformers") from None
    try:
        if published is None or published.pooling is None:
            return SentenceTransformer(name)
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

        transformer = Transformer(name)
        pooling = Pooling(transformer.get_embedding_dimension(), published.pooling)
        return SentenceTransformer(modules=[transformer, pooling])
    except (OSError, ValueError, RuntimeError) as error:
        raise not_loaded(name, error) from error
