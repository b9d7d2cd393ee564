"""LangChain: a vector store, a retriever and embeddings over an index of this package."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import anyio.to_thread
import numpy as np

from m3_connectors.blocking import Index, connect
from m3_connectors.documents import Document, Hit
from m3_connectors.embeddings import M3Embeddings as Encoded
from m3_connectors.errors import InvalidInput, MissingDependency, Unsupported
from m3_connectors.grouping import GroupBy
from m3_connectors.index import AsyncIndex, Encoder, Query, RawFilter
from m3_connectors.integrations.access import Access, AnyIndex, SearchOptions, delete_all
from m3_connectors.methods import Method, MethodName, Weights
from m3_connectors.opening import aconnect

try:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from langchain_core.documents import Document as LangChainDocument
    from langchain_core.embeddings import Embeddings
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.vectorstores import VectorStore
except ImportError:
    raise MissingDependency("langchain-core", "langchain") from None

Scored = list[tuple[LangChainDocument, float]]


class M3Embeddings(Embeddings):
    """The dense vectors of an M3 encoder, for what takes LangChain's ``Embeddings``.

    Only the dense of the three representations fits this interface; ``M3VectorStore`` searches with all three.

    Args:
        encoder: An ``M3Encoder``, or another encoder that an index takes.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a unit vector for each text."""
        if not texts:
            return []
        vectors: list[list[float]] = self.encoder.encode(texts, components=("dense",)).dense.tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Return the unit vector of a text; M3 encodes queries as it encodes documents."""
        return self.embed_documents([text])[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """As ``embed_documents``, in a worker thread."""
        return await anyio.to_thread.run_sync(self.embed_documents, texts)

    async def aembed_query(self, text: str) -> list[float]:
        """As ``embed_query``, in a worker thread."""
        return await anyio.to_thread.run_sync(self.embed_query, text)


class M3VectorStore(VectorStore):
    """An index of this package as a vector store, which searches with all three representations.

    Every search takes the arguments of ``Index.search`` (``k``, ``method``, ``filter``, ``min_score``, ``offset``,
    ``rerank`` and others) and ``weights``. The scores that it returns are the fused scores.

    Args:
        index: What ``connect`` or ``aconnect`` returns. With the latter, only the asynchronous methods work.
        **options: Arguments that searches use unless they are given others.

    Raises:
        InvalidInput: The index or an option is not valid.
    """

    def __init__(self, index: AnyIndex, **options: Any) -> None:
        self._access = Access(index)
        self._options = SearchOptions(k=4).changed(options)  # LangChain's default of k

    @property
    def index(self) -> AnyIndex:
        """The index, which is not closed by the store."""
        return self._access.index

    @property
    def embeddings(self) -> M3Embeddings | None:
        """The dense embeddings of the encoder of the index, if it has one."""
        encoder = self._access.encoder
        return None if encoder is None else M3Embeddings(encoder)

    def add_documents(self, documents: list[LangChainDocument], **kwargs: Any) -> list[str]:
        """Store documents, replacing those with the same ids; the given documents are not changed.

        Args:
            documents: The documents; their metadata must be JSON.
            **kwargs: ``ids``, one for each document, else ``document.id`` is used, else a random id. ``batch_size``
                is accepted and has no effect: batches are formed by the size of the texts.

        Returns:
            The ids, in the order of the documents.

        Raises:
            InvalidInput: A document cannot be stored, or an argument is not known.
        """
        ours = _to_ours(documents, **kwargs)
        self._access.run(lambda index: index.add(ours))
        return [document.id for document in ours]

    async def aadd_documents(self, documents: list[LangChainDocument], **kwargs: Any) -> list[str]:
        """As ``add_documents``."""
        ours = _to_ours(documents, **kwargs)
        await self._access.await_(lambda index: index.add(ours))
        return [document.id for document in ours]

    def delete(self, ids: list[str] | None = None, *, filter: RawFilter | None = None, **kwargs: Any) -> bool:
        """Remove documents by id or by filter; without both, all documents (as LangChain defines it).

        Ids that do not exist are ignored.

        Returns:
            True; every failure is raised.

        Raises:
            InvalidInput: Both ids and a filter are given, or an argument is not known.
        """
        _refuse("delete", kwargs)
        self._access.run(lambda index: _delete(index, ids, filter))
        return True

    async def adelete(
        self, ids: list[str] | None = None, *, filter: RawFilter | None = None, **kwargs: Any
    ) -> bool:
        """As ``delete``."""
        _refuse("adelete", kwargs)
        await self._access.await_(lambda index: _delete(index, ids, filter))
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[LangChainDocument]:
        """Return the documents with these ids, in the order of the ids; those that do not exist are left out."""
        return _found(self._access.run(lambda index: index.get(list(ids))))

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[LangChainDocument]:
        """As ``get_by_ids``."""
        return _found(await self._access.await_(lambda index: index.get(list(ids))))

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[LangChainDocument]:
        """Return the k best documents; see the class for further arguments."""
        return _documents(self._hits(query, k, kwargs))

    async def asimilarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[LangChainDocument]:
        """As ``similarity_search``."""
        return _documents(await self._ahits(query, k, kwargs))

    def similarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> Scored:
        """Return the k best documents with their fused scores (or those of the re-ranker), higher is better."""
        return _scored(self._hits(query, k, kwargs))

    async def asimilarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> Scored:
        """As ``similarity_search_with_score``."""
        return _scored(await self._ahits(query, k, kwargs))

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, **kwargs: Any
    ) -> list[LangChainDocument]:
        """Return the k best documents for a dense vector, by the method ``dense``."""
        return _documents(self._hits(self._dense(embedding), k, {"method": "dense", **kwargs}))

    async def asimilarity_search_by_vector(
        self, embedding: list[float], k: int = 4, **kwargs: Any
    ) -> list[LangChainDocument]:
        """As ``similarity_search_by_vector``."""
        return _documents(await self._ahits(self._dense(embedding), k, {"method": "dense", **kwargs}))

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[LangChainDocument]:
        """Raise Unsupported: diversity is defined for one vector of each document, not for three scores."""
        raise _no_diversity()

    async def amax_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[LangChainDocument]:
        """Raise Unsupported, as ``max_marginal_relevance_search``."""
        raise _no_diversity()

    def as_m3_retriever(self, **options: Any) -> M3Retriever:
        """Return a retriever that has the options of a search as fields; ``as_retriever`` is LangChain's own."""
        values = {**vars(self._options), **options}
        return M3Retriever(index=self.index, **values)

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        url: str = "memory:",
        **options: Any,
    ) -> M3VectorStore:
        """Open or create a collection and store texts in it.

        Args:
            texts: The texts.
            embedding: An ``M3Embeddings`` of this module, whose encoder computes all three representations.
            metadatas: The metadata of each text.
            ids: The id of each text; random by default.
            url: The URL of the store.
            **options: The further arguments of ``connect``, such as ``collection`` and ``storage``.

        Raises:
            InvalidInput: ``embedding`` is of another class, or a text cannot be stored.
        """
        index = connect(url, encoder=_encoder(embedding), **options)
        try:
            store = cls(index)
            store.add_texts(texts, metadatas, ids=ids)
        except BaseException:
            index.close()
            raise
        return store

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        url: str = "memory:",
        **options: Any,
    ) -> M3VectorStore:
        """As ``from_texts``, with ``aconnect``: the store has asynchronous methods only."""
        index = await aconnect(url, encoder=_encoder(embedding), **options)
        try:
            store = cls(index)
            await store.aadd_texts(texts, metadatas, ids=ids)
        except BaseException:
            await index.close()
            raise
        return store

    def _similarity_search_with_relevance_scores(self, query: str, k: int = 4, **kwargs: Any) -> Scored:
        return self._relevances(self._hits(query, k, kwargs), kwargs)

    async def _asimilarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> Scored:
        return self._relevances(await self._ahits(query, k, kwargs), kwargs)

    def _relevances(self, hits: Sequence[Hit], kwargs: Mapping[str, Any]) -> Scored:
        """Return the mean of the three scores under the method's weights, limited to 0–1.

        The scores of dense and multi-vectors are cosines, so it is 1 for a text that is found by itself, and 0 for one
        that has nothing in common with the query.
        """
        options = self._options.changed(kwargs)
        if options.rerank is not None:
            raise InvalidInput(
                f"rerank is {type(options.rerank).__name__}, and relevance scores are not defined for the scores of "
                "a re-ranker.\n  Use similarity_search_with_score, or min_score as the threshold."
            )
        total = sum(options.method_of(self.index).weights)
        return [(_to_langchain(hit.document), float(np.clip(hit.score / total, 0.0, 1.0))) for hit in hits]

    def _hits(self, query: Query, k: int, kwargs: Mapping[str, Any]) -> list[Hit]:
        return self._access.run(self._options.changed({"k": k, **kwargs}).of(query))

    async def _ahits(self, query: Query, k: int, kwargs: Mapping[str, Any]) -> list[Hit]:
        return await self._access.await_(self._options.changed({"k": k, **kwargs}).of(query))

    def _dense(self, embedding: Sequence[float]) -> Encoded:
        rows = np.asarray([embedding], dtype=np.float32)
        return Encoded(dense=rows, model=self.index.schema.model)


