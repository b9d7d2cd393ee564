"""Texts and vectors as requests and answers have them."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import numpy as np
import scipy.sparse as sp
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from m3_connectors.embeddings import M3Embeddings, ModelInfo, MultiVectors
from m3_connectors.errors import InvalidInput

_Item = TypeVar("_Item")

Many = Annotated[list[_Item], Field(fail_fast=True)]
"""A list that is read up to its first wrong item: to name millions of them would hold up all other requests."""

_MOST_UNKNOWN_FIELDS = 20


class Body(BaseModel):
    """A request of the service's own routes: an unknown field is an error, so that none is ignored by mistake."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, str_max_length=2**24)

    @model_validator(mode="before")
    @classmethod
    def _check_field_count(cls, given: Any) -> Any:
        """Refuse an object with far too many fields as a whole, because each unknown one would be an error."""
        most = len(cls.model_fields) + _MOST_UNKNOWN_FIELDS
        if isinstance(given, dict) and len(given) > most:
            raise PydanticCustomError(
                "too_many_fields", "the object has more than {most} fields", {"most": most}
            )
        return given


class LenientBody(BaseModel):
    """A request in another server's shape: its clients send fields that have no meaning here."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


Filter = Annotated[
    dict[Any, Any] | None, Field(description='Such as {"year": {"$gte": 2020}}; docs/filters.md.')
]
"""Which documents of a collection a request is about."""


class Model(Body):
    """The model that produced vectors, as ``/v1/encode`` names it."""

    name: str
    revision: str | None = None
    dimension: int
    vocabulary_size: int
    vocabulary_fingerprint: str
    weights_fingerprint: str | None = None
    precision: str | None = None

    def info(self) -> ModelInfo:
        """The same as the library has it."""
        return ModelInfo(**self.model_dump())


class SparseVector(Body):
    """The weights of the tokens of a text."""

    indices: Many[Annotated[int, Field(ge=0, lt=2**31)]]
    values: Many[float]


class Vectors(Body):
    """The vectors of one text, as ``/v1/encode`` gives them."""

    dense: Many[float] | None = None
    sparse: SparseVector | None = None
    multivector: Many[Many[float]] | None = None
    model: Model | None = None

    def embeddings(self, served: ModelInfo) -> M3Embeddings:
        """Return the embeddings.

        Args:
            served: The model of the service, which gives the widths of vectors.

        Raises:
            InvalidInput: A vector has the wrong shape, or there is none.
        """
        return M3Embeddings(
            dense=None if self.dense is None else _dense(self.dense, served),
            sparse=None if self.sparse is None else _sparse(self.sparse, served),
            multivectors=None if self.multivector is None else _multivectors(self.multivector, served),
            model=None if self.model is None else self.model.info(),
        )


def _dense(values: list[float], served: ModelInfo) -> np.ndarray[Any, np.dtype[np.float32]]:
    if len(values) != served.dimension:
        raise InvalidInput(
            f"vectors.dense has {len(values)} values; {served} has {served.dimension}.\n"
            "  Send what /v1/encode returns for the query."
        )
    return np.array([values], dtype=np.float32)


def _sparse(vector: SparseVector, served: ModelInfo) -> sp.csr_array:
    indices, values = vector.indices, vector.values
    if len(indices) != len(values) or len(set(indices)) != len(indices):
        raise InvalidInput(
            f"vectors.sparse has {len(indices)} indices ({len(set(indices))} different) and {len(values)} values.\n"
            "  Give one value for each token id, each id once."
        )
    if indices and max(indices) >= served.vocabulary_size:
        raise InvalidInput(
            f"vectors.sparse has the index {max(indices)}; {served} has {served.vocabulary_size:,} token ids.\n"
            "  Send what /v1/encode returns for the query."
        )
    order = np.argsort(np.array(indices, dtype=np.int64), kind="stable")
    data = np.array(values, dtype=np.float32)[order]
    columns = np.array(indices, dtype=np.int64)[order]
    return sp.csr_array((data, columns, np.array([0, len(data)])), shape=(1, served.vocabulary_size))


def _multivectors(rows: list[list[float]], served: ModelInfo) -> MultiVectors:
    for i, row in enumerate(rows):
        if len(row) != served.dimension:
            raise InvalidInput(
                f"vectors.multivector[{i}] has {len(row)} values; {served} has {served.dimension}.\n"
                "  Send what /v1/encode returns for the query."
            )
    return MultiVectors.from_list([np.array(rows, dtype=np.float32)], served.dimension)


def sparse_rows(embeddings: M3Embeddings) -> list[tuple[Any, Any]]:
    """Return the token ids and the weights of each text."""
    matrix = embeddings.sparse
    bounds = zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True)
    return [
        (matrix.indices[start:stop].astype(np.int64), np.ascontiguousarray(matrix.data[start:stop]))
        for start, stop in bounds
    ]


def to_dict(embeddings: M3Embeddings, served: ModelInfo) -> dict[str, Any]:
    """Return embeddings as JSON has them: one list for each component, with one item for each text."""
    columns: dict[str, Any] = {}
    if "dense" in embeddings.components:
        columns["dense"] = np.ascontiguousarray(embeddings.dense)
    if "sparse" in embeddings.components:
        columns["sparse"] = [
            {"indices": indices, "values": values} for indices, values in sparse_rows(embeddings)
        ]
    if "multivector" in embeddings.components:
        columns["multivector"] = [np.ascontiguousarray(rows) for rows in embeddings.multivectors]
    counts = embeddings.token_counts
    return {
        "model": (embeddings.model or served).to_json(),
        **columns,
        "truncated": embeddings.truncated.tolist(),
        "token_counts": None if counts is None else counts.tolist(),
    }


def tokens_of(embeddings: M3Embeddings) -> int:
    """Return the number of tokens that the model read; 0 if unknown."""
    counts = embeddings.kept_token_counts
    return 0 if counts is None else int(counts.sum())
