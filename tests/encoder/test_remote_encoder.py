"""RemoteEncoder: a server's vectors wherever those of M3Encoder are used, and what happens when the server fails."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from encode_server import content_of, encode_server
from stub_encoder import StubEncoder

from m3_connectors import Document, InvalidInput, M3Encoder, ModelMismatch, RemoteEncoder, connect
from m3_connectors.backends.retry import RetryPolicy
from m3_connectors.cli.app import main
from m3_connectors.embeddings import M3Embeddings
from m3_connectors.encoder import TruncationWarning
from m3_connectors.errors import BackendError, NotFound, Rejected, Unauthorised, Unavailable
from m3_connectors.index import Encoder
from m3_connectors.ingestion import Chunking, Ledger, ingest
from m3_connectors.testing.checkpoints import TEXTS, write_checkpoint

QUICK = RetryPolicy(timeout_seconds=30, attempts=3, total_seconds=60)
KEY = "a-key-of-the-tests"
ROOT = Path(__file__).parents[2]

WITHOUT_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name=name)

sys.meta_path.insert(0, NoTorch())
"""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> M3Encoder:
    model = write_checkpoint(tmp_path_factory.mktemp("small"))
    (model / "weights.json").write_text('{"all": [1, 0.5, 2]}')
    return M3Encoder(model, device="cpu", precision="float32", max_length=64)


def same(ours: M3Embeddings, theirs: M3Embeddings) -> None:
    assert (ours.model, ours.components) == (theirs.model, theirs.components)
    np.testing.assert_array_equal(ours.token_counts, theirs.token_counts)
    np.testing.assert_allclose(ours.dense, theirs.dense, atol=1e-6)
    np.testing.assert_allclose(ours.sparse.toarray(), theirs.sparse.toarray(), atol=1e-5)
    np.testing.assert_array_equal(ours.multivectors.offsets, theirs.multivectors.offsets)
    np.testing.assert_allclose(ours.multivectors.rows, theirs.multivectors.rows, atol=1e-6)


def test_the_vectors_are_the_servers_in_order(encoder: M3Encoder) -> None:
    texts = ["", *TEXTS.values(), " ", 'a quote " and a line\nbreak, \u0000 and 👩‍👩‍👧'] * 3
    done: list[tuple[int, int]] = []
    with (
        encode_server(encoder) as server,
        RemoteEncoder(server.url, batch_characters=300) as remote,
    ):
        result = remote.encode(texts, progress=lambda *counts: done.append(counts))
    same(result, encoder.encode(texts))
    assert sorted(text for batch in server.batches for text in batch) == sorted(texts)
    assert all(len(batch) == 1 or sum(map(len, batch)) <= 300 for batch in server.batches)
    assert done[-1] == (len(texts), len(texts))


def test_no_more_than_a_few_hundred_texts_are_sent_at_a_time() -> None:
    with encode_server(StubEncoder()) as server, RemoteEncoder(server.url) as remote:
        remote.encode(["a"] * 600, components=("dense",))
    assert max(map(len, server.batches)) == 256


def test_no_more_texts_are_sent_at_a_time_than_the_server_takes() -> None:
    with (
        encode_server(StubEncoder(), about={"max_texts": 7}) as server,
        RemoteEncoder(server.url) as remote,
    ):
        remote.encode(["a"] * 20, components=("dense",))
    assert max(map(len, server.batches)) == 7


@pytest.mark.parametrize(
    "about",
    [
        {"max_length": float("inf")},
        {"max_length": -1},
        {"model": None},
        {"model": {"name": "x"}},
        {"recommended_weights": [1]},
        {"recommended_weights": {"all": [float("nan"), 1, 1]}},
    ],
    ids=str,
)
def test_a_server_that_describes_no_model_is_refused(about: dict[str, object]) -> None:
    with (
        encode_server(StubEncoder(), about=about) as server,
        pytest.raises(Rejected, match="without the description of an M3 model"),
    ):
        RemoteEncoder(server.url)


