"""``m3 serve`` in a process of its own: it answers, ends in order, and refuses what is not safe."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from m3_connectors import Document, M3Encoder, connect
from m3_connectors.cli.app import main
from m3_connectors.service.settings import Settings


def test_m3_serve_answers_and_ends_in_order(checkpoint: Path, tmp_path: Path) -> None:
    url = f"qdrant:{tmp_path / 'data'}"
    encoder = M3Encoder(str(checkpoint), precision="float32")
    with connect(url, "fruit", encoder=encoder) as index:
        index.add([Document("a", "red apples"), Document("b", "blue plums")])
        direct = index.search("blue plums", k=1)[0]
    (tmp_path / "keys").write_text("k" * 32)
    command = [sys.executable, "-m", "m3_connectors", "serve", url, "--model", str(checkpoint), "--port", "0"]
    with subprocess.Popen(
        [*command, "--api-key-file", str(tmp_path / "keys")],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    ) as process:
        assert process.stderr is not None
        try:
            line = next(line for line in process.stderr if "serving" in line)
            at = line.split()[-1]
            with httpx.Client(
                base_url=at, headers={"Authorization": "Bearer " + "k" * 32}, timeout=30
            ) as web:
                found = web.post("/v1/collections/fruit/search", json={"query": "blue plums", "k": 1}).json()
                assert found["hits"][0]["id"] == direct.document.id == "b"
                assert found["hits"][0]["score"] == pytest.approx(direct.score, abs=0.02)
                assert web.get("/v1/collections").json() == {"collections": ["fruit"]}
            assert httpx.get(f"{at}/v1/collections", timeout=30).status_code == 401
        finally:
            process.send_signal(signal.SIGTERM)
            output, errors = process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGTERM, 143), errors
    assert "Traceback" not in errors
    assert output == ""
    with connect(url, "fruit", encoder=encoder) as index:  # its lock is free
        assert index.count() == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["memory:", "--host", "0.0.0.0"], "there is no API key"),
        (["qdrant:data", "--workers", "2"], "2 workers cannot share qdrant:data"),
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
