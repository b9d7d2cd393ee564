"""How tests and users get a server: the compose file's promises, and the order in which ways are tried."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from m3_connectors.testing.servers import CannotStart, elasticsearch, milvus
from m3_connectors.testing.servers import start as starting
from m3_connectors.testing.servers.start import STORES, container_engine, start

COMPOSE = Path(__file__).parents[2] / "docker" / "compose.yaml"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    read: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    # What is in front of the stores is tested in tests/service/test_image.py.
    return {name: service for name, service in read["services"].items() if "build" not in service}


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
def test_a_named_server_may_leave_out_what_the_variable_says(store: str, named: str, url: str) -> None:
    running = start(store, environment={f"M3_{store.upper()}_URL": named.replace("STORE", store)})
    assert (running.url, running.how) == (url.replace("STORE", store), "environment")


def test_without_any_way_the_reasons_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "container_engine", lambda: None)
    with pytest.raises(CannotStart, match="M3_QDRANT_URL is not set; no container engine is running"):
        start("qdrant", environment={}, compose=COMPOSE)


CERTUTIL = """#!/bin/sh
case $1 in ca) name=ca ;; *) name=server ;; esac
for out; do :; done
[ -e "$out" ] && exit 1
mkdir -p "$TMP_MADE/$name"
echo made > "$TMP_MADE/$name/$name.crt"
echo made > "$TMP_MADE/$name/$name.key"
cd "$TMP_MADE" && "$PYTHON" -m zipfile -c "$out" "$name"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="runs a script of bash")
def test_certificates_are_made_once_more_after_half_a_run_and_the_authoritys_key_is_its_owners(
    services: dict[str, Any], tmp_path: Path
) -> None:
    where, programs = tmp_path / "certificates", tmp_path / "programs"
    for directory in (where / "ca", where / "making", programs, tmp_path / "made"):
        directory.mkdir(parents=True)
    for left in ("ca.zip", "ca/ca.crt", "ca/ca.key", "making/ca.zip"):
        (where / left).write_text("half")
    unzip = '#!/bin/sh\nexec "$PYTHON" -m zipfile -e "$2" .\n'
    for name, text in {"certutil": CERTUTIL, "unzip": unzip}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    script = services["certificates"]["command"][2].replace("$$", "$")
    script = script.replace("/usr/share/elasticsearch/bin/elasticsearch-certutil", str(programs / "certutil"))
    script = script.replace("/certificates", str(where))
    environment = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "TMP_MADE": str(tmp_path / "made"),
        "PYTHON": sys.executable,
    }
    for _ in range(2):
        subprocess.run(["bash", "-ec", script], check=True, env=environment)
    modes = {
        path.relative_to(where).as_posix(): path.stat().st_mode & 0o777
        for path in where.glob("*/*")
        if path.read_text() == "made\n"
    }
    readable = dict.fromkeys(("ca/ca.crt", "server/server.crt", "server/server.key"), 0o644)
    assert modes == {**readable, "ca/ca.key": 0o600}
    assert not (where / "making").exists()


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
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_make_servers_starts_ends_with_it_and_leaves_nothing(
    ending: signal.Signals, tmp_path: Path
) -> None:
    pytest.importorskip("milvus_lite")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("M3_")}
    environment["TMPDIR"] = str(tmp_path)
    command = [sys.executable, "-m", "m3_connectors.testing.servers", "milvus"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"milvus +M3_MILVUS_URL=milvus\+http://127\.0\.0\.1:(\d+)  \(process\)\n", line)
        assert found, line
        assert "Ctrl-C" in process.stdout.readline()
        assert list(tmp_path.glob("m3-milvus-*/data"))
        process.send_signal(ending)
        assert process.wait(60) == (-ending if ending == signal.SIGKILL else 0)
    # A command that is killed can clean nothing up; who watches it needs a moment.
    deadline = time.monotonic() + (60 if ending == signal.SIGKILL else 0)
    while (left := _left(int(found[1]), tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def _left(port: int, directory: Path) -> list[str]:
    with socket.socket() as probe:
        listens = probe.connect_ex(("127.0.0.1", port)) == 0
    return [f"port {port}"] * listens + [path.name for path in directory.glob("m3-*")]


def test_a_server_that_does_not_come_up_is_named_with_all_that_it_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("milvus_lite")
    monkeypatch.setattr(starting, "container_engine", lambda: None)
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho cannot run here\necho '  for this reason' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(
        CannotStart, match=r"did not start\. The end of its log:\ncannot run here\n  for this reason$"
    ):
        start("milvus", environment={}, compose=COMPOSE)


def test_another_program_on_the_port_is_not_taken_for_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("milvus_lite")
    with socket.create_server(("127.0.0.1", 0)) as other, contextlib.closing(_free_socket()) as free:
        ports = iter([other.getsockname()[1], free.getsockname()[1]])
        free.close()
        monkeypatch.setattr(milvus, "_free_port", lambda: next(ports))
        with milvus.milvus_server() as server:
            assert server.port != other.getsockname()[1]
            assert next(ports, None) is None, "the second port was tried"


def _free_socket() -> socket.socket:
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    return bound


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home and a cache in which nothing has been fetched yet."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name in ("site_cache_path", "user_cache_path"):
        monkeypatch.setattr(elasticsearch.platformdirs, name, lambda _: tmp_path / "cache")
    return tmp_path


def _archive(home: Path) -> Path:
    group = "org/elasticsearch/distribution/integ-test-zip/elasticsearch"
    return home / ".m2" / "repository" / group / "9.9.9" / "elasticsearch-9.9.9.zip"


def _maven(home: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = home / "mvn"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(elasticsearch.shutil, "which", lambda _: str(program))


@pytest.mark.skipif(os.name != "posix", reason="a shell script plays Maven")
def test_a_damaged_archive_is_fetched_once_more(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = _archive(cache)
    archive.parent.mkdir(parents=True)
    whole = cache / "whole.zip"
    with zipfile.ZipFile(whole, "w") as made:
        made.writestr("elasticsearch-9.9.9/bin/elasticsearch", "#!/bin/sh\n")
    archive.write_bytes(whole.read_bytes()[:-10])
    _maven(cache, monkeypatch, f"cp {whole} {archive}")
    assert (elasticsearch.install("9.9.9") / "bin" / "elasticsearch").is_file()
    # If what comes is damaged again, that is said, and no third time tried.
    archive.write_bytes(whole.read_bytes()[:-10])
    shutil.rmtree(cache / "cache")
    _maven(cache, monkeypatch, f"echo again >> {cache}/tries; echo half > {archive}")
    with pytest.raises(CannotStart, match="damaged") as caught:
        elasticsearch.install("9.9.9")
    assert str(archive) in str(caught.value)
    assert (cache / "tries").read_text() == "again\n"


@pytest.mark.skipif(os.name != "posix", reason="a shell script plays Maven")
def test_each_failure_to_fetch_says_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _maven(cache, monkeypatch, "exec sleep 60")
    monkeypatch.setattr(elasticsearch, "_FETCH_SECONDS", 0.2)
    with pytest.raises(
        CannotStart,
        match=r"within 0.2 s\.\n  Run this command yourself, without a time limit: \S*mvn .*dependency:get",
    ):
        elasticsearch.install("9.9.9")
    monkeypatch.setattr(elasticsearch, "_FETCH_SECONDS", 60)
    _maven(cache, monkeypatch, "echo 'no such host' >&2; exit 1")
    with pytest.raises(CannotStart, match="no such host"):
        elasticsearch.install("9.9.9")
    monkeypatch.setattr(elasticsearch.shutil, "which", lambda _: None)
    with pytest.raises(CannotStart, match=r"not installed\.\n  Install Maven"):
        elasticsearch.install("9.9.9")


def test_java_on_the_path_is_found_by_way_of_links(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / "jdk"
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "java").touch(0o755)
    (home / "release").write_text('JAVA_VERSION="21.0.4"\n')
    (tmp_path / "java").symlink_to(home / "bin" / "java")
    for name in ("ES_JAVA_HOME", "JAVA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert elasticsearch.find_jdk() == home
    (home / "release").write_text('JAVA_VERSION="17.0.4"\n')
    with pytest.raises(CannotStart, match="needs JDK 21 to 25"):
        elasticsearch.find_jdk()


def test_a_server_that_cannot_be_configured_leaves_no_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(elasticsearch, "find_jdk", lambda _: tmp_path)
    monkeypatch.setattr(elasticsearch, "install", lambda _: tmp_path / "no-such-home")
    made = tmp_path / "temporary"
    made.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    with pytest.raises(FileNotFoundError):
        elasticsearch.ElasticsearchServer()
    assert list(made.iterdir()) == []
