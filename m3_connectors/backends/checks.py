"""Checks of vectors and filters against a collection's schema; they run before a store receives them."""

from __future__ import annotations

from collections.abc import Container, Hashable, Sequence

import numpy as np

from m3_connectors.backends.large_numbers import EXACT
from m3_connectors.backends.precision import FLOAT32, Precision
from m3_connectors.backends.schema import Schema
from m3_connectors.embeddings import Component, Float32, M3Embeddings, ModelInfo
from m3_connectors.errors import DocumentNotFound, InvalidInput, ModelMismatch
from m3_connectors.filters import Filter, numbers_of
from m3_connectors.methods import METHODS

_LARGEST = 1e15
"""Largest size of a value: all scores of such values are far from the largest float32 (3.4e38). Where they overflow, a
store's sum may meet infinity and minus infinity, and the document would be in no list."""

_SCALE = (
    f", and scores of values beyond {_LARGEST:.0e} overflow.\n  Scale the vectors; the model's have length 1."
)


def check_model(
    written_by: ModelInfo, collection: str, model: ModelInfo | None, what: str = "these vectors are from"
) -> None:
    """Raise ModelMismatch unless vectors of ``model`` are comparable with those in the collection.

    ``model=None`` (vectors of unknown origin) passes: the widths are checked together with the vectors.
    """
    if model is None:
        return
    if not written_by.matches(model):
        raise ModelMismatch(
            f'collection "{collection}" was written by {written_by}; {what} {model}.\n'
            f'  Open it with M3Encoder("{written_by.name}"), or index into another collection.'
        )


def other_precision(written_by: ModelInfo, collection: str, model: ModelInfo | None) -> str | None:
    """Return a warning if vectors of ``model`` were computed in another precision than a collection's; else None.

    They are comparable, but the collection records the precision of its first documents only.
    """
    if model is None or model.precision == written_by.precision:
        return None
    return (
        f'collection "{collection}" was created by {written_by}; vectors of {model} are added to it. They can be '
        "compared, but the collection's record names only the first.\n"
        "  Encode all documents in one precision if equal texts must have equal scores."
    )


def check_stored(schema: Schema, collection: str, documents: int, embeddings: M3Embeddings) -> M3Embeddings:
    """Return the embeddings, reduced to the components that are written, if all of them can be stored.

    Raises:
        InvalidInput: The number of texts differs, a component is missing, a width is wrong, a value is NaN or
            infinite, a sparse weight is <= 0, or a text has no multi-vector row.
        ModelMismatch: The embeddings come from another model.
    """
    if len(embeddings) != documents:
        raise InvalidInput(
            f"there are {documents} documents and {len(embeddings)} embeddings.\n"
            "  Pass one embedding for each document."
        )
    missing = [name for name in schema.written if name not in embeddings.components]
    if missing:
        begun = f" ({schema.adding} is being added)" if schema.adding in missing else ""
        raise InvalidInput(
            f'collection "{collection}" stores {", ".join(schema.written)}{begun}; the embeddings do not have '
            f"{', '.join(missing)}.\n  Encode with components={schema.written}."
        )
    check_model(schema.model, collection, embeddings.model)
    _check_values(schema, embeddings, "embeddings")
    return reduced(embeddings, schema.written)


def reduced(embeddings: M3Embeddings, components: Sequence[Component]) -> M3Embeddings:
    """Return the embeddings with no other than these components; dense is kept."""
    return embeddings.replace(
        sparse=embeddings.sparse if "sparse" in {*components} & {*embeddings.components} else None,
        multivectors=embeddings.multivectors
        if "multivector" in {*components} & {*embeddings.components}
        else None,
    )


def check_query(
    schema: Schema,
    collection: str,
    components: Sequence[Component],
    query: M3Embeddings,
    who: str = "this call",
) -> None:
    """Raise unless ``query`` is one text that this collection can score by these components.

    Raises:
        InvalidInput: It is not one text, a component is missing, a width is wrong, or a value is NaN or
        infinite.
        ModelMismatch: The query comes from another model.
    """
    if not isinstance(query, M3Embeddings):
        raise InvalidInput(
            f"the query is of type {type(query).__name__}; a backend needs M3Embeddings of one text.\n"
            "  Encode the text first: encoder.encode_queries([text])."
        )
    if len(query) != 1:
        raise InvalidInput(
            f"a query must be one text; these embeddings hold {len(query)} texts.\n"
            "  Use search_many for several queries."
        )
    check_components(schema, collection, components, who)
    for name in components:
        if name not in query.components:
            raise InvalidInput(
                f"{who} needs {name}, which the query does not have.\n"
                f"  Encode the query with components that include {name!r}."
            )
    check_model(schema.model, collection, query.model)
    _check_values(schema, query, "query")


