"""Get a store for a test: a named server, a container, a process on this machine, or the reason why not.

They are tried in this order: the URL in the environment (``M3_STORE_URL``, such as
``M3_MILVUS_URL``, as ``connect`` takes it, or without ``STORE+`` or ``STORE+http://``), a container if
an engine is running, and a process. The descriptor of a store (``backends.store``) names its container's ports and
its process; Qdrant has no process.
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

from m3_connectors.backends.store import Store
from m3_connectors.backends.stores import stores_with
from m3_connectors.testing.servers import CannotStart

STORES = tuple(stores_with("server", "ports"))
"""The names of the stores with a server that can be started."""

_ENGINE_SECONDS = 10.0


class LocalServer(Protocol):
    """A process on this machine that a test may stop and restart."""

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``; a restart does not change the port."""

    @property
    def pid(self) -> int:
        """The process id while it runs, which is also the session of all processes that it started."""

    @property
    def directory(self) -> Path:
        """The directory with its data in ``data``."""

    def start(self) -> None:
        """Start it and wait until it answers."""

    def stop(self, *, kill: bool = False) -> None:
        """Stop it and keep its data."""

    def remove(self) -> None:
        """Stop it and delete its data."""


@dataclasses.dataclass(frozen=True)
class Running:
    """A store that is running.

    Attributes:
        store: The name of the store.
        url: The URL for ``connect``.
        how: ``"environment"``, ``"container"`` or ``"process"``.
        options: Options for ``connect``.
        server: The process, if it is one.
        stop: Stops what was started; does nothing for a server that was already running.
    """

    store: str
    url: str
    how: Literal["environment", "container", "process"]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    server: LocalServer | None = None
    stop: Callable[[], None] = lambda: None


def start(
    store: str, *, environment: Mapping[str, str] | None = None, compose: Path | None = None
) -> Running:
    """Return a running store.

    Args:
        store: The name of the store.
        environment: The variables that may contain a URL; those of the process by default.
        compose: A compose file with a service of the store's name; without it no container is started.

    Raises:
        CannotStart: No way is possible; the message says what each one needs.
    """
    descriptor = stores_with("server", "ports").get(store)
    if descriptor is None:
        raise CannotStart(f"{store!r} has no server that can be started.\n  Choose from {', '.join(STORES)}.")
    environment = os.environ if environment is None else environment
    name = f"M3_{store.upper()}_URL"
    if named := environment.get(name):
        return Running(store, url_of(store, named), "environment")
    reasons = [f"{name} is not set"]
    for way in (_container, _process):
        try:
            return way(descriptor, compose)
        except CannotStart as error:
            reasons.append(str(error))
    # The reasons are complete, because their last lines say what to install and what a server printed before
    # it died.
    raise CannotStart(f"no {store} server can be started: {'; '.join(reasons)}")


def url_of(store: str, named: str) -> str:
    """Return the URL for ``connect``; ``HOST[:PORT]`` and ``http(s)://…`` are completed."""
    if named.startswith(("http://", "https://")):
        return f"{store}+{named}"
    # ``qdrant:6333`` is a host with that name; ``qdrant:./data`` is a directory.
    if named.startswith(f"{store}+") or (
        named.startswith(f"{store}:") and not named[len(store) + 1 :].isdigit()
    ):
        return named
    return f"{store}+http://{named}"


def container_engine() -> str | None:
    """Return the command of a running container engine, or None."""
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


def _container(store: Store, compose: Path | None) -> Running:
    name = store.name
    if not store.ports:
        raise CannotStart(f"{name} has no container")
    engine = container_engine() if compose else None
    if engine is None or compose is None:
        raise CannotStart("no container engine is running")
    try:
        from testcontainers.compose import DockerCompose
    except ImportError:
        raise CannotStart("testcontainers is not installed") from None
    settings = Path(tempfile.mkdtemp(prefix="m3-compose-")) / "settings.env"
    # With free ports and a separate project, so that servers in use are not affected.
    free = "".join(f"M3_{name.upper()}_{option.upper()}=0\n" for option in store.ports)
    settings.write_text(f"COMPOSE_PROJECT_NAME=m3-test-{name}-{os.getpid()}\n{free}")
    composed = DockerCompose(
        compose.parent, compose.name, services=[name], env_file=str(settings), docker_command_path=engine
    )

    def stop() -> None:
        composed.stop()
        shutil.rmtree(settings.parent, ignore_errors=True)

    try:
        composed.start()
        ports = {option: composed.get_service_port(name, port) for option, port in store.ports.items()}
    except BaseException as error:
        stop()
        if isinstance(error, subprocess.CalledProcessError | OSError):
            said = (getattr(error, "stderr", None) or b"").decode(errors="replace")[-2000:]
            raise CannotStart(f"the container of {name} did not start: {error}\n{said}".rstrip()) from error
        raise
    first, *others = ports
    options = {option: ports[option] for option in others}
    return Running(name, f"{name}+http://127.0.0.1:{ports[first]}", "container", options, stop=stop)


def _process(store: Store, _: Path | None) -> Running:
    prepare = store.offered("server")
    if prepare is None:
        raise CannotStart(f"a {store.name} server is available only as a container")
    server: LocalServer = prepare()
    try:
        server.start()
    except BaseException:
        server.remove()
        raise
    return Running(store.name, f"{store.name}+{server.url}", "process", server=server, stop=server.remove)
