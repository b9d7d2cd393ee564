"""MTEB: its tasks over an index, searched as users search it, and the dense vectors alone as an encoder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from m3_connectors.backends.base import Storage
from m3_connectors.blocking import Index, connect
from m3_connectors.documents import Document
from m3_connectors.embeddings import Float32
from m3_connectors.errors import InvalidInput, MissingDependency
from m3_connectors.evaluation.folder import falling
from m3_connectors.index import Encoder
from m3_connectors.integrations.access import SearchOptions
from m3_connectors.methods import Method, MethodName, Weights

try:
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ScoringFunction
except ImportError:
    raise MissingDependency("mteb", "mteb") from None

if TYPE_CHECKING:
    from datasets import Dataset
    from mteb.abstasks.task_metadata import TaskMetadata

_ID = "id"
"""The metadata field with the id of a document, by which the candidates of re-ranking tasks are chosen."""

_QUERIES_AT_ONCE = 64


class M3Search:
    """A search model for ``mteb.evaluate``: the corpus is stored, and each query is a search of the index.

    Args:
        encoder: The encoder.
        url: The URL of the store. Each task, subset and split has a collection of its own, which stays there.
        method: ``all``, ``dense``, ``sparse``, ``multi_vec``, ``dense_sparse``, or a Method.
        weights: The weights of s_dense, s_lex and s_mul to use instead of the method's.
        storage: How new collections store vectors.
        **options: The further options of ``connect``, such as ``api_key``.

    Raises:
        InvalidInput: The method or weights are not valid.
    """

    def __init__(
        self,
        encoder: Encoder,
        url: str = "memory:",
        *,
        method: Method | MethodName = "all",
        weights: Weights | tuple[float, float, float] | None = None,
        storage: Storage | None = None,
        **options: Any,
    ) -> None:
        self._encoder, self._url, self._storage, self._options = encoder, url, storage, options
        self._search = SearchOptions(method=method, weights=weights, exact=True)
        self._index: Index | None = None
        with connect("memory:", encoder=encoder) as empty:
            self._method = self._search.method_of(empty)

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """The model's identity, with the method and the weights as the experiment."""
        experiment = {"method": self._method.name, "weights": list(self._method.weights)}
        return _meta(self._encoder, ["hybrid"], {"experiment_kwargs": experiment})

    def index(
        self, corpus: Dataset, *, task_metadata: TaskMetadata, hf_split: str, hf_subset: str, **kwargs: Any
    ) -> None:
        """Store the corpus of a task; documents that the collection has, but the corpus does not, are removed."""
        self.close()
        name = re.sub(r"\W", "_", f"mteb_{task_metadata.name}_{hf_subset}_{hf_split}")
        self._index = connect(self._url, name, encoder=self._encoder, storage=self._storage, **self._options)
        stale = set(self._index.scan_ids()) - set(map(str, corpus["id"]))
        if stale:
            self._index.delete(sorted(stale))
        self._index.add(_documents(corpus))

    def search(
        self,
        queries: Dataset,
        *,
        top_k: int,
        top_ranked: Mapping[str, Iterable[str]] | None = None,
        **kwargs: Any,
    ) -> dict[str, dict[str, float]]:
        """Return the scores of the best documents of each query; in a re-ranking task, of the given candidates.

        The method retrieves as many candidates as the paper says (200 where multi-vectors rank them), so fewer than
        ``top_k`` may be returned. Equal scores are lowered by one step of float32 each: MTEB would order them its own
        way.

        Raises:
            InvalidInput: No corpus was indexed, or a query is not a text.
        """
        if self._index is None:
            raise InvalidInput("search was called before index: 0 documents are stored.\n  Call index first.")
        texts = {str(query): text for query, text in _queries(queries)}
        k = min(top_k, max(self._method.candidates.values()))
        found: dict[str, dict[str, float]] = {}
        if top_ranked is not None:
            for query, text in texts.items():
                ids = list(top_ranked[query])
                hits = self._index.search(
                    text, method=self._method, k=len(ids), filter={_ID: {"$in": ids}}, exact=True
                )
                found[query] = _scores(hits)
            return found
        names = list(texts)
        for start in range(0, len(names), _QUERIES_AT_ONCE):
            part = names[start : start + _QUERIES_AT_ONCE]
            answers = self._index.search_many([texts[q] for q in part], method=self._method, k=k, exact=True)
            found |= {query: _scores(hits) for query, hits in zip(part, answers, strict=True)}
        return found

    def close(self) -> None:
        """Close the collection of the last task."""
        if self._index is not None:
            self._index.close()
            self._index = None


class M3DenseEncoder(AbsEncoder):
    """The dense vectors alone, for all kinds of MTEB's tasks.

    Args:
        encoder: The encoder.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.mteb_model_meta = _meta(encoder, ["dense"], {"similarity_fn_name": ScoringFunction.COSINE})

    def encode(self, inputs: Iterable[Mapping[str, Any]], **kwargs: Any) -> Float32:
        """Return a unit vector for each text, float32 ``[n, d]``; M3 encodes queries as it encodes documents."""
        texts = [text for batch in inputs for text in batch["text"]]
        if not texts:
            return np.empty((0, self._encoder.info.dimension), dtype=np.float32)
        return self._encoder.encode(texts, components=("dense",)).dense


def _meta(encoder: Encoder, kinds: list[str], further: Mapping[str, Any]) -> ModelMeta:
    info = encoder.info
    # MTEB's names have an organisation, and results are stored below it.
    name = (
        info.name
        if info.name.count("/") == 1
        else f"m3-connectors/{re.sub(r'[^A-Za-z0-9.-]+', '-', info.name)}"
    )
    known = {"name": name, "revision": info.revision, "embed_dim": info.dimension, "model_type": kinds}
    return ModelMeta.create_empty(
        {**{key: value for key, value in known.items() if value is not None}, **further}
    )


def _documents(corpus: Dataset) -> Iterator[Document]:
    for row in corpus:
        title = row.get("title") or ""
        # As MTEB's own encoders read a document.
        text = f"{title} {row['text']}".strip() if title else row["text"].strip()
        yield Document(str(row["id"]), text, {_ID: str(row["id"])})


def _queries(queries: Dataset) -> Iterator[tuple[str, str]]:
    for row in queries:
        text, instruction = row["text"], row.get("instruction")
        if not isinstance(text, str):
            raise InvalidInput(
                f"query {row['id']!r} is {type(text).__name__}, a conversation; only texts can be searched for.\n"
                "  Choose a task whose queries are texts."
            )
        yield row["id"], f"{text} {instruction}" if instruction else text


def _scores(hits: Any) -> dict[str, float]:
    lowered = falling([hit.score for hit in hits])
    return {hit.document.id: score for hit, score in zip(hits, lowered, strict=True)}
