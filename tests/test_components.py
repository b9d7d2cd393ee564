"""Collections with some components only, and components that are added later."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import anyio
import numpy as np
import pytest
from live_servers import own

from m3_connectors import Document, Index, M3Embeddings, M3Encoder, Storage, aconnect, connect
from m3_connectors.backends.base import Backend
from m3_connectors.backends.memory import MemoryBackend
from m3_connectors.backends.schema import Schema
from m3_connectors.bench.scenario import Scenario
from m3_connectors.cli.app import main
from m3_connectors.embeddings import COMPONENTS, Component
from m3_connectors.errors import InvalidInput, Unavailable, Unsupported
from m3_connectors.index import AsyncIndex
from m3_connectors.methods import METHODS, MethodName
from m3_connectors.testing.servers.start import Running
from m3_connectors.testing.worlds import make_world

TEXTS = [
    "the quick brown fox",
    "seven wizards mix brews",
    "a fox and a dog",
    "the dog sleeps",
    "in the library",
    "",
]
DOCUMENTS = [Document(f"d{i}", f"{text} {i}" if text else "", {"n": i}) for i, text in enumerate(TEXTS * 4)]
SMALL = Storage(components=("dense", "sparse"))
METHODS_OF_SMALL: tuple[MethodName, ...] = ("dense", "sparse", "dense_sparse")


class Counting:
    """An encoder that records what is encoded, and breaks when it is told to."""

    def __init__(self, encoder: M3Encoder) -> None:
        self._encoder = encoder
        self.info = encoder.info
        self.recommended_weights = encoder.recommended_weights
        self.token_strings, self.id_to_token = encoder.token_strings, encoder.id_to_token
        self.calls: list[tuple[tuple[str, ...], tuple[Component, ...]]] = []
        self.left = 10**6

    def encode(self, texts: Sequence[str], *, components: Sequence[Component] = COMPONENTS) -> M3Embeddings:
        if self.left == 0:
            raise Unavailable("the model is gone", backend="test", operation="encode")
        self.left -= 1
        self.calls.append((tuple(texts), tuple(components)))
        return self._encoder.encode(texts, components=components)


@pytest.fixture(params=["memory", "edge", "elasticsearch"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "elasticsearch":
        running: Running = request.getfixturevalue("elasticsearch_store")
        return running.url
    return "memory:" if request.param == "memory" else f"qdrant:{tmp_path}"


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m3_connectors.completing._DOCUMENTS_AT_ONCE", 5)


def assert_same_hits(index: Index, full: Index, methods: Iterable[MethodName]) -> None:
    for method in methods:
        ours, theirs = (one.search("the fox", method=method, k=30) for one in (index, full))
        # All documents are hits. Some have nearly equal scores, whose order the last bit decides.
        scores = {hit.document.id: hit.score for hit in ours}
        assert scores == pytest.approx({hit.document.id: hit.score for hit in theirs}, abs=1e-5)
        assert {hit.document.id: hit.document for hit in ours} == {
            hit.document.id: hit.document for hit in theirs
        }


def test_only_the_components_of_the_collection_are_encoded_stored_and_searched(
    url: str, encoder: M3Encoder
) -> None:
    counting = Counting(encoder)
    with (
        connect(url, own("small"), encoder=counting, storage=SMALL) as index,
        connect("memory:", encoder=encoder) as full,
    ):
        index.add(DOCUMENTS)
        full.add(DOCUMENTS)
        assert_same_hits(index, full, METHODS_OF_SMALL)
        assert {components for _, components in counting.calls} == {("dense", "sparse")}
        (best, *_) = index.search("the fox", method="dense")
        assert best.scores.multivector is None
        assert best.scores.sparse is not None
        encoded = len(counting.calls)
        for call in (
            lambda: index.search("the fox"),
            lambda: index.search("the fox", method="multi_vec"),
            lambda: index.explain("the fox", "d0"),
        ):
            with pytest.raises(
                InvalidInput, match=r"stores dense, sparse\.\n  Use method dense, sparse or dense_sparse"
            ):
                call()
        assert len(counting.calls) == encoded  # refused before anything is encoded
        assert index.explain("the fox", "d0", method="dense_sparse").scores.multivector is None
        assert "dense, sparse;" in repr(index)
        index.drop()


@pytest.mark.parametrize("components", [(), ("sparse",), ("dense", "dense"), ("dense", "colbert"), "dense"])
def test_components_that_cannot_be_stored_are_refused(components: object) -> None:
    with pytest.raises(InvalidInput, match="components are"):
        Storage(components=components)  # type: ignore[arg-type]


def test_components_are_a_set_whose_order_does_not_count() -> None:
    assert Storage(components=["multivector", "dense"]) == Storage(components=("dense", "multivector"))  # type: ignore[arg-type]


@pytest.mark.usefixtures("small_batches")
def test_a_component_is_added_from_the_stored_texts_after_two_interruptions(
    url: str, encoder: M3Encoder
) -> None:
    counting = Counting(encoder)
    name = own("added")
    index = connect(url, name, encoder=counting, storage=SMALL)
    try:
        index.add(DOCUMENTS)
        counting.calls.clear()
        seen: list[int] = []
        counting.left = 2
        with pytest.raises(Unavailable):
            index.add_component("multivector", progress=seen.append)
        assert seen == [5, 10]
        if url != "memory:":
            index.close()
            index = connect(url, name, encoder=counting)
        # It works as before, and says what is unfinished.
        assert index.schema.components == ("dense", "sparse")
        assert "adding multivector" in repr(index)
        counting.left = 10**6
        with connect("memory:", encoder=encoder) as full:
            full.add(DOCUMENTS)
            assert_same_hits(index, full, METHODS_OF_SMALL)
            with pytest.raises(
                InvalidInput, match=r"not finished adding.*\n.*add_component\(\"multivector\"\) again"
            ):
                index.search("the fox")
            more = Document("new", "a new fox", {})
            index.add([more])
            full.add([more])
            assert counting.calls[-1] == (("a new fox",), COMPONENTS)
            counting.calls.clear()

            def stop(count: int) -> None:
                raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                index.add_component("multivector", progress=stop)
            report = index.add_component("multivector")
            assert report.written == len(DOCUMENTS) - 15
            again = [text for texts, _ in counting.calls for text in texts]
            assert len(again) == len(DOCUMENTS) - 10  # no document twice
            assert {components for _, components in counting.calls} == {("multivector",)}
            assert index.schema.components == COMPONENTS
            assert index.schema.adding is None
            assert_same_hits(index, full, METHODS)
        assert index.add_component("multivector").written == 0
    finally:
        index.drop()


def test_two_programs_one_adds_a_component_and_the_other_documents(
    elasticsearch_store: Running, encoder: M3Encoder
) -> None:
    name = own("two")
    counting = Counting(encoder)
    with (
        connect(elasticsearch_store.url, name, encoder=counting, storage=SMALL) as one,
        connect(elasticsearch_store.url, name, encoder=encoder) as other,
    ):
        one.add(DOCUMENTS)
        counting.left = 0
        with pytest.raises(Unavailable):
            one.add_component("multivector")
        other.add([Document("d1", "the text was replaced", {}), Document("new", "a new fox", {})])
        other.add([Document("given", "fox")], embeddings=encoder.encode(["fox"]))
        with pytest.raises(InvalidInput, match="multivector is being added"):
            other.add(
                [Document("no", "fox")], embeddings=encoder.encode(["fox"], components=("dense", "sparse"))
            )
        counting.left = 10**6
        assert one.add_component("multivector").written == len(DOCUMENTS) - 1
        assert one.count() == len(DOCUMENTS) + 2
        (hit, *_) = one.search("the text was replaced", k=1)
        assert (hit.document.id, hit.document.text) == ("d1", "the text was replaced")
        other.add([Document("last", "the last fox", {})])
        assert other.schema.components == COMPONENTS
        one.drop()


@pytest.mark.usefixtures("small_batches")
def test_a_document_replaced_while_its_old_text_is_encoded_keeps_the_new_one(
    url: str, encoder: M3Encoder
) -> None:
    async def run() -> None:
        counting = Counting(encoder)
        async with aconnect(url, own("replaced"), encoder=counting, storage=SMALL) as index:
            await index.add(DOCUMENTS)
            rewrite = index._backend.rewrite
            seen: list[str] = []

            async def meanwhile(documents: Sequence[Document], embeddings: M3Embeddings) -> None:
                if not seen:
                    seen.extend(document.id for document in documents)
                    await index.add([Document(seen[0], "entirely new words", {"n": 99})])
                    await index.delete([seen[1]])
                await rewrite(documents, embeddings)

            index._backend.rewrite = meanwhile  # type: ignore[method-assign]
            await index.add_component("multivector")
            assert await index.get(seen[:2]) == [Document(seen[0], "entirely new words", {"n": 99}), None]
            (best,) = await index.search("entirely new words", k=1)
            assert best.document.id == seen[0]
            assert best.scores.multivector == pytest.approx(1, abs=2e-3)
            await index.drop()

    anyio.run(run)


def test_sparse_is_added_where_a_text_without_tokens_can_be_told_apart(url: str, encoder: M3Encoder) -> None:
    with connect(
        url, own("sparse"), encoder=encoder, storage=Storage(components=("dense", "multivector"))
    ) as index:
        index.add(DOCUMENTS)
        if url.startswith("qdrant:"):
            with pytest.raises(Unsupported, match="sparse cannot be added"):
                index.add_component("sparse")
            assert index.schema.adding is None
        else:
            assert index.add_component("sparse").written == len(DOCUMENTS)
            with connect("memory:", encoder=encoder) as full:
                full.add(DOCUMENTS)
                assert_same_hits(index, full, ["all"])
        index.drop()


def test_what_cannot_be_added_is_refused_and_nothing_is_changed(tmp_path: Path, encoder: M3Encoder) -> None:
    with connect(f"milvus:{tmp_path}/m.db", encoder=encoder, storage=SMALL) as index:
        index.add(DOCUMENTS[:3])
        with pytest.raises(
            Unsupported, match=r"ADD_COMPONENT.*\n  Index the documents into a new collection"
        ):
            index.add_component("multivector")
        assert (index.schema.storage, index.schema.adding) == (SMALL, None)
    with (
        connect("memory:", encoder=encoder) as index,
        pytest.raises(InvalidInput, match="every collection has dense"),
    ):
        index.add_component("dense")


def test_an_index_without_an_encoder_cannot_add_a_component(tmp_path: Path, encoder: M3Encoder) -> None:
    url = f"qdrant:{tmp_path}"
    connect(url, encoder=encoder, storage=SMALL).close()
    with connect(url) as index:
        with pytest.raises(InvalidInput, match="no encoder"):
            index.add_component("multivector")
        assert index.schema.adding is None


KILLED = """
    import os, signal, sys
    from m3_connectors import M3Encoder, connect
    import m3_connectors.completing as completing
    completing._DOCUMENTS_AT_ONCE = 5
    def die(count):
        if count == 10:
            os.kill(os.getpid(), signal.SIGKILL)
    index = connect(sys.argv[1], encoder=M3Encoder(sys.argv[2], precision="float32"))
    index.add_component("multivector", progress=die)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