class M3Retriever(BaseRetriever):
    """A retriever with the exact fusion of all three scores; the fields are the arguments of ``Index.search``.

    ``invoke(query, k=3)`` replaces a field for one call.

    Attributes:
        index: What ``connect`` or ``aconnect`` returns. With the latter, only ``ainvoke`` works.
        scores_as: If given, each document has its scores in its metadata under this key: ``score``, ``dense``,
            ``sparse`` and ``multivector``.
    """

    index: Index | AsyncIndex
    method: Method | MethodName = "all"
    weights: Weights | Sequence[float] | None = None
    k: int = 10
    filter: dict[str, Any] | None = None
    exact: bool = False
    group_by: GroupBy | None = None
    offset: int = 0
    min_score: float | None = None
    rerank: Any = None
    rerank_depth: int = 50
    scores_as: str | None = None

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun | None = None, **kwargs: Any
    ) -> list[LangChainDocument]:
        return self._told(Access(self.index).run(self._options(kwargs).of(query)))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun | None = None, **kwargs: Any
    ) -> list[LangChainDocument]:
        return self._told(await Access(self.index).await_(self._options(kwargs).of(query)))

    def _options(self, kwargs: Mapping[str, Any]) -> SearchOptions:
        fields = {name: getattr(self, name) for name in vars(SearchOptions())}
        return SearchOptions(**fields).changed(kwargs)

    def _told(self, hits: Sequence[Hit]) -> list[LangChainDocument]:
        documents = _documents(hits)
        if self.scores_as is not None:
            for document, hit in zip(documents, hits, strict=True):
                document.metadata[self.scores_as] = {"score": hit.score, **hit.scores.to_dict()}
        return documents


