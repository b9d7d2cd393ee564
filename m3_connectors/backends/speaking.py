"""What a port speaks, asked after a client failed to talk to it.

The client knows only that the connection broke, and a wrong port is another fault than a server that is down.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Literal

import anyio
from anyio.abc import ByteStream

from m3_connectors.backends.endpoint import Endpoint, encrypted, not_encrypted
from m3_connectors.errors import Rejected

Speech = Literal["HTTP/1", "HTTP/2", "something else", "nothing"]

_SECONDS = 3.0
"""For each of the questions."""

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""How every HTTP/2 connection begins, with a SETTINGS frame that sets nothing."""

_NAMES = {"HTTP/1": "HTTP", "HTTP/2": "gRPC", "something else": "something else"}


async def check_spoken(
    endpoint: Endpoint, backend: str, operation: str, *, wanted: Literal["HTTP/1", "HTTP/2"], remedy: str
) -> None:
    """Raise an error that says what the port speaks, if it is not what we speak to it; otherwise return.

    For a call that has just failed, whose own error says only that the connection broke.

    Args:
        endpoint: What was called.
        backend: Name of the store, for errors.
        operation: What was being done, for errors.
        wanted: What its client speaks.
        remedy: Which port to give instead.

    Raises:
        Unavailable: It encrypts and we do not, or the reverse; not to be tried again.
        Rejected: It speaks another protocol, so that it is another port of the server or another program.
    """
    host, port = endpoint.host, endpoint.port
    tls = await _speaks_tls(host, port)
    if tls and not endpoint.tls:
        raise encrypted(endpoint.url, backend, operation)
    said = await _speech(host, port, tls=tls)
    if said in ("HTTP/1", "HTTP/2") and said != wanted:
        raise Rejected(
            f"{endpoint.url} answers in {_NAMES[said]}, not in {_NAMES[wanted]}: it is another port.\n  {remedy}",
            backend=backend,
            operation=operation,
        )
    if said != "nothing" and endpoint.tls and not tls:
        raise not_encrypted(endpoint.url, backend, operation)


async def _speaks_tls(host: str, port: int) -> bool:
    try:
        async with _connected(host, port, _context()):
            return True
    except ssl.SSLError as error:
        # An alert is TLS that refuses us, for example for want of a client certificate.
        return "ALERT" in (error.reason or "")
    except (OSError, TimeoutError, anyio.BrokenResourceError, anyio.EndOfStream):
        return False


async def _speech(host: str, port: int, *, tls: bool) -> Speech:
    begun = await _first_bytes(host, port, _PREFACE, _context("h2") if tls else None)
    if begun is None:
        return "nothing"
    if len(begun) >= 9 and begun[3] == 4 and begun[5:9] == b"\0\0\0\0":
        return "HTTP/2"
    question = f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    begun = await _first_bytes(host, port, question, _context("http/1.1") if tls else None)
    return "HTTP/1" if begun and begun.startswith(b"HTTP/1") else "something else"


async def _first_bytes(host: str, port: int, question: bytes, context: ssl.SSLContext | None) -> bytes | None:
    """The beginning of the answer; empty if the connection is ended without one, None if there is no connection."""
    connected = False
    try:
        async with _connected(host, port, context) as stream:
            connected = True
            await stream.send(question)
            return await stream.receive(64)
    except (OSError, TimeoutError, anyio.BrokenResourceError, anyio.EndOfStream):
        return b"" if connected else None


@contextlib.asynccontextmanager
async def _connected(host: str, port: int, context: ssl.SSLContext | None) -> AsyncIterator[ByteStream]:
    with anyio.fail_after(_SECONDS):
        stream: ByteStream
        if context is None:
            stream = await anyio.connect_tcp(host, port)
        else:
            stream = await anyio.connect_tcp(host, port, ssl_context=context, tls_standard_compatible=False)
        try:
            yield stream
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(stream)


def _context(*protocols: str) -> ssl.SSLContext:
    # No certificate is checked, since nothing is told to the other side and nothing believed but that it encrypts.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(protocols)
    return context
