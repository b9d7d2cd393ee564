"""The stages after fusion: re-rankers, pages and thresholds."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentence_checkpoints import write_cross_encoder

from m3_connectors import ALL, CrossEncoder, Document, Hit, Index, M3Embeddings, Scores, connect
from m3_connectors.backends.memory import MemoryBackend
from m3_connectors.cli.app import main
from m3_connectors.encoder.encoder import M3Encoder
from m3_connectors.errors import InvalidInput, MissingDependency, NotFound
from m3_connectors.reranking import Page, rerank

TEXTS = [
    "rain falls on the hills",
    "rain and wind",
    "a ship sails the sea",
    "the sun warms the sea",
    "hills and rivers",
    "wind over the sea",
    "snow on the hills",
    "tea and rain",
]


class ByLength:
    """Longer texts are better; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []

    def score(self, query: str, documents: Sequence[Document]) -> Sequence[float]:
        self.asked.append((query, [document.id for document in documents]))
        return [float(len(document.text)) for document in documents]


class Fixed:
    def __init__(self, scores: Sequence[float]) -> None:
        self.scores = scores

    def score(self, query: str, documents: Sequence[Document]) -> Sequence[float]:
        return self.scores


@pytest.fixture
def index(encoder: M3Encoder) -> Iterator[Index]:
    with connect("memory:", encoder=encoder) as index:
        index.add([Document(f"d{i}", text, {"n": i}) for i, text in enumerate(TEXTS)])
        yield index


