"""Elasticsearch behind TLS and a password, and what a restart of it does to a caller."""

from __future__ import annotations

import contextlib
import hashlib
import ssl
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
from fault_stores import Case
from live_servers import do_without

from m3_connectors.backends.elasticsearch.backend import ElasticsearchBackend
from m3_connectors.backends.registry import backend_for
from m3_connectors.errors import BackendError, Unauthorised, Unavailable
from m3_connectors.methods import ALL
from m3_connectors.testing.agreement import compare_search, oracle_of
from m3_connectors.testing.conformance import runs
from m3_connectors.testing.servers import CannotStart
from m3_connectors.testing.servers.elasticsearch import ElasticsearchServer, Tls
from m3_connectors.testing.worlds import make_world

NAME, PASSWORD = "m3", "pässword: with / and @"


class Secured:
    """The server, and its authority's and a stranger's certificates."""

    def __init__(self, directory: Path) -> None:
        authority, stranger = trustme.CA(), trustme.CA()
        issued = authority.issue_cert("127.0.0.1")
        self.tls = Tls(directory / "server.pem", directory / "server.key", directory / "ca.pem")
        self.stranger = directory / "stranger.pem"
        self.collection = "notes"
        self.tls.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(self.tls.key))
        authority.cert_pem.write_to_path(str(self.tls.authority))
        stranger.cert_pem.write_to_path(str(self.stranger))
        der = ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())
        self.fingerprint = hashlib.sha256(der).hexdigest()
        self.server = ElasticsearchServer(tls=self.tls, users={NAME: PASSWORD})

    def backend(self, **options: Any) -> ElasticsearchBackend:
        given = {"username": NAME, "password": PASSWORD, "replicas": 0, "attempts": 1, **options}
        backend = backend_for(f"elasticsearch+{self.server.url}", self.collection, given)
        assert isinstance(backend, ElasticsearchBackend)
        return backend

    def trusted(self, **options: Any) -> ElasticsearchBackend:
        return self.backend(ca_certs=str(self.tls.authority), **options)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with contextlib.ExitStack() as stack:
        try:
            made = Secured(tmp_path_factory.mktemp("tls"))
            stack.callback(made.server.remove)
            made.server.start()
        except CannotStart as reason:
            do_without("elasticsearch", reason)
        yield made


@pytest.fixture(autouse=True)
def _collection_of_its_own(secured: Secured) -> None:
    """One that a test leaves behind when it fails is in no other's way; the server's data go with it."""
    secured.collection = f"notes-{uuid.uuid4().hex[:12]}"


@runs
async def test_the_right_authority_and_password_open_the_store(secured: Secured) -> None:
    world = make_world(1)
    backend = secured.trusted()
    await backend.create(world.schema)
    await backend.upsert(world.documents, world.embeddings)
    await compare_search(backend, await oracle_of(world), world.queries[0], ALL, 10)
    await backend.close()
    for options in ({"fingerprint": secured.fingerprint}, {"verify": False}):
        other = secured.backend(**options)
        await other.open()
        assert await other.count() == len(world.documents)
        await other.drop() if "verify" in options else None
        await other.close()


@pytest.mark.parametrize("wrong", ["another authority", "the system's authorities", "another fingerprint"])
@runs
async def test_a_certificate_that_is_not_trusted_ends_the_call_at_once(secured: Secured, wrong: str) -> None:
    options: dict[str, Any] = {
        "another authority": {"ca_certs": str(secured.stranger)},
        "the system's authorities": {},
        "another fingerprint": {"fingerprint": "00" * 32},
    }[wrong]
    backend = secured.backend(**options, attempts=5)
    with anyio.fail_after(10), pytest.raises(Unauthorised, match="ca_certs=") as caught:
        await backend.open()
    assert not caught.value.retryable
    await backend.close()


@pytest.mark.parametrize(
    "credentials",
    [{"password": "wrong"}, {"username": "nobody"}, {"username": None, "password": None}],
    ids=["password", "name", "none"],
)
@runs
async def test_wrong_credentials_are_refused_and_not_repeated(
    secured: Secured, credentials: dict[str, Any]
) -> None:
    backend = secured.trusted(**credentials, attempts=5)
    with anyio.fail_after(20), pytest.raises(Unauthorised) as caught:
        await backend.open()
    assert PASSWORD not in str(caught.value)
    await backend.close()


@pytest.mark.parametrize(
    ("name", "file", "line"),
    [("expired key", "users", ""), ("key that may only read", "users_roles", f"viewer:{NAME}\n")],
)
@runs
async def test_credentials_that_lose_their_rights_are_named_until_they_have_them_again(
    secured: Secured, name: str, file: str, line: str
) -> None:
    world = make_world(3)
    half = len(world.documents) // 2
    backend, rights = secured.trusted(), secured.server._directory / "config" / file
    before = rights.read_text()
    case = Case("elasticsearch, its own security", name)
    await backend.create(world.schema)
    await backend.upsert(world.documents[:half], world.embeddings[:half])
    rights.write_text(line)
    # The server looks at its files every five seconds.
    with anyio.fail_after(30), contextlib.suppress(Unauthorised):
        while True:
            await backend.upsert(world.documents[:1], world.embeddings[:1])
            await anyio.sleep(0.5)
    reads = () if line else (Unauthorised,)
    with case.call("upsert", Unauthorised):
        await backend.upsert(world.documents, world.embeddings)
    with case.call("search", *reads):
        await backend.search(world.queries[0], ALL, 5)
    with case.call("open", *reads):
        await backend.open()
    rights.write_text(before)
    with anyio.fail_after(30):
        while True:
            with contextlib.suppress(Unauthorised):
                await backend.open()
                await backend.upsert(world.documents[:1], world.embeddings[:1])
                break
            await anyio.sleep(0.5)
    await case.account(backend, world, world.documents[:half])
    await backend.drop()
    await backend.close()


@runs
async def test_plain_http_to_an_encrypted_server_is_an_error_and_not_a_wait(secured: Secured) -> None:
    backend = backend_for(f"elasticsearch+http://127.0.0.1:{secured.server.port}", "notes", {"attempts": 1})
    with anyio.fail_after(20), pytest.raises(BackendError):
        await backend.open()
    await backend.close()


@runs
async def test_nothing_acknowledged_is_lost_when_the_server_is_killed(secured: Secured) -> None:
    world = make_world(2)
    half = len(world.documents) // 2
    backend = secured.trusted(timeout_seconds=60.0, attempts=2)
    await backend.create(world.schema)
    await backend.upsert(world.documents[:half], world.embeddings[:half])
    await anyio.to_thread.run_sync(lambda: secured.server.stop(kill=True))
    with pytest.raises(Unavailable, match="after 2 tries"):
        await backend.upsert(world.documents[half:], world.embeddings[half:])
    await anyio.to_thread.run_sync(secured.server.start)
    with anyio.fail_after(60):
        while True:
            try:
                assert await backend.count() == half
                break
            except Unavailable:
                await anyio.sleep(0.5)
    await backend.upsert(world.documents[half:], world.embeddings[half:])
    assert sorted([id async for id in backend.scan_ids()]) == sorted(d.id for d in world.documents)
    await compare_search(backend, await oracle_of(world), world.queries[0], ALL, 10)
    await backend.drop()
    await backend.close()
