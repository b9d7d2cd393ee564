"""Fixtures that several test files share, and the report at the end of the run of what could not run."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before torch is imported: for the small models of tests, its threads wait for each other twice as long as they
# compute, and two workers share the processors.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
from live_servers import NOT_RUN, collections_of, do_without, left_behind

from m3_connectors.encoder.encoder import M3Encoder
from m3_connectors.testing.checkpoints import write_checkpoint
from m3_connectors.testing.servers import CannotStart
from m3_connectors.testing.servers.start import STORES, Running, start

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile(
    "m3", hypothesis.settings(), deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("m3")

# A job that a shell starts in the background ignores Ctrl-C, and so do its children, but tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

COMPOSE = Path(__file__).parents[1] / "docker" / "compose.yaml"
_ran_on: dict[str, None] = {}


@pytest.fixture(scope="session")
def ran_on() -> Callable[[str, str], None]:
    """Note which servers the tests ran on, for the report at the end of the run."""

    def note(store: str, server: str) -> None:
        _ran_on[f"RUN on a real {store} server: {server}"] = None

    return note


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small complete checkpoint with random weights."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "small-m3")


@pytest.fixture(scope="session")
def encoder(checkpoint: Path) -> M3Encoder:
    """Load an encoder with that checkpoint, in float32."""
    return M3Encoder(str(checkpoint), precision="float32")


@pytest.fixture(scope="session")
def qdrant_store() -> Iterator[Running]:
    """Return a Qdrant server; see ``_store``."""
    yield from _store("qdrant")


@pytest.fixture(scope="session")
def milvus_store() -> Iterator[Running]:
    """Return a Milvus server; see ``_store``."""
    yield from _store("milvus")


@pytest.fixture(scope="session")
def elasticsearch_store() -> Iterator[Running]:
    """Return an Elasticsearch server; see ``_store``."""
    yield from _store("elasticsearch")


def _store(store: str) -> Iterator[Running]:
    """Yield a server for the complete run: named in the environment, a container, or a process; else skip the test.

    If tests left a collection behind, this is an error at the end of the run.
    """
    try:
        running = start(store, compose=COMPOSE)
    except CannotStart as reason:
        do_without(store, reason)
    _ran_on[f"RUN on a real {store} server: {running.url} ({running.how})"] = None
    try:
        before = collections_of(running)
        yield running
        left = left_behind(running, before)
    finally:
        running.stop()
    assert not left, f"tests left these collections on {running.url}: {sorted(left)}"


@pytest.fixture(autouse=True)
def _no_models_remembered(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test an empty cache of used models; it is created only if the test needs it."""
    monkeypatch.setenv("M3_CACHE_DIR", str(tmp_path_factory.getbasetemp() / f"cache-{uuid.uuid4().hex}"))


_WAYS_IN = ("API_KEY", "USERNAME", "PASSWORD", "CA_CERTS", "FINGERPRINT", "GRPC_PORT")


@pytest.fixture(autouse=True)
def _ways_in_of_named_servers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the keys and ports of a named server from tests that do not use it, such as those with stand-ins."""
    for store in set(STORES) - _servers_of(request.node):
        for name in _WAYS_IN:
            monkeypatch.delenv(f"M3_{store.upper()}_{name}", raising=False)


def _servers_of(item: pytest.Item) -> set[str]:
    """Return the stores whose servers of the complete run a test may use."""
    # Some tests request a store by a parameter with its name.
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    asked = {
        *getattr(item, "fixturenames", ()),
        *(f"{value}_store" for value in parameters if isinstance(value, str)),
    }
    return {store for store in STORES if f"{store}_store" in asked}


_LIVE_FILES = (
    "test_milvus",
    "test_elasticsearch_",
    "test_faults_",
    "test_doctor_servers",
    "test_quiet",
    "test_hostile_text",
    "test_live_servers",
)
_LIVE_FIXTURES = {f"{store}_store" for store in STORES}
_LONG_FILES = (
    "test_elasticsearch_oldest",
    "test_elasticsearch_security",
    "test_qdrant_server",
    "test_milvus",
    "test_cli_eval",
)
"""They start right after the servers' tests, because whatever starts last keeps the other worker waiting."""


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use a store's server, and group tests for the workers of pytest-xdist.

    ``make test-quick`` leaves the marked ones out. All tests on one server are one group, so that only one
    worker starts it; every other file is a group.
    """
    order: dict[str, int] = {}
    for item in items:
        if item.path.name.startswith(_LIVE_FILES) or _LIVE_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("live")
        servers = sorted(_servers_of(item)) if item.get_closest_marker("live") else []
        item.add_marker(pytest.mark.xdist_group("-".join(servers) or item.path.stem))
        order[item.nodeid] = 0 if servers else 1 if item.path.stem in _LONG_FILES else 2
    items.sort(key=lambda item: order[item.nodeid])  # a stable sort: the tests of a file keep their order


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remove the name of the group, which pytest-xdist appends to the name of a test, from what a worker reports."""
    if hasattr(report, "node") and report.nodeid.rfind("@") > report.nodeid.rfind("]"):
        report.nodeid = report.nodeid.rpartition("@")[0]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Pass what a worker of pytest-xdist noted to the process that prints the end of the run."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["servers"] = {"run": list(_ran_on), "not run": dict(NOT_RUN)}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what that worker noted; a worker that crashed passed nothing."""
    noted = getattr(node, "workeroutput", {}).get("servers", {})
    _ran_on.update(dict.fromkeys(noted.get("run", ())))
    NOT_RUN.update(noted.get("not run", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in [*terminalreporter.stats.get("failed", ()), *terminalreporter.stats.get("error", ())]:
        if crash := getattr(report.longrepr, "reprcrash", None):
            # In CI pytest repeats the complete message at the end; the first line says enough there.
            crash.message = crash.message.partition("\n")[0][:200]
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        terminalreporter.write_sep(
            "!", f"{len(skipped)} tests could not run on this machine", yellow=True, bold=True
        )
        for report in skipped:
            terminalreporter.write_line(f"  {report.nodeid}: {report.longrepr[2]}")
    for line in _ran_on:
        terminalreporter.write_line(line, green=True, bold=True)
    for store, reason in NOT_RUN.items():
        terminalreporter.write_line(f"NOT RUN on a real {store} server: {reason}", red=True, bold=True)
