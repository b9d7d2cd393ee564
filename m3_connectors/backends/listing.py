"""What a store reports about the collections that it holds, without opening them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from m3_connectors.backends.schema import Schema
from m3_connectors.errors import M3Error

OTHERS = "made by another program"
"""The ``problem`` of a collection that does not record a schema of this package."""


@dataclasses.dataclass(frozen=True)
class CollectionInfo:
    """One collection of a store.

    Attributes:
        name: The name that ``connect`` takes; for a collection of another program, its name in the store.
        schema: Model, components and storage, as recorded at creation; None if there is none or it is
        unreadable.
        count: The number of documents; None if they were not counted.
        problem: Why the schema or the count is missing, in one line.
    """

    name: str
    schema: Schema | None = None
    count: int | None = None
    problem: str | None = None

    @property
    def is_ours(self) -> bool:
        """Whether m3-connectors created it."""
        return self.problem != OTHERS

    @classmethod
    def read(cls, name: str, schema: Callable[[], Schema]) -> CollectionInfo:
        """Return a collection of this package; if its record cannot be read, ``problem`` says why."""
        try:
            return cls(name, schema())
        except (M3Error, KeyError, TypeError, ValueError) as error:
            return cls(name, problem=f"its record cannot be read: {(str(error).splitlines() or [''])[0]}")

    @classmethod
    def other(cls, name: str) -> CollectionInfo:
        """Return a collection of another program."""
        return cls(name, problem=OTHERS)
