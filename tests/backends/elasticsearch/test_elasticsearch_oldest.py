"""The contract on the oldest Elasticsearch that is served: one server of its own, whatever client is installed."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from m3_connectors.backends.base import Backend
from m3_connectors.backends.registry import backend_for
from m3_connectors.testing.conformance import BackendConformance, runs
from m3_connectors.testing.servers import CannotStart
from m3_connectors.testing.servers.elasticsearch import OLDEST_VERSION, elasticsearch_server


@pytest.fixture(scope="module")
def oldest() -> Iterator[str]:
    """The URL of its server; with ``CI`` it must start, else the end of the run names each test that did not run."""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(elasticsearch_server(version=OLDEST_VERSION))
        except CannotStart as reason:
            if os.environ.get("CI"):
                raise
            pytest.skip(str(reason))
        yield f"elasticsearch+{server.url}"


class TestConformance(BackendConformance):
    worlds = 2  # the same adapter is compared on more of them with the current version
    random_filters = 60

    @pytest.fixture(autouse=True)
    def _server(self, oldest: str) -> None:
        self.url = oldest
        self.prefix = uuid.uuid4().hex[:12]

    def make_backend(self, directory: Path, collection: str) -> Backend:
        return backend_for(self.url, f"{self.prefix}-{collection}", {"replicas": 0})


@runs
async def test_it_is_that_version(oldest: str) -> None:
    backend = backend_for(oldest, "notes", {})
    assert (await backend.server()).version == OLDEST_VERSION
    await backend.close()
