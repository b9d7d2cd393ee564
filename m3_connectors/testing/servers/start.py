"""Any of the three stores for a test: a server that is named, a container, a process on this machine, or a reason.

The order is: the URL in the environment (``M3_QDRANT_URL``, ``M3_MILVUS_URL``, ``M3_ELASTICSEARCH_URL``, as ``connect``
takes it, or without ``STORE+`` or ``STORE+http://``), a container where an engine runs, a process of our own. There is
no Qdrant server without a container; its engine in the process (``qdrant:DIRECTORY``) needs none.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from m3_connectors.testing.servers import CannotStart

StoreName = Literal["qdrant", "milvus", "elasticsearch"]
STORES: tuple[StoreName, ...] = ("qdrant", "milvus", "elasticsearch")

_PORTS: dict[StoreName, tuple[int, ...]] = {
    "qdrant": (6333, 6334),
    "milvus": (19530,),
    "elasticsearch": (9200,),
}
_ENGINE_SECONDS = 10.0


class LocalServer(Protocol):
    """A process on this machine that a test may end and start again."""

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``; the port stays over a restart."""

    @property
    def pid(self) -> int:
        """Of the process while it runs, and of the session of all that it started."""

    @property
    def directory(self) -> Path:
        """Where its data lie, in ``data``."""

    def start(self) -> None:
        """Start it and wait until it answers."""

    def stop(self, *, kill: bool = False) -> None:
        """End it; its data stay."""

    def remove(self) -> None:
        """End it and delete its data."""


@dataclasses.dataclass(frozen=True)
class Running:
    """A store that answers.

    Attributes:
        store: Which.
        url: As ``connect`` takes it.
        how: ``"environment"``, ``"container"`` or ``"process"``.
        options: For ``connect``, beside the URL.
        server: The process, if it is one.
        stop: Ends what was started; nothing for a server that was there.
    """

    store: StoreName
    url: str
    how: Literal["environment", "container", "process"]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    server: LocalServer | None = None
    stop: Callable[[], None] = lambda: None


def start(
    store: StoreName, *, environment: Mapping[str, str] | None = None, compose: Path | None = None
) -> Running:
    """A running store.

    Args:
        store: Which.
        environment: Where a URL may be named; the process's own by default.
        compose: A compose file with a service of the store's name; without one no container is started.

    Raises:
        CannotStart: None of the ways is open; says what would open one.
    """
    environment = os.environ if environment is None else environment
    name = f"M3_{store.upper()}_URL"
    if named := environment.get(name):
        return Running(store, url_of(store, named), "environment")
    reasons = [f"{name} names no server"]
    for way in (_container, _process):
        try:
            return way(store, compose)
        except CannotStart as error:
            reasons.append(str(error))
    # Whole, since its last lines tell what to install and what a server said before it died.
    raise CannotStart(f"no {store} server: {'; '.join(reasons)}")


def url_of(store: StoreName, named: str) -> str:
    """What ``connect`` takes for a server of this store: ``HOST[:PORT]`` and ``http(s)://…`` are completed."""
    if named.startswith(("http://", "https://")):
        return f"{store}+{named}"
    # ``qdrant:6333`` is a host of that name, ``qdrant:./data`` a directory.
    if named.startswith(f"{store}+") or (
        named.startswith(f"{store}:") and not named[len(store) + 1 :].isdigit()
    ):
        return named
    return f"{store}+http://{named}"


def container_engine() -> str | None:
    """The command of a container engine that runs, or None."""
    for command in ("docker", "podman"):
        if shutil.which(command) is None:
            continue
        asked = [command, "info", "--format", "{{.ServerVersion}}" if command == "docker" else "json"]
        try:
            done = subprocess.run(asked, capture_output=True, timeout=_ENGINE_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return command
    return None


def _container(store: StoreName, compose: Path | None) -> Running:
    engine = container_engine() if compose else None
    if engine is None or compose is None:
        raise CannotStart("no container engine runs here")
    try:
        from testcontainers.compose import DockerCompose
    except ImportError:
        raise CannotStart("testcontainers is not installed") from None
    settings = Path(tempfile.mkdtemp(prefix="m3-compose-")) / "settings.env"
    # Free ports and a project of our own: servers that somebody works with are left alone.
    settings.write_text(
        f"COMPOSE_PROJECT_NAME=m3-test-{store}-{os.getpid()}\nM3_{store.upper()}_PORT=0\nM3_QDRANT_GRPC_PORT=0\n"
    )
    composed = DockerCompose(
        compose.parent,
        compose.name,
        services=[store],
        env_file=str(settings),
        docker_command_path=engine,
    )

    def stop() -> None:
        composed.stop()
        shutil.rmtree(settings.parent, ignore_errors=True)

    try:
        composed.start()
        host, *others = (composed.get_service_port(store, port) for port in _PORTS[store])
    except BaseException as error:
        stop()
        if isinstance(error, subprocess.CalledProcessError | OSError):
            said = (getattr(error, "stderr", None) or b"").decode(errors="replace")[-2000:]
            raise CannotStart(
                f"the container of {store} did not come up: {error}\n{said}".rstrip()
            ) from error
        raise
    options = {"grpc_port": others[0]} if others else {}
    return Running(store, f"{store}+http://127.0.0.1:{host}", "container", options, stop=stop)


def _process(store: StoreName, compose: Path | None) -> Running:
    server: LocalServer
    if store == "milvus":
        from m3_connectors.testing.servers.milvus import MilvusServer

        server = MilvusServer()
    elif store == "elasticsearch":
        from m3_connectors.testing.servers.elasticsearch import ElasticsearchServer

        server = ElasticsearchServer()
    else:
        raise CannotStart("a Qdrant server comes in containers only")
    try:
        server.start()
    except BaseException:
        server.remove()
        raise
    return Running(store, f"{store}+{server.url}", "process", server=server, stop=server.remove)
