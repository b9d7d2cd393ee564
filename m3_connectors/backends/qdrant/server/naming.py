"""Find out whether a name on a Qdrant server is a collection or an alias of one."""

from __future__ import annotations

from m3_connectors.backends.qdrant.server.connection import Connection
from m3_connectors.errors import Unauthorised


async def what_is(connection: Connection, name: str, operation: str) -> str:
    """Return the beginning of a message: that a collection exists, or which one the name is an alias of."""
    there = f'collection "{name}" already exists'
    try:
        aliases = (await connection.call(operation, connection.client.get_aliases)).aliases
    except Unauthorised:  # the key is for this collection only
        return there
    behind = next((alias.collection_name for alias in aliases if alias.alias_name == name), None)
    return there if behind is None else f'"{name}" is an alias of collection "{behind}"'
