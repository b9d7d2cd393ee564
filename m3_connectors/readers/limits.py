"""How far compressed files may expand: a few bytes may expand to any size."""

from __future__ import annotations

import dataclasses

from m3_connectors.errors import InvalidInput

_UNSUSPICIOUS_BYTES = 64 * 2**20
"""What a file may expand to at any ratio: short repetitive texts compress well."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of compressed files (``.gz``, ``.zst``), of members of archives, and of DOCX.

    Attributes:
        expansion: How many times its own size a file may expand to, once it has expanded to 64 MiB. Texts compress to
            a third to a twentieth.
        expanded_bytes: How much of a file may be held in a temporary file, or as a whole in memory.

    Raises:
        InvalidInput: A limit is below 1.
    """

    expansion: int = 200
    expanded_bytes: int = 2**30

    def __post_init__(self) -> None:
        for name in ("expansion", "expanded_bytes"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name}={getattr(self, name)} is not a limit.\n  Use at least 1.")

    def check_expansion(self, stored: int, expanded: int) -> None:
        """Raise InvalidInput if a file of ``stored`` bytes may not expand to that many."""
        if expanded > max(_UNSUSPICIOUS_BYTES, stored * self.expansion):
            raise InvalidInput(
                f"expands to more than {self.expansion:,} times its size, as a decompression bomb does: if it is "
                "sound, raise the limit with --max-expansion"
            )

    def check_size(self, expanded: int) -> None:
        """Raise InvalidInput if a file that must be held as a whole may not expand to that many bytes."""
        if expanded > self.expanded_bytes:
            raise InvalidInput(
                f"expands to more than {self.expanded_bytes / 2**30:.3g} GiB: decompress it first, or raise the limit "
                "with --max-expanded-gib"
            )


DEFAULT_LIMITS = Limits()
