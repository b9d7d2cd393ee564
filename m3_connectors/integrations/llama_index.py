"""LlamaIndex: a vector store, a retriever and embeddings over an index of this package."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import anyio.to_thread
import numpy as np

from m3_connectors.documents import Document, Hit
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.errors import InvalidInput, MissingDependency, Unsupported
from m3_connectors.filters import parse_filter
from m3_connectors.index import AsyncIndex, Encoder, Query
from m3_connectors.integrations.access import Access, AnyIndex, SearchOptions, delete_all

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import (
        BaseNode,
        ImageNode,
        MetadataMode,
        NodeWithScore,
        QueryBundle,
        TextNode,
        TransformComponent,
    )
    from llama_index.core.vector_stores.types import (
        BasePydanticVectorStore,
        FilterCondition,
        FilterOperator,
        MetadataFilter,
        MetadataFilters,
        VectorStoreQuery,
        VectorStoreQueryMode,
        VectorStoreQueryResult,
    )
    from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict
except ImportError:
    raise MissingDependency("llama-index-core", "llama-index") from None

_CONTENT, _TYPE, _NODE, _PARENT = "_node_content", "_node_type", "_node_id", "_ref_doc_id"
_RESERVED = (_CONTENT, _TYPE, _NODE, _PARENT)

_SAME = {
    FilterOperator.EQ: "$eq",
    FilterOperator.NE: "$ne",
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
    FilterOperator.IN: "$in",
    FilterOperator.NIN: "$nin",
    FilterOperator.CONTAINS: "$eq",  # a condition on a list holds if one of its values fulfils it
    FilterOperator.ANY: "$in",
}


class M3Embedding(BaseEmbedding):
    """The dense vectors of an M3 encoder, for what takes LlamaIndex's ``BaseEmbedding``.

    Only the dense of the three representations fits this interface; ``M3VectorStore`` computes all three itself.

    Args:
        encoder: An ``M3Encoder``, or another encoder that an index takes.
        **fields: The fields of ``BaseEmbedding``, such as ``embed_batch_size``.
    """

    _encoder: Encoder = PrivateAttr()

    def __init__(self, encoder: Encoder, **fields: Any) -> None:
        super().__init__(**{"model_name": encoder.info.name, **fields})
        self._encoder = encoder

    @classmethod
    def class_name(cls) -> str:
        """Return the name of the class, for LlamaIndex's records."""
        return "M3Embedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embeddings([query])[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return (await self._aget_text_embeddings([query]))[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        if not texts:
            return []
        vectors: list[list[float]] = self._encoder.encode(texts, components=("dense",)).dense.tolist()
        return vectors

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await anyio.to_thread.run_sync(self._get_text_embeddings, texts)


