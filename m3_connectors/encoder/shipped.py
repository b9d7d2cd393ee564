"""Models of this project, which are found by name in an installation and in a clone of the repository."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from m3_connectors.errors import ModelFormat

SHIPPED = {"m3-tiny": ("m3_connectors_tiny", "m3-connectors-tiny")}
"""For each model name: the package that contains its directory, and the distribution that installs it."""

_CLONE = Path(__file__).parents[2]


def shipped_model(name: str) -> Path | None:
    """Return the directory of a model of this project; None for any other name.

    Args:
        name: The name of a model, such as ``m3-tiny``.

    Raises:
        ModelFormat: The model belongs to this project, but its package is not installed.
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
        f"{name} is in the package {distribution}, which is not installed.\n"
        f"  pip install {distribution}     (from a clone of the repository: pip install ./models)"
    )
