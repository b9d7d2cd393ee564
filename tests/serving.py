"""A service on a real server on loopback, in a thread."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import uvicorn

from m3_connectors.index import Encoder
from m3_connectors.service.app import create_app
from m3_connectors.service.settings import Settings


class Running:
    """A server that takes requests."""

    def __init__(self, server: uvicorn.Server, thread: threading.Thread, url: str) -> None:
        self._server = server
        self._thread = thread
        self.url = url

    def begin_stop(self) -> None:
        """Ask it to stop, as SIGTERM does."""
        self._server.should_exit = True

    def stop(self) -> None:
        self.begin_stop()
        self._thread.join(30)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def serving(
    encoder: Encoder, *urls: str, keys: Any = None, weights: Any = None, **limits: Any
) -> Iterator[Running]:
    """Serve until the end of the block."""
    app = create_app(Settings(urls or ("memory:",), **limits), encoder, keys=keys, weights=weights)
    # Clients that connect before the server has started wait in the queue of this socket.
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    config = uvicorn.Config(
        app, ws="none", access_log=False, log_level="warning", timeout_graceful_shutdown=20
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    running = Running(server, thread, f"http://127.0.0.1:{listening.getsockname()[1]}")
    try:
        httpx.get(f"{running.url}/healthz", timeout=30)
        yield running
    finally:
        running.stop()
        listening.close()


PLUMS = [
    {"id": "1", "text": "Plums ripen in late summer.", "metadata": {"year": 2024}},
    {"id": "2", "text": "Snow falls in winter.", "metadata": {"year": 2021}},
    {"id": "3", "text": "The tea steeps for three minutes."},
]


def client(running: Running, **options: Any) -> httpx.Client:
    return httpx.Client(base_url=running.url, timeout=30, **options)


@contextlib.contextmanager
def filled(running: Running, name: str = "fruit", **options: Any) -> Iterator[httpx.Client]:
    """A client of a server that has a collection with three documents."""
    with client(running, **options) as made:
        made.put(f"/v1/collections/{name}", json={}).raise_for_status()
        made.post(f"/v1/collections/{name}/documents", json={"documents": PLUMS}).raise_for_status()
        yield made