def test_what_is_known_of_the_model_is_the_servers(encoder: M3Encoder) -> None:
    text = TEXTS["Latin"]
    with encode_server(encoder) as server, RemoteEncoder(server.url) as remote:
        assert remote.info == encoder.info
        assert dict(remote.recommended_weights) == dict(encoder.recommended_weights) != {}
        assert remote.max_length == encoder.max_length
        assert remote.token_strings(text) == encoder.token_strings(text)
        assert (remote.token_spans(text) == encoder.token_spans(text)).all()
        assert remote.count_tokens([text, ""]) == encoder.count_tokens([text, ""])
        assert remote.id_to_token(7) == encoder.id_to_token(7)
    assert server.paths == ["/v1/model", "/v1/tokenizer"]  # fetched once, and only when tokens are asked for


@pytest.mark.parametrize("components", [("dense",), ("sparse",), ("dense", "multivector")])
def test_only_the_components_that_are_asked_for_come(encoder: M3Encoder, components) -> None:  # type: ignore[no-untyped-def]
    with encode_server(encoder) as server, RemoteEncoder(server.url) as remote:
        assert remote.encode(["a"], components=components).components == components
        assert len(remote.encode([], components=components)) == 0


def test_cut_texts_are_warned_of_as_by_m3encoder(encoder: M3Encoder) -> None:
    with encode_server(encoder) as server, RemoteEncoder(server.url) as remote:
        with pytest.warns(TruncationWarning, match="longer than 64 tokens") as caught:
            result = remote.encode(["word " * 200, "short"])
        assert result.truncated.tolist() == [True, False]
    assert __file__ in {warning.filename for warning in caught}  # another is the server's own


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ("a text", "it must be a list of strings"),
        (["a", None], r"texts\[1\] is NoneType"),
        (["a", "b\ud800"], r"texts\[1\] has a lone surrogate U\+D800 at character 1"),
    ],
)
def test_bad_texts_are_named_before_anything_is_sent(texts, said: str) -> None:  # type: ignore[no-untyped-def]
    with encode_server(StubEncoder()) as server, RemoteEncoder(server.url) as remote:
        with pytest.raises(InvalidInput, match=said):
            remote.encode(texts)
        assert server.batches == []


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_asks_to_wait_is_asked_again(status: int) -> None:
    def trouble(n: int) -> tuple[int, dict[str, str]] | None:
        return (status, {"Retry-After": "0"}) if n < 2 else None

    with (
        encode_server(StubEncoder(), trouble=trouble) as server,
        RemoteEncoder(server.url, retry_policy=QUICK) as remote,
    ):
        assert len(remote.encode(["a", "b"], components=("dense",))) == 2
    assert server.batches == [["a", "b"]] * 3


def test_a_server_that_fails_again_and_again_is_reported_with_its_words() -> None:
    with (
        encode_server(StubEncoder(), trouble=lambda n: (503, {"Retry-After": "0"})) as server,
        RemoteEncoder(server.url, retry_policy=QUICK) as remote,
        pytest.raises(BackendError, match=r"answered 503: the queue is full.* after 3 tries") as raised,
    ):
        remote.encode(["a"])
    assert server.url.removeprefix("http://") in str(raised.value)


def test_one_refused_batch_ends_the_call_with_its_error() -> None:
    with (
        encode_server(StubEncoder(), trouble=lambda n: (422, {}) if n == 1 else None) as server,
        RemoteEncoder(server.url, batch_characters=1, concurrency=1) as remote,
        pytest.raises(Rejected, match="answered 422: the queue is full"),
    ):
        remote.encode(list("abcdef"))
    assert len(server.batches) == 2


def test_a_wrong_key_is_named_without_being_shown() -> None:
    with encode_server(StubEncoder(), key=KEY) as server:
        with RemoteEncoder(server.url, api_key=KEY) as remote:
            assert len(remote.encode(["a"], components=("dense",))) == 1
        with pytest.raises(Unauthorised, match="api_key") as raised:
            RemoteEncoder(server.url, api_key="another-secret")
        assert "another-secret" not in str(raised.value)


def test_another_server_is_recognised() -> None:
    with encode_server(StubEncoder()) as server, pytest.raises(NotFound, match="m3 serve"):
        RemoteEncoder(f"{server.url}/elsewhere")


def test_a_server_that_is_not_there_is_named() -> None:
    with encode_server(StubEncoder()) as server:
        pass
    with pytest.raises(Unavailable, match="cannot be reached"):
        RemoteEncoder(server.url, retry_policy=RetryPolicy(attempts=1))


