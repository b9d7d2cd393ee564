"""What becomes of tests whose server cannot be had: said loudly, and an error where it must be had."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

from m3_connectors.testing.servers import CannotStart
from m3_connectors.testing.servers.start import StoreName

NOT_RUN: dict[StoreName, str] = {}
"""Why each store could not be had; conftest.py prints it, whole, at the end of the run."""

_MUST_RUN_IN_CI: tuple[StoreName, ...] = ("milvus", "elasticsearch")


def do_without(store: StoreName, reason: CannotStart) -> NoReturn:
    """Skip, and have it said at the end of the run.

    Raises:
        CannotStart: With ``CI=true``, Milvus or Elasticsearch is missing: both run on any machine.
    """
    if os.environ.get("CI") == "true" and store in _MUST_RUN_IN_CI:
        raise reason
    NOT_RUN[store] = str(reason)
    pytest.skip(str(reason).partition("\n")[0])