class EncodedByStore(TransformComponent):
    """The last transformation of an ``IngestionPipeline`` that writes into an ``M3VectorStore``.

    A pipeline passes only nodes with an embedding to its store. This gives them an empty one; the store computes all
    three representations.
    """

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Return copies of the nodes that the pipeline passes to its store."""
        return [node.model_copy(update={"embedding": []}) for node in nodes]


class M3VectorStore(BasePydanticVectorStore):
    """An index of this package as a vector store, which searches by text with all three representations.

    The text of a node is encoded without its metadata, which filters can use. Embeddings that nodes have are not
    stored: the store computes its own. The keyword arguments of ``query`` (``vector_store_kwargs`` of a retriever)
    are those of ``Index.search`` and ``weights``.

    Args:
        index: What ``connect`` or ``aconnect`` returns. With the latter, only the asynchronous methods work.
        **options: Arguments that searches use unless they are given others.

    Raises:
        InvalidInput: The index or an option is not valid.
    """

    stores_text: bool = True
    is_embedding_query: bool = False

    _access: Access = PrivateAttr()
    _options: SearchOptions = PrivateAttr()

    def __init__(self, index: AnyIndex, **options: Any) -> None:
        super().__init__(stores_text=True)
        self._access = Access(index)
        self._options = SearchOptions().changed(options)

    @classmethod
    def class_name(cls) -> str:
        """Return the name of the class, for LlamaIndex's records."""
        return "M3VectorStore"

    @property
    def client(self) -> AnyIndex:
        """The index."""
        return self._access.index

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Encode and store nodes, replacing those with the same ids; the given nodes are not changed.

        Raises:
            InvalidInput: A node is not a text, uses a reserved metadata key, or cannot be stored.
        """
        ours = _to_ours(nodes, kwargs)
        self._access.run(lambda index: index.add(ours))
        return [document.id for document in ours]

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """As ``add``."""
        ours = _to_ours(nodes, kwargs)
        await self._access.await_(lambda index: index.add(ours))
        return [document.id for document in ours]

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Remove all nodes of a document."""
        _refuse("delete", delete_kwargs)
        self._access.run(lambda index: index.delete(filter={_PARENT: ref_doc_id}))

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """As ``delete``."""
        _refuse("adelete", delete_kwargs)
        await self._access.await_(lambda index: index.delete(filter={_PARENT: ref_doc_id}))

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Remove the nodes with these ids, those that match the filters, or those that do both.

        Raises:
            InvalidInput: Neither is given; ``clear`` removes everything.
        """
        _refuse("delete_nodes", delete_kwargs)
        chosen = _chosen(filters, node_ids=node_ids)
        self._access.run(lambda index: index.delete(filter=chosen))

    async def adelete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """As ``delete_nodes``."""
        _refuse("adelete_nodes", delete_kwargs)
        chosen = _chosen(filters, node_ids=node_ids)
        await self._access.await_(lambda index: index.delete(filter=chosen))

    def get_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """Return the nodes with these ids, those that match the filters, or those that do both; else all."""
        chosen = _chosen(filters, node_ids=node_ids)
        return self._access.run(lambda index: _matching(index, chosen))

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """As ``get_nodes``."""
        chosen = _chosen(filters, node_ids=node_ids)
        return await self._access.await_(lambda index: _matching(index, chosen))

    def clear(self) -> None:
        """Remove all nodes; the collection stays."""
        self._access.run(delete_all)

    async def aclear(self) -> None:
        """As ``clear``."""
        await self._access.await_(delete_all)

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Return the best nodes with their fused scores.

        The mode ``default`` searches by the method of the store, ``sparse`` by token weights, and ``hybrid`` by dense
        and sparse, weighted by ``alpha`` and ``1 - alpha`` if it is given.

        Raises:
            InvalidInput: A filter, a mode or an argument has no meaning here.
        """
        asked, options = self._translated(query, kwargs)
        return _result(self._access.run(options.of(asked)))

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """As ``query``."""
        asked, options = self._translated(query, kwargs)
        return _result(await self._access.await_(options.of(asked)))

    def _translated(self, query: VectorStoreQuery, kwargs: Mapping[str, Any]) -> tuple[Query, SearchOptions]:
        changes = {"k": query.similarity_top_k, **_by_mode(query)}
        # A retriever of LlamaIndex's own index passes an empty list for all nodes.
        chosen = _chosen(query.filters, node_ids=query.node_ids or None, parents=query.doc_ids or None)
        asked: Query
        if query.query_str is not None:
            asked = query.query_str
        elif query.query_embedding is not None:
            row = np.asarray([query.query_embedding], dtype=np.float32)
            asked = M3Embeddings(dense=row, model=self.client.schema.model)
            changes["method"] = "dense"
        else:
            raise InvalidInput(
                "the query has neither query_str nor query_embedding, which are both None.\n  Give query_str."
            )
        options = self._options.changed({**changes, **kwargs})
        if chosen is not None:
            options = dataclasses.replace(options, filter=_joined([options.filter, chosen]))
        return asked, options