@pytest.fixture
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that must not be asked."""

    async def search(*_: object, **__: object) -> None:
        raise AssertionError("the store was asked")

    monkeypatch.setattr(MemoryBackend, "search", search)


class TestPages:
    def test_pages_together_are_the_ranking(self, index: Index) -> None:
        whole = index.search("rain on the hills", k=8)
        pages = [index.search("rain on the hills", k=3, offset=offset) for offset in (0, 3, 6)]
        assert [hit for page in pages for hit in page] == whole
        assert index.search("rain on the hills", k=3, offset=8) == []

    def test_a_threshold_keeps_what_reaches_it(self, index: Index) -> None:
        whole = index.search("rain on the hills", k=8)
        third = whole[2].score
        assert index.search("rain on the hills", k=8, min_score=third) == [
            hit for hit in whole if hit.score >= third
        ]
        assert index.search("rain on the hills", k=8, min_score=whole[0].score + 1) == []

    def test_each_query_of_many_has_its_page(self, index: Index) -> None:
        queries = ["rain", "sea"]
        pages = index.search_many(queries, k=2, offset=1)
        assert pages == [index.search(query, k=3)[1:] for query in queries]

    @pytest.mark.usefixtures("no_search")
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"offset": -1}, "offset is -1; it must be a whole number >= 0"),
            ({"offset": 1.5}, "offset is 1.5"),
            ({"offset": True}, "offset is True"),
            ({"k": 0}, "k is 0; it must be a whole number >= 1"),
            ({"min_score": float("nan")}, "min_score is nan; it must be a finite number"),
            ({"min_score": float("inf")}, "min_score is inf"),
            ({"min_score": "high"}, "min_score is 'high'"),
            ({"rerank": ByLength(), "rerank_depth": 0}, "rerank_depth is 0"),
        ],
    )
    def test_what_is_out_of_range_is_refused_before_the_store_is_asked(
        self, index: Index, arguments: dict[str, object], said: str
    ) -> None:
        with pytest.raises(InvalidInput, match=said):
            index.search("rain", **arguments)  # type: ignore[arg-type]

    @given(
        st.lists(st.floats(-5, 5), max_size=12),
        st.integers(1, 6),
        st.integers(0, 8),
        st.none() | st.floats(-5, 5),
    )
    def test_a_page_is_a_part_of_the_ranking(
        self, scores: list[float], k: int, offset: int, min_score: float | None
    ) -> None:
        hits = [
            Hit(Document(str(i), "t"), score, Scores())
            for i, score in enumerate(sorted(scores, reverse=True))
        ]
        passing = [hit for hit in hits if min_score is None or hit.score >= min_score]
        assert Page(k, offset, min_score).cut(hits) == passing[offset : offset + k]


class TestRerankers:
    def test_the_best_hits_are_ordered_by_the_reranker(self, index: Index) -> None:
        fused = {hit.document.id: hit for hit in index.search("rain", k=4)}
        reranker = ByLength()
        hits = index.search("rain", k=2, rerank=reranker, rerank_depth=4)
        assert reranker.asked == [("rain", list(fused))]
        longest = sorted(fused.values(), key=lambda hit: (-len(hit.document.text), hit.document.id))
        assert [hit.document.id for hit in hits] == [hit.document.id for hit in longest[:2]]
        for hit in hits:
            assert hit.score == len(hit.document.text)
            assert hit.fused_score == fused[hit.document.id].score
            assert hit.scores == fused[hit.document.id].scores

    def test_a_page_lies_within_what_is_reranked(self, index: Index) -> None:
        reranker = ByLength()
        whole = index.search("rain", k=8, rerank=reranker, rerank_depth=3)
        assert [len(ids) for _, ids in reranker.asked] == [8]  # never fewer than the page needs
        assert index.search("rain", k=2, offset=2, rerank=reranker, rerank_depth=8) == whole[2:4]
        threshold = float(len("rain and wind"))
        kept = index.search("rain", k=8, rerank=reranker, min_score=threshold)
        assert {len(hit.document.text) >= threshold for hit in kept} == {True}

    def test_every_query_is_reranked_by_its_own_text(self, index: Index) -> None:
        reranker = ByLength()
        index.search_many(["rain", "sea"], k=1, rerank=reranker, rerank_depth=2)
        assert [query for query, _ in reranker.asked] == ["rain", "sea"]

    def test_nothing_found_asks_no_reranker(self, index: Index) -> None:
        reranker = ByLength()
        assert index.search("rain", filter={"n": 99}, rerank=reranker) == []
        assert reranker.asked == []

    def test_equal_scores_are_ordered_by_id(self) -> None:
        hits = [Hit(Document(id, "t"), 1.0, Scores()) for id in ("b", "c", "a")]
        assert [hit.document.id for hit in rerank(Fixed([1, 2, 1]), "q", hits)] == ["c", "a", "b"]

    @pytest.mark.parametrize(
        ("scores", "said"),
        [
            ([1.0] * 3, r"returned scores of shape \(3,\) for 8 documents"),
            ([[1.0]] * 8, r"returned scores of shape \(8, 1\)"),
            ([1.0] * 7 + [float("nan")], "returned nan for document"),
            ([float("-inf")] + [1.0] * 7, "returned -inf for document"),
        ],
    )
    def test_a_reranker_that_answers_wrongly_is_named(
        self, index: Index, scores: list[float], said: str
    ) -> None:
        with pytest.raises(InvalidInput, match=f"the re-ranker Fixed {said}"):
            index.search("rain", k=8, rerank=Fixed(scores))

    @pytest.mark.usefixtures("no_search")
    def test_embeddings_have_no_text_to_read(self, index: Index, encoder: M3Encoder) -> None:
        query: M3Embeddings = encoder.encode(["rain"])
        with pytest.raises(
            InvalidInput, match=r"queries\[0\] is M3Embeddings; a re-ranker reads the query's text"
        ):
            index.search(query, rerank=ByLength())


class TestCrossEncoder:
    def test_scores_are_the_models_own(self, index: Index, tmp_path: Path) -> None:
        from sentence_transformers import CrossEncoder as Model
        from torch.nn import Identity

        model = write_cross_encoder(tmp_path / "model")
        hits = index.search("rain on the hills", k=3, rerank=CrossEncoder(str(model)), rerank_depth=5)
        pairs = [("rain on the hills", hit.document.text) for hit in hits]
        want = Model(str(model)).predict(pairs, activation_fn=Identity(), show_progress_bar=False)
        assert [hit.score for hit in hits] == pytest.approx(want.tolist(), abs=1e-5)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)

    def test_a_model_that_cannot_be_used_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound, match="cannot be loaded"):
            CrossEncoder(str(tmp_path / "nothing"))
        with pytest.raises(InvalidInput, match="gives 3 scores for a pair"):
            CrossEncoder(str(write_cross_encoder(tmp_path / "classes", labels=3)))

    def test_the_package_that_is_missing_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "sentence_transformers", None)
        with pytest.raises(MissingDependency, match=r"m3-connectors\[sentence-transformers\]"):
            CrossEncoder("any")


class TestForms:
    def test_json_of_a_hit_and_of_an_explanation(self, index: Index) -> None:
        (hit,) = index.search("rain", k=1)
        assert hit.to_dict() == {
            "id": hit.document.id,
            "score": hit.score,
            "scores": {
                "dense": hit.scores.dense,
                "sparse": hit.scores.sparse,
                "multivector": hit.scores.multivector,
            },
            "text": hit.document.text,
            "metadata": dict(hit.document.metadata),
        }
        (reranked,) = index.search("rain", k=1, rerank=ByLength())
        assert reranked.to_dict()["fused_score"] == reranked.fused_score
        explanation = index.explain("rain", hit.document.id, method=ALL)
        form = json.loads(json.dumps(explanation.to_dict()))
        assert (form["id"], form["method"], form["weights"]) == (hit.document.id, "all", [1.0, 0.3, 1.0])
        assert form["score"] == explanation.score
        assert len(form["pairs"]) == len(explanation.pairs)

    def test_the_command_line_has_the_same_stages(
        self,
        checkpoint: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("d.jsonl").write_text(
            "".join(json.dumps({"id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(TEXTS))
        )
        model = str(write_cross_encoder(tmp_path / "model"))
        assert main(["index", "qdrant:./data", "d.jsonl", "-m", str(checkpoint)]) == 0
        ask = ["search", "qdrant:./data", "rain", "-m", str(checkpoint), "--json"]

        def hits(*options: str) -> list[dict[str, object]]:
            capsys.readouterr()
            assert main([*ask, *options]) == 0
            found: list[dict[str, object]] = json.loads(capsys.readouterr().out)["hits"]
            return found

        whole = hits("-k", "8")
        assert hits("-k", "3", "--offset", "2") == whole[2:5]
        assert hits("-k", "8", "--min-score", str(whole[1]["score"])) == whole[:2]
        reranked = hits("-k", "3", "--rerank", model, "--rerank-depth", "4")
        assert {hit["id"] for hit in reranked} < {hit["id"] for hit in whole[:4]}
        assert all("fused_score" in hit for hit in reranked)
        capsys.readouterr()
        assert main(["search", "qdrant:./data", "rain", "-m", str(checkpoint), "--offset", "20"]) == 0
        assert "no hit is left after --offset and --min-score" in capsys.readouterr().out
        assert main([*ask, "--min-score", "nan"]) == 1
        assert "min_score is nan" in capsys.readouterr().err