@pytest.mark.parametrize(
    "address",
    [
        "localhost:80",
        "ftp://host",
        "http://user:pass@host",
        "http://host?key=1",
        "http://",
        "http:///path",
        "http://[::1",
        "http://host:99999",
        "http://host:eighty",
        "http://a host",
        "http://host:80/\n",
        "http://\ud800",
        None,
    ],
)
def test_an_address_that_is_none_is_refused_without_a_request(address: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        RemoteEncoder(address)
    assert "pass" not in str(raised.value).partition("\n")[0]


@pytest.mark.parametrize(
    "key", ["a-secret-of-mine\n", " a-secret-of-mine", "ä-secret-of-mine", "\ud800-secret-of-mine"]
)
def test_a_key_that_no_header_can_have_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(InvalidInput, match=f"api_key .* has {len(key)} characters") as raised:
        RemoteEncoder("http://127.0.0.1:9", api_key=key)
    assert "secret-of-mine" not in str(raised.value)


def test_an_answer_with_damaged_compression_is_an_error_of_the_server() -> None:
    def trouble(n: int) -> tuple[int, dict[str, str]] | None:
        return (200, {"Content-Encoding": "gzip"})

    with (
        encode_server(StubEncoder(), trouble=trouble) as server,
        RemoteEncoder(server.url, retry_policy=RetryPolicy(attempts=1)) as remote,
        pytest.raises(Unavailable, match="decompressing"),
    ):
        remote.encode(["a"])


@pytest.mark.parametrize("change", [{"precision": "int8"}, {"weights_fingerprint": None}], ids=str)
def test_a_server_that_computes_otherwise_is_refused(change: dict[str, str | None]) -> None:
    before = StubEncoder()
    after = StubEncoder()
    after.info = dataclasses.replace(before.info, **change)  # type: ignore[arg-type]
    with encode_server(before) as server, RemoteEncoder(server.url) as remote:
        server.encoder = after
        with pytest.raises(ModelMismatch, match="now has the model"):
            remote.encode(["a"])


def test_a_server_that_gets_another_model_is_refused(encoder: M3Encoder, tmp_path: Path) -> None:
    other = M3Encoder(write_checkpoint(tmp_path, seed=9), device="cpu", precision="float32")
    with encode_server(encoder) as server, RemoteEncoder(server.url) as remote:
        server.encoder = other
        with pytest.raises(ModelMismatch, match="now has the model"):
            remote.encode(["a"])


@pytest.mark.parametrize(
    "answer",
    [lambda _: b"", lambda _: b"<html>", lambda e: content_of(e)[:-3], lambda e: content_of(e[:1])],
    ids=["nothing", "a page", "cut", "one row"],
)
def test_a_damaged_answer_is_refused(encoder: M3Encoder, answer) -> None:  # type: ignore[no-untyped-def]
    with (
        encode_server(encoder, answer=answer) as server,
        RemoteEncoder(server.url) as remote,
        pytest.raises(Rejected, match="answered with"),
    ):
        remote.encode(["a", "b"])


def test_a_closed_encoder_says_so() -> None:
    with encode_server(StubEncoder()) as server:
        remote = RemoteEncoder(server.url)
        remote.close()
        remote.close()
        with pytest.raises(InvalidInput, match="is closed"):
            remote.encode(["a"])


def test_an_index_finds_the_same_with_it_as_with_the_model(encoder: M3Encoder) -> None:
    documents = [Document(name, text) for name, text in TEXTS.items()]
    found = []
    with encode_server(encoder) as server, RemoteEncoder(server.url) as remote:
        for used in (encoder, remote):
            with connect("memory:", encoder=used) as index:
                index.add(documents)
                hits = index.search("fox and library", k=12)
                found.append([(hit.document.id, round(hit.score, 5)) for hit in hits])
        with connect("memory:", encoder=StubEncoder()) as index, pytest.raises(ModelMismatch):
            index.use_encoder(remote)
    assert found[0] == found[1]


def test_documents_are_cut_and_ingested_with_it(encoder: M3Encoder, tmp_path: Path) -> None:
    documents = [Document(name, f"{text} " * 4) for name, text in TEXTS.items()]
    ids = []
    with encode_server(encoder) as server, RemoteEncoder(server.url) as remote:
        encoders: tuple[Encoder, ...] = (encoder, remote)
        for number, used in enumerate(encoders):
            with (
                connect("memory:", encoder=used) as index,
                Ledger(tmp_path / f"{number}.db") as ledger,
            ):
                report = ingest(documents, index, ledger=ledger, chunking=Chunking("tokens", 30, 5))
                assert report.refused == 0
                ids.append(sorted(document.id for document in index.scan()))
    assert ids[0] == ids[1]
    assert len(ids[0]) > len(documents)


def _without_torch(program: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("M3_")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_TORCH + program, *arguments],
        env=environment | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


MAIN = "from m3_connectors.cli.app import main; raise SystemExit(main(sys.argv[1:]))"


@pytest.mark.parametrize(
    "arguments", [["--version"], ["--help"], ["search", "--help"], ["ingest", "--help"], ["train", "--help"]]
)
def test_commands_start_without_torch(arguments: list[str]) -> None:
    done = _without_torch(MAIN, *arguments)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_torch_the_encoder_says_what_to_install() -> None:
    for program in ("from m3_connectors import M3Encoder", "from m3_connectors.encoder import M3Encoder"):
        done = _without_torch(program)
        assert done.returncode == 1
        assert "torch is not installed.\n" in done.stderr
        assert 'pip install "m3-connectors[encoder]"' in done.stderr
    done = _without_torch(MAIN, "encode", "a", "--json", "--model", "m3-tiny")
    assert done.returncode == 1
    assert 'MissingDependency: torch is not installed.\n  pip install "m3-connectors[encoder]"' in done.stderr


def test_a_command_that_needs_the_model_itself_refuses_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "a", "--json", "--model", "http://127.0.0.1:9"]) == 2
    assert "needs the model itself" in " ".join(capsys.readouterr().err.split())


