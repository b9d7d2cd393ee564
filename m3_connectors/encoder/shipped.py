"""Models that come with this project and are found by their name alone, whether installed or in a clone."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from m3_connectors.errors import ModelFormat

SHIPPED = {"m3-tiny": ("m3_connectors_tiny", "m3-connectors-tiny")}
"""By the model's name: the package that holds its directory, and the distribution that installs the package."""

_CLONE = Path(__file__).parents[2]


def shipped_model(name: str) -> Path | None:
    """The directory of a model of this project; None for the name of any other model.

    Args:
        name: Such as ``m3-tiny``.

    Raises:
        ModelFormat: The model is one of this project's, and its package is not installed.
    """
    if name not in SHIPPED:
        return None
    package, distribution = SHIPPED[name]
    found = importlib.util.find_spec(package)
    places = [Path(place) for place in (found.submodule_search_locations or ())] if found else []
    for place in (_CLONE / "models", *places):
        if (place / name / "config.json").is_file():
            return place / name
    raise ModelFormat(
        f"{name} comes in a package of its own, {distribution}, which is not installed.\n"
        f"  pip install {distribution}     (from a clone of the repository: pip install ./models)"
    )
