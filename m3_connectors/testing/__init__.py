"""Test helpers that are part of the package: the contract as pytest tests, worlds and checkpoints.

``from m3_connectors.testing import BackendConformance`` imports pytest. The modules ``worlds``, ``agreement``
and ``checkpoints`` can be used without a test framework.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from m3_connectors.errors import MissingDependency

if TYPE_CHECKING:
    from m3_connectors.testing.conformance import BackendConformance

__all__ = ["BackendConformance"]


def __getattr__(name: str) -> Any:
    if name != "BackendConformance":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from m3_connectors.testing.conformance import BackendConformance
    except ModuleNotFoundError as error:
        if error.name != "pytest":
            raise
        raise MissingDependency("pytest", "testing") from error
    return BackendConformance
