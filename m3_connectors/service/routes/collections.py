"""Collections, and reading and writing their documents."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
import orjson
from fastapi import APIRouter
from pydantic import ConfigDict, Field
from starlette.responses import Response, StreamingResponse

from m3_connectors.backends.schema import Storage
from m3_connectors.documents import Document
from m3_connectors.embeddings import COMPONENTS, Component
from m3_connectors.errors import M3Error
from m3_connectors.index import AsyncIndex, Description
from m3_connectors.methods import METHODS
from m3_connectors.service.bodies import Body, Filter, Many
from m3_connectors.service.problems import problem_of
from m3_connectors.service.state import WRITES, TheService, json_answer

ROUTER = APIRouter(prefix="/v1/collections", tags=["collections"])

_LINES = "application/x-ndjson"


class CreateRequest(Body):
    """What a new collection stores."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}, {"components": ["dense", "sparse"]}]})

    components: Annotated[tuple[Component, ...], Field(min_length=1, fail_fast=True)] = COMPONENTS


class DocumentBody(Body):
    """A document to store."""

    id: str
    text: str
    metadata: Annotated[dict[Any, Any], Field(default_factory=dict)]


class UpsertRequest(Body):
    """Documents to store; those with the same ids are replaced."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "documents": [
                        {"id": "1", "text": "Plums ripen in late summer.", "metadata": {"year": 2024}},
                        {"id": "2", "text": "Snow falls in winter."},
                    ]
                }
            ]
        }
    )

    documents: Many[DocumentBody]


class GetRequest(Body):
    """The ids of documents."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ids": ["1", "2"]}]})

    ids: Many[str]


class DeleteRequest(Body):
    """Which documents to remove: either ids or a filter."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"ids": ["no-such-id"]}, {"filter": {"year": {"$lt": 1900}}}]}
    )

    ids: Many[str] | None = None
    filter: Filter = None


class ScanRequest(Body):
    """Which documents to read."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}, {"filter": {"year": 2024}}]})

    filter: Filter = None


@ROUTER.get("")
async def names(service: TheService) -> Response:
    """Return the names of the collections."""
    return json_answer({"collections": await service.collections.names()})


@ROUTER.get("/{name}")
async def describe(name: str, service: TheService) -> Response:
    """Return the store, model, components and number of documents of a collection, and its methods.

    Each method has the weights that a search by its name uses, the scores that it fuses, and the components that it
    needs and the collection does not store.
    """
    index = await service.collections.get(name)
    return json_answer(_described(index, await index.describe()))


@ROUTER.put("/{name}", dependencies=[WRITES])
async def create(name: str, request: CreateRequest, service: TheService) -> Response:
    """Create a collection, if it does not exist; one that exists must store the same components."""
    index = await service.collections.create(name, Storage(components=request.components))
    return json_answer(_described(index, await index.describe()))


@ROUTER.post("/{name}/documents", dependencies=[WRITES])
async def upsert(name: str, request: UpsertRequest, service: TheService) -> Response:
    """Store documents. Nothing is written if one of them cannot be stored, or if the client goes away before."""
    service.check_count(len(request.documents), "documents")
    index = await service.collections.get(name)
    documents = [Document(one.id, one.text, one.metadata) for one in request.documents]
    embeddings = None
    if documents:
        texts = [document.text for document in documents]
        embeddings = await service.batcher.encode(texts, index.schema.written)
    index = await service.collections.get(
        name, is_to_write=True
    )  # another program may have replaced it meanwhile
    with anyio.CancelScope(shield=True):  # a client that goes away leaves nothing half written
        report = await index.add(documents, embeddings=embeddings)
    answer = dataclasses.asdict(report)
    del answer["encoding_seconds"]  # the texts were encoded in batches with those of other requests
    return json_answer(answer)


@ROUTER.post("/{name}/documents/get")
async def get(name: str, request: GetRequest, service: TheService) -> Response:
    """Return documents by id, in the same order; null for those that do not exist."""
    service.check_count(len(request.ids), "ids")
    found = await (await service.collections.get(name)).get(request.ids)
    return json_answer({"documents": [one and _document(one) for one in found]})


@ROUTER.post("/{name}/documents/delete", dependencies=[WRITES])
async def delete(name: str, request: DeleteRequest, service: TheService) -> Response:
    """Remove documents by id or by filter, and return how many were removed."""
    index = await service.collections.get(name, is_to_write=True)
    with anyio.CancelScope(shield=True):
        removed = await index.delete(request.ids, filter=request.filter)
    return json_answer({"removed": removed})


@ROUTER.post("/{name}/documents/scan", responses={200: {"content": {_LINES: {}}}})
async def scan(name: str, request: ScanRequest, service: TheService) -> Response:
    """Return every document that matches a filter, one JSON object a line, in any order.

    The last line is ``{"end": N}`` with the number of documents; if it is missing, or is ``{"problem": …}``, the answer
    is not complete.
    """
    documents = (await service.collections.get(name)).scan(request.filter)
    first = await anext(documents, None)  # so that a wrong filter is an error, not an answer
    return StreamingResponse(_lines(first, documents), media_type=_LINES)


async def _lines(first: Document | None, others: AsyncIterator[Document]) -> AsyncIterator[bytes]:
    count, part = 0, list[bytes]()
    try:
        if first is not None:
            count, part = 1, [orjson.dumps(_document(first))]
            async for document in others:
                count += 1
                part.append(orjson.dumps(_document(document)))
                if len(part) == _LINES_AT_ONCE:
                    yield b"\n".join([*part, b""])
                    part = []
        part.append(orjson.dumps({"end": count}))
    except M3Error as error:
        part.append(orjson.dumps({"problem": problem_of(error).to_dict()}))
    yield b"\n".join([*part, b""])


_LINES_AT_ONCE = 100


def _described(index: AsyncIndex, about: Description) -> dict[str, Any]:
    stored = about.schema.components
    return {
        "name": about.collection,
        "store": about.backend,
        "count": about.count,
        "components": list(about.schema.components),
        "methods": {
            name: {
                "weights": list(method.weights),
                "fuses": list(METHODS[name].scored),
                "missing": [part for part in METHODS[name].components if part not in stored],
            }
            for name, method in index.methods.items()
        },
        "model": about.schema.model.to_json(),
    }


def _document(document: Document) -> dict[str, Any]:
    return {"id": document.id, "text": document.text, "metadata": dict(document.metadata)}
