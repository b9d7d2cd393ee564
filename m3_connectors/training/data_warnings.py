"""What of the data a run does not use, cuts, or learns nothing from, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from m3_connectors.training.data import PairStore
from m3_connectors.training.pairs import other_files

_NAMED = 10
"""Names that one message lists."""


def data_warnings(data: Path, store: PairStore) -> Iterator[str]:
    """Yield a message for each kind of file, line, key, pair or text that is not used, cut or without effect."""
    unread = other_files(data)
    if unread:
        yield (f"{data}: only .jsonl and .jsonl.gz files are read, not {_listed(unread)}.")
    if store.broken_lines:
        first, _, remedy = store.broken[0].partition("\n")
        others = [message.split("\n")[0] for message in store.broken[1:]]
        yield (
            f"{store.broken_lines:,} broken line{'s' * (store.broken_lines > 1)} skipped: "
            + " ".join([first, *others])
            + (" …" if store.broken_lines > len(store.broken) else "")
            + f"\n{remedy}"
        )
    if store.truncated_texts:
        yield (
            f"{store.truncated_texts:,} texts have more tokens than the model has positions and are truncated."
        )
    if empty := int((store.lengths == 0).sum()):
        yield (f"{empty:,} texts have no tokens, only characters that the tokenizer removes.")
    unused = sorted(store.unused.items(), key=lambda item: -item[1])
    for what, count in unused[:_NAMED]:
        yield (f"{what} in {count:,} lines of the training pairs is not used.")
    if len(unused) > _NAMED:
        yield (f"{len(unused) - _NAMED:,} other keys of the training pairs are not used.")
    is_pair = ~np.asarray(store.alone)
    query, passage = store.query[is_pair], store.passage[is_pair]
    pairs = query.astype(np.int64) << 32 | passage.astype(np.int64)
    repeated = len(pairs) - len(np.unique(pairs))
    if repeated:
        yield (f"{repeated:,} of {len(pairs):,} pairs repeat another pair.")
    equal = int((query == passage).sum())
    if equal:
        yield (f"{equal:,} of {len(pairs):,} pairs have the same text as query and as passage.")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
