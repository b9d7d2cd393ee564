"""One evaluation from a dataset to its folder: the same answers as searching, resumable, nothing lost in silence."""

from __future__ import annotations

import copy
import dataclasses
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import anyio
import numpy as np
import pytest
import scipy.sparse as sp
from evaluations import recorded_method

from m3_connectors.backends.base import Candidates, Lists
from m3_connectors.backends.memory import MemoryBackend
from m3_connectors.backends.schema import Schema
from m3_connectors.blocking import connect
from m3_connectors.documents import Document
from m3_connectors.embeddings import Component, M3Embeddings
from m3_connectors.encoder.encoder import M3Encoder
from m3_connectors.errors import InvalidInput, ModelMismatch, Unavailable
from m3_connectors.evaluation.baselines.registry import baseline_for
from m3_connectors.evaluation.candidates import component_scores
from m3_connectors.evaluation.corpus import store_corpus
from m3_connectors.evaluation.datasets.dataset import Corpus, Dataset
from m3_connectors.evaluation.evaluate import Plan, evaluate
from m3_connectors.evaluation.folder import EvaluationFolder, Run
from m3_connectors.evaluation.quantised import quantised, quantised_model
from m3_connectors.evaluation.record import DEPTHS, Fusion
from m3_connectors.evaluation.runs import method_run
from m3_connectors.methods import ALL, DENSE, DENSE_SPARSE, METHODS, SPARSE, Method, fuse, rank
from m3_connectors.testing.checkpoints import TEXTS

WORDS = sorted({word for text in TEXTS.values() for word in text.split()})


def some_dataset(documents: int = 300, queries: int = 70, seed: int = 0) -> Dataset:
    """Texts of a few real words in 12 scripts; some documents twice, so that scores tie."""
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(2, 12))) for _ in range(documents)]
    texts[-20:] = texts[:20]
    corpus = [Document(f"d{i}", text) for i, text in enumerate(texts)]
    asked = {f"q {i}": " ".join(rng.choices(WORDS, k=rng.randint(1, 5))) for i in range(queries)}
    qrels = {query: {f"d{rng.randrange(documents)}": rng.randint(1, 3) for _ in range(3)} for query in asked}
    return Dataset(
        "tiny/de",
        "test",
        Corpus.of(corpus),
        asked,
        qrels,
        family="tiny",
        source="tiny",
        query_language="de",
        passage_language="de",
        warnings=("2 of something",),
    )


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return some_dataset()


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything that must not depend on interruptions."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "environment.json"
    }


class TestRunsAreSearches:
    @pytest.mark.parametrize("url", ["memory:", "qdrant:STORE"])
    def test_five_methods_equal_index_search(
        self, dataset: Dataset, encoder: M3Encoder, tmp_path: Path, url: str
    ) -> None:
        url = url.replace("STORE", str(tmp_path / "store"))
        plan = Plan(url, "tiny", dict(METHODS))
        folder = evaluate(dataset, encoder, plan, tmp_path / "out")
        with connect(url, "tiny", encoder=encoder) as index:
            if url == "memory:":
                documents = list(dataset.documents)
                for at in (0, 256):
                    batch = documents[at : at + 256]
                    index.add(batch, embeddings=encoder.encode([document.text for document in batch]))
            ties = 0
            texts = list(dataset.queries.values())
            # In the evaluation's batches: a vector's last bit depends on its batch, and the order of near-ties on it.
            vectors = [
                query for at in range(0, len(texts), 32) for query in encoder.encode(texts[at : at + 32])
            ]
            for name, method in METHODS.items():
                run = folder.run(name)
                assert set(run) == set(dataset.queries)
                exactly = method_run(folder, recorded_method(folder, name))
                for query, vector in zip(dataset.queries, vectors, strict=True):
                    hits = index.search(vector, method=method, k=100, exact=True)
                    scores = [hit.score for hit in hits]
                    # Scores of many queries at once differ in the last bit, which orders near-ties.
                    settled = {hit.document.id: place for place, hit in enumerate(hits)}
                    for place, (document, _) in enumerate(run[query]):
                        other = settled.get(document, len(scores) - 1)
                        assert scores[other] == pytest.approx(scores[place], abs=1e-6), (name, document)
                    assert [score for _, score in exactly[query]] == pytest.approx(scores, abs=1e-6)
                    assert [score for _, score in run[query]] == pytest.approx(scores, abs=1e-5)
                    ties += len(set(scores)) < len(scores)
            assert ties > 50

    def test_one_method_by_the_definition(self, dataset: Dataset, encoder: M3Encoder, tmp_path: Path) -> None:
        folder = evaluate(dataset, encoder, Plan(methods={"dense": DENSE}), tmp_path / "out")
        documents = list(dataset.documents)
        corpus = encoder.encode([document.text for document in documents]).dense
        queries = encoder.encode(list(dataset.queries.values())).dense
        assert corpus is not None
        assert queries is not None
        for query, vector in zip(dataset.queries, queries, strict=True):
            scores = corpus.astype(np.float64) @ vector.astype(np.float64)
            expected = scores[rank([d.id for d in documents], scores.astype(np.float32), 100)]
            assert [score for _, score in folder.run("dense")[query]] == pytest.approx(
                expected.tolist(), abs=1e-5
            )

    def test_depths_hold(self, encoder: M3Encoder, tmp_path: Path, dataset: Dataset) -> None:
        folder = evaluate(dataset, encoder, Plan(), tmp_path / "out")
        table = folder.scores().to_pandas()
        for _, rows in table.groupby("query_id"):
            assert rows["document_id"].is_monotonic_increasing
            assert rows["multivector"].notna().sum() == DEPTHS["multivector"]
            assert (rows["multivector"].notna() == (rows["dense_rank"] <= 200)).all()
            assert sorted(rows["dense_rank"]) == list(range(1, 301))
            best = rows.sort_values(["dense", "document_id"], ascending=[False, True])
            assert best["dense_rank"].is_monotonic_increasing
            assert ((rows["sparse"] > 0) == rows["sparse_rank"].notna()).all()
        assert table["dense"].notna().all()
        assert table["sparse"].notna().all()


