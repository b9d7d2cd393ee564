"""What a store says of the collections that it holds, without opening any of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from m3_connectors.backends.schema import Schema
from m3_connectors.errors import M3Error

OTHERS = "made by another program"
"""The problem of a collection that does not record a schema of ours."""


@dataclasses.dataclass(frozen=True)
class CollectionInfo:
    """One collection of a store.

    Attributes:
        name: As ``connect`` takes it; of another program's collection, its name in the store.
        schema: Model, components and storage, as recorded at creation; None if it is another program's, or unreadable.
        count: Documents stored; None if they were not counted.
        problem: Why there is no schema or no count, in one line.
    """

    name: str
    schema: Schema | None = None
    count: int | None = None
    problem: str | None = None

    @property
    def is_ours(self) -> bool:
        """Whether m3-connectors made it."""
        return self.problem != OTHERS

    @classmethod
    def read(cls, name: str, schema: Callable[[], Schema]) -> CollectionInfo:
        """A collection of ours; where its record cannot be read, that is its problem."""
        try:
            return cls(name, schema())
        except (M3Error, KeyError, TypeError, ValueError) as error:
            return cls(name, problem=f"its record cannot be read: {(str(error).splitlines() or [''])[0]}")

    @classmethod
    def other(cls, name: str) -> CollectionInfo:
        """A collection of another program."""
        return cls(name, problem=OTHERS)
