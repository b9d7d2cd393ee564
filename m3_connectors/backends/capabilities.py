"""What a store can do, as data: declared → the conformance suite must pass it; undeclared → ``Unsupported``."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping


class Capability(enum.Enum):
    """One thing that not every store can do; the value is its line in the table of the docs."""

    PERSISTENT = "keeps its data after close"
    NATIVE_DENSE_ANN = "approximate dense search in its own vector index"
    NATIVE_SPARSE = "sparse search in its own inverted index"
    NATIVE_MULTIVECTOR = "multi-vector scores computed in the store"
    CONCURRENT_PROCESSES = "several processes may open one collection"
    SPLIT_LONG_DOCUMENTS = "8,191 rows of one document, scored exactly"
    FLOAT32_MULTIVECTORS = "multi-vectors kept in float32"
    DATE_RANGES = "ranges over dates"


@dataclasses.dataclass(frozen=True)
class ServerInfo:
    """What a server says about itself; what it does not tell these credentials is left out.

    Attributes:
        url: Where it is, without secrets.
        version: Its own version.
        details: More, by name, such as ``licence``.
        problems: What is wrong, each with its remedy.
    """

    url: str
    version: str | None = None
    details: Mapping[str, str] = dataclasses.field(default_factory=dict)
    problems: tuple[str, ...] = ()
