"""``m3 serve`` in a process of its own: it answers, ends in order, and refuses what is not safe."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import trustme

from m3_connectors import Document, M3Encoder, connect
from m3_connectors.cli.app import main
from m3_connectors.service.settings import Settings


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_m3_serve_answers_and_ends_in_order(checkpoint: Path, tmp_path: Path, scheme: str) -> None:
    url, key, options = f"qdrant:{tmp_path / 'data'}", "k" * 32, list[str]()
    encoder = M3Encoder(str(checkpoint), precision="float32")
    with connect(url, "fruit", encoder=encoder) as index:
        index.add([Document("a", "red apples"), Document("b", "blue plums")])
        direct = index.search("blue plums", k=1)[0]
    (tmp_path / "keys").write_text(key)
    trusted = ssl.create_default_context()
    if scheme == "https":
        authority = trustme.CA()
        authority.configure_trust(trusted)
        certificate = authority.issue_cert("127.0.0.1")
        certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
        certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
        options = ["--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem")]
    command = [sys.executable, "-m", "m3_connectors", "serve", url, "--port", "0"]
    if scheme == "http":  # otherwise it finds the directory of the model that wrote the collection
        command += ["--model", str(checkpoint)]
    with subprocess.Popen(
        [*command, "--api-key-file", str(tmp_path / "keys"), *options],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=checkpoint.parent,
    ) as process:
        assert process.stderr is not None
        try:
            at = next(line for line in process.stderr if "serving" in line).split()[-1]
            assert at.startswith(f"{scheme}://127.0.0.1:")
            with httpx.Client(base_url=at, timeout=30, verify=trusted) as web:
                assert web.get("/v1/collections").status_code == 401
                web.headers["Authorization"] = f"Bearer {key}"
                found = web.post("/v1/collections/fruit/search", json={"query": "blue plums", "k": 1}).json()
                assert found["hits"][0]["id"] == direct.document.id == "b"
                assert found["hits"][0]["score"] == pytest.approx(direct.score, abs=0.02)
                assert web.get("/v1/collections").json() == {"collections": ["fruit"]}
        finally:
            process.send_signal(signal.SIGTERM)
            output, errors = process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGTERM, 128 + signal.SIGTERM), errors
    assert "Traceback" not in errors
    assert output == ""
    with connect(url, "fruit", encoder=encoder) as index:  # its lock is free
        assert index.count() == 2


def test_two_processes_serve_one_port(checkpoint: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "m3_connectors", "serve", "qdrant+http://127.0.0.1:9", "--workers", "2"]
    with subprocess.Popen(
        [*command, "--model", str(checkpoint), "--port", str(port)], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            assert any("2 processes" in line for line in process.stderr)
            transport = httpx.HTTPTransport(retries=8)  # the port is bound after the line was printed
            with httpx.Client(transport=transport, timeout=120) as web:
                answer = web.post(f"http://127.0.0.1:{port}/v1/encode", json={"texts": ["x"]})
            assert answer.status_code == 200
        finally:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["memory:", "--host", "0.0.0.0"], "there is no API key"),
        (["qdrant:data", "--workers", "2"], "2 workers cannot share qdrant:data"),
        (["qdrant+http://127.0.0.1:9", "--workers", "2", "--port", "0"], "name a port"),
        (["nosuch:x"], "nosuch"),
        (["memory:", "--tls-cert", "cert.pem"], "--tls-key"),
    ],
)
def test_what_is_refused_before_the_model_is_loaded(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["serve", *options, "--model", "no-such-model"]) in (1, 2)
    assert words in capsys.readouterr().err


def test_a_port_in_use_is_named(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "memory:", "--model", str(checkpoint), "--port", port]) == 1
    assert f"127.0.0.1:{port}" in capsys.readouterr().err


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"deadline_seconds is 0\.0"):
        Settings(("memory:",), deadline_seconds=0.0)
    with pytest.raises(ValueError, match="needs a store"):
        Settings(())
