"""Haystack components that compute all three representations of texts and documents, for any store."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from haystack import component, default_from_dict, default_to_dict
from haystack.dataclasses import Document, SparseEmbedding

from m3_connectors.embeddings import COMPONENTS, Component, M3Embeddings
from m3_connectors.errors import InvalidInput
from m3_connectors.index import Encoder
from m3_connectors.integrations.haystack.encoders import EncoderChoice

_HAS_MULTIVECTORS = any(field.name == "multivector_embedding" for field in dataclasses.fields(Document))
"""Newer versions of Haystack have this field of a document."""


class _Embedder:
    """The arguments that both embedders have.

    Args:
        model: The hub name or directory of the model, or an encoder (such a component cannot be saved).
        encoder_options: The further arguments of ``M3Encoder``.
        components: Which of ``dense``, ``sparse`` and ``multivector`` are computed.
    """

    def __init__(
        self,
        model: str | Encoder = "BAAI/bge-m3",
        encoder_options: Mapping[str, Any] | None = None,
        components: Sequence[Component] = COMPONENTS,
    ) -> None:
        self._encoder = EncoderChoice(model, encoder_options)
        self.components = tuple(components)

    def warm_up(self) -> None:
        """Load the model, which otherwise the first run does."""
        self._encoder.get()

    def to_dict(self) -> dict[str, Any]:
        """Return the component as a pipeline file has it."""
        saved = self._encoder.saved(type(self).__name__)
        return default_to_dict(self, **saved, components=list(self.components))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Any:
        """Return the component of a pipeline file."""
        return default_from_dict(cls, data)

    def _embeddings(self, texts: Sequence[str], components: Sequence[Component]) -> list[dict[str, Any]]:
        """Return the representations of each text by the names of the fields of a document."""
        if not texts:
            return []
        encoded = self._encoder.get().encode(texts, components=components)
        return [_fields(encoded, i) for i in range(len(texts))]


@component
class M3TextEmbedder(_Embedder):
    """Computes the representations of a query: a dense vector, token weights and a vector for each token."""

    @component.output_types(
        embedding=list[float], sparse_embedding=SparseEmbedding, multivector_embedding=list[list[float]]
    )
    def run(self, text: str) -> dict[str, Any]:
        """Return ``embedding``, ``sparse_embedding`` and ``multivector_embedding``, as far as they are computed."""
        if not isinstance(text, str):
            raise InvalidInput(
                f"text is {type(text).__name__}; it must be a string.\n  Use M3DocumentEmbedder for documents."
            )
        return self._embeddings([text], self.components)[0]


@component
class M3DocumentEmbedder(_Embedder):
    """Computes the representations of documents, for stores other than ``M3DocumentStore``, which does it itself.

    Where Haystack's documents have no field ``multivector_embedding`` (3.4 has none), these vectors are not computed;
    ``components=("multivector",)`` alone is refused there.
    """

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, list[Document]]:
        """Return copies of the documents with their representations; the given documents are not changed.

        Raises:
            InvalidInput: A document has no text.
        """
        for i, document in enumerate(documents):
            if document.content is None:
                raise InvalidInput(
                    f"documents[{i}] ({document.id!r}) has no content.\n  Convert the document to text first."
                )
        wanted = tuple(name for name in self.components if name != "multivector" or _HAS_MULTIVECTORS)
        if not wanted:
            raise InvalidInput(
                f"components is {self.components}, but documents of this Haystack have no field for multi-vectors.\n"
                "  Write to an M3DocumentStore, which stores them, or ask for dense and sparse."
            )
        fields = self._embeddings([document.content or "" for document in documents], wanted)
        return {
            "documents": [
                dataclasses.replace(document, **computed)
                for document, computed in zip(documents, fields, strict=True)
            ]
        }


def _fields(encoded: M3Embeddings, i: int) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if "dense" in encoded.components:
        fields["embedding"] = encoded.dense[i].tolist()
    if "sparse" in encoded.components:
        row = encoded.sparse[[i]]
        fields["sparse_embedding"] = SparseEmbedding(indices=row.indices.tolist(), values=row.data.tolist())
    if "multivector" in encoded.components:
        fields["multivector_embedding"] = encoded.multivectors[i].tolist()
    return fields