class Shallow(MemoryBackend):
    """Lists of at most three entries, as if the corpus were huge; counts what is asked."""

    asked: list[tuple[str, int]]

    async def lists(self, ask: Lists) -> Candidates:
        return await super().lists(dataclasses.replace(ask, depths=dict.fromkeys(ask.depths, 3)))


def test_every_cell_is_scored_though_a_list_lacks_it(encoder: M3Encoder, dataset: Dataset) -> None:
    async def check() -> None:
        backend = Shallow()
        await backend.create(Schema(encoder.info))
        documents = list(dataset.documents)[:60]
        vectors = encoder.encode([document.text for document in documents])
        await backend.upsert(documents, vectors)
        depths: dict[Component, int] = {"dense": 3, "sparse": 3, "multivector": 2}
        united = 0
        queries = encoder.encode(list(dataset.queries.values())[:20])
        for query, found in zip(queries, await component_scores(backend, queries, depths), strict=True):
            united += len(found.ids) > 3
            assert found.ids == sorted(found.ids)
            for component, column in (("dense", found.dense), ("sparse", found.sparse)):
                true = await backend.score(component, query, found.ids)  # type: ignore[arg-type]
                np.testing.assert_array_equal(column, true)
            assert np.isnan(found.multivector).tolist() == [not 1 <= r <= 2 for r in found.dense_rank]
        assert united > 10
        await backend.close()

    anyio.run(check)


