"""A server on loopback that answers ``RemoteEncoder`` as ``m3 serve`` does, with any encoder."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from loopback import serving

from m3_connectors.embeddings import M3Embeddings


def content_of(embeddings: M3Embeddings) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.safetensors"
        embeddings.save(path)
        return path.read_bytes()


@dataclasses.dataclass
class EncodeServer:
    """What the server answers with and was asked.

    ``trouble(n)`` may return the status and headers with which the n-th request of ``/v1/encode``, from 0, is refused.
    """

    encoder: Any
    key: str | None = None
    trouble: Callable[[int], tuple[int, dict[str, str]] | None] = lambda n: None
    answer: Callable[[M3Embeddings], bytes] = content_of
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    url: str = ""
    batches: list[list[str]] = dataclasses.field(default_factory=list)
    paths: list[str] = dataclasses.field(default_factory=list)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


@contextlib.contextmanager
def encode_server(encoder: Any, **options: Any) -> Iterator[EncodeServer]:
    state = EncodeServer(encoder, **options)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if not self._admitted():
                return
            state.paths.append(self.path)
            if self.path == "/v1/model":
                about = {
                    "model": dataclasses.asdict(state.encoder.info),
                    "max_length": getattr(state.encoder, "max_length", 8192),
                    "recommended_weights": dict(state.encoder.recommended_weights),
                } | state.about
                self._send(200, json.dumps(about).encode())
            elif self.path == "/v1/tokenizer" and hasattr(state.encoder, "tokenizer_json"):
                self._send(200, state.encoder.tokenizer_json().encode())
            else:
                self._problem(404, "there is no such route.")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self._admitted():
                return
            assert self.path == "/v1/encode"
            assert self.headers["Accept"] == "application/x-safetensors"
            with state.lock:
                number = len(state.batches)
                state.batches.append(body["texts"])
            refused = state.trouble(number)
            if refused:
                self._problem(refused[0], "the queue is full.\n  Ask again.", refused[1])
                return
            with state.lock:
                embeddings = state.encoder.encode(body["texts"], components=tuple(body["components"]))
            self._send(200, state.answer(embeddings))

        def _admitted(self) -> bool:
            if state.key is None or self.headers["Authorization"] == f"Bearer {state.key}":
                return True
            self._problem(401, "the key is not known.")
            return False

        def _problem(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
            body = {"title": "Refused", "status": status, "detail": detail}
            self._send(status, json.dumps(body).encode(), headers or {})

        def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(Handler) as state.url:
        yield state
