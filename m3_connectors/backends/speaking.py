"""Detect the protocol of a port after a client failed to talk to it.

The client's error says only that the connection broke, and a wrong port is another fault than a server that
is down.
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
"""The timeout of each probe."""

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""The connection preface of HTTP/2, with an empty SETTINGS frame."""

_NAMES = {"HTTP/1": "HTTP", "HTTP/2": "gRPC", "something else": "something else"}


async def check_spoken(
    endpoint: Endpoint, backend: str, operation: str, *, wanted: Literal["HTTP/1", "HTTP/2"], remedy: str
) -> None:
    """Raise an error that names the protocol of the port, if it is not the client's; otherwise return.

    Call it after a failed call whose error says only that the connection broke.

    Args:
        endpoint: The server that was called.
        backend: Name of the store, for errors.
        operation: The operation that failed, for errors.
        wanted: The protocol of the client.
        remedy: Which port to use instead.

    Raises:
        Unavailable: The port uses TLS and the URL does not, or the reverse; not retryable.
        Rejected: The port uses another protocol, so it is another port of the server or another program.
    """
    host, port = endpoint.host, endpoint.port
    tls = await _speaks_tls(host, port)
    if tls and not endpoint.tls:
        raise encrypted(endpoint.url, backend, operation)
    said = await _speech(host, port, tls=tls)
    if said in ("HTTP/1", "HTTP/2") and said != wanted:
        raise Rejected(
            f"{endpoint.url} answers with {_NAMES[said]}, not {_NAMES[wanted]}: this is another port.\n"
            f"  {remedy}",
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
        # An alert comes from a TLS server that refuses us, for example because it requires a client
        # certificate.
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
    """Return the first bytes of the answer: empty if it closed without one, None if it did not connect."""
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
    # The certificate is not verified: nothing is sent but a probe, and only the use of TLS is learnt from it.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(protocols)
    return context