class M3Retriever(BaseRetriever):
    """A retriever with the exact fusion of all three scores.

    Args:
        index: What ``connect`` or ``aconnect`` returns. With the latter, only ``aretrieve`` works.
        filters: Filters in LlamaIndex's syntax.
        scores_as: If given, each node has its component scores in its metadata under this key.
        **options: The arguments of ``Index.search``, such as ``k``, ``method``, ``min_score`` and ``rerank``, and
            ``weights``.

    Raises:
        InvalidInput: The index, a filter or an option is not valid.
    """

    def __init__(
        self,
        index: AnyIndex,
        *,
        filters: MetadataFilters | None = None,
        scores_as: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self._access, self._scores_as = Access(index), scores_as
        given = SearchOptions().changed(options)
        self._options = dataclasses.replace(given, filter=_joined([given.filter, to_filter(filters)]))

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._told(self._access.run(self._options.of(query_bundle.query_str)))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._told(await self._access.await_(self._options.of(query_bundle.query_str)))

    def _told(self, hits: Sequence[Hit]) -> list[NodeWithScore]:
        found = []
        for hit in hits:
            node = to_node(hit.document)
            if self._scores_as is not None:
                node.metadata[self._scores_as] = hit.scores.to_dict()
            found.append(NodeWithScore(node=node, score=hit.score))
        return found


def to_node(document: Document) -> BaseNode:
    """Return a stored document as the node that it was; one that other programs stored becomes a TextNode."""
    metadata = dict(document.metadata)
    if _CONTENT not in metadata:
        return TextNode(id_=document.id, text=document.text, metadata=metadata)
    return metadata_dict_to_node(metadata, text=document.text)


def to_filter(filters: MetadataFilters | None) -> dict[str, Any] | None:
    """Return LlamaIndex's filters as a filter of this package; None for no filter.

    Raises:
        InvalidInput: An operator or a value has no meaning here.
    """
    if filters is None or not filters.filters:
        return None
    translated = _translate(filters)
    parse_filter(translated)
    return translated


def _translate(filters: MetadataFilters | MetadataFilter) -> dict[str, Any]:
    if isinstance(filters, MetadataFilter):
        return _condition(filters)
    if not filters.filters:
        raise InvalidInput(
            f"MetadataFilters with condition {filters.condition} is empty.\n  Give it filters, or leave it out."
        )
    parts = [_translate(part) for part in filters.filters]
    match filters.condition:
        case FilterCondition.OR:
            return {"$or": parts}
        case FilterCondition.NOT:
            return {"$not": {"$or": parts}}  # none of them holds, as in LlamaIndex's own store
    return {"$and": parts}


def _condition(filter: MetadataFilter) -> dict[str, Any]:
    operator, value = FilterOperator(filter.operator), filter.value
    if operator is FilterOperator.IS_EMPTY:
        return {"$or": [{filter.key: {"$exists": False}}, {filter.key: ""}]}
    if value is None:
        raise InvalidInput(
            f"the filter on {filter.key!r} compares with None.\n  Use the operator is_empty, or give a value."
        )
    if operator is FilterOperator.ALL:
        if not isinstance(value, list) or not value:
            raise InvalidInput(
                f"the filter on {filter.key!r} with all is given {value!r}; it must be a list that is not empty.\n"
                "  Use a list of values."
            )
        return {"$and": [{filter.key: item} for item in value]}
    if operator not in _SAME:
        raise InvalidInput(
            f"the filter operator {operator.value!r} on {filter.key!r} is not supported: metadata are not searched by "
            f"text.\n  Use one of {', '.join(known.value for known in [*_SAME, FilterOperator.ALL])}, is_empty."
        )
    return {filter.key: {_SAME[operator]: value}}


def _by_mode(query: VectorStoreQuery) -> dict[str, Any]:
    match query.mode:
        case VectorStoreQueryMode.DEFAULT:
            return {}
        case VectorStoreQueryMode.SPARSE:
            return {"method": "sparse"}
        case VectorStoreQueryMode.HYBRID:
            weights = {} if query.alpha is None else {"weights": (query.alpha, 1 - query.alpha)}
            return {"method": "dense_sparse", **weights}
    raise Unsupported(
        f"the query mode {VectorStoreQueryMode(query.mode).value!r} is not supported.\n"
        "  Use default (by the method of the store, such as all), sparse or hybrid."
    )


def _chosen(
    filters: MetadataFilters | None, *, node_ids: list[str] | None = None, parents: list[str] | None = None
) -> dict[str, Any] | None:
    parts: list[Mapping[str, Any] | None] = [to_filter(filters)]
    for field, values in ((_NODE, node_ids), (_PARENT, parents)):
        if values is not None:
            # No id: nothing.
            parts.append(_one_of(field, values))
    return _joined(parts)


def _one_of(field: str, values: list[str]) -> dict[str, Any]:
    if values:
        return {field: {"$in": list(values)}}
    return {"$and": [{field: {"$exists": True}}, {field: {"$exists": False}}]}


def _joined(parts: Iterable[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    given = [dict(part) for part in parts if part]
    return {"$and": given} if len(given) > 1 else given[0] if given else None


def _to_ours(nodes: Sequence[BaseNode], kwargs: Mapping[str, Any]) -> list[Document]:
    _refuse("add", kwargs)
    ours = []
    for i, node in enumerate(nodes):
        if isinstance(node, ImageNode) or not isinstance(node, TextNode):
            raise InvalidInput(
                f"nodes[{i}] ({node.node_id!r}) is {type(node).__name__}; this store keeps texts and metadata only.\n"
                "  Convert it to a TextNode first."
            )
        for key in _RESERVED:
            if key in node.metadata:
                raise InvalidInput(
                    f"nodes[{i}] ({node.node_id!r}) has the metadata key {key!r}, which this store uses itself.\n"
                    "  Rename it."
                )
        # The node without its text: its relationships, metadata and templates.
        record = node_to_metadata_dict(node, remove_text=True)
        own = {_CONTENT: record[_CONTENT], _TYPE: record[_TYPE], _NODE: node.node_id}
        parent = {} if node.ref_doc_id is None else {_PARENT: node.ref_doc_id}
        text = node.get_content(metadata_mode=MetadataMode.NONE)
        ours.append(Document(node.node_id, text, {**node.metadata, **own, **parent}))
    return ours


async def _matching(index: AsyncIndex, filter: Mapping[str, Any] | None) -> list[BaseNode]:
    return [to_node(document) async for document in index.scan(filter)]


def _result(hits: Sequence[Hit]) -> VectorStoreQueryResult:
    return VectorStoreQueryResult(
        nodes=[to_node(hit.document) for hit in hits],
        similarities=[hit.score for hit in hits],
        ids=[hit.document.id for hit in hits],
    )


def _refuse(call: str, unknown: Mapping[str, Any]) -> None:
    if unknown:
        raise InvalidInput(
            f"{call} has no argument {next(iter(unknown))!r}.\n  Leave it out, or see the documentation of {call}."
        )