M3Retriever.model_rebuild()


async def _delete(index: AsyncIndex, ids: Sequence[str] | None, filter: RawFilter | None) -> None:
    if ids is not None or filter:
        await index.delete(None if ids is None else list(ids), filter=filter)
        return
    await delete_all(index)


def _to_ours(
    documents: Iterable[LangChainDocument],
    ids: Sequence[str | None] | None = None,
    batch_size: int | None = None,
    **unknown: Any,
) -> list[Document]:
    _refuse("add_documents", unknown)
    given = list(documents)
    chosen = [document.id for document in given] if ids is None else list(ids)
    if len(chosen) != len(given):
        raise InvalidInput(
            f"ids has {len(chosen)} entries for {len(given)} documents.\n  Give one id for each document."
        )
    return [
        Document(str(uuid.uuid4()) if id is None else id, document.page_content, document.metadata)
        for id, document in zip(chosen, given, strict=True)
    ]


def _to_langchain(document: Document) -> LangChainDocument:
    return LangChainDocument(id=document.id, page_content=document.text, metadata=dict(document.metadata))


def _documents(hits: Iterable[Hit]) -> list[LangChainDocument]:
    return [_to_langchain(hit.document) for hit in hits]


def _scored(hits: Iterable[Hit]) -> Scored:
    return [(_to_langchain(hit.document), hit.score) for hit in hits]


def _found(documents: Iterable[Document | None]) -> list[LangChainDocument]:
    return [_to_langchain(document) for document in documents if document is not None]


def _encoder(embedding: Embeddings) -> Encoder:
    if not isinstance(embedding, M3Embeddings):
        raise InvalidInput(
            f"embedding is {type(embedding).__name__}, which has dense vectors only.\n"
            "  Pass m3_connectors.integrations.langchain.M3Embeddings(M3Encoder(…))."
        )
    return embedding.encoder


def _refuse(call: str, unknown: Mapping[str, Any]) -> None:
    if unknown:
        raise InvalidInput(
            f"{call} has no argument {next(iter(unknown))!r}.\n  Leave it out, or see the documentation of {call}."
        )


def _no_diversity() -> Unsupported:
    return Unsupported(
        'search_type "mmr" is not supported: it compares one vector of each document.\n'
        '  Use search_type "similarity", or group_by="parent" for one chunk of each document.'
    )
