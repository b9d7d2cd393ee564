"""The backend contract as tests: subclass ``BackendConformance`` and run pytest.

::

    from m3_connectors.testing import BackendConformance

    class TestMyStore(BackendConformance):
        def make_backend(self, directory, collection):
            return MyStore(url=..., collection=collection)

The name of each test has the number of its clause in ``m3_connectors.backends.base``. Ids and scores are compared
with those of the memory backend, on seeded random collections (``worlds``).
"""

from __future__ import annotations

from m3_connectors.testing.conformance.approximate import ApproximateClauses
from m3_connectors.testing.conformance.collection import CollectionClauses
from m3_connectors.testing.conformance.components import ComponentClauses
from m3_connectors.testing.conformance.reading import ReadingClauses
from m3_connectors.testing.conformance.scanning import ScanningClauses
from m3_connectors.testing.conformance.scores import ScoreClauses
from m3_connectors.testing.conformance.search import SearchClauses
from m3_connectors.testing.conformance.suite import runs
from m3_connectors.testing.conformance.writing import WritingClauses

__all__ = ["BackendConformance", "runs"]


class BackendConformance(
    CollectionClauses,
    WritingClauses,
    ReadingClauses,
    ScoreClauses,
    ApproximateClauses,
    SearchClauses,
    ComponentClauses,
    ScanningClauses,
):
    """Every clause of the contract, for one adapter."""
