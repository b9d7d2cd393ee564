"""How tests and users get a server: the compose file's promises, and the order in which ways are tried."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from m3_connectors.testing.servers import CannotStart
from m3_connectors.testing.servers import start as starting
from m3_connectors.testing.servers.start import STORES, StoreName, container_engine, start

COMPOSE = Path(__file__).parents[1] / "docker" / "compose.yaml"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    read: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return dict(read["services"])


def test_every_store_has_a_plain_and_a_secure_service(services: dict[str, Any]) -> None:
    assert set(services) == {*STORES, *(f"{store}-secure" for store in STORES), "certificates"}
    assert all(("profiles" in service) == (name not in STORES) for name, service in services.items())


def test_servers_listen_on_loopback_only_are_pinned_and_say_when_they_are_well(
    services: dict[str, Any],
) -> None:
    for name, service in services.items():
        assert re.fullmatch(r"[a-z]+(/[a-z]+)?:v?\d+\.\d+\.\d+", service["image"]), name
        if name == "certificates":
            continue
        assert service["healthcheck"]["test"], name
        assert service["ports"], name
        for port in service["ports"]:
            assert re.fullmatch(r"127\.0\.0\.1:\$\{M3_[A-Z_]+_PORT:-\d+\}:\d+", port), (name, port)


def test_a_server_that_is_named_is_taken_before_any_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "_container", lambda *_: pytest.fail("started a container"))
    running = start("milvus", environment={"M3_MILVUS_URL": "milvus+http://elsewhere:19530"})
    assert (running.url, running.how) == ("milvus+http://elsewhere:19530", "environment")
    running.stop()


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(
    ("named", "url"),
    [
        ("127.0.0.1:6333", "STORE+http://127.0.0.1:6333"),
        ("http://127.0.0.1:6333", "STORE+http://127.0.0.1:6333"),
        ("https://db.example/prefix", "STORE+https://db.example/prefix"),
        ("STORE:6333", "STORE+http://STORE:6333"),
        ("[::1]:6333", "STORE+http://[::1]:6333"),
        ("STORE+https://db.example", "STORE+https://db.example"),
        ("STORE:./data", "STORE:./data"),
    ],
)
def test_a_named_server_may_leave_out_what_the_variable_says(store: StoreName, named: str, url: str) -> None:
    running = start(store, environment={f"M3_{store.upper()}_URL": named.replace("STORE", store)})
    assert (running.url, running.how) == (url.replace("STORE", store), "environment")


def test_without_any_way_the_reasons_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "container_engine", lambda: None)
    with pytest.raises(CannotStart, match="M3_QDRANT_URL names no server; no container engine"):
        start("qdrant", environment={}, compose=COMPOSE)


FAKE_ENGINE = """#!/bin/sh
echo "$@" >> "$LOG"
case "$*" in
  info*) echo 28.0 ;;
  *ps*) echo '{"Service":"qdrant","State":"running","Publishers":[
    {"URL":"127.0.0.1","TargetPort":6333,"PublishedPort":49001,"Protocol":"tcp"},
    {"URL":"127.0.0.1","TargetPort":6334,"PublishedPort":49002,"Protocol":"tcp"}]}' | tr -d '\\n' ;;
esac
"""


@pytest.mark.skipif(os.name != "posix", reason="a shell script plays the engine")
def test_a_container_gets_free_ports_and_is_taken_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("testcontainers")
    engine, log = tmp_path / "docker", tmp_path / "log"
    engine.write_text(FAKE_ENGINE)
    engine.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(log))
    assert container_engine() == "docker"
    running = start("qdrant", environment={}, compose=COMPOSE)
    assert (running.url, running.how) == ("qdrant+http://127.0.0.1:49001", "container")
    assert running.options == {"grpc_port": 49002}
    running.stop()
    said = log.read_text()
    assert re.search(r"compose -f \S*compose.yaml --env-file \S+ up --wait qdrant", said)
    assert re.search(r"compose -f \S*compose.yaml --env-file \S+ down --volumes qdrant", said)


@pytest.mark.skipif(os.name != "posix", reason="ends a process by signal")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_what_make_servers_starts_ends_with_it(ending: signal.Signals) -> None:
    pytest.importorskip("milvus_lite")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("M3_")}
    command = [sys.executable, "-m", "m3_connectors.testing.servers", "milvus"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"milvus +M3_MILVUS_URL=milvus\+http://127\.0\.0\.1:(\d+)  \(process\)\n", line)
        assert found, line
        assert "Ctrl-C" in process.stdout.readline()
        process.send_signal(ending)
        assert process.wait(60) == 0
    listening = subprocess.run(
        [sys.executable, "-c", f"import socket; socket.create_connection(('127.0.0.1', {found[1]}))"],
        capture_output=True,
        check=False,
    )
    assert listening.returncode != 0, "the server outlived the command"
