"""Check every store of a scenario before the measurement, so that a typing error is found early."""

from __future__ import annotations

import anyio

from m3_connectors.backends.base import Backend
from m3_connectors.backends.registry import DEFAULT_COLLECTION, backend_for
from m3_connectors.backends.schema import Schema
from m3_connectors.bench.scenario import Scenario, Store
from m3_connectors.bench.synthetic import MODEL
from m3_connectors.errors import BackendError, InvalidInput, M3Error, MissingDependency, NotFound

_NOWHERE = "+http://127.0.0.1:1"
"""A placeholder URL for a server that is not started yet, which is enough to validate the options."""


async def preflight(scenario: Scenario, where: str) -> None:
    """Build the backend of every store, check that it responds, and check the owner of its collections.

    Args:
        scenario: The scenario.
        where: The path of its file, for error messages.

    Raises:
        InvalidInput: A URL or option is not valid, or a collection contains documents that are not from a
            benchmark. The message names the key.
        BackendError: A server does not respond. The message names the key.
    """
    for number, store in enumerate(scenario.stores):
        key = f"{where}: stores[{number}]"
        for documents in scenario.corpus.documents:
            backend = _build_backend(store, f"{store.collection}-{documents}", key)
            if store.url is None:
                continue
            try:
                await backend.server()
                await owned(backend)
            except InvalidInput as error:
                raise InvalidInput(f"{key}.collection: {error}") from error
            except BackendError as error:
                error.add_note(f"  Check {key}.url, which refers to this store.")
                raise
            finally:
                with anyio.CancelScope(shield=True):
                    await backend.close()


def _build_backend(store: Store, collection: str, key: str) -> Backend:
    url = store.url or f"{store.start}{_NOWHERE}"
    # One after the other, to find out which key is wrong.
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
    """Return the schema of the collection of an earlier benchmark, or None if it does not exist.

    Raises:
        InvalidInput: The collection contains documents that are not from a benchmark.
    """
    try:
        there = await backend.open()
    except NotFound:
        return None
    if there.model.name != MODEL:
        raise InvalidInput(
            f'collection "{backend.collection}" contains documents of {there.model}, '
            "which the benchmark would replace.\n"
            "  Set another collection for this store in the scenario."
        )
    return there
