"""Where a document comes from."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a document comes from.

    Attributes:
        source: The source, such as the path of a folder.
        file: The file of the source.
    """

    source: str = ""
    file: str = ""