def check_components(schema: Schema, collection: str, components: Sequence[Component], who: str) -> None:
    """Raise InvalidInput unless every document of the collection has these components.

    Args:
        schema: What the collection records.
        collection: Its name.
        components: The components that are needed.
        who: What needs them, for the message.
    """
    missing = [name for name in components if name not in schema.components]
    if not missing:
        return
    able = _alternatives(
        [name for name, method in METHODS.items() if set(method.components) <= set(schema.components)]
    )
    if missing == [schema.adding]:
        raise InvalidInput(
            f'{who} needs {missing[0]}, which add_component has not finished adding to collection "{collection}".\n'
            f'  Run add_component("{missing[0]}") again to finish it. Until then use method {able}.'
        )
    raise InvalidInput(
        f'{who} needs {", ".join(missing)}; collection "{collection}" stores {", ".join(schema.components)}.\n'
        f'  Use method {able}, or add what is missing: index.add_component("{missing[0]}"), '
        f"or m3 add-component URL {missing[0]}."
    )


def _alternatives(names: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _check_values(schema: Schema, embeddings: M3Embeddings, what: str) -> None:
    dimension, vocabulary = schema.model.dimension, schema.model.vocabulary_size
    if "dense" in embeddings.components:
        if embeddings.dense.shape[1] != dimension:
            raise InvalidInput(
                f"{what}.dense is {embeddings.dense.shape[1]} wide; the collection's model has width "
                f"{dimension}.\n"
                "  Encode with the model that the collection was created with."
            )
        _check_numbers(embeddings.dense, f"{what}.dense")
    if "sparse" in embeddings.components:
        sparse = embeddings.sparse
        if sparse.shape[1] != vocabulary:
            raise InvalidInput(
                f"{what}.sparse has {sparse.shape[1]} columns; the model's vocabulary has {vocabulary} "
                "tokens.\n"
                "  Encode with the model that the collection was created with."
            )
        if sparse.nnz and not 0 <= sparse.indices.min() <= sparse.indices.max() < vocabulary:
            raise InvalidInput(
                f"{what}.sparse has a token id outside the vocabulary of {vocabulary} tokens.\n"
                "  Encode with the model that the collection was created with."
            )
        if not sparse.has_canonical_format:
            raise InvalidInput(
                f"{what}.sparse has unsorted or repeated token ids.\n  Call .sum_duplicates() on it."
            )
        if not (np.isfinite(sparse.data) & (sparse.data > 0)).all():
            raise InvalidInput(
                f"{what}.sparse has a weight that is not a finite number > 0.\n  Remove such weights."
            )
        if sparse.nnz and (weight := sparse.data.max()) > _LARGEST:
            raise InvalidInput(f"{what}.sparse has a weight of {weight}{_SCALE}")
    if "multivector" in embeddings.components:
        multivectors = embeddings.multivectors
        if multivectors.dimension != dimension:
            raise InvalidInput(
                f"{what}.multivectors is {multivectors.dimension} wide; the collection's model has width "
                f"{dimension}.\n  Encode with the model that the collection was created with."
            )
        empty = np.flatnonzero(multivectors.counts == 0)
        if len(empty):
            raise InvalidInput(
                f"{what}.multivectors[{empty[0]}] has no rows.\n  Pass at least one row for every text."
            )
        _check_numbers(multivectors.rows, f"{what}.multivectors", schema.precision)


def _check_numbers(array: Float32, what: str, precision: Precision = FLOAT32) -> None:
    """Raise unless all values are finite, and not larger than scores or the precision allow."""
    largest = min(_LARGEST, precision.largest)
    # The sum of squares bounds every value in one pass over memory, in a fifth of the time of the checks
    # below. The bound is half of ``largest`` because the sum is rounded. NaN is never <= anything.
    if float(np.vdot(array, array)) <= (largest / 2) ** 2:
        return
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise InvalidInput(
            f"{what} has NaN or infinity in row {bad[0]}.\n"
            "  Check the model that produced it, or drop that text."
        )
    value = np.abs(array).max()
    if value > largest == _LARGEST:
        raise InvalidInput(f"{what} has {value}{_SCALE}")
    if value > largest:
        raise InvalidInput(
            f"{what} has the value {value}, which {precision.name} cannot hold; rows of the model have length 1.\n"
            '  Normalise the rows, or create the collection with Storage(multivector_dtype="float32").'
        )


def check_filter(schema: Schema, collection: str, filter: Filter | None) -> None:
    """Raise InvalidInput for a number that documents of an earlier format cannot be compared with exactly."""
    if filter is None or schema.format > 1:
        return
    for number in numbers_of(filter):
        if abs(number) >= EXACT:
            raise InvalidInput(
                f'the filter contains {number}; collection "{collection}" was created by an earlier version, '
                "which compares exactly only numbers below 2**53 in size.\n"
                "  Index the documents into a new collection."
            )


def check_found(
    ids: Sequence[str], keys: Sequence[Hashable], found: Container[Hashable], backend: str, operation: str
) -> None:
    """Raise DocumentNotFound for the first id whose key in the store was not found."""
    for id, key in zip(ids, keys, strict=True):
        if key not in found:
            raise DocumentNotFound(
                f"there is no document {id!r}.\n  Check the id, or add the document first.",
                backend=backend,
                operation=operation,
            )