class TestPaperFusion:
    def test_weights_are_rounded_up_to_hundredths(self, encoder: M3Encoder) -> None:
        weights = sp.csr_array(np.array([[0.001, 0.01, 0.25, 0, 0.6549]], dtype=np.float32))
        dense = np.ones((1, 4), dtype=np.float32)
        rounded = quantised(M3Embeddings(dense=dense, sparse=weights, model=encoder.info))
        assert rounded.sparse is not None
        assert rounded.sparse.toarray().tolist() == [[1, 1, 25, 0, 66]]
        assert rounded.model == quantised_model(encoder.info)
        assert weights.data.tolist() == pytest.approx([0.001, 0.01, 0.25, 0.6549])  # untouched

    def test_by_hand(self, dataset: Dataset, encoder: M3Encoder, tmp_path: Path) -> None:
        paper = {"dense_sparse": DENSE_SPARSE, "sparse": SPARSE, "all": ALL, "dense": DENSE}
        url = f"qdrant:{tmp_path / 'store'}"
        folder = evaluate(dataset, encoder, Plan(url, "tiny", paper, fusion="paper"), tmp_path / "out")
        exact = evaluate(dataset, encoder, Plan(url, "tiny", paper), tmp_path / "exact")
        assert folder.record.protocol.fusion == "paper"
        # Re-ranking has the model's own scores, as the reference's scripts have.
        assert folder.run("all") == exact.run("all")
        assert folder.run("dense") == exact.run("dense")

        documents = list(dataset.documents)
        ids = [document.id for document in documents]
        corpus = encoder.encode([document.text for document in documents])
        assert corpus.sparse is not None
        assert corpus.dense is not None
        d_weights = np.ceil(corpus.sparse.toarray() * np.float32(100))
        differs = 0
        for query, text in dataset.queries.items():
            asked = encoder.encode([text])
            assert asked.sparse is not None
            assert asked.dense is not None
            lexical = (d_weights @ np.ceil(asked.sparse.toarray()[0] * np.float32(100))) / 10_000
            order = [i for i in rank(ids, lexical, 1000) if lexical[i] > 0]
            assert [d for d, _ in folder.run("sparse")[query]] == [ids[i] for i in order[:100]]
            fused = corpus.dense @ asked.dense[0] + 0.3 * lexical
            expected = sorted(fused, reverse=True)[:100]
            assert [s for _, s in folder.run("dense_sparse")[query]] == pytest.approx(expected, abs=1e-5)
            differs += folder.run("dense_sparse")[query] != exact.run("dense_sparse")[query]
        assert differs > 35

    def test_a_document_missing_from_a_list_counts_0_there(self, tmp_path: Path) -> None:
        import pyarrow as pa

        from m3_connectors.evaluation.runs import candidates_of

        table = pa.table(
            {
                "document_id": ["a", "b", "c"],
                "dense": pa.array([0.9, 0.8, 0.7], pa.float32()),
                "sparse": pa.array([0.5, 0.4, 0.3], pa.float32()),
                "multivector": pa.array([0.1, None, None], pa.float32()),
                "dense_rank": pa.array([1, 2, None], pa.int32()),
                "sparse_rank": pa.array([None, 2, 1], pa.int32()),
                "sparse_list": pa.array([None, 0.41, 0.32], pa.float32()),
            }
        )
        rows, scores = candidates_of(table, DENSE_SPARSE, "paper")
        assert rows.tolist() == [0, 1, 2]
        assert scores["dense"].tolist() == pytest.approx([0.9, 0.8, 0])
        assert scores["sparse"].tolist() == pytest.approx([0, 0.41, 0.32])
        _, exact = candidates_of(table, DENSE_SPARSE, "exact")
        assert exact["dense"].tolist() == pytest.approx([0.9, 0.8, 0.7])
        assert exact["sparse"].tolist() == pytest.approx([0.5, 0.4, 0.3])
        assert fuse(exact, DENSE_SPARSE.weights).tolist() == pytest.approx([1.05, 0.92, 0.79])
        shallow = Method("all", {"dense": 1}, ALL.weights)
        rows, scores = candidates_of(table, shallow, "paper")
        assert (rows.tolist(), scores["sparse"].tolist()) == ([0], pytest.approx([0.5]))
        with pytest.raises(InvalidInput, match="needs a multivector score of candidates that have none"):
            candidates_of(table, ALL, "paper")

    def test_the_quantised_collection_refuses_the_plain_model(
        self, dataset: Dataset, encoder: M3Encoder, tmp_path: Path
    ) -> None:
        url = f"qdrant:{tmp_path / 'store'}"
        evaluate(dataset, encoder, Plan(url, "tiny", {"sparse": SPARSE}, fusion="paper"), tmp_path / "out")
        with pytest.raises(ModelMismatch):
            connect(url, "tiny-hundredths", encoder=encoder)


