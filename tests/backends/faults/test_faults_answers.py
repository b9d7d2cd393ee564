"""Servers that refuse: credentials that expired or may only read, an index closed to writes, a full disk.

Elasticsearch blocks its own index for the last two, as it does itself on a full disk. What its security says, and what
Milvus says of all four (its small server milvus-lite never does), is put in the server's stead, in the server's words.
"""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from fault_stores import STORES, Case, Target, target_of
from grpc_relay import GrpcRelay
from pymilvus.grpc_gen import common_pb2, milvus_pb2
from qdrant_fake import Refusal

from m3_connectors.errors import M3Error, Rejected, StorageFull, Unauthorised
from m3_connectors.methods import ALL
from m3_connectors.testing.conformance import runs
from m3_connectors.testing.faults import Reply
from m3_connectors.testing.worlds import make_world

pytestmark = pytest.mark.live

bare = pytest.fixture(params=STORES)(target_of)

Refuse = Callable[[str | None], None]
"""Makes a store refuse as a case says; None ends it."""

EXPIRED, MAY_READ, READ_ONLY, FULL = "expired key", "key that may only read", "read-only index", "full disk"
CASES: dict[str, type[M3Error]] = {
    EXPIRED: Unauthorised,
    MAY_READ: Unauthorised,
    READ_ONLY: Rejected,
    FULL: StorageFull,
}


@pytest.fixture
def refuse(bare: Target) -> Iterator[Refuse]:
    with contextlib.ExitStack() as stack:
        if bare.store == "milvus":
            relay = stack.enter_context(GrpcRelay(bare.host, bare.ports[0]))
            bare.ports = [relay.port]
        stack.enter_context(bare.proxied())
        if bare.store == "milvus":
            yield (
                lambda name: relay.refusals.clear() if name is None else relay.refusals.update(_MILVUS[name])
            )
        elif bare.store == "elasticsearch":
            yield lambda name: _elasticsearch(bare, name)
        else:
            yield lambda name: _qdrant(bare, name)


@pytest.mark.parametrize("name", CASES)
@runs
async def test_a_refusal_is_typed_and_over_when_it_is_over(bare: Target, refuse: Refuse, name: str) -> None:
    world, kind = make_world(10), CASES[name]
    case = Case(bare.name, name)
    stored = world.documents[: len(world.documents) // 2]
    async with bare.stored(world) as backend:
        refuse(name)
        try:
            with case.call("upsert", kind):
                await backend.upsert(world.documents, world.embeddings)
            assert case.error is not None
            assert not case.error.retryable
            reads = (kind,) if name == EXPIRED else ()
            with case.call("search", *reads):
                await backend.search(world.queries[0], ALL, 5)
            other = bare.backend()
            with case.call("open", *reads):
                await other.open()
            await other.close()
        finally:
            refuse(None)
        # Nothing of the refused call is there.
        assert sorted([id async for id in backend.scan_ids()]) == sorted(document.id for document in stored)
        await case.account(backend, world, stored)


def _qdrant(target: Target, name: str | None) -> None:
    assert target.fake is not None

    def before(request: str) -> None:
        if name is not None and (request == "upsert" or (name == EXPIRED and request != "greet")):
            raise _QDRANT[name]

    target.fake.before = before


_QDRANT = {
    EXPIRED: Refusal(401, grpc.StatusCode.UNAUTHENTICATED, "Invalid API key or JWT"),
    MAY_READ: Refusal(
        403, grpc.StatusCode.PERMISSION_DENIED, "Forbidden: Write access to collection notes is required"
    ),
    READ_ONLY: Refusal(
        400, grpc.StatusCode.INVALID_ARGUMENT, "Bad request: Collection is read-only by strict mode"
    ),
    FULL: Refusal(
        500,
        grpc.StatusCode.INTERNAL,
        "Service internal error: No space left on device: WAL buffer size exceeds",
    ),
}


def _status(code: int, reason: str) -> dict[str, bytes]:
    refused = milvus_pb2.MutationResult(status=common_pb2.Status(code=code, error_code=1, reason=reason))
    return {"Upsert": refused.SerializeToString()}


_MILVUS: dict[str, Any] = {
    EXPIRED: {
        "": (grpc.StatusCode.UNAUTHENTICATED, "auth check failure, please check api key is correct"),
    },
    MAY_READ: {
        "Upsert": (
            grpc.StatusCode.PERMISSION_DENIED,
            "PrivilegeUpsert: permission deny to reader in the `default` db",
        )
    },
    READ_ONLY: _status(9, "quota exceeded[reason=access has been disabled by the administrator]"),
    FULL: _status(9, "quota exceeded[reason=disk quota exceeded, please allocate more resources]"),
}


def _elasticsearch(target: Target, name: str | None) -> None:
    target.set(_ELASTICSEARCH.get(name))
    blocks = {"read_only_allow_delete": name == FULL, "write": name == READ_ONLY}
    settings = {f"index.blocks.{block}": on or None for block, on in blocks.items()}
    request = urllib.request.Request(
        f"http://{target.host}:{target.ports[0]}/{target.collection}/_settings",
        json.dumps(settings).encode(),
        {"Content-Type": "application/json"},
        method="PUT",
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200


def _security(status: int, reason: str, to: str = "") -> Reply:
    error = {"type": "security_exception", "reason": reason}
    body = {"error": {"root_cause": [error], **error}, "status": status}
    headers = {"Content-Type": "application/json", "X-Elastic-Product": "Elasticsearch"}
    return Reply(status, json.dumps(body).encode(), headers, to)


_ELASTICSEARCH: dict[str | None, Reply] = {
    EXPIRED: _security(
        401,
        "unable to authenticate with provided credentials and anonymous access is not allowed for this request",
    ),
    MAY_READ: _security(
        403, "action [indices:data/write/bulk] is unauthorized for API key id [reader]", "/_bulk"
    ),
}
