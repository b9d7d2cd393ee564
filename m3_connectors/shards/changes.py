"""What becomes of saved embeddings in a collection with another storage."""

from __future__ import annotations

from m3_connectors.backends.checks import check_model
from m3_connectors.backends.schema import Schema
from m3_connectors.errors import InvalidInput


def changes_of(saved: Schema, collection: Schema, name: str, where: str) -> list[str]:
    """Return what will be different in the collection from what was saved, one sentence each.

    Args:
        saved: What the embeddings are from.
        collection: The collection that they will be stored in.
        name: Its name, for messages.
        where: Where the embeddings are, for messages.

    Raises:
        InvalidInput: The collection needs a component that was not saved, or would pool rows a second time.
        ModelMismatch: The model is another one.
    """
    check_model(collection.model, name, saved.model, what=f"the embeddings in {where} are from")
    missing = [component for component in collection.written if component not in saved.components]
    if missing:
        raise InvalidInput(
            f'{where} has {", ".join(saved.components)}, and collection "{name}" stores '
            f"{', '.join(collection.written)}: {', '.join(missing)} is missing.\n"
            f"  Store them in a collection with --components {','.join(saved.components)}, or encode the texts again."
        )
    changes = []
    left_out = [component for component in saved.components if component not in collection.written]
    if left_out:
        changes.append(f"{', '.join(left_out)} is left out, because the collection does not store it")
    if "multivector" in collection.written:
        if saved.precision.name not in (collection.precision.name, "float32"):
            changes.append(
                f"multi-vectors are read from {saved.precision.name} and stored as {collection.precision.name}, so "
                f"they are no more exact than {saved.precision.name}"
            )
        changes += _pooling(saved, collection, name, where)
    return changes


def stored_as(saved: Schema, collection: Schema) -> bool:
    """Return whether the rows of saved embeddings are stored as they are: they were pooled before they were saved."""
    return saved.storage.long_documents == "pool" and "multivector" in collection.written


def _pooling(saved: Schema, collection: Schema, name: str, where: str) -> list[str]:
    before, after = saved.storage, collection.storage
    if before.long_documents != "pool" or before.pooling == after.pooling:
        return []
    if after.long_documents == "pool":
        raise InvalidInput(
            f'the rows in {where} were pooled ({before.pooling}), and collection "{name}" would pool them again '
            f"({after.pooling}).\n  Store them in a collection with the same pooling, or encode the texts again."
        )
    return [f"the rows of long documents stay pooled ({before.pooling})"]
