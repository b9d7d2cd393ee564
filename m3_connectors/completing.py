"""One ``add_component`` call: the texts of stored documents are encoded, and the new vectors added to each.

The collection records which component is being added before the first document gets it: from then on every write stores
it and no read uses it, so an interrupted call leaves a collection that works as before. The same call goes on with the
documents that still lack the component, and records that the collection has it when none does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

import anyio.to_thread

from m3_connectors.adding import AddReport, AddTally
from m3_connectors.backends.base import Backend
from m3_connectors.backends.capabilities import Capability, require
from m3_connectors.backends.schema import ADDABLE
from m3_connectors.documents import Document
from m3_connectors.embeddings import COMPONENTS, Component, M3Embeddings
from m3_connectors.errors import DocumentNotFound, InvalidInput, Unsupported
from m3_connectors.writing import DocumentWriter, Stored, bounded


class ComponentEncoder(Protocol):
    """The method of an encoder that adds a component."""

    def encode(self, texts: Sequence[str], *, components: Sequence[Component] = COMPONENTS) -> M3Embeddings:
        """Return one row for each text."""


_DOCUMENTS_AT_ONCE = 512


class ComponentWriter:
    """Adds a component to the documents of a collection, a batch in each step.

    Args:
        backend: The open collection.
        component: The component to add.
        encoder: Computes the component from the stored texts.

    Raises:
        InvalidInput: There is no such component.
        Unsupported: The store cannot add this component.
    """

    def __init__(self, backend: Backend, component: Component, encoder: ComponentEncoder) -> None:
        if component not in ADDABLE:
            raise InvalidInput(
                f"component is {component!r}.\n  Use {' or '.join(map(repr, ADDABLE))}; every collection has dense."
            )
        where = f'{backend.name} collection "{backend.collection}"'
        require(where, backend.capabilities, [Capability.ADD_COMPONENT])
        if component not in backend.addable:
            raise Unsupported(
                f"{where}: {component} cannot be added to a collection of this store, only "
                f"{' or '.join(backend.addable)}.\n"
                "  Index the documents into a new collection that stores it."
            )
        self._backend = backend
        self._component = component
        self._encoder = encoder
        self._writer = DocumentWriter(backend, self._encode, self._write)
        self._batches: Iterator[list[Document]] = iter(())
        self._begun = False

    async def step(self) -> Stored | None:
        """Encode and store one batch, and return it; None when nothing is left to do.

        Raises:
            InvalidInput: Another component is being added.
            BackendError: The store failed; the same call can be repeated.
        """
        if not self._begun:
            await self._begin()
        batch = next(self._batches, None)
        if batch is None:
            self._batches = bounded(await self._backend.lacking(self._component, _DOCUMENTS_AT_ONCE))
            batch = next(self._batches, None)
        if batch is None:
            await self._finish()
            return None
        return await self._writer.store(batch)  # not overlapped: ``lacking`` would return it again

    def report(self, tally: AddTally) -> AddReport:
        """The report on the documents to which this call has added the component so far."""
        return tally.report(self._writer.encoding_seconds)

    async def _begin(self) -> None:
        await self._backend.renew()
        schema = self._backend.schema
        if schema.adding not in (None, self._component):
            raise InvalidInput(
                f'{schema.adding} is being added to collection "{self._backend.collection}"; two components cannot be '
                f'added at the same time.\n  Run add_component("{schema.adding}") again to finish it.'
            )
        missing = self._component not in schema.components
        # A program that did not know of the component may have stored documents without it.
        if schema.adding is None and (missing or await self._backend.lacking(self._component, 1)):
            others = tuple(name for name in schema.components if name != self._component)
            storage = dataclasses.replace(schema.storage, components=others)
            await self._backend.record(dataclasses.replace(schema, storage=storage, adding=self._component))
        self._begun = True

    async def _encode(self, texts: list[str]) -> M3Embeddings:
        encode, components = self._encoder.encode, self._encoded
        return await anyio.to_thread.run_sync(lambda: encode(texts, components=components))

    @property
    def _encoded(self) -> tuple[Component, ...]:
        """The component, and multi-vectors that would lose more if they were stored again as they are read."""
        schema = self._backend.schema
        loses = schema.precision.is_compact or schema.storage.long_documents == "pool"
        others: tuple[Component, ...] = (
            ("multivector",) if loses and "multivector" in schema.components else ()
        )
        return tuple(dict.fromkeys((self._component, *others)))

    async def _finish(self) -> None:
        await self._backend.renew()
        schema = self._backend.schema
        if self._component not in schema.components:
            storage = dataclasses.replace(schema.storage, components=schema.written)
            await self._backend.record(dataclasses.replace(schema, storage=storage, adding=None))

    async def _write(self, documents: Sequence[Document], added: M3Embeddings) -> None:
        ids = [document.id for document in documents]
        try:
            stored = await self._backend.vectors(ids)
        except DocumentNotFound:
            # To a document that is deleted now, there is nothing to add.
            kept = [i for i, document in enumerate(await self._backend.fetch(ids)) if document is not None]
            if 0 < len(kept) < len(documents):
                await self._write(
                    [documents[i] for i in kept], M3Embeddings.concatenate([added[i] for i in kept])
                )
            return  # any others are found again
        await self._backend.rewrite(documents, _with(stored, added))


def _with(stored: M3Embeddings, added: M3Embeddings) -> M3Embeddings:
    """Return stored embeddings with the components of others."""
    return stored.replace(
        **({"sparse": added.sparse} if "sparse" in added.components else {}),
        **({"multivectors": added.multivectors} if "multivector" in added.components else {}),
    )
