"""A search, from top to bottom: ``search`` asks a store for lists, scores and documents, and ranks what it answers.

The steps are the lists and their union, the missing scores, fusion, the best k, and what the hits show. A store answers
the questions of ``Answers``; everything that all searches share is here and nowhere else. A store may answer more than
it was asked in the same request, and what it has answered is not asked again.
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
"""What a store calls a document: its id, or the store's own name for it. It can be hashed."""

Scored = Sequence[float] | Sequence[np.float32] | Sequence[float | np.float32] | Float32
"""Scores in the order of some keys."""


class Candidates:
    """The documents of a search, one row each, with the scores that are known so far.

    Args:
        keys: The store's names of the documents; repeated ones are kept once.
        listed: Whether the store has just listed them, so that they exist.

    Attributes:
        keys: ``[n]``, all different.
        scores: float32 ``[n]`` for each component; NaN where the score is not known yet. No true score is NaN, since
            vectors whose products could overflow are refused (B8).
        documents: By key, those that a request has brought.
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
        """All documents of some lists, with the scores by which the lists are ordered."""
        found = cls([key for keys, _ in lists.values() for key in keys], listed=True)
        for component, (keys, scores) in lists.items():
            found.learn(component, keys, scores)
        return found

    def __len__(self) -> int:
        return len(self.keys)

    def rows(self, keys: Sequence[Key]) -> list[int]:
        """The rows of documents that are here."""
        return [self._rows[key] for key in keys]

    def learn(self, component: Component, keys: Sequence[Key], scores: Scored) -> None:
        """Note scores of documents that are here."""
        if component not in self.scores:
            self.scores[component] = np.full(len(self), np.nan, dtype=np.float32)
        self.scores[component][self.rows(keys)] = scores

    def bring(self, documents: Mapping[Key, Document]) -> None:
        """Note the documents, as far as they are still stored.

        Raises:
            Deleted: One is not. A score need not tell: s_lex is 0 for a document that shares no token, and a store
                may say nothing of it, as of one that is gone.
        """
        if gone := [key for key in self.keys if key not in documents]:
            raise Deleted(f"{len(gone)} documents were deleted before they were read.")
        self.documents |= documents

    def missing(self, component: Component) -> list[Key]:
        """The documents whose score is not known."""
        if component not in self.scores:
            return list(self.keys)
        return [self.keys[i] for i in np.flatnonzero(np.isnan(self.scores[component]))]

    def take(self, rows: Sequence[int]) -> Candidates:
        """The documents in some rows, in that order."""
        taken = Candidates([self.keys[i] for i in rows], listed=self.listed)
        chosen = list(rows)
        taken.scores = {component: scores[chosen] for component, scores in self.scores.items()}
        taken.documents = {key: self.documents[key] for key in taken.keys if key in self.documents}
        return taken


@dataclasses.dataclass(frozen=True)
class Lists:
    """The lists that a search starts from.

    Attributes:
        query: One text; its embeddings are checked.
        depths: Length of each component's list.
        filter: Only documents that pass.
        exact: No approximate list.
        width: An approximate index is searched as far as for a list of this length, if that is more.
        welcome: Components whose scores of the listed documents are asked for next, so that a store may bring them.
        documents: Whether the listed documents themselves are asked for next, likewise.
    """

    query: M3Embeddings
    depths: Mapping[Component, int]
    filter: Filter | None = None
    exact: bool = False
    width: int = 0
    welcome: Sequence[Component] = ()
    documents: bool = False


class Answers(Protocol):
    """What a search asks of a store."""

    @property
    def settles_ties(self) -> bool:
        """Whether a list that is cut through equal scores holds the lowest ids of them."""

    async def lists(self, ask: Lists) -> Candidates:
        """The union of the lists, with the exact scores that they are ordered by."""

    async def complete(
        self,
        query: M3Embeddings,
        found: Candidates,
        components: Sequence[Component],
        *,
        documents: bool = False,
    ) -> None:
        """Add every score of these components that is not known, exactly; a document that is not stored gets none.

        Args:
            query: One text.
            found: The documents; scores are added to it.
            components: Those to score.
            documents: The documents are wanted too: ``bring`` them if that takes no longer.
        """

    async def ids(self, found: Candidates) -> list[str]:
        """The documents' ids, in the order of the rows."""


class Deleted(Exception):
    """A document was listed and then deleted by another call: it is no answer, and the search has to be repeated."""


@dataclasses.dataclass(frozen=True)
class ScoredId:
    """One answer, with its document where a request of the search brought it; else it is fetched by its id."""

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
    """The k best documents by a method.

    Args:
        store: Answers the questions.
        stored: The components of the collection.
        query: One text, with the method's components.
        method: Its lists are at least k deep, or hold all that is stored.
        k: Most hits.
        filter: Only documents that pass.
        exact: No approximate list.

    Raises:
        Deleted: A candidate was deleted before it was scored.
    """
    # The other components do not count: they are scored for the hits only, and shown.
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
    """The part of a list that holds the answer, where the list is ordered by the score itself.

    Its first k documents are the answer, unless it is cut through equal scores, of which a store may list any.
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
    """The rows of the k best documents, best first; equal scores are ordered by id."""
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
