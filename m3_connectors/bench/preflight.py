"""Before anything is measured: can every store of a scenario be used? A typing error costs no hours."""

from __future__ import annotations

import anyio

from m3_connectors.backends.base import Backend
from m3_connectors.backends.registry import DEFAULT_COLLECTION, backend_for
from m3_connectors.backends.schema import Schema
from m3_connectors.bench.scenario import Scenario, Store
from m3_connectors.bench.synthetic import MODEL
from m3_connectors.errors import BackendError, InvalidInput, M3Error, MissingDependency, NotFound

_NOWHERE = "+http://127.0.0.1:1"
"""Stands for the URL of a server that is yet to be started: enough to see whether it takes the options."""


async def preflight(scenario: Scenario, where: str) -> None:
    """Build the backend of every store, hear whether it answers, and see whose documents its collections hold.

    Args:
        scenario: What is to be done.
        where: Its file, for errors.

    Raises:
        InvalidInput: A URL or option cannot be used, or a collection holds somebody's documents; names the key.
        BackendError: A server does not answer; names the key.
    """
    for number, store in enumerate(scenario.stores):
        key = f"{where}: stores[{number}]"
        for documents in scenario.corpus.documents:
            backend = _built(store, f"{store.collection}-{documents}", key)
            if store.url is None:
                continue
            try:
                await backend.server()
                await owned(backend)
            except InvalidInput as error:
                raise InvalidInput(f"{key}.collection: {error}") from error
            except BackendError as error:
                error.add_note(f"  {key}.url names this store.")
                raise
            finally:
                with anyio.CancelScope(shield=True):
                    await backend.close()


def _built(store: Store, collection: str, key: str) -> Backend:
    url = store.url or f"{store.start}{_NOWHERE}"
    # One after the other, to tell which of the keys is wrong.
    for name, called, options in (
        (".start" if store.url is None else ".url", DEFAULT_COLLECTION, {}),
        (".collection", collection, {}),
        (".options", collection, store.options),
    ):
        try:
            backend = backend_for(url, called, options)
        except MissingDependency:
            raise
        except M3Error as error:
            raise InvalidInput(f"{key}{name}: {error}") from error
    return backend


async def owned(backend: Backend) -> Schema | None:
    """What the collection of an earlier benchmark records; None if there is none.

    Raises:
        InvalidInput: It holds somebody's documents.
    """
    try:
        there = await backend.open()
    except NotFound:
        return None
    if there.model.name != MODEL:
        raise InvalidInput(
            f'collection "{backend.collection}" holds documents of {there.model}, and a benchmark would replace them.\n'
            "  Give the scenario's store another collection."
        )
    return there
