"""What every request passes: its key, its body within the limits, its deadline, and a client that goes away."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

import anyio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m3_connectors.service.problems import Refused, problem_of, response_of
from m3_connectors.service.routes import page
from m3_connectors.service.state import Service

_log = logging.getLogger(__name__)

_OPEN = frozenset({"/healthz", "/readyz", *page.PATHS})
"""What is read without a key: what asks for it has none."""

_KEYS_IN_URLS = frozenset(
    {"api_key", "apikey", "api-key", "x-api-key", "key", "token", "access_token", "authorization"}
)

_SMALLEST_DEADLINE = 0.001


class Gate:
    """The outermost layer of the service.

    Every request is answered: with what the routes say, or with a problem. The log has one line for each, with method,
    route, status and time; never a query, a body or a key.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection's event of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # the server sends the headers of the answer, and not its body
            scope = {**scope, "method": "GET"}
        answer = _Answer(send, self._service.settings.deadline_seconds)
        begun = time.perf_counter()
        metrics = self._service.metrics
        metrics.in_progress.inc()
        try:
            await self._handle(scope, receive, answer)
        finally:
            metrics.in_progress.dec()
            seconds = time.perf_counter() - begun
            route = getattr(scope.get("route"), "path", "unknown")
            if answer.status is None:
                metrics.abandoned.inc()
            else:
                metrics.requests.labels(_method(scope), route, str(answer.status)).inc()
                metrics.request_seconds.labels(route).observe(seconds)
            status = answer.status or "client went away"
            _log.info("%s %s: %s in %.1f ms", _method(scope), route, status, seconds * 1000)

    async def _handle(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        try:
            seconds = self._admit(scope)
            with anyio.CancelScope(deadline=anyio.current_time() + seconds) as deadline:
                answer.deadline = deadline
                with self._holding() as held:
                    body = await self._body(scope, receive, held)
                    if body is not None:
                        await self._answered(scope, _Replay(body, receive), answer)
            if deadline.cancelled_caught and answer.status is None:
                raise Refused(
                    504,
                    "DeadlinePassed",
                    f"the request was not answered within {seconds:g} s.\n  Send fewer texts at a time, or try again.",
                )
        except Refused as refusal:
            if answer.status is None:
                await response_of(problem_of(refusal))(scope, receive, answer)

    def _admit(self, scope: Scope) -> float:
        """Check what the headers say, and return the deadline in seconds."""
        headers = Headers(scope=scope)
        given = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        names = {name.lower() for name, _ in given}
        if names & _KEYS_IN_URLS:
            raise Refused(
                400,
                "KeyInUrl",
                f"the URL has the parameter {min(names & _KEYS_IN_URLS)!r}; URLs are logged on their way.\n"
                "  Send the key in a header: Authorization: Bearer KEY. Consider this key known to others.",
            )
        if any(self._service.keys.knows(part) for pair in given for part in pair):
            raise Refused(
                400,
                "KeyInUrl",
                "the URL has an API key of this service in its query; URLs are logged on their way.\n"
                "  Send the key in a header: Authorization: Bearer KEY. Replace this key: others may know it.",
            )
        access = self._service.keys.access_of(_key_of(headers))
        if access is None and not (scope["path"] in _OPEN and scope["method"] == "GET"):
            raise Refused(
                401,
                "Unauthorised",
                f"{'the API key is unknown' if _key_of(headers) else 'the request has no API key'}.\n"
                "  Send a key of this service in a header: Authorization: Bearer KEY.",
            )
        scope["m3.access"] = access
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(
                415,
                "ContentEncoding",
                f"the body has the encoding {headers['content-encoding']!r:.40}.\n  Send it uncompressed.",
            )
        return self._seconds(headers.get("x-timeout-seconds"))

    def _seconds(self, asked: str | None) -> float:
        most = self._service.settings.deadline_seconds
        if asked is None:
            return most
        try:
            seconds = float(asked)
        except ValueError:
            seconds = math.nan
        if not seconds >= _SMALLEST_DEADLINE:
            raise Refused(
                400,
                "Timeout",
                f"X-Timeout-Seconds is {asked!r:.40}.\n  Send a positive number of seconds, or leave it out.",
            )
        return min(seconds, most)

    @contextlib.contextmanager
    def _holding(self) -> Iterator[_Held]:
        """Count the bytes of a body as long as its request is handled."""
        held = _Held(self)
        try:
            yield held
        finally:
            self._held_bytes -= held.size

    async def _body(self, scope: Scope, receive: Receive, held: _Held) -> bytes | None:
        """Return the body; None if the client went away before its end."""
        settings = self._service.settings
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdigit() and int(declared) > settings.max_body_bytes:
            raise _too_large(f"{int(declared):,}", settings.max_body_bytes)
        chunks: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunk = message.get("body", b"")
            held.add(len(chunk))
            if held.size > settings.max_body_bytes:
                raise _too_large(f"more than {settings.max_body_bytes:,}", settings.max_body_bytes)
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)

    def hold(self, size: int) -> None:
        """Count bytes of a body; Refused if all bodies together have too many."""
        if self._held_bytes + size > self._service.settings.max_bodies_bytes:
            raise Refused(
                429,
                "Overloaded",
                f"the bodies of the requests in progress have {self._held_bytes:,} bytes.\n"
                "  Send the request again later.",
                retry_after_seconds=1,
            )
        self._held_bytes += size

    async def _answered(self, scope: Scope, replay: _Replay, answer: _Answer) -> None:
        """Run the routes, and give up if the client goes away; writes to a store are shielded from that."""
        async with anyio.create_task_group() as tasks:

            async def give_up() -> None:
                await replay.wait_for_end()
                tasks.cancel_scope.cancel()

            tasks.start_soon(give_up)
            try:
                await self._app(scope, replay, answer)
            except Exception as error:  # noqa: BLE001 (every request is answered)
                # The handler of unknown errors has answered, and the framework raises them again.
                if answer.status is None:
                    await response_of(problem_of(error))(scope, replay, answer)
            tasks.cancel_scope.cancel()


class _Held:
    """The bytes of one body."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.size = 0

    def add(self, size: int) -> None:
        self._gate.hold(size)
        self.size += size


class _Replay:
    """Gives the routes a body that was read already, and then the end of the connection."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive
        self._gone = anyio.Event()

    async def __call__(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def wait_for_end(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone.set()


class _Answer:
    """Sends an answer, and notes its status."""

    def __init__(self, send: Send, seconds: float) -> None:
        self._send = send
        self._seconds = seconds
        self.status: int | None = None
        self.deadline: anyio.CancelScope | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        if self.deadline is not None:
            # From the first byte on, each part has the whole time, and the preparation of the next as well.
            self.deadline.deadline = anyio.current_time() + self._seconds
        await self._send(message)


def _key_of(headers: Headers) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    return headers.get("x-api-key")


_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"})


def _method(scope: Any) -> str:
    """Return the method of a request; a client may send any word, which must not become a label."""
    return scope["method"] if scope["method"] in _METHODS else "other"


def _too_large(size: str, limit: int) -> Refused:
    return Refused(
        413,
        "BodyTooLarge",
        f"the body has {size} bytes, and the service takes at most {limit:,}.\n  Send it in several requests.",
    )
