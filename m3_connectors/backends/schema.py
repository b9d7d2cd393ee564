"""What a collection records about itself: who writes its vectors, which ones, and how they are kept."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from m3_connectors.embeddings import COMPONENTS, Component, ModelInfo
from m3_connectors.errors import InvalidInput

FORMAT = 2
"""How documents are written. Since 2 their metadata answer filters on keys with dots, on lists of objects, on whole
numbers beyond 2**53 and on dates of more spellings; documents of 1 answer what they did, and are read as ever."""

LongDocuments = Literal["split", "pool", "error"]
LONG_DOCUMENTS: tuple[LongDocuments, ...] = ("split", "pool", "error")


@dataclasses.dataclass(frozen=True)
class Storage:
    """How vectors are kept.

    Attributes:
        multivector_dtype: Precision of multi-vector rows; float16 halves the space.
        long_documents: ``"split"`` keeps every row, over several of the store's records where one does not hold them
            (exact). ``"pool"`` replaces near rows of a long document by their mean before any store sees them
            (lossy, see ``backends.pooling``), and then splits. ``"error"`` refuses a document beyond what one record
            of the store holds.
        pool_factor: With ``"pool"``: rows of a long document that become one on average, >= 2.
        pool_from_rows: With ``"pool"``: a document of so many rows or more is long.

    Raises:
        InvalidInput: An unknown choice, a factor or a number of rows that pools nothing.
    """

    multivector_dtype: Literal["float16", "float32"] = "float16"
    long_documents: LongDocuments = "split"
    pool_factor: int = 2
    pool_from_rows: int = 1024

    def __post_init__(self) -> None:
        if self.multivector_dtype not in ("float16", "float32"):
            raise InvalidInput(
                f"multivector_dtype is {self.multivector_dtype!r}: use 'float16' or 'float32'."
            )
        if self.long_documents not in LONG_DOCUMENTS:
            raise InvalidInput(f"long_documents is {self.long_documents!r}: use 'split', 'pool' or 'error'.")
        for name in ("pool_factor", "pool_from_rows"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 2:
                raise InvalidInput(f"{name} is {value!r}: give a whole number >= 2.")
            # Two storages that keep the same are equal, which is how a collection is checked when it is opened.
            if self.long_documents != "pool" and value != getattr(Storage, name):
                raise InvalidInput(
                    f"{name} is {value}, and long_documents is {self.long_documents!r}, which pools nothing.\n"
                    f"  Leave {name} out, or give long_documents='pool' too."
                )

    def pools(self, rows: int) -> bool:
        """Whether a document of so many multi-vector rows is pooled."""
        return self.long_documents == "pool" and rows >= self.pool_from_rows


@dataclasses.dataclass(frozen=True)
class Schema:
    """What a collection records about itself at creation and is checked against when opened.

    Attributes:
        model: Who writes its vectors.
        components: What is stored; dense always, as the paper's methods start from it.
        storage: How it is stored.
        format: Of the documents that were written first; two schemas that differ in it only are equal.
    """

    model: ModelInfo
    components: tuple[Component, ...] = COMPONENTS
    storage: Storage = Storage()
    format: int = dataclasses.field(default=FORMAT, compare=False)

    def __post_init__(self) -> None:
        if "dense" not in self.components or any(name not in COMPONENTS for name in self.components):
            raise InvalidInput(f"components are {self.components}: dense, and any of sparse and multivector.")

    def to_json(self) -> dict[str, Any]:
        """A JSON object that ``from_json`` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Schema:
        """The schema that ``to_json`` wrote; what an earlier version did not write has its default.

        Raises:
            InvalidInput: It is none, or of a later version of this package.
        """
        if raw.get("format") not in range(1, FORMAT + 1):
            raise InvalidInput(
                f"schema format {raw.get('format')!r} is none of 1 to {FORMAT}.\n"
                "  A later m3-connectors made the collection: use that version, or index into another collection."
            )
        return cls(
            ModelInfo(**raw["model"]), tuple(raw["components"]), Storage(**raw["storage"]), raw["format"]
        )
