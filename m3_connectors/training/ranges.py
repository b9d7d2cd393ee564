"""The configuration and the ranges of settings, which every dataclass of settings checks when it is created."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from pydantic import ConfigDict, Field

from m3_connectors.errors import InvalidInput

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareBelow1 = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def require_one_above_0(name: str, weights: Collection[float]) -> None:
    """Check that one of some weights, each at least 0, is above 0.

    Raises:
        InvalidInput: All weights are 0, or there are none.
    """
    if not any(weight > 0 for weight in weights):
        raise InvalidInput(f"{name} is {[*weights]}.\n  Set at least one of them to a number above 0.")