def test_a_killed_program_loses_nothing_and_the_same_call_goes_on(
    tmp_path: Path, encoder: M3Encoder, checkpoint: Path
) -> None:
    url = f"qdrant:{tmp_path}"
    with connect(url, encoder=encoder, storage=SMALL) as index:
        index.add(DOCUMENTS)
    program = [sys.executable, "-c", textwrap.dedent(KILLED), url, str(checkpoint)]
    ended = subprocess.run(program, env={**os.environ}, check=False, capture_output=True, timeout=120)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    with connect(url, encoder=encoder) as index, connect("memory:", encoder=encoder) as full:
        full.add(DOCUMENTS)
        assert (index.count(), index.schema.adding) == (len(DOCUMENTS), "multivector")
        assert_same_hits(index, full, ["dense_sparse"])
        assert index.add_component("multivector").written == len(DOCUMENTS) - 10
        assert_same_hits(index, full, METHODS)


def test_documents_stored_by_a_program_that_did_not_know_of_the_component_are_completed(
    encoder: M3Encoder,
) -> None:
    with connect("memory:", encoder=encoder, storage=SMALL) as index:
        index.add(DOCUMENTS)
        backend: Backend = index._index._backend
        row = backend._embeddings["d3"]  # type: ignore[attr-defined]
        index.add_component("multivector")
        backend._embeddings["d3"] = row  # type: ignore[attr-defined]
        assert index.add_component("multivector").written == 1
        assert index.schema.components == COMPONENTS