class TestStoreCorpus:
    def run(
        self, backend: MemoryBackend, encoder: M3Encoder, documents: Sequence[Document]
    ) -> tuple[int, list[int]]:
        calls: list[int] = []
        collections = {backend: lambda embeddings: embeddings}
        kept = anyio.run(store_corpus, collections, encoder, Corpus.of(documents), None, calls.append)
        return kept, calls

    @pytest.fixture
    def backend(self, encoder: M3Encoder) -> MemoryBackend:
        backend = MemoryBackend()
        anyio.run(backend.create, Schema(encoder.info))
        return backend

    def test_what_is_stored_is_not_encoded_again(self, backend: MemoryBackend, encoder: M3Encoder) -> None:
        documents = list(some_dataset(600).documents)
        assert self.run(backend, encoder, documents) == (0, [0, 256, 512, 600])
        assert self.run(backend, encoder, documents) == (600, [])
        changed = [*documents[:300], Document("d300", "another text"), *documents[301:]]
        assert self.run(backend, encoder, changed) == (344, [344, 600])  # its batch, and no other
        (there,) = anyio.run(backend.fetch, ["d300"])
        assert there is not None
        assert there.text == "another text"

    def test_vectors_do_not_depend_on_what_was_there(self, encoder: M3Encoder) -> None:
        documents = list(some_dataset(60).documents)
        vectors = []
        for before in (0, 1, 17, 59):
            backend = MemoryBackend()
            anyio.run(backend.create, Schema(encoder.info))
            if before:
                self.run(backend, encoder, documents[:before])
            self.run(backend, encoder, documents)
            vectors.append(anyio.run(backend.vectors, [document.id for document in documents]))
        for other in vectors[1:]:
            assert other.dense is not None
            np.testing.assert_array_equal(other.dense, vectors[0].dense)

    def test_other_documents_are_refused(self, backend: MemoryBackend, encoder: M3Encoder) -> None:
        self.run(backend, encoder, [Document("stranger", "found among the others")])
        with pytest.raises(InvalidInput, match="1 documents that are not in this corpus"):
            self.run(backend, encoder, list(some_dataset(30).documents))
        assert anyio.run(backend.count) == 1


