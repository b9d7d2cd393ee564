"""Divide documents between runs, on one machine or many: by a hash of the id, which every run computes alike."""

from __future__ import annotations

import dataclasses
import hashlib
import re

from m3_connectors.errors import InvalidInput

_FORM = re.compile(r"([0-9]{1,9})/([0-9]{1,9})", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Shard:
    """One of several equal parts of all documents; together they have each document once.

    The part of a document follows from its id alone, not from its file: it remains the same if files are moved,
    renamed or read in another order. It is that of the whole document, so its chunks stay together.

    Attributes:
        number: Which part, from 1.
        count: How many parts there are.

    Raises:
        InvalidInput: The number is not between 1 and the count.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise InvalidInput(
                f"there is no shard {self.number} of {self.count}.\n"
                "  Number them from 1: two runs are 1/2 and 2/2."
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``NUMBER/COUNT``, such as ``1/4``.

        Raises:
            InvalidInput: The text has another form, or the number is not between 1 and the count.
        """
        form = _FORM.fullmatch(text)
        if form is None:
            raise InvalidInput(
                f"{text!r} is not a shard.\n  Give its number and their count: two runs are 1/2 and 2/2."
            )
        return cls(int(form[1]), int(form[2]))

    def __str__(self) -> str:
        """The form that ``parse`` reads."""
        return f"{self.number}/{self.count}"

    def has(self, id: str) -> bool:
        """Return whether the document with this id belongs to this part."""
        digest = hashlib.sha256(id.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1


ALL = Shard(1, 1)
"""All documents."""
