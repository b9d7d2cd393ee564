"""Checks of vectors and filters against a collection's schema, before any store sees them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from m3_connectors.backends.large_numbers import EXACT
from m3_connectors.backends.schema import Schema
from m3_connectors.embeddings import Component, Float32, M3Embeddings, ModelInfo
from m3_connectors.errors import InvalidInput, ModelMismatch
from m3_connectors.filters import Filter, numbers_of

_LARGEST = 1e15
"""Largest size of a value: all scores of such values are far from the largest float32 (3.4e38). Where they overflow, a
store's sum may meet infinity and minus infinity, and the document would be in no list."""

_SCALE = (
    f", and scores of values beyond {_LARGEST:.0e} overflow.\n  Scale the vectors; the model's have length 1."
)


def check_model(
    written_by: ModelInfo, collection: str, model: ModelInfo | None, what: str = "these vectors are from"
) -> None:
    """Raise ModelMismatch unless vectors of ``model`` may be compared with those in the collection.

    Widths and vocabularies must agree. Beyond them the weights' fingerprint decides: a directory may be renamed,
    and a fine-tuned copy may keep its name. Where a side has none, name and known revisions decide. None (vectors
    of unknown origin) passes: their widths are checked with the vectors.
    """
    if model is None:
        return
    if None not in (written_by.weights_fingerprint, model.weights_fingerprint):
        same = written_by.weights_fingerprint == model.weights_fingerprint
    else:
        same = written_by.name == model.name and (
            None in (written_by.revision, model.revision) or written_by.revision == model.revision
        )
    same = (
        same
        and written_by.dimension == model.dimension
        and written_by.vocabulary_fingerprint == model.vocabulary_fingerprint
    )
    if not same:
        raise ModelMismatch(
            f'collection "{collection}" was written by {written_by}; {what} {model}.\n'
            f'  Open it with M3Encoder("{written_by.name}"), or index into another collection.'
        )


def check_stored(schema: Schema, collection: str, documents: int, embeddings: M3Embeddings) -> M3Embeddings:
    """The embeddings, reduced to the schema's components, if each of them is fit to be stored.

    Raises:
        InvalidInput: Another number of texts, a missing component, wrong width, NaN, infinity, a sparse weight
            <= 0, or a text without a multi-vector row.
        ModelMismatch: They are another model's.
    """
    if len(embeddings) != documents:
        raise InvalidInput(
            f"{documents} documents came with {len(embeddings)} embeddings: give one for each."
        )
    missing = [name for name in schema.components if name not in embeddings.components]
    if missing:
        raise InvalidInput(
            f'collection "{collection}" stores {", ".join(schema.components)}; the embeddings lack '
            f"{', '.join(missing)}.\n  Encode with components={schema.components}."
        )
    check_model(schema.model, collection, embeddings.model)
    _check_values(schema, embeddings, "embeddings")
    return embeddings.replace(
        sparse=embeddings.sparse if "sparse" in schema.components else None,
        multivectors=embeddings.multivectors if "multivector" in schema.components else None,
    )


def check_query(
    schema: Schema,
    collection: str,
    components: Sequence[Component],
    query: M3Embeddings,
    who: str = "this call",
) -> None:
    """Raise unless ``query`` is one text that this collection can rank by these components.

    Raises:
        InvalidInput: Not one text, a missing component, wrong width, NaN or infinity.
        ModelMismatch: It is another model's.
    """
    if not isinstance(query, M3Embeddings):
        raise InvalidInput(f"the query is {type(query).__name__}: a backend takes M3Embeddings of one text.")
    if len(query) != 1:
        raise InvalidInput(f"a query is one text; these embeddings hold {len(query)}: use search_many.")
    for name in components:
        if name not in query.components:
            raise InvalidInput(f"{who} needs {name}, which the query does not have.")
        if name not in schema.components:
            raise InvalidInput(f'{who} needs {name}; collection "{collection}" stores {schema.components}.')
    check_model(schema.model, collection, query.model)
    _check_values(schema, query, "query")


def _check_values(schema: Schema, embeddings: M3Embeddings, what: str) -> None:
    dimension, vocabulary = schema.model.dimension, schema.model.vocabulary_size
    if "dense" in embeddings.components:
        if embeddings.dense.shape[1] != dimension:
            raise InvalidInput(
                f"{what}.dense is {embeddings.dense.shape[1]} wide; the model's width is {dimension}."
            )
        _check_numbers(embeddings.dense, f"{what}.dense")
    if "sparse" in embeddings.components:
        sparse = embeddings.sparse
        if sparse.shape[1] != vocabulary:
            raise InvalidInput(
                f"{what}.sparse has {sparse.shape[1]} columns; the vocabulary has {vocabulary}."
            )
        if sparse.nnz and not 0 <= sparse.indices.min() <= sparse.indices.max() < vocabulary:
            raise InvalidInput(f"{what}.sparse has a token id beyond the vocabulary of {vocabulary}.")
        if not sparse.has_canonical_format:
            raise InvalidInput(f"{what}.sparse has unsorted or repeated token ids: call .sum_duplicates().")
        if not (np.isfinite(sparse.data) & (sparse.data > 0)).all():
            raise InvalidInput(
                f"{what}.sparse has a weight that is not a finite number > 0: drop such weights."
            )
        if sparse.nnz and (weight := sparse.data.max()) > _LARGEST:
            raise InvalidInput(f"{what}.sparse has a weight of {weight}{_SCALE}")
    if "multivector" in embeddings.components:
        multivectors = embeddings.multivectors
        if multivectors.dimension != dimension:
            raise InvalidInput(
                f"{what}.multivectors is {multivectors.dimension} wide; the model's is {dimension}."
            )
        empty = np.flatnonzero(multivectors.counts == 0)
        if len(empty):
            raise InvalidInput(f"{what}.multivectors[{empty[0]}] has no row: every text has at least one.")
        float16 = schema.storage.multivector_dtype == "float16"
        largest = float(np.finfo(np.float16).max) if float16 else _LARGEST
        _check_numbers(multivectors.rows, f"{what}.multivectors", largest)


def _check_numbers(array: Float32, what: str, largest: float = _LARGEST) -> None:
    """Raise unless all values are finite and at most ``largest`` from 0, which only float16 storage can make less."""
    # One pass over memory, a fifth of the time that the questions below take: a sum of squares bounds every value.
    # Half, since it is rounded; NaN is not <= anything.
    if float(np.vdot(array, array)) <= (largest / 2) ** 2:
        return
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise InvalidInput(f"{what} has NaN or infinity in row {bad[0]}.")
    value = np.abs(array).max()
    if value > largest == _LARGEST:
        raise InvalidInput(f"{what} has {value}{_SCALE}")
    if value > largest:
        raise InvalidInput(
            f"{what} has {value}, which float16 cannot hold: the model's rows have length 1.\n"
            '  Normalise them, or make the collection with Storage(multivector_dtype="float32").'
        )


def check_filter(schema: Schema, collection: str, filter: Filter | None) -> None:
    """Raise InvalidInput for a number that documents of an earlier format do not answer exactly."""
    if filter is None or schema.format > 1:
        return
    for number in numbers_of(filter):
        if abs(number) >= EXACT:
            raise InvalidInput(
                f'filter asks for {number}, and collection "{collection}" was made by an earlier version, whose '
                "documents answer numbers below 2**53 in size.\n  Index the documents into a new collection."
            )
