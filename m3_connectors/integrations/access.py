"""What all adapters share: calls of an index from blocking and from asynchronous code, and the options of a search."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, get_args

from m3_connectors.blocking import Index, async_index_of, awaited_on, run_on
from m3_connectors.documents import Hit
from m3_connectors.errors import InvalidInput
from m3_connectors.grouping import GroupBy
from m3_connectors.index import AsyncIndex, Encoder, Query, RawFilter, encoder_in
from m3_connectors.methods import Method, MethodName, Weights
from m3_connectors.reranking import Reranker

T = TypeVar("T")

_DELETED_AT_ONCE = 1000

AnyIndex = Index | AsyncIndex
"""What ``connect`` or ``aconnect`` returns."""


class Access:
    """The calls of an adapter, each written once as a coroutine of an ``AsyncIndex``.

    With an ``Index`` (from ``connect``), both kinds of calls work; the coroutines run on the loop of the index. With
    an ``AsyncIndex`` (from ``aconnect``), only those of asynchronous code do.

    Args:
        index: The open collection. It is not closed here.

    Raises:
        InvalidInput: It is neither an Index nor an AsyncIndex.
    """

    def __init__(self, index: AnyIndex) -> None:
        if not isinstance(index, get_args(AnyIndex)):
            raise InvalidInput(
                f"index is {type(index).__name__}; it must be an Index or an AsyncIndex.\n"
                "  Pass what connect(…) returns, or what await aconnect(…) returns."
            )
        self.index: AnyIndex = index

    @property
    def encoder(self) -> Encoder | None:
        """The encoder of the index, if it has one."""
        return encoder_in(self.async_index)

    @property
    def async_index(self) -> AsyncIndex:
        """The AsyncIndex, whose calls ``run`` and ``await_`` make on its loop."""
        return self.index if isinstance(self.index, AsyncIndex) else async_index_of(self.index)

    def run(self, call: Callable[[AsyncIndex], Awaitable[T]]) -> T:
        """Run a call and return its result.

        Raises:
            InvalidInput: The index is an AsyncIndex, whose calls must be awaited on its own loop.
        """
        if isinstance(self.index, AsyncIndex):
            raise InvalidInput(
                "a blocking call was made on an AsyncIndex, which can only be awaited.\n"
                "  Use the asynchronous method of the same call, or pass an Index from connect(…)."
            )
        return run_on(self.index, partial(call, self.async_index))

    async def await_(self, call: Callable[[AsyncIndex], Awaitable[T]]) -> T:
        """Await a call and return its result; if the caller is cancelled, so is the call."""
        if isinstance(self.index, AsyncIndex):
            return await call(self.index)
        return await awaited_on(self.index, partial(call, self.async_index))


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """How an adapter searches: the arguments of ``Index.search``, and weights.

    Attributes:
        method: A name, with the weights that the index uses for it, or a Method with exactly its weights.
        weights: The weights of s_dense, s_lex and s_mul to use instead; None keeps those of the method.
        k: The maximum number of hits.
        filter: A filter of this package, such as ``{"year": {"$gte": 2020}}``.
        exact: Whether the store must search without its approximate index.
        group_by: ``"parent"`` for the best chunk of each document.
        offset: The number of hits to skip first.
        min_score: Hits with a lower score are left out.
        rerank: A re-ranker, such as ``CrossEncoder``.
        rerank_depth: How many of the best hits it orders again.
    """

    method: Method | MethodName = "all"
    weights: Weights | Sequence[float] | None = None
    k: int = 10
    filter: RawFilter | None = None
    exact: bool = False
    group_by: GroupBy | None = None
    offset: int = 0
    min_score: float | None = None
    rerank: Reranker | None = None
    rerank_depth: int = 50

    def changed(self, options: Mapping[str, Any]) -> SearchOptions:
        """Return the options with some of them replaced.

        Raises:
            InvalidInput: There is no option of a name.
        """
        known = [field.name for field in dataclasses.fields(self)]
        for name in options:
            if name not in known:
                raise InvalidInput(
                    f"{name!r} is not an option of a search.\n  Use one of {', '.join(known)}."
                )
        return dataclasses.replace(self, **options)

    def method_of(self, index: AnyIndex) -> Method:
        """Return the method with the weights that count.

        Raises:
            InvalidInput: The method is unknown, or the weights are not valid.
        """
        if isinstance(self.method, Method):
            method = self.method
        elif isinstance(self.method, str) and self.method in index.methods:
            method = index.methods[self.method]
        else:
            raise InvalidInput(f"unknown method {self.method!r}.\n  Use one of {', '.join(index.methods)}.")
        if self.weights is None:
            return method
        weights = list(self.weights)
        if not 2 <= len(weights) <= 3:
            raise InvalidInput(
                f"weights is {self.weights!r}; it must have the weights of dense, sparse and multivector.\n"
                "  Use weights such as (1, 0.3, 1)."
            )
        return method.weighted(*weights)

    async def search(self, query: Query, index: AsyncIndex) -> list[Hit]:
        """Return the hits; raises what ``AsyncIndex.search`` raises."""
        passed = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("method", "weights")
        }
        return await index.search(query, method=self.method_of(index), **passed)

    def of(self, query: Query) -> Callable[[AsyncIndex], Awaitable[list[Hit]]]:
        """Return the search of a query as a call for ``Access``."""
        return partial(self.search, query)


async def delete_all(index: AsyncIndex) -> int:
    """Remove every document that is stored when this is called, and return their number; the collection stays."""
    ids = [id async for id in index.scan_ids()]
    parts = [ids[start : start + _DELETED_AT_ONCE] for start in range(0, len(ids), _DELETED_AT_ONCE)]
    return sum([await index.delete(part) for part in parts])