def test_the_record_of_a_schema_is_read_by_earlier_versions_unless_a_component_is_being_added() -> None:
    schema = Schema(make_world(1, documents=1).schema.model, SMALL)
    record = schema.to_json()
    assert record["components"] == ("dense", "sparse")
    assert "components" not in record["storage"]
    assert "adding" not in record
    begun = dataclasses.replace(schema, adding="multivector")
    for one in (schema, begun):
        assert Schema.from_json(json.loads(json.dumps(one.to_json()))) == one
    assert begun.written == COMPONENTS


def test_a_scenario_whose_methods_need_what_is_not_stored_is_refused() -> None:
    table = {"name": "s", "stores": ({"name": "m", "url": "memory:"},), "loads": ({},)}
    corpus = {"storage": {"components": ("dense", "sparse")}}
    with pytest.raises(ValueError, match="'all' needs multivector"):
        Scenario.model_validate({**table, "corpus": corpus})
    scenario = Scenario.model_validate(
        {**table, "corpus": corpus, "queries": {"methods": {"dense_sparse": 1.0}}}
    )
    assert scenario.corpus.storage.chosen == SMALL


class TestCommands:
    @pytest.fixture
    def small(self, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.chdir(tmp_path)
        rows = [{"id": document.id, "text": document.text or "empty"} for document in DOCUMENTS]
        Path("notes.jsonl").write_text("\n".join(map(json.dumps, rows)))
        arguments = [
            "index",
            "qdrant:./data",
            "notes.jsonl",
            "-m",
            str(checkpoint),
            "--components",
            "sparse,dense",
        ]
        assert main(arguments) == 0
        return "qdrant:./data"

    def test_a_component_is_left_out_and_added(
        self, small: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model = ["-m", str(checkpoint)]
        capsys.readouterr()
        assert main(["search", small, "the fox", *model]) == 1
        error = capsys.readouterr().err
        assert "stores dense, sparse" in error
        assert "m3 add-component URL multivector" in error
        assert main(["search", small, "the fox", "--method", "dense_sparse", *model]) == 0
        assert main(["collections", small]) == 0
        assert "dense, sparse  " in capsys.readouterr().out
        assert main(["index", small, "notes.jsonl", "--components", "dense", *model]) == 1
        assert "--components" in capsys.readouterr().err
        assert main(["add-component", small, "multivector", "--json", *model]) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["documents"], report["components"]) == (len(DOCUMENTS), list(COMPONENTS))
        assert main(["add-component", small, "multivector", *model]) == 0
        assert capsys.readouterr().out.startswith("multivector is already complete")
        assert main(["search", small, "the fox", *model]) == 0

    @pytest.mark.parametrize("components", ["sparse", "dense,dense", "dense,colbert", ""])
    def test_wrong_components_are_wrong_usage(
        self,
        components: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("notes.jsonl").write_text('{"id": "a", "text": "fox"}\n')
        assert main(["index", "qdrant:./data", "notes.jsonl", "--components", components]) == 2
        assert "--components" in capsys.readouterr().err
        assert not Path("data").exists()

    def test_what_is_unfinished_is_a_problem_for_the_doctor(
        self, small: str, encoder: M3Encoder, checkpoint: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        counting = Counting(encoder)
        counting.left = 0
        with connect(small, encoder=counting) as index, pytest.raises(Unavailable):
            index.add_component("multivector")
        capsys.readouterr()
        main(["doctor", small, "-m", str(checkpoint)])
        assert "m3 add-component qdrant:./data multivector" in capsys.readouterr().out.replace("\n", " ")
        main(["collections", small, "--json"])
        assert json.loads(capsys.readouterr().out)["collections"][0]["adding"] == "multivector"


def test_an_added_compact_component_scores_like_one_that_was_there_from_the_start(
    url: str, encoder: M3Encoder
) -> None:
    compact = Storage("int2", components=("dense", "sparse"))
    with (
        connect(url, own("compact"), encoder=encoder, storage=compact) as index,
        connect("memory:", encoder=encoder, storage=Storage("int2")) as full,
    ):
        index.add(DOCUMENTS)
        full.add(DOCUMENTS)
        assert index.add_component("multivector").written == len(DOCUMENTS)
        assert index.schema == full.schema
        assert_same_hits(index, full, METHODS)
        index.drop()


@pytest.mark.parametrize("component", ["sparse", "multivector"])
def test_stored_compact_rows_do_not_change_when_a_component_is_added_or_mended(
    component: Component, encoder: M3Encoder
) -> None:
    async def run() -> None:
        components: tuple[Component, ...] = (
            COMPONENTS if component == "multivector" else ("dense", "multivector")
        )
        backend = MemoryBackend("c")
        await backend.create(Schema(encoder.info, Storage("int4", components=components)))
        index = AsyncIndex(backend, encoder)
        await index.add(DOCUMENTS)
        if component == "multivector":
            backend._embeddings["d3"] = backend._embeddings["d3"].replace(multivectors=None)
        before = (await backend.vectors(["d4"])).multivectors.rows
        assert (await index.add_component(component)).written > 0
        np.testing.assert_array_equal((await backend.vectors(["d4"])).multivectors.rows, before)
        (hit,) = await index.search(DOCUMENTS[4].text, k=1)
        explained = await index.explain(DOCUMENTS[4].text, hit.document.id)
        assert hit.scores.multivector == pytest.approx(explained.scores.multivector, abs=1e-5)

    anyio.run(run)


def test_the_record_is_read_again_only_while_a_component_can_be_missing(encoder: M3Encoder) -> None:
    async def run(storage: Storage, embeddings: M3Embeddings | None) -> int:
        class Counted(MemoryBackend):
            asked = 0

            async def _recorded(self) -> Schema:
                self.asked += 1
                return await super()._recorded()

        backend = Counted("record")
        await backend.create(Schema(encoder.info, storage))
        await AsyncIndex(backend, encoder).add([Document("a", "fox")], embeddings=embeddings)
        return backend.asked

    for embeddings in (None, encoder.encode(["fox"])):
        assert anyio.run(run, Storage(), embeddings) == 0
        assert anyio.run(run, SMALL, embeddings) == 1


@pytest.mark.parametrize(
    "storage", [Storage("float16"), Storage("int4"), Storage(long_documents="pool", pool_from_rows=3)]
)
def test_stored_rows_lose_nothing_when_another_component_is_added(
    storage: Storage, encoder: M3Encoder
) -> None:
    async def run() -> None:
        ids = [document.id for document in DOCUMENTS]
        small = dataclasses.replace(storage, components=("dense", "multivector"))
        async with (
            aconnect("memory:", encoder=encoder, storage=small) as index,
            aconnect("memory:", encoder=encoder, storage=storage) as full,
        ):
            await index.add(DOCUMENTS)
            await full.add(DOCUMENTS)
            assert (await index.add_component("sparse")).written == len(DOCUMENTS)
            ours, theirs = [(await one._backend.vectors(ids)).multivectors for one in (index, full)]
            np.testing.assert_array_equal(ours.offsets, theirs.offsets)
            np.testing.assert_allclose(ours.rows, theirs.rows, atol=1e-5)

    anyio.run(run)


def test_a_deleted_document_does_not_cost_the_others_a_second_encoding(encoder: M3Encoder) -> None:
    async def run() -> None:
        backend = MemoryBackend("deleted")
        await backend.create(Schema(encoder.info, SMALL))

        class Deleting(Counting):
            def encode(
                self, texts: Sequence[str], *, components: Sequence[Component] = COMPONENTS
            ) -> M3Embeddings:
                if components == ("multivector",):
                    backend._documents.pop("d3", None)
                    backend._embeddings.pop("d3", None)
                return super().encode(texts, components=components)

        counting = Deleting(encoder)
        index = AsyncIndex(backend, counting)
        await index.add(DOCUMENTS)
        counting.calls.clear()
        await index.add_component("multivector")
        assert [len(texts) for texts, _ in counting.calls] == [len(DOCUMENTS)]
        assert await index.count() == len(DOCUMENTS) - 1
        assert index.schema.components == COMPONENTS

    anyio.run(run)
