"""``m3 serve``: collections and the model over HTTP."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m3_connectors.backends.registry import DEFAULT_COLLECTION
from m3_connectors.blocking import list_collections
from m3_connectors.cli.console import err
from m3_connectors.cli.opening import DEFAULT_MODEL, choose_encoder, load_encoder
from m3_connectors.cli.options import Debug, Model, at_least, check_store
from m3_connectors.cli.threads import share_cores
from m3_connectors.errors import InvalidInput, MissingDependency, NotFound, Unsupported

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from m3_connectors.encoder.encoder import M3Encoder

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    urls: Annotated[
        list[str],
        typer.Argument(metavar="URL…", help="The stores; a new collection is created in the first."),
    ],
    model: Model = None,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", help="The port; 0 is any free one.", min=0, max=65535)
    ] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            metavar="FILE",
            help="API keys, one a line; [dim]KEY read[/dim] for one that only reads. Also M3_SERVE_API_KEYS and "
            "M3_SERVE_READ_KEYS, separated by commas.",
        ),
    ] = None,
    no_api_key: Annotated[
        bool, typer.Option("--no-api-key", help="Serve other machines without any key.")
    ] = False,
    max_body: Annotated[
        int,
        typer.Option("--max-body", metavar="MIB", parser=at_least(1), help="The largest body of a request."),
    ] = 16,
    max_texts: Annotated[
        int, typer.Option("--max-texts", metavar="N", parser=at_least(1), help="The most texts in a request.")
    ] = 4096,
    deadline: Annotated[
        float, typer.Option("--deadline", metavar="SECONDS", min=0.1, help="When a request is given up.")
    ] = 60.0,
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="FILE", help="A weights file, as m3 tune writes it.")
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option("--tls-cert", metavar="FILE", help="The certificate chain for HTTPS.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option("--tls-key", metavar="FILE", help="The private key of the certificate.")
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            "--workers", metavar="N", parser=at_least(1), help="Processes, in front of a server store."
        ),
    ] = 1,
    debug: Debug = False,
) -> None:
    """Serve search, documents and all three outputs of the model over HTTP, also to clients of other servers."""
    try:
        import fastapi  # noqa: F401
        import orjson  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise MissingDependency(error.name or "fastapi", "serve") from None
    from m3_connectors.service.keys import Keys
    from m3_connectors.service.settings import check_workers

    for url in urls:
        check_store(url, DEFAULT_COLLECTION)
    check_workers(workers, urls)
    if (tls_certificate is None) != (tls_key is None):
        raise typer.BadParameter("give both --tls-cert and --tls-key, or neither.", param_hint="--tls-key")
    if workers > 1 and not port:
        raise typer.BadParameter("0 is not valid with --workers; name a port.", param_hint="--port")
    _check_open(host, bool(Keys.load(api_key_file, os.environ)), no_api_key)
    what = _Served(
        tuple(urls),
        model,
        _path(api_key_file),
        _path(weights),
        max_body,
        max_texts,
        deadline,
    )
    options: dict[str, Any] = {
        "ws": "none",
        "access_log": False,  # it has the queries of URLs; the service logs routes instead
        "log_level": logging.INFO if debug else logging.WARNING,
        "server_header": False,
        "ssl_certfile": tls_certificate,
        "ssl_keyfile": tls_key,
        "timeout_graceful_shutdown": math.ceil(deadline) + 1,
    }
    where = f"[{host}]" if ":" in host else host
    at = f"{'https' if tls_certificate else 'http'}://{where}"
    with _listening(host, port) as listening:
        if workers == 1:
            encoder = what.encoder()
            err.print(
                f"serving {encoder.info} at {at}:{listening.getsockname()[1]}",
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip
            uvicorn.Server(uvicorn.Config(what.application(encoder), **options)).run(sockets=[listening])
            return
    err.print(
        f"serving at {at}:{port} with {workers} processes",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    share_cores(os.environ, workers)
    os.environ[_VARIABLE] = json.dumps(dataclasses.asdict(what))
    uvicorn.run(f"{__name__}:application", factory=True, host=host, port=port, workers=workers, **options)


@dataclasses.dataclass(frozen=True)
class _Served:
    """What one process serves, as it is passed on to others."""

    urls: tuple[str, ...]
    model: str | None
    api_key_file: str | None
    weights: str | None
    max_body_mib: int
    max_texts: int
    deadline_seconds: float

    def encoder(self) -> M3Encoder:
        """Load the model: the one that was named, or that of the first collection, or the default."""
        if self.model is None:
            for url in self.urls:
                with contextlib.suppress(
                    NotFound, Unsupported
                ):  # an empty folder; a store in memory lists nothing
                    for found in list_collections(url):
                        if found.schema is not None:
                            return choose_encoder(url, found.name, None)
        return load_encoder(self.model or DEFAULT_MODEL)

    def application(self, encoder: M3Encoder) -> ASGIApp:
        """Return the application."""
        from m3_connectors.methods import load_weights
        from m3_connectors.service.app import create_app
        from m3_connectors.service.keys import Keys
        from m3_connectors.service.settings import Settings

        settings = Settings(
            tuple(self.urls),
            max_body_bytes=self.max_body_mib * 2**20,
            max_texts=self.max_texts,
            deadline_seconds=self.deadline_seconds,
        )
        keys = Keys.load(Path(self.api_key_file) if self.api_key_file else None, os.environ)
        weights = load_weights(self.weights) if self.weights else None
        return create_app(settings, encoder, keys=keys, weights=weights)


_VARIABLE = "M3_SERVE_PROCESS"


def application() -> ASGIApp:
    """Return the application of one of several processes, which the first describes in the environment."""
    what = _Served(**json.loads(os.environ[_VARIABLE]))
    return what.application(what.encoder())


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens; a port in use is an error before the model is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise InvalidInput(
            f"cannot listen at {host}:{port}: {error.strerror or error}.\n  Choose another --port or --host."
        ) from error


def _check_open(host: str, has_keys: bool, allowed: bool) -> None:
    """Refuse to serve other machines without a key, unless the user asked for that."""
    if host not in _LOOPBACK and not has_keys and not allowed:
        raise InvalidInput(
            f"--host is {host}, and there is no API key: every machine that reaches this one could read and change the "
            "collections.\n  Give --api-key-file, or --no-api-key if something in front checks who asks."
        )
