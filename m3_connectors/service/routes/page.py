"""The page at ``/``: search in a browser. It asks the other routes, and nothing else."""

from __future__ import annotations

import functools
from importlib import resources

from fastapi import APIRouter
from starlette.responses import Response

from m3_connectors.service.problems import Refused

ROUTER = APIRouter(include_in_schema=False)

_FOLDER = resources.files("m3_connectors.service").joinpath("page")

_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

_HEADERS = {
    # Whatever a document contains, the browser loads and runs nothing but the files of this folder, and asks no other
    # server; texts cannot become markup, because no script may write HTML.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # an upgrade of the service changes them all
}

PATHS = frozenset({"/", *(f"/page/{file.name}" for file in _FOLDER.iterdir() if file.is_file())})
"""What a browser reads without a key: it can send one only when the page asks for it. There is no data in it."""


@ROUTER.get("/")
async def page() -> Response:
    """Return the page."""
    return _file("index.html")


@ROUTER.get("/page/{name}")
async def part(name: str) -> Response:
    """Return a script, style or picture of the page."""
    if f"/page/{name}" not in PATHS:
        raise Refused(
            404,
            "NotFound",
            f"the page has no file {name!r:.60}.\n  Reload the page: it is from another version of the service.",
        )
    return _file(name)


@functools.cache
def _file(name: str) -> Response:
    kind = _MEDIA_TYPES[name[name.rindex(".") :]]
    return Response(_FOLDER.joinpath(name).read_bytes(), media_type=kind, headers=_HEADERS)
