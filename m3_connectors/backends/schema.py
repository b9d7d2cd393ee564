"""What a collection records about itself: the model of its vectors, the components, and their storage."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from m3_connectors.backends.precision import Precision, PrecisionName, precision_of
from m3_connectors.embeddings import COMPONENTS, Component, ModelInfo
from m3_connectors.errors import InvalidInput

FORMAT = 2
"""The version of the document format. Since format 2, filters match keys with dots, lists of objects,
integers beyond 2**53 and more spellings of dates. Documents of format 1 support the same filters as before,
and remain readable."""

LongDocuments = Literal["split", "pool", "error"]
LONG_DOCUMENTS: tuple[LongDocuments, ...] = ("split", "pool", "error")

ADDABLE: tuple[Component, ...] = ("sparse", "multivector")
"""The components that a collection may lack, and that ``add_component`` adds."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """How vectors are stored.

    Attributes:
        multivector_dtype: Precision of multi-vector rows: ``"float32"``, ``"float16"``, or ``"int8"``, ``"int4"``,
            ``"int2"`` and ``"int1"``, which store 8, 4, 2 and 1 bits for each value and a scale for each row.
        long_documents: ``"split"`` keeps every row, in several records of the store if one record cannot hold
            them (exact). ``"pool"`` replaces similar rows of a long document by their mean before a store
            receives them (lossy, see ``backends.pooling``), and then splits. ``"error"`` refuses a document
            that does not fit in one record of the store.
        pool_factor: With ``"pool"``: the average number of rows of a long document that become one, >= 2.
        pool_from_rows: With ``"pool"``: a document with at least this number of rows is long; 1 pools all documents
            (of one row there is nothing to pool).
        components: The components that are stored, in any order; dense is always one, because the paper's
            methods start from it. Without ``"multivector"`` a collection is far smaller, and a text costs less to
            encode; ``add_component`` adds a component later.

    Raises:
        InvalidInput: A choice is unknown, or a factor or number of rows would have no effect.
    """

    multivector_dtype: PrecisionName = "float16"
    long_documents: LongDocuments = "split"
    pool_factor: int = 2
    pool_from_rows: int = 1024
    components: tuple[Component, ...] = COMPONENTS

    def __post_init__(self) -> None:
        # One order, because storages with the same components are equal.
        object.__setattr__(self, "components", _in_order(self.components))
        _ = self.precision
        if self.long_documents not in LONG_DOCUMENTS:
            raise InvalidInput(
                f"long_documents is {self.long_documents!r}.\n  Use 'split', 'pool' or 'error'."
            )
        for name, least in (("pool_factor", 2), ("pool_from_rows", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidInput(f"{name} is {value!r}.\n  Pass a whole number >= {least}.")
            # Two storages with the same effect are equal; opening a collection relies on this.
            if self.long_documents != "pool" and value != getattr(Storage, name):
                raise InvalidInput(
                    f"{name} is {value}, but long_documents is {self.long_documents!r}, which does not "
                    "pool.\n"
                    f"  Leave {name} out, or set long_documents='pool'."
                )
        if self.pool_from_rows == 2:  # the same as 1, because one row is never pooled
            object.__setattr__(self, "pool_from_rows", 1)

    @property
    def precision(self) -> Precision:
        """How the rows of multi-vectors are encoded, rounded and scored."""
        return precision_of(self.multivector_dtype)

    def pools(self, rows: int) -> bool:
        """Whether a document with this number of multi-vector rows is pooled."""
        return self.long_documents == "pool" and rows >= max(2, self.pool_from_rows)

    @property
    def pooling(self) -> str:
        """What happens to long documents, for people: ``"split"``, or ``"pool from 1,024 rows by 2"``."""
        if self.long_documents != "pool":
            return self.long_documents
        which = "all" if self.pool_from_rows == 1 else f"from {self.pool_from_rows:,} rows"
        return f"pool {which} by {self.pool_factor}"


def _in_order(components: Sequence[Component]) -> tuple[Component, ...]:
    """Return checked components in the order of ``COMPONENTS``."""
    given = () if isinstance(components, str) else tuple(components)
    if "dense" not in given or len(set(given)) < len(given) or any(name not in COMPONENTS for name in given):
        raise InvalidInput(
            f"components are {components!r}.\n"
            '  Use "dense", and optionally "sparse" and "multivector", each once: components=("dense", "sparse").'
        )
    return tuple(name for name in COMPONENTS if name in given)


@dataclasses.dataclass(frozen=True)
class Schema:
    """What a collection records about itself at creation; it is checked when the collection is opened.

    Attributes:
        model: The model that produces its vectors.
        storage: How the vectors are stored, and which components.
        format: The format of the documents that were written first; it does not count in comparisons of
            schemas.
        adding: A component that ``add_component`` has begun to add: every write stores it, and no read uses it.
    """

    model: ModelInfo
    storage: Storage = Storage()
    format: int = dataclasses.field(default=FORMAT, compare=False)
    adding: Component | None = None

    @property
    def components(self) -> tuple[Component, ...]:
        """The components of every document, in the order of ``COMPONENTS``."""
        return self.storage.components

    @property
    def written(self) -> tuple[Component, ...]:
        """The components that a write must have: ``components``, and the one that is being added."""
        return tuple(name for name in COMPONENTS if name in self.components or name == self.adding)

    @property
    def precision(self) -> Precision:
        """How the rows of multi-vectors are encoded, rounded and scored."""
        return self.storage.precision

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that ``from_json`` reads."""
        raw = dataclasses.asdict(self) | {"model": self.model.to_json()}
        # At the place where earlier versions read them.
        raw["components"] = raw["storage"].pop("components")
        if self.adding is None:
            del raw["adding"]  # as in earlier versions, which have no such field
        return raw

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Schema:
        """Return the schema that ``to_json`` wrote; fields that an earlier version lacks get their default.

        Raises:
            InvalidInput: The record is not a schema, or was written by a later version of this package.
        """
        if raw.get("format") not in range(1, FORMAT + 1):
            raise InvalidInput(
                f"the collection's schema has format {raw.get('format')!r}; this version reads 1 to "
                f"{FORMAT}.\n"
                "  Update m3-connectors to the version that created the collection, or index into another "
                "collection."
            )
        storage = Storage(**raw["storage"], components=tuple(raw["components"]))
        return cls(ModelInfo(**raw["model"]), storage, raw["format"], raw.get("adding"))
