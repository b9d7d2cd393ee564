"""A search from top to bottom: ``search`` requests lists, scores and documents from a store and ranks the results.

The steps are: the lists and their union, missing scores, fusion, the best k, details of the hits. A store implements
the queries of ``Answers``; everything that all searches share is in this module only. A store may return more than was
requested, and what it has returned is not requested again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from m3_connectors.documents import Document, Scores
from m3_connectors.embeddings import Component, Float32, M3Embeddings
from m3_connectors.filters import Filter
from m3_connectors.methods import Method, fuse, rank

Key = Any
"""The key of a document in a store: its id, or an internal key of the store. It is hashable."""

Scored = Sequence[float] | Sequence[np.float32] | Sequence[float | np.float32] | Float32
"""Scores, in the order of the corresponding keys."""


class Candidates:
    """The documents of a search, one row each, with the scores that are known so far.

    Args:
        keys: The store's keys of the documents; repeated keys are kept once.
        listed: Whether the store has just listed the documents, so that they exist.

    Attributes:
        keys: ``[n]``, without duplicates.
        scores: float32 ``[n]`` for each component; NaN if the score is not known yet. No true score is NaN, because
            vectors whose products could overflow are refused (B8).
        documents: The documents that have already been fetched, by key.
    """

    def __init__(self, keys: Sequence[Key], *, listed: bool = False) -> None:
        self._rows: dict[Key, int] = {}
        for key in keys:
            self._rows.setdefault(key, len(self._rows))
        self.keys: list[Key] = list(self._rows)
        self.scores: dict[Component, Float32] = {}
        self.documents: dict[Key, Document] = {}
        self.listed = listed

    @classmethod
    def union(cls, lists: Mapping[Component, tuple[Sequence[Key], Scored]]) -> Candidates:
        """Return all documents of the lists, with the scores by which the lists are ordered."""
        found = cls([key for keys, _ in lists.values() for key in keys], listed=True)
        for component, (keys, scores) in lists.items():
            found.learn(component, keys, scores)
        return found

    def __len__(self) -> int:
        return len(self.keys)

    def rows(self, keys: Sequence[Key]) -> list[int]:
        """Return the rows of documents in this table."""
        return [self._rows[key] for key in keys]

    def learn(self, component: Component, keys: Sequence[Key], scores: Scored) -> None:
        """Set the scores of documents in this table."""
        if component not in self.scores:
            self.scores[component] = np.full(len(self), np.nan, dtype=np.float32)
        self.scores[component][self.rows(keys)] = scores

    def bring(self, documents: Mapping[Key, Document]) -> None:
        """Add the documents of all rows.

        Raises:
            Deleted: A document is not stored any more. A missing score does not show this reliably: s_lex is 0
                for a document that shares no token, and a store may return nothing for it, as for a deleted one.
        """
        if gone := [key for key in self.keys if key not in documents]:
            raise Deleted(f"{len(gone)} documents were deleted before they were read.")
        self.documents |= documents

    def missing(self, component: Component) -> list[Key]:
        """Return the keys of the documents whose score is not known."""
        if component not in self.scores:
            return list(self.keys)
        return [self.keys[i] for i in np.flatnonzero(np.isnan(self.scores[component]))]

    def take(self, rows: Sequence[int]) -> Candidates:
        """Return the documents in these rows, in this order."""
        taken = Candidates([self.keys[i] for i in rows], listed=self.listed)
        chosen = list(rows)
        taken.scores = {component: scores[chosen] for component, scores in self.scores.items()}
        taken.documents = {key: self.documents[key] for key in taken.keys if key in self.documents}
        return taken


@dataclasses.dataclass(frozen=True)
class Lists:
    """The request for the lists that a search starts from.

    Attributes:
        query: The embeddings of one text, already checked.
        depths: The length of each component's list.
        filter: Search only the documents that match.
        exact: Whether the store must search exactly, without its approximate index.
        width: The minimum number of candidates that an approximate index considers.
        welcome: The components whose scores of the listed documents will be needed next.
        documents: Whether the listed documents themselves will be needed next.
    """

    query: M3Embeddings
    depths: Mapping[Component, int]
    filter: Filter | None = None
    exact: bool = False
    width: int = 0
    welcome: Sequence[Component] = ()
    documents: bool = False


class Answers(Protocol):
    """The queries of a search that a store implements."""

    @property
    def settles_ties(self) -> bool:
        """Whether a list that ends within equal scores contains the lowest of their ids."""

    async def lists(self, ask: Lists) -> Candidates:
        """Return the union of the lists, with the exact scores by which they are ordered."""

    async def complete(
        self,
        query: M3Embeddings,
        found: Candidates,
        components: Sequence[Component],
        *,
        documents: bool = False,
    ) -> None:
        """Add every missing score of these components, computed exactly; a deleted document gets none.

        Args:
            query: The embeddings of one text.
            found: The documents; the scores are added to this table.
            components: The components to score.
            documents: Whether the documents are needed too; ``bring`` them if that takes no additional time.
        """

    async def ids(self, found: Candidates) -> list[str]:
        """Return the ids of the documents, in the order of the rows."""


class Deleted(Exception):
    """A document was listed and then deleted by another call; the search must be repeated."""


@dataclasses.dataclass(frozen=True)
class ScoredId:
    """One result, with its document if the search has already fetched it; otherwise it is fetched by id."""

    id: str
    score: float
    scores: Scores
    document: Document | None = None


async def search(
    store: Answers,
    stored: Sequence[Component],
    query: M3Embeddings,
    method: Method,
    k: int,
    filter: Filter | None,
    exact: bool,
) -> list[ScoredId]:
    """Return the k best documents by a method.

    Args:
        store: The store to search.
        stored: The components of the collection.
        query: The embeddings of one text, with the components of the method.
        method: The method; its lists are at least k deep, or contain everything that is stored.
        k: The maximum number of hits.
        filter: Search only the documents that match.
        exact: Whether the store must search exactly, without its approximate index.

    Raises:
        Deleted: A candidate was deleted before it was scored.
    """
    # The other components do not affect the fused score; they are computed for the hits only, for display.
    shown = [name for name in stored if name in query.components and name not in method.scored]
    if method.is_one_list:
        found = await _head_of_one_list(store, query, method, k, filter, exact, shown)
    else:
        width = max(method.candidates.values())
        found = await store.lists(Lists(query, method.candidates, filter, exact, width, method.scored))
    if not found.keys:
        return []
    await store.complete(query, found, method.scored)
    _check_scored(found, method.scored)
    fused = fuse(found.scores, method.weights)
    best = await _best(store, found, fused, k)
    hits, score = found.take(best), fused[best]
    await store.complete(query, hits, shown, documents=True)
    _check_scored(hits, shown)
    return [
        ScoredId(
            id,
            float(score[i]),
            Scores(**{name: float(hits.scores[name][i]) for name in (*method.scored, *shown)}),
            hits.documents.get(hits.keys[i]),
        )
        for i, id in enumerate(await store.ids(hits))
    ]


async def _head_of_one_list(
    store: Answers,
    query: M3Embeddings,
    method: Method,
    k: int,
    filter: Filter | None,
    exact: bool,
    shown: Sequence[Component],
) -> Candidates:
    """Return the part of a list that contains the result, for a list that is ordered by the score itself.

    Its first k documents are the result, unless it ends within equal scores, of which a store may list any.
    """
    ((component, depth),) = method.candidates.items()

    def ask(length: int) -> Lists:
        return Lists(query, {component: length}, filter, exact, depth, shown, documents=True)

    if store.settles_ties:
        return await store.lists(ask(min(k, depth)))
    found = await store.lists(ask(min(k + 1, depth)))
    scores = found.scores[component] if found.keys else ()
    if len(scores) > k and scores[k] == scores[k - 1] and depth > k + 1:
        return await store.lists(ask(depth))
    return found


def _check_scored(found: Candidates, components: Sequence[Component]) -> None:
    for component in components:
        if missing := found.missing(component):
            raise Deleted(f"{len(missing)} candidates were deleted before they were scored.")


async def _best(store: Answers, found: Candidates, fused: npt.NDArray[np.float64], k: int) -> list[int]:
    """Return the rows of the k best documents, best first; equal scores are ordered by id."""
    order = np.argsort(-fused, kind="stable")
    descending = fused[order]
    # The k best and all that equal the last of them.
    end = len(fused)
    if k < end:
        end = int(np.searchsorted(-descending, -descending[k - 1], side="right"))
    rows: list[int] = order[:end].tolist()
    if (descending[1:end] < descending[: end - 1]).all():
        return rows
    # Ids are asked for only where they decide.
    ids = await store.ids(found.take(rows))
    return [rows[i] for i in rank(ids, descending[:end], k)]
