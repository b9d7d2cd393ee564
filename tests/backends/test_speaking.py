"""A URL whose port speaks something else than the store's client: each networked store says so, and what to give."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Iterator

import pytest
import trustme
from qdrant_fake import FakeQdrant

from m3_connectors.backends.registry import backend_for
from m3_connectors.cli.app import main
from m3_connectors.errors import BackendError, Rejected, Unavailable
from m3_connectors.testing.conformance import runs


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    """HTTP and gRPC, each plain and over TLS, and a port that ends every connection without a word."""
    leaf = trustme.CA().issue_cert("localhost", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    chain = b"".join(part.bytes() for part in leaf.cert_chain_pems)
    certificate = (leaf.private_key_pem.bytes(), chain)

    def hang_up() -> None:
        with contextlib.suppress(OSError):  # the socket is closed: the tests are over
            while True:
                silent.accept()[0].close()

    with (
        FakeQdrant() as plain,
        FakeQdrant(certificate=certificate, ssl_context=context) as tls,
        socket.create_server(("127.0.0.1", 0)) as silent,
    ):
        threading.Thread(target=hang_up, daemon=True).start()
        yield {
            "http": plain.port,
            "grpc": plain.grpc_port,
            "https": tls.port,
            "grpcs": tls.grpc_port,
            "silent": silent.getsockname()[1],
        }
        silent.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("store", "scheme", "port", "kind", "what", "remedy"),
    [
        ("qdrant", "http", "grpc", Rejected, "answers with gRPC, not HTTP", "grpc_port="),
        ("qdrant", "https", "grpc", Rejected, "answers with gRPC, not HTTP", "grpc_port="),
        ("qdrant", "http", "https", Unavailable, "uses TLS", "qdrant+https://localhost"),
        ("qdrant", "http", "grpcs", Unavailable, "uses TLS", "qdrant+https://localhost"),
        ("qdrant", "https", "grpcs", Rejected, "answers with gRPC, not HTTP", "grpc_port="),
        ("qdrant", "https", "http", Unavailable, "does not use TLS", "qdrant+http://localhost"),
        ("elasticsearch", "http", "grpc", Rejected, "answers with gRPC, not HTTP", "9200"),
        ("elasticsearch", "http", "https", Unavailable, "uses TLS", "elasticsearch+https://localhost"),
        ("elasticsearch", "https", "http", Unavailable, "does not use TLS", "elasticsearch+http://"),
        ("milvus", "http", "http", Rejected, "answers with HTTP, not gRPC", "19530"),
        ("milvus", "https", "http", Rejected, "answers with HTTP, not gRPC", "19530"),
        ("milvus", "http", "grpcs", Unavailable, "uses TLS", "milvus+https://localhost"),
        ("milvus", "https", "grpc", Unavailable, "does not use TLS", "milvus+http://localhost"),
        ("qdrant", "http", "silent", Unavailable, "no connection", "Is the server up"),
        ("elasticsearch", "http", "silent", Unavailable, "no connection", "Is the server up"),
        ("milvus", "http", "silent", Unavailable, "no connection", "Is the server up"),
    ],
)
@runs
async def test_a_port_that_speaks_something_else_is_said(
    ports: dict[str, int],
    store: str,
    scheme: str,
    port: str,
    kind: type[BackendError],
    what: str,
    remedy: str,
) -> None:
    options = {"attempts": 2, "total_seconds": 10.0, "timeout_seconds": 5.0}
    backend = backend_for(f"{store}+{scheme}://localhost:{ports[port]}", "notes", options)
    with pytest.raises(kind) as caught:
        await backend.server()
    await backend.close()
    first, second = str(caught.value).splitlines()
    assert what in first
    assert remedy in second
    assert ("Is the server up" in second) == (port == "silent") == caught.value.retryable
    assert "m3 doctor" not in str(caught.value)


def test_doctor_says_so_and_does_not_advise_itself(
    ports: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", f"qdrant+http://localhost:{ports['grpc']}", "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    (problem,) = [one for one in findings if "answers with gRPC" in one["value"]]
    assert problem["level"] == "problem"
    assert "grpc_port" in problem["remedy"]
    assert not any("m3 doctor" in (one["remedy"] or "") for one in findings)