class TestResuming:
    """Interrupted by an error of the store; ``test_cli_interrupted`` kills the program itself."""

    def plan(self, tmp_path: Path) -> Plan:
        return Plan(f"qdrant:{tmp_path / 'store'}", "tiny", dict(METHODS), [baseline_for("bm25")])

    def test_a_store_that_dies_half_way(
        self, dataset: Dataset, encoder: M3Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from m3_connectors.backends.qdrant.edge.backend import EdgeBackend

        plan, out = self.plan(tmp_path), tmp_path / "out"
        real, left = EdgeBackend.lists, 80

        async def dying(self: EdgeBackend, *arguments: object) -> Candidates:
            nonlocal left
            left -= 1
            if left < 0:
                raise Unavailable("connection lost", backend="qdrant", operation="search")
            return await real(self, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(EdgeBackend, "lists", dying)
        with pytest.raises(Unavailable, match="connection lost"):
            evaluate(dataset, encoder, plan, out)
        assert [path.name for path in (out / "scores").iterdir()] == ["00000.parquet"]
        begun = EvaluationFolder(out)
        assert not begun.record.complete
        with pytest.raises(InvalidInput, match="incomplete"):
            begun.metrics()
        monkeypatch.setattr(EdgeBackend, "lists", real)
        encoded: list[int] = []
        encode = M3Encoder.encode

        def spy(self: M3Encoder, texts: Sequence[str], **options: object) -> M3Embeddings:
            encoded.append(len(texts))
            return encode(self, texts, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(M3Encoder, "encode", spy)
        evaluate(dataset, encoder, plan, out)
        assert encoded == [32, 6]  # no document, and the queries of the two parts that were missing
        assert len(EvaluationFolder(out).environment()) == 2
        evaluate(dataset, encoder, plan, tmp_path / "whole")
        assert files_of(out) == files_of(tmp_path / "whole")

    def test_a_baseline_that_fails_loses_no_run(
        self, dataset: Dataset, encoder: M3Encoder, tmp_path: Path
    ) -> None:
        class Failing:
            name, description, requires = "failing", "fails at first", ()
            fails = True

            def run(self, dataset: Dataset, folder: EvaluationFolder, encoder: M3Encoder) -> Run:
                if self.fails:
                    raise Unavailable("no", backend="endpoint", operation="embed")
                return folder.run("dense")  # the runs before it are there for it

        baseline = Failing()
        plan = Plan("memory:", "tiny", {"dense": DENSE}, [baseline])
        with pytest.raises(Unavailable):
            evaluate(dataset, encoder, plan, tmp_path)
        stamp = (tmp_path / "runs" / "dense.trec").stat().st_mtime_ns
        baseline.fails = False
        # The scores are there: the store is not asked again, and memory: would be empty.
        assert evaluate(dataset, encoder, plan, tmp_path).record.complete
        assert (tmp_path / "runs" / "dense.trec").stat().st_mtime_ns == stamp

    def test_a_complete_one_is_left_alone(self, dataset: Dataset, encoder: M3Encoder, tmp_path: Path) -> None:
        plan = self.plan(tmp_path)
        out = tmp_path / "out"
        evaluate(dataset, encoder, plan, out)
        before = files_of(out)
        shutil.rmtree(tmp_path / "store")
        assert evaluate(dataset, encoder, plan, out).record.complete
        assert files_of(out) == before
        assert len(EvaluationFolder(out).environment()) == 1


@pytest.mark.filterwarnings("ignore:.* longer than .* tokens")  # counted, which is what is tested
def test_warnings_are_counted(encoder: M3Encoder, tmp_path: Path) -> None:
    base = some_dataset(40, 40)
    dataset = Dataset(
        "tiny", "test", base.documents, {**base.queries, "q none": "!"}, {**base.qrels, "q none": {"d1": 1}}
    )
    plan = Plan(
        methods={"dense": DENSE}, baselines=[baseline_for("bm25")], query_max_length=5, passage_max_length=12
    )
    folder = evaluate(dataset, encoder, plan, tmp_path / "out")
    warnings = folder.record.warnings
    empty = sum(not answer for answer in folder.run("bm25").values())
    queries = dict(zip(dataset.queries, encoder.count_tokens(list(dataset.queries.values())), strict=True))
    documents = {document.id: encoder.count_tokens([document.text])[0] for document in dataset.documents}

    def cut(counts: dict[str, int], most: int, what: str) -> str:
        longer = {id: count for id, count in counts.items() if count > most}
        assert 5 < len(longer) < len(counts)
        whole = sum(longer.values())
        lost = whole - most * len(longer)
        names = [f"{id} ({longer[id]})" for id in sorted(longer, key=lambda id: (-longer[id], id))[:5]]
        return (
            f"{len(longer)} of {len(counts)} {what} are longer than {most} tokens and were cut: {lost} of their "
            f"{whole} tokens are lost ({lost / whole:.0%}); the longest are {', '.join(names)}, …"
        )

    assert 0 < empty < 5
    assert warnings == (
        f"{empty} queries have no result of bm25 and count as 0",
        cut(queries, 5, "queries"),
        cut(documents, 12, "judged or answered documents"),
    )
    few = Plan(methods={"dense": DENSE}, limit_queries=3)
    limited = evaluate(dataset, encoder, few, tmp_path / "few")
    assert limited.record.warnings == ("only the first 3 queries are used",)
    assert limited.asked == tuple(dataset.queries)[:3]
    beyond = evaluate(dataset, encoder, dataclasses.replace(few, limit_queries=1000), tmp_path / "beyond")
    assert beyond.record.warnings == ()  # all are asked
    assert beyond.record.protocol.limit_queries is None


def test_answers_judge_what_was_found(encoder: M3Encoder, tmp_path: Path) -> None:
    documents = [
        Document("d1", "The capital is Paris."),
        Document("d2", "A quick brown fox."),
        Document("d3", "Paris!"),
    ]
    dataset = Dataset(
        "mkqa/x",
        "test",
        Corpus.of(documents),
        {"q1": "capital?", "q2": "nothing"},
        {},
        answers={"q1": ("paris",), "q2": ("atlantis",)},
    )
    folder = evaluate(dataset, encoder, Plan(methods={"dense": DENSE}), tmp_path / "out")
    assert folder.record.protocol.relevance == "answers"
    assert folder.qrels() == {"q1": {"d1": 1, "d2": 0, "d3": 1}, "q2": {"d1": 0, "d2": 0, "d3": 0}}
    assert folder.means()["dense"]["Recall@100"] == 0.5


@pytest.mark.parametrize("fusion", ["exact", "paper"])
def test_documents_of_another_precision_are_not_measured_as_this_encoder_s(
    dataset: Dataset, encoder: M3Encoder, tmp_path: Path, fusion: Fusion
) -> None:
    plan = Plan(f"qdrant:{tmp_path / 'store'}", "tiny", {"dense": DENSE}, fusion=fusion)
    evaluate(dataset, encoder, plan, tmp_path / "float")
    integers = copy.copy(encoder)
    integers.info = dataclasses.replace(encoder.info, precision="int8")
    said = r'collection "tiny" was created by \S+ \(32 dims\); this encoder is \S+ \(32 dims, int8\)'
    with pytest.raises(InvalidInput, match=said):
        evaluate(dataset, integers, plan, tmp_path / "integers")
    again = evaluate(dataset, encoder, plan, tmp_path / "again")
    assert again.record.protocol.precision == encoder.precision


def test_two_runs_of_one_name(dataset: Dataset, encoder: M3Encoder, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="two methods have the name 'bm25'"):
        evaluate(dataset, encoder, Plan(baselines=[baseline_for("bm25"), baseline_for("bm25")]), tmp_path)
