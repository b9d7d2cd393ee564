"""A Haystack component that searches an ``M3DocumentStore`` with all three representations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from haystack import component, default_from_dict, default_to_dict
from haystack.dataclasses import Document
from haystack.document_stores.types import FilterPolicy, apply_filter_policy

from m3_connectors.cross_encoder import CrossEncoder
from m3_connectors.documents import Hit
from m3_connectors.errors import InvalidInput
from m3_connectors.grouping import GroupBy
from m3_connectors.integrations.access import SearchOptions
from m3_connectors.integrations.haystack.filters import to_filter
from m3_connectors.integrations.haystack.store import M3DocumentStore, to_haystack
from m3_connectors.methods import MethodName


@component
class M3Retriever:
    """Searches by text with the exact fusion of all three scores; needs no text embedder.

    Args:
        document_store: The store.
        filters: Filters in Haystack's syntax.
        top_k: The maximum number of documents.
        method: ``all``, ``dense``, ``sparse``, ``multi_vec`` or ``dense_sparse``.
        weights: The weights of s_dense, s_lex and s_mul to use instead of the method's.
        offset: The number of documents to skip first.
        min_score: Documents with a lower score are left out.
        exact: Whether the store must search without its approximate index.
        group_by: ``"parent"`` for the best chunk of each document.
        rerank_model: The name of a cross-encoder that orders the best documents again.
        rerank_depth: How many it orders.
        scores_as: If given, each document has its component scores in its meta under this key.
        filter_policy: Whether the filters of a run replace those given here, or are joined with them.

    Raises:
        InvalidInput: The document store is not an M3DocumentStore.
    """

    def __init__(
        self,
        document_store: M3DocumentStore,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        method: MethodName = "all",
        weights: Sequence[float] | None = None,
        offset: int = 0,
        min_score: float | None = None,
        exact: bool = False,
        group_by: GroupBy | None = None,
        rerank_model: str | None = None,
        rerank_depth: int = 50,
        scores_as: str | None = None,
        filter_policy: FilterPolicy = FilterPolicy.REPLACE,
    ) -> None:
        if not isinstance(document_store, M3DocumentStore):
            raise InvalidInput(
                f"document_store is {type(document_store).__name__}; it must be an M3DocumentStore.\n"
                "  Other stores have their own retrievers."
            )
        to_filter(filters)
        self.document_store = document_store
        self.filters, self.filter_policy = filters, filter_policy
        self.rerank_model, self.scores_as = rerank_model, scores_as
        self._options = SearchOptions(
            method=method,
            weights=None if weights is None else list(weights),
            k=top_k,
            offset=offset,
            min_score=min_score,
            exact=exact,
            group_by=group_by,
            rerank_depth=rerank_depth,
        )

    def warm_up(self) -> None:
        """Open the store and load the models."""
        self.document_store.warm_up()
        if self.rerank_model is not None and self._options.rerank is None:
            self._options = dataclasses.replace(self._options, rerank=CrossEncoder(self.rerank_model))

    def to_dict(self) -> dict[str, Any]:
        """Return the component as a pipeline file has it."""
        options = self._options
        return default_to_dict(
            self,
            document_store=self.document_store.to_dict(),
            filters=self.filters,
            top_k=options.k,
            method=options.method,
            weights=options.weights,
            offset=options.offset,
            min_score=options.min_score,
            exact=options.exact,
            group_by=options.group_by,
            rerank_model=self.rerank_model,
            rerank_depth=options.rerank_depth,
            scores_as=self.scores_as,
            filter_policy=self.filter_policy.value,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> M3Retriever:
        """Return the component of a pipeline file."""
        given = dict(data["init_parameters"])
        if isinstance(given["document_store"], dict):
            given["document_store"] = M3DocumentStore.from_dict(given["document_store"])
        if isinstance(given.get("filter_policy"), str):
            given["filter_policy"] = FilterPolicy.from_str(given["filter_policy"])
        loaded: M3Retriever = default_from_dict(cls, {**data, "init_parameters": given})
        return loaded

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Return the best documents for a query, best first, each with its score.

        Raises:
            FilterError: A filter has no meaning here.
        """
        self.warm_up()
        return self._told(self.document_store.search(query, self._chosen(filters, top_k)))

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """As ``run``."""
        if self.rerank_model is not None:
            self.warm_up()
        return self._told(await self.document_store.search_async(query, self._chosen(filters, top_k)))

    def _chosen(self, filters: dict[str, Any] | None, top_k: int | None) -> SearchOptions:
        joined = to_filter(apply_filter_policy(self.filter_policy, self.filters, filters))
        return dataclasses.replace(
            self._options, filter=joined, k=self._options.k if top_k is None else top_k
        )

    def _told(self, hits: Sequence[Hit]) -> dict[str, list[Document]]:
        documents = []
        for hit in hits:
            document = dataclasses.replace(to_haystack(hit.document), score=hit.score)
            if self.scores_as is not None:
                document.meta[self.scores_as] = hit.scores.to_dict()
            documents.append(document)
        return {"documents": documents}
