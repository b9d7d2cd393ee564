"""``m3 mcp``: offer a collection to assistants as tools of the Model Context Protocol."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from m3_connectors.backends.registry import DEFAULT_COLLECTION
from m3_connectors.cli.opening import open_index
from m3_connectors.cli.options import Collection, Debug, MethodName, Model, Url, WeightsText, choose_method


def mcp(
    url: Url,
    collection: Collection = DEFAULT_COLLECTION,
    model: Model = None,
    method: MethodName = "all",
    weights: WeightsText = None,
    transport: Annotated[
        Literal["stdio", "http"],
        typer.Option(
            "--transport", help="stdio, for a client that starts this command, or http on loopback."
        ),
    ] = "stdio",
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", help="The port of http.", min=1, max=65535)
    ] = 8000,
    debug: Debug = False,
) -> None:
    """Offer search, explain and get as tools to assistants, over the Model Context Protocol."""
    from m3_connectors.integrations.mcp import server

    asked = choose_method(method, weights)
    with open_index(url, collection, model) as index:
        made = server(index, method=asked or index.methods[method])
        if transport == "stdio":
            made.run("stdio")
        else:
            made.run("streamable-http", host="127.0.0.1", port=port)
