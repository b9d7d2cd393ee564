"""MTEB: a local task gives the numbers of ``m3 eval``, searched and encoded through MTEB's own evaluation."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3_connectors.documents import Document
from m3_connectors.encoder.encoder import M3Encoder
from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.datasets.dataset import Corpus, Dataset
from m3_connectors.evaluation.evaluate import Plan, evaluate
from m3_connectors.evaluation.measures import per_query
from m3_connectors.methods import METHODS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that mteb imports
    mteb = pytest.importorskip("mteb", reason="mteb is not installed: pip install -e '.[mteb]'")

import datasets
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import EncoderProtocol, SearchProtocol

from m3_connectors.integrations.mteb import M3DenseEncoder, M3Search

WORDS = "red apples yellow bananas blue plums green pears grow fall ripen on trees hills in winter".split()  # noqa: SIM905


def _world() -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, int]]]:
    rng = np.random.default_rng(7)
    texts = {f"d{i}": " ".join(rng.choice(WORDS, size=6)) for i in range(40)}
    texts["d39"] = texts["d38"]  # a tie
    queries = {f"q{i}": " ".join(rng.choice(WORDS, size=3)) for i in range(8)}
    qrels = {
        query: {f"d{d}": int(rng.integers(1, 3)) for d in rng.choice(40, size=5, replace=False)}
        for query in queries
    }
    return texts, queries, qrels


TEXTS, QUERIES, QRELS = _world()


class LocalTask(AbsTaskRetrieval):
    ignore_identical_ids = False
    metadata = TaskMetadata(
        name="LocalFruit",
        description="A task of these tests.",
        reference=None,
        type="Retrieval",
        category="t2t",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
        dataset={"path": "local/fruit", "revision": "1"},
        date=("2026-01-01", "2026-01-02"),
        domains=["Written"],
        task_subtypes=[],
        license="cc0-1.0",
        annotations_creators="derived",
        dialect=[],
        sample_creation="created",
        bibtex_citation=None,
    )

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        if self.data_loaded:
            return
        split = {
            "corpus": datasets.Dataset.from_list([{"id": id, "text": text} for id, text in TEXTS.items()]),
            "queries": datasets.Dataset.from_list([{"id": id, "text": text} for id, text in QUERIES.items()]),
            "relevant_docs": QRELS,
            "top_ranked": None,
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


def _mteb_scores(model: Any) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own deprecations
        done = mteb.evaluate(model, LocalTask(), cache=None, show_progress_bar=False)
    (result,) = done.task_results
    return result.scores["test"][0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", ["dense", "sparse", "multi_vec", "dense_sparse", "all"])
def test_a_local_task_gives_the_numbers_of_m3_eval(encoder: M3Encoder, tmp_path: Path, method: Any) -> None:
    corpus = Corpus.of([Document(id, text) for id, text in TEXTS.items()])
    plan = Plan(methods={method: METHODS[method]})
    folder = evaluate(Dataset("fruit", "test", corpus, QUERIES, QRELS), encoder, plan, tmp_path / "out")
    run = {query: [document for document, _ in ranked] for query, ranked in folder.run(method).items()}
    measured = per_query(QRELS, run, ["nDCG@10", "Recall@20"])
    ours = {name: float(np.mean(list(values.values()))) for name, values in measured.items()}
    search = M3Search(encoder, method=METHODS[method])
    assert isinstance(search, SearchProtocol)
    theirs = _mteb_scores(search)
    search.close()
    # MTEB rounds to five digits.
    assert theirs["ndcg_at_10"] == pytest.approx(ours["nDCG@10"], abs=1e-5)
    assert theirs["recall_at_20"] == pytest.approx(ours["Recall@20"], abs=1e-5)
    assert 0 < theirs["ndcg_at_10"] < 1
    print(f"{method}: mteb nDCG@10 {theirs['ndcg_at_10']:.5f}, m3 eval {ours['nDCG@10']:.5f}")


def test_the_dense_encoder_gives_the_numbers_of_the_dense_method(encoder: M3Encoder) -> None:
    dense = M3DenseEncoder(encoder)
    assert isinstance(dense, EncoderProtocol)
    search = M3Search(encoder, method="dense")
    assert _mteb_scores(dense)["recall_at_20"] == pytest.approx(
        _mteb_scores(search)["recall_at_20"], abs=1e-5
    )
    search.close()
    assert dense.encode([]).shape == (0, encoder.info.dimension)


def test_a_collection_is_brought_up_to_date_and_candidates_are_kept_to(
    encoder: M3Encoder, tmp_path: Path
) -> None:
    task: Any = {"task_metadata": LocalTask.metadata, "hf_split": "test", "hf_subset": "default"}
    search = M3Search(encoder, f"qdrant:{tmp_path / 'store'}")
    with pytest.raises(InvalidInput, match="search was called before index"):
        search.search(datasets.Dataset.from_list([]), top_k=1)
    rows = [{"id": "a", "title": "red", "text": "apples"}, {"id": "b", "title": "", "text": "plums"}]
    search.index(datasets.Dataset.from_list(rows), **task)
    queries = datasets.Dataset.from_list([{"id": "q", "text": "red", "instruction": "apples"}])
    first = search.search(queries, top_k=5)
    assert list(first["q"]) == ["a", "b"]
    assert search.search(queries, top_k=5, top_ranked={"q": ["b"]}) == {
        "q": {"b": pytest.approx(first["q"]["b"])}
    }
    search.index(datasets.Dataset.from_list(rows[1:]), **task)
    assert list(search.search(queries, top_k=5)["q"]) == ["b"]
    turns = datasets.Dataset.from_list([{"id": "q", "text": [{"role": "user", "content": "x"}]}])
    with pytest.raises(InvalidInput, match="query 'q' is list, a conversation"):
        search.search(turns, top_k=1)
    search.close()
    meta = search.mteb_model_meta
    assert meta.experiment_kwargs == {"method": "all", "weights": list(search._method.weights)}
