"""What a failing store makes a program print: nothing in a library, one reason on the command line."""

from __future__ import annotations

import logging
import os
import pickle
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from m3_connectors.backends.retry import RetryPolicy, retrying
from m3_connectors.errors import (
    BackendError,
    InvalidInput,
    M3Error,
    MissingDependency,
    NotFound,
    PartialWrite,
    Throttled,
    Unavailable,
)
from m3_connectors.testing.conformance import runs
from m3_connectors.testing.faults import FaultProxy
from m3_connectors.testing.servers.start import Running

PROGRAM = """
import sys
from m3_connectors import connect
from m3_connectors.errors import M3Error
try:
    connect(sys.argv[1], "nowhere", create=False, ca_certs=sys.argv[2] or None, attempts=2, timeout_seconds=5)
except M3Error as error:
    sys.stdout.write(f"{type(error).__name__}: {error}")
"""


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**environment, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(params=["milvus", "elasticsearch"])
def store(request: pytest.FixtureRequest) -> Running:
    running: Running = request.getfixturevalue(f"{request.param}_store")
    return running


@pytest.fixture
def encrypted(store: Running, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The store behind TLS, and an authority that did not sign its certificate."""
    authority, stranger = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    stranger.cert_pem.write_to_path(str(tmp_path / "stranger.pem"))
    port = int(store.url.rpartition(":")[2])
    with FaultProxy(port, tls=context) as proxy:
        yield f"{store.store}+https://127.0.0.1:{proxy.port}", tmp_path / "stranger.pem"


def test_a_library_prints_nothing_when_a_certificate_is_not_trusted(encrypted: tuple[str, Path]) -> None:
    url, stranger = encrypted
    done = run(["-c", PROGRAM, url, str(stranger)])
    assert done.stdout.startswith("Unauthorised: ")
    assert "certificate" in done.stdout.splitlines()[0]
    assert "ca_certs=" in done.stdout.splitlines()[1]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("scheme", "port", "said"),
    [("http", "1", "after 2 tries"), ("https", None, "does not use TLS")],
    ids=["wrong port", "https of a plain server"],
)
def test_a_library_prints_nothing_when_there_is_no_connection(
    store: Running, scheme: str, port: str | None, said: str
) -> None:
    port = port or store.url.rpartition(":")[2]
    done = run(["-c", PROGRAM, f"{store.store}+{scheme}://127.0.0.1:{port}", ""])
    assert done.stdout.startswith("Unavailable: ")
    assert said in done.stdout.splitlines()[0]
    assert done.stderr == ""


def test_the_command_line_says_one_reason(
    encrypted: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, stranger = encrypted
    monkeypatch.setenv(f"M3_{url.partition('+')[0].upper()}_CA_CERTS", str(stranger))
    done = run(
        ["-c", "import sys; from m3_connectors.cli.app import main; sys.exit(main())", "search", url, "x"]
    )
    assert done.returncode == 1
    assert done.stdout == ""
    reason, advice = done.stderr.splitlines()
    assert reason.startswith("Unauthorised: ")
    assert advice.startswith("  ")


@runs
async def test_a_second_try_is_logged_as_ours_and_not_as_staminas(caplog: pytest.LogCaptureFixture) -> None:
    tries = []

    async def call() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise Unavailable("nobody there.\n  Is it up?", backend="store", operation="open")
        return len(tries)

    with caplog.at_level(logging.INFO):
        assert await retrying(RetryPolicy(), call) == 3
    assert [(record.name, record.levelno) for record in caplog.records] == [
        ("m3_connectors.backends.retry", logging.INFO)
    ] * 2
    assert caplog.messages == [f"retry: try {i} of 5, because of: store open: nobody there." for i in (2, 3)]
    # Other users of stamina keep their log.
    caplog.clear()
    logging.getLogger("stamina").warning("theirs")
    assert caplog.messages == ["theirs"]


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("k is 0."),
        MissingDependency("pymilvus", "milvus"),
        NotFound("no collection.", backend="milvus", operation="open"),
        Throttled("slowly.", backend="qdrant", operation="upsert", retry_after_seconds=2.5),
        PartialWrite({"a": "too large"}, backend="qdrant", operation="upsert"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_travel_between_processes(error: M3Error) -> None:
    error.add_note("  a note")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    assert not isinstance(again, BackendError) or again.retryable == error.retryable
