"""A real Elasticsearch on this machine, without containers: the server from Elastic on Maven Central.

``integ-test-zip`` is the distribution for Elastic's own integration tests: the real server with the search
engine, vectors and security, without scripting and the other optional modules. It needs JDK 21 to 25 and
about 2 GB of
memory, listens only on 127.0.0.1, and starts in about ten seconds::

    with elasticsearch_server() as server:
        index = connect(f"elasticsearch+{server.url}", "notes", encoder=encoder)
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import http.client
import os
import re
import shlex
import shutil
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import platformdirs

from m3_connectors.errors import InvalidInput
from m3_connectors.testing.servers import CannotStart
from m3_connectors.testing.servers.sessions import ServerProcess, tail

VERSION = "9.2.4"
"""The default version."""

OLDEST_VERSION = "8.19.0"
"""The oldest version that m3-connectors supports; it needs JDK 17 to 25."""

_GROUP = "org.elasticsearch.distribution.integ-test-zip"
_JDK_RELEASES = {"8": range(17, 26), "9": range(21, 26)}
"""The Java releases that each major version of Elasticsearch supports."""

_START_SECONDS = 240.0
_FETCH_SECONDS = 600
_UNPRIVILEGED_UID = 61_317
"""Elasticsearch refuses to run as root; root starts it with this user id, which belongs to no account."""


@dataclasses.dataclass(frozen=True)
class Tls:
    """PEM files for encrypted connections.

    Attributes:
        certificate: The server's certificate chain, for 127.0.0.1.
        key: Its private key.
        authority: The certificate of the CA that signed it.
    """

    certificate: Path
    key: Path
    authority: Path


class ElasticsearchServer(ServerProcess):
    """A server of one node."""

    _name = "elasticsearch"
    _stop_seconds = 20.0

    def __init__(
        self,
        *,
        version: str = VERSION,
        heap_megabytes: int = 1024,
        tls: Tls | None = None,
        users: Mapping[str, str] | None = None,
    ) -> None:
        """Install a server without starting it.

        Args:
            version: The version of Elasticsearch.
            heap_megabytes: The size of its Java heap; a document of 8,191 rows needs 1,024.
            tls: Listen with TLS, which requires users; without it connections are not encrypted.
            users: Superusers, as passwords by name; if there are any, requests without credentials are
            refused.

        Raises:
            InvalidInput: TLS is requested without users.
            CannotStart: There is no JDK, or neither the server nor Maven to download it.
        """
        if tls and not users:
            raise InvalidInput(
                "tls is set without users; Elasticsearch uses TLS only together with authentication.\n"
                '  Pass users={"NAME": "PASSWORD"}, or leave tls out.'
            )
        self._java = find_jdk(version)
        self._home = install(version)
        self._tls = tls
        self._users = dict(users or {})
        self._heap_megabytes = heap_megabytes
        self._uid = _UNPRIVILEGED_UID if _is_root() else None
        super().__init__("logs/console.log")
        try:
            self._configure()
        except BaseException:
            self.remove()
            raise

    @property
    def url(self) -> str:
        """``http(s)://127.0.0.1:PORT``."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the process and wait until the cluster is healthy and has its licence; a restart uses the same port.

        Raises:
            CannotStart: It ended, or was not healthy within four minutes.
        """
        (self._directory / "logs" / "http.ports").unlink(missing_ok=True)
        self._write_settings()
        process = self._launch([self._home / "bin" / "elasticsearch"], **self._as_user())
        deadline = time.monotonic() + _START_SECONDS
        while not self._healthy():
            if process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise CannotStart(f"Elasticsearch did not start. The end of its log:\n{tail(self.log)}")
            time.sleep(0.2)

    def _configure(self) -> None:
        config = self._directory / "config"
        shutil.copytree(self._home / "config", config)
        # Version 8 would write the log of its garbage collector into the shared installation, which is
        # read-only here.
        options = config / "jvm.options"
        lines = options.read_text().splitlines(keepends=True)
        options.write_text("".join(line for line in lines if "Xlog:gc" not in line))
        for name in ("data", "logs"):
            (self._directory / name).mkdir()
        if self._tls:
            shutil.copy(self._tls.certificate, config / "server.pem")
            shutil.copy(self._tls.key, config / "server.key")
        self._own()
        for name, password in self._users.items():
            command: list[str | Path] = [
                self._home / "bin" / "elasticsearch-users",
                "useradd",
                name,
                "-p",
                password,
                "-r",
                "superuser",
            ]
            subprocess.run(command, check=True, capture_output=True, **self._as_user())

    def _write_settings(self) -> None:
        directory = self._directory
        settings = {
            "cluster.name": directory.name,
            "discovery.type": "single-node",
            "network.host": "127.0.0.1",
            "http.port": self.port,
            "transport.port": 0,
            "node.portsfile": "true",
            "path.data": directory / "data",
            "path.logs": directory / "logs",
            "cluster.routing.allocation.disk.threshold_enabled": "false",
            "xpack.security.enabled": str(bool(self._users)).lower(),
        }
        if self._tls:
            settings |= {
                "xpack.security.http.ssl.enabled": "true",
                "xpack.security.http.ssl.certificate": "server.pem",
                "xpack.security.http.ssl.key": "server.key",
            }
        text = "".join(f"{name}: {value}\n" for name, value in settings.items())
        (directory / "config" / "elasticsearch.yml").write_text(text)

    def _as_user(self) -> dict[str, Any]:
        """Return arguments for a process of the unprivileged user, with the environment that it needs."""
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self._directory),
            "TMPDIR": str(self._directory),
            # Passwords on a command line are decoded with the locale's encoding.
            "LC_ALL": "C.UTF-8",
            "ES_JAVA_HOME": str(self._java),
            "ES_PATH_CONF": str(self._directory / "config"),
            "ES_JAVA_OPTS": f"-Xms{self._heap_megabytes}m -Xmx{self._heap_megabytes}m",
            "CLI_JAVA_OPTS": "-Xmx64m",
        }
        user = {} if self._uid is None else {"user": self._uid, "group": self._uid, "extra_groups": []}
        return {"env": environment, "cwd": self._directory, **user}

    def _own(self) -> None:
        if self._uid is not None:
            for path in (self._directory, *self._directory.rglob("*")):
                os.chown(path, self._uid, self._uid)

    def _healthy(self) -> bool:
        try:
            ports = (self._directory / "logs" / "http.ports").read_text()
        except FileNotFoundError:
            return False
        found = re.search(r"127\.0\.0\.1:(\d+)", ports)
        if not found:
            return False
        self.port = int(found[1])
        # A new cluster is healthy before it has made its licence: until then a request for the licence is not found.
        return self._answers("_cluster/health?wait_for_status=yellow&timeout=1s") and self._answers(
            "_license"
        )

    def _answers(self, path: str) -> bool:
        request = urllib.request.Request(f"{self.url}/{path}")
        for name, password in list(self._users.items())[:1]:
            credentials = base64.b64encode(f"{name}:{password}".encode()).decode()
            request.add_header("Authorization", f"Basic {credentials}")
        context = ssl.create_default_context(cafile=self._tls.authority) if self._tls else None
        try:
            with urllib.request.urlopen(request, timeout=5, context=context) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, http.client.HTTPException, OSError):
            return False


@contextlib.contextmanager
def elasticsearch_server(
    *,
    version: str = VERSION,
    heap_megabytes: int = 1024,
    tls: Tls | None = None,
    users: Mapping[str, str] | None = None,
) -> Iterator[ElasticsearchServer]:
    """Run a server in the ``with`` block, and delete it afterwards; arguments of ``ElasticsearchServer``.

    Raises:
        CannotStart: Something that it needs is missing, or it did not start.
    """
    server = ElasticsearchServer(version=version, heap_megabytes=heap_megabytes, tls=tls, users=users)
    try:
        server.start()
        yield server
    finally:
        server.remove()


def find_jdk(version: str = VERSION) -> Path:
    """Return the newest suitable JDK: ``ES_JAVA_HOME``, ``JAVA_HOME``, usual places, ``java`` on the path.

    Raises:
        CannotStart: There is no suitable JDK.
    """
    fitting = _JDK_RELEASES.get(version.partition(".")[0], _JDK_RELEASES["9"])
    on_path = shutil.which("java")
    named = [Path(os.environ[name]) for name in ("ES_JAVA_HOME", "JAVA_HOME") if os.environ.get(name)]
    places = [
        *Path("/usr/lib/jvm").glob("*"),
        *Path("/Library/Java/JavaVirtualMachines").glob("*/Contents/Home"),
    ]
    installed = sorted(places, key=_java_release, reverse=True)
    # A program on the path is bin/java in its home, usually through symbolic links.
    found = [Path(on_path).resolve().parents[1]] if on_path else []
    for home in (*named, *installed, *found):
        if _java_release(home) in fitting:
            return home
    raise CannotStart(
        f"Elasticsearch {version} needs JDK {fitting.start} to {fitting.stop - 1}, and none was found.\n"
        "  Install one, or set ES_JAVA_HOME to its directory."
    )


def install(version: str = VERSION) -> Path:
    """Return the server's directory in the cache; it is downloaded with Maven and unpacked on first use.

    Raises:
        CannotStart: It is not in the local Maven repository, and Maven is not installed or failed.
    """
    # What root installs must be readable by the unprivileged user that runs it.
    cache = (
        platformdirs.site_cache_path("m3-connectors")
        if _is_root()
        else platformdirs.user_cache_path("m3-connectors")
    )
    home = cache / f"elasticsearch-{version}"
    if not home.is_dir():
        archive = _fetch(version)
        if not zipfile.is_zipfile(archive):
            # An interrupted download leaves a damaged file, which Maven would not check again.
            archive.unlink()
            archive = _fetch(version)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as partial:
            try:
                with zipfile.ZipFile(archive) as unpacking:
                    unpacking.extractall(partial)
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise CannotStart(
                    f"{archive} is damaged: {error}\n  Delete the file; it will be downloaded again."
                ) from error
            unpacked = Path(partial) / f"elasticsearch-{version}"
            for program in (unpacked / "bin").iterdir():
                program.chmod(0o755)
            # Another process may have finished first; its directory is equivalent.
            with contextlib.suppress(OSError):
                unpacked.rename(home)
    return home


def _fetch(version: str) -> Path:
    repository = Path.home() / ".m2" / "repository"
    archive = (
        repository / _GROUP.replace(".", "/") / "elasticsearch" / version / f"elasticsearch-{version}.zip"
    )
    if archive.is_file():
        return archive
    maven = shutil.which("mvn")
    if maven is None:
        raise CannotStart(
            f"Elasticsearch {version} has not been downloaded yet, and Maven (mvn) is not installed.\n"
            "  Install Maven (Debian: apt-get install maven), or set M3_ELASTICSEARCH_URL to a server."
        )
    command = [
        maven,
        "--quiet",
        "--batch-mode",
        f"-Dmaven.repo.local={repository}",
        "dependency:get",
        f"-Dartifact={_GROUP}:elasticsearch:{version}:zip",
        "-Dtransitive=false",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise CannotStart(
            f"Maven did not download Elasticsearch {version} within {_FETCH_SECONDS} s.\n"
            f"  Run this command yourself, without a time limit: {shlex.join(command)}"
        ) from error
    if done.returncode != 0 or not archive.is_file():
        raise CannotStart(
            f"Maven could not download Elasticsearch {version}. The end of its output:\n"
            f"{(done.stdout + done.stderr)[-1000:]}"
        )
    return archive


def _java_release(home: Path) -> int:
    """Return the release of a JDK, such as 21; 0 if the directory is not a JDK."""
    try:
        text = (home / "release").read_text(encoding="utf-8")
    except OSError:
        return 0
    found = re.search(r'JAVA_VERSION="(\d+)', text)
    return int(found[1]) if found and (home / "bin" / "java").exists() else 0


def _is_root() -> bool:
    return hasattr(os, "getuid") and os.getuid() == 0