def test_doctor_names_the_extra_and_checks_the_servers_model(encoder: M3Encoder) -> None:
    with encode_server(encoder) as server:
        done = _without_torch(MAIN, "doctor", "--json", "--model", server.url)
    assert done.returncode == 0, done.stderr
    model = json.loads(done.stdout)["findings"][-1]
    assert model["value"] == f"{encoder.info.name} on {server.url} (32 dims, 64 tokens)"


def test_ingestion_works_without_torch(encoder: M3Encoder) -> None:
    program = """
from m3_connectors import Document, RemoteEncoder, connect
from m3_connectors.ingestion import Chunking, Ledger, ingest
with (
    RemoteEncoder(sys.argv[1]) as encoder,
    connect("memory:", encoder=encoder) as index,
    Ledger(None) as ledger,
):
    documents = [Document(str(i), f"a sentence about {i} " * 20) for i in range(5)]
    report = ingest(documents, index, ledger=ledger, chunking=Chunking("tokens", 30, 5))
    hits = index.search("about 3", k=3)
    assert report.documents == 5 and len(hits) == 3, (report, hits)
    assert "torch" not in sys.modules
"""
    with encode_server(encoder) as server:
        done = _without_torch(program, server.url)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_command_line_ingests_and_searches_without_torch(encoder: M3Encoder, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    for name, text in TEXTS.items():
        (tmp_path / "notes" / f"{name}.txt").write_text(text, encoding="utf-8")
    store = f"qdrant:{tmp_path / 'store'}"
    with encode_server(encoder, key=KEY) as server:
        options = ("--model", server.url)
        done = _without_torch(
            MAIN, "ingest", str(tmp_path / "notes"), "--to", store, *options, M3_MODEL_KEY=KEY
        )
        assert done.returncode == 0, done.stderr + done.stdout
        done = _without_torch(MAIN, "search", store, "brown fox", "--json", *options, M3_MODEL_KEY=KEY)
        assert done.returncode == 0, done.stderr
        assert "Latin" in done.stdout
        done = _without_torch(MAIN, "search", store, "brown fox", *options)
        assert done.returncode == 1
        assert "Unauthorised" in done.stderr
        assert "M3_MODEL_KEY" in done.stderr
