"""Search results by parent: of the chunks of one document, only the best is a hit.

The ranking is that of the search without groups, of which the first hit of each parent is kept. If the candidates of
the method belong to fewer than k parents, further candidates of other parents are taken, until there are k parents or
no more candidates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Literal

from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput
from m3_connectors.filters import And, Filter, Not, OneOf
from m3_connectors.methods import rank
from m3_connectors.passages import PARENT_FIELD
from m3_connectors.search import ScoredId

GroupBy = Literal["parent"]
"""What the hits of a search are grouped by."""

Ask = Callable[[int, Filter | None], Awaitable[list[ScoredId]]]
"""Returns the best hits without groups: as many as asked for if they exist."""

Fetch = Callable[[Sequence[str]], Awaitable[list[Document | None]]]

_AHEAD = 4
"""How many times as many hits are asked for as parents are still missing."""


def check_group_by(group_by: object) -> None:
    """Raise InvalidInput unless ``group_by`` is ``"parent"`` or None."""
    if group_by not in (None, "parent"):
        raise InvalidInput(
            f'group_by is {group_by!r}; hits can be grouped only by "parent".\n  Pass group_by="parent" or None.'
        )


async def best_of_parents(
    ask: Ask, fetch: Fetch, k: int, candidates: int, filter: Filter | None
) -> list[ScoredId]:
    """Return the best hit of each of the k best parents, with its document.

    Args:
        ask: The search without groups.
        fetch: Returns documents by id, None for those that were deleted.
        k: The largest number of parents.
        candidates: How many hits can be asked for before the method needs more candidates than it has by itself.
        filter: Search only the documents that match.
    """
    best: dict[str, ScoredId] = {}
    candidates = max(k, candidates)
    depth, others = min(_AHEAD * k, candidates), filter
    while True:
        answer = await ask(depth, others)
        for found in await _with_documents(answer, fetch):
            if found.document is not None:
                best.setdefault(found.document.parent, found)
        if len(best) >= k or len(answer) < depth:
            break
        if depth < candidates:
            depth = candidates
        else:
            # Without the parents that were found, a long document cannot fill the candidates with its own chunks.
            depth, others = depth * _AHEAD, _without(best, filter)
    hits = list(best.values())
    return [hits[i] for i in rank([hit.id for hit in hits], [hit.score for hit in hits], k)]


async def _with_documents(answer: Sequence[ScoredId], fetch: Fetch) -> list[ScoredId]:
    missing = [found.id for found in answer if found.document is None]
    documents = dict(zip(missing, await fetch(missing), strict=True)) if missing else {}
    return [dataclasses.replace(found, document=found.document or documents[found.id]) for found in answer]


def _without(parents: Iterable[str], filter: Filter | None) -> Filter | None:
    """Return the filter for further parents; documents that were not cut have no such field and still match."""
    found = tuple(parents)
    if not found:
        return filter
    parts = () if filter is None else filter.parts if isinstance(filter, And) else (filter,)
    return And((*parts, Not(OneOf(PARENT_FIELD, found))))
