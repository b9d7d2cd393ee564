"""Datasets: folders, files of one's own, hub sets, and what is wrong with them."""

from __future__ import annotations

import gzip
import hashlib
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.datasets.beir import load_beir
from m3_connectors.evaluation.datasets.dataset import Corpus, Dataset
from m3_connectors.evaluation.datasets.hub import Download
from m3_connectors.evaluation.datasets.load import load_dataset

CORPUS = [
    {"_id": "d1", "title": "Rain", "text": "Clouds bring rain to the hills.", "metadata": {"lang": "en"}},
    {"_id": "d2", "text": "The hills are green after rain."},
    {"_id": "d3", "title": "", "text": "A ship sails the sea."},
]
QUERIES = [
    {"_id": "q1", "text": "rain on hills"},
    {"_id": "q2", "text": "ship"},
    {"_id": "q3", "text": "unjudged"},
]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t1\nq2\td3\t1\n"


def write_beir(
    root: Path, *, corpus: list[dict[str, object]] = CORPUS, qrels: str = QRELS, compress: bool = False
) -> Path:
    files = {
        "corpus.jsonl": "\n".join(map(json.dumps, corpus)),
        "queries.jsonl": "\n".join(map(json.dumps, QUERIES)),
        "qrels/test.tsv": qrels,
    }
    (root / "qrels").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if compress:
            (root / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
        else:
            (root / name).write_text(content)
    return root


class TestBeir:
    @pytest.mark.parametrize("compress", [False, True])
    def test_reads_a_folder(self, tmp_path: Path, compress: bool) -> None:
        dataset = load_beir(write_beir(tmp_path / "weather", compress=compress))
        assert dataset.name == "weather"
        assert next(iter(dataset.documents)) == Document(
            "d1", "Rain\nClouds bring rain to the hills.", {"lang": "en"}
        )
        assert list(dataset.documents)[2].text == "A ship sails the sea."
        assert dataset.queries == {"q1": "rain on hills", "q2": "ship"}
        assert dataset.qrels == {"q1": {"d1": 2, "d2": 1}, "q2": {"d3": 1}}
        assert dataset.warnings == ("1 queries without a judgement in split test: not asked",)

    def test_counts_what_does_not_fit_together(self, tmp_path: Path) -> None:
        dataset = load_beir(write_beir(tmp_path, qrels=QRELS + "q9\td1\t1\nq2\tgone\t1\nq2\tlost\t1\n"))
        assert dataset.warnings[1:] == (
            "1 judged queries whose text is not there: left out",
            "2 judgements of documents that the corpus does not have: they count as not found",
        )
        assert dataset.qrels["q2"] == {"d3": 1, "gone": 1, "lost": 1}
        assert "q9" not in dataset.qrels

    def test_an_unknown_split_names_those_that_are_there(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="Splits that are there: test"):
            load_beir(write_beir(tmp_path), "dev")

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("{broken", "not JSON"),
            ("[1]", "a JSON array, not an object"),
            ('{"_id": "x"}', "must be a string"),
            ('{"text": "t"}', "an id must be a string"),
            ('{"_id": "x", "text": "\\ud800"}', "text has a lone surrogate"),
            ('{"_id": "x", "text": "t", "title": 1}', "title is int"),
            ('{"_id": "' + "x" * 600 + '", "text": "t"}', "600 bytes"),
        ],
    )
    def test_a_broken_corpus_is_an_error_with_its_line(self, tmp_path: Path, line: str, reason: str) -> None:
        write_beir(tmp_path)
        with (tmp_path / "corpus.jsonl").open("a") as file:
            file.write(f"\n{line}\n")
        with pytest.raises(InvalidInput, match=reason) as error:
            load_beir(tmp_path)
        assert "corpus.jsonl:4" in str(error.value)

    def test_an_id_that_comes_twice_is_an_error_with_both_places(self, tmp_path: Path) -> None:
        twice = [*CORPUS, {"_id": "d1", "text": "again"}]
        with pytest.raises(InvalidInput, match=r"corpus\.jsonl: document 4 has the id 'd1' of document 1"):
            load_beir(write_beir(tmp_path, corpus=twice))

    def test_broken_qrels(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match=r"test\.tsv:5: 'q1 d1 1'"):
            load_beir(write_beir(tmp_path / "a", qrels=QRELS + "q1 d1 1\n"))
        with pytest.raises(InvalidInput, match="none of the 3 queries is judged"):
            load_beir(write_beir(tmp_path / "b", qrels="query-id\tcorpus-id\tscore\nzz\td1\t1\n"))

    def test_a_query_id_that_comes_twice_and_two_grades_of_one_document(self, tmp_path: Path) -> None:
        repeated = write_beir(tmp_path / "a", qrels=QRELS + "q1\td1\t2\n")
        assert load_beir(repeated).qrels["q1"] == {"d1": 2, "d2": 1}  # the same grade again says nothing new
        with pytest.raises(
            InvalidInput, match=r"test\.tsv:5: document 'd1' has grade 0 for query 'q1', and 2"
        ):
            load_beir(write_beir(tmp_path / "b", qrels=QRELS + "q1\td1\t0\n"))
        with (repeated / "queries.jsonl").open("a") as file:
            file.write('\n{"_id": "q2", "text": "again"}\n')
        with pytest.raises(InvalidInput, match=r"queries\.jsonl:4: the query id 'q2' came before"):
            load_beir(repeated)

    def test_no_folder_and_missing_files(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="is not a folder"):
            load_beir(tmp_path / "nothing")
        write_beir(tmp_path / "x")
        (tmp_path / "x" / "corpus.jsonl").unlink()
        with pytest.raises(InvalidInput, match="has neither corpus"):
            load_beir(tmp_path / "x")


class TestLanguages:
    @pytest.mark.parametrize(
        ("folder", "split", "name", "family", "query", "passage"),
        [
            ("mlqa-dev/de", "test", "mlqa-dev/de", "mlqa-dev", "de", "de"),
            ("mlqa-dev/de", "q-ar", "mlqa-dev/de", "mlqa-dev", "ar", "de"),
            ("cranfield", "test", "cranfield", "cranfield", None, None),
            ("cranfield", "q-ar", "cranfield", "cranfield", None, None),
            ("mlqa-dev/Ab", "test", "Ab", "Ab", None, None),
        ],
    )
    def test_of_a_folder(
        self,
        tmp_path: Path,
        folder: str,
        split: str,
        name: str,
        family: str,
        query: str | None,
        passage: str | None,
    ) -> None:
        root = write_beir(tmp_path / folder)
        (root / "qrels" / "q-ar.tsv").write_text(QRELS)
        dataset = load_dataset(root, split=split)
        assert (dataset.name, dataset.family) == (name, family)
        assert (dataset.query_language, dataset.passage_language) == (query, passage)


def write_own(
    root: Path, *queries: dict[str, object], documents: list[dict[str, object]] | None = None
) -> Path:
    root.mkdir(exist_ok=True)
    lines = documents or [{"id": "d1", "text": "rain"}, {"id": 2, "title": "Sea", "text": "ships"}]
    (root / "documents.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (root / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    return root


class TestOwn:
    def test_judgements_inside_the_queries(self, tmp_path: Path) -> None:
        dataset = load_dataset(
            write_own(
                tmp_path / "mine",
                {"id": "q1", "text": "what falls", "relevant": ["d1", "2"]},
                {"id": "q2", "text": "what sails", "relevant": {"2": 2, "gone": 1}},
                {"id": "q3", "text": "open"},
            )
        )
        assert (dataset.name, dataset.family, dataset.split) == ("mine", "mine", "test")
        assert dataset.qrels == {"q1": {"d1": 1, "2": 1}, "q2": {"2": 2, "gone": 1}}
        assert list(dataset.documents) == [Document("d1", "rain"), Document("2", "Sea\nships")]
        assert dataset.warnings == (
            "1 queries without a judgement in split test: not asked",
            "1 judgements of documents that the corpus does not have: they count as not found",
        )

    def test_ids_that_are_numbers_are_the_same_everywhere(self, tmp_path: Path) -> None:
        query = {"id": 1, "text": "what sails", "relevant": [2, "d1"]}
        dataset = load_dataset(write_own(tmp_path, query))
        assert dataset.qrels == {"1": {"2": 1, "d1": 1}}
        assert dataset.warnings == ()

    def test_an_empty_list_says_as_little_as_none(self, tmp_path: Path) -> None:
        queries = (
            {"id": "q1", "text": "what falls", "relevant": ["d1"]},
            {"id": "q2", "text": "nothing", "relevant": []},
            {"id": "q3", "text": "nothing either", "relevant": {}},
            {"id": "q4", "text": "open"},
        )
        dataset = load_dataset(write_own(tmp_path, *queries))
        assert dataset.queries == {"q1": "what falls"}
        assert dataset.warnings == ("3 queries without a judgement in split test: not asked",)

    def test_a_folder_that_is_named_after_a_language(self, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        dataset = load_dataset(write_own(tmp_path / "mine/sw", {"id": "q", "text": "x", "relevant": ["d1"]}))
        assert (dataset.name, dataset.family, dataset.query_language) == ("mine/sw", "mine", "sw")

    def test_another_split_and_compressed_files(self, tmp_path: Path) -> None:
        root = write_own(tmp_path, {"id": "q1", "text": "x", "relevant": ["d1"]})
        line = json.dumps({"id": "q9", "text": "held out", "relevant": ["d1"]}).encode()
        (root / "queries-dev.jsonl.gz").write_bytes(gzip.compress(line))
        assert load_dataset(root, split="dev").queries == {"q9": "held out"}
        with pytest.raises(InvalidInput, match=r"neither queries-exam\.jsonl nor queries-exam\.jsonl\.gz"):
            load_dataset(root, split="exam")

    def test_answers_instead_of_judgements(self, tmp_path: Path) -> None:
        dataset = load_dataset(
            write_own(
                tmp_path, {"id": "q1", "text": "what falls", "answers": ["rain"]}, {"id": "q2", "text": "?"}
            )
        )
        assert dataset.relevance == "answers"
        assert dataset.answers == {"q1": ("rain",)}
        assert dataset.paper.measures == ("Recall@100", "Recall@20")
        assert dataset.warnings == ("1 queries without an answer: not asked",)

    @pytest.mark.parametrize(
        ("query", "message"),
        [
            (
                {"id": "q2", "text": "x", "relevant": "d1"},
                r"queries\.jsonl:2: relevant is 'd1', which does not list ids\.\n  Write a list of ids",
            ),
            (
                {"id": "q2", "text": "x", "relevant": {"d1": 0.5}},
                r"queries\.jsonl:2: relevant is \{'d1': 0\.5\}",
            ),
            (
                {"id": "q2", "text": "x", "relevant": {"d1": True}},
                r"queries\.jsonl:2: relevant is \{'d1': True\}",
            ),
            ({"id": "q2", "text": "x", "answers": []}, r"queries\.jsonl:2: answers is \[\]"),
            ({"id": "q2", "text": "x", "answers": [" "]}, r"queries\.jsonl:2: answers is \[' '\]"),
            ({"id": "q2", "text": "x", "answers": ["a"]}, "some queries have relevant documents and others"),
            (
                {"id": "q1", "text": "x", "relevant": ["d1"]},
                r"queries\.jsonl:2: the query id 'q1' came before",
            ),
            ({"id": "q2", "text": None}, r"queries\.jsonl:2: text is NoneType"),
            ({"id": "q2", "text": "x", "relevant": [1.5]}, r"queries\.jsonl:2: an id of relevant is float"),
            ({"id": "q2", "text": "x \ud800"}, r"queries\.jsonl:2: text has a lone surrogate at character 2"),
            ({"id": "\ud800", "text": "x"}, r"queries\.jsonl:2: id has a lone surrogate"),
            (
                {"id": "q2", "text": "x", "relevant": ["\ud800"]},
                r"queries\.jsonl:2: an id of relevant has a lone",
            ),
            (
                {"id": "q2", "text": "x", "relevant": {"\ud800": 1}},
                r"queries\.jsonl:2: an id of relevant has a",
            ),
            ({"id": "q2", "text": "x", "answers": ["a\ud800"]}, r"queries\.jsonl:2: an answer has a lone"),
            ({"text": "x"}, r"queries\.jsonl:2: id is NoneType"),
        ],
    )
    def test_a_malformed_query_is_named(self, tmp_path: Path, query: dict[str, object], message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            load_dataset(write_own(tmp_path, {"id": "q1", "text": "x", "relevant": ["d1"]}, query))

    def test_nothing_judged_and_no_documents(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="none of the 1 queries is judged"):
            load_dataset(write_own(tmp_path / "a", {"id": "q1", "text": "x"}))
        root = write_own(tmp_path / "b", {"id": "q1", "text": "x", "relevant": ["d1"]})
        (root / "documents.jsonl").write_text("\n")
        with pytest.raises(InvalidInput, match="has no documents"):
            load_dataset(root)


class TestNames:
    def test_a_folder_of_neither_form(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match=r"neither corpus\.jsonl \(BEIR\) nor documents\.jsonl"):
            load_dataset(tmp_path)
        with pytest.raises(InvalidInput, match="--data-dir is only for datasets of the hub"):
            load_dataset(tmp_path, data_dir=tmp_path)


class TestCorpus:
    def test_is_read_anew_and_never_held(self) -> None:
        begun = 0

        def read() -> Iterator[Document]:
            nonlocal begun
            begun += 1
            for i in range(20_000):
                yield Document(str(i), f"{i} " * 50)

        tracemalloc.start()
        corpus = Corpus(read)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak_bytes < 2_000_000  # the texts are 5.9 MB
        assert len(corpus) == 20_000
        assert [len(batch) for batch in corpus.batches(8_000)] == [8_000, 8_000, 4_000]
        assert corpus.select(["3", "19999", "x"]).keys() == {"3", "19999"}
        assert begun == 3

    def test_an_id_that_comes_twice(self) -> None:
        with pytest.raises(InvalidInput, match="the corpus: document 3 has the id 'a' of document 1"):
            Corpus.of([Document("a", "x"), Document("b", "x"), Document("a", "y")])

    def test_ids_that_only_share_a_digest_are_two(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("m3_connectors.evaluation.datasets.dataset._digest", lambda id: 7)
        assert len(Corpus.of([Document("a", "x"), Document("b", "x")])) == 2
        with pytest.raises(InvalidInput, match="has the id 'a'"):
            Corpus.of([Document("a", "x"), Document("b", "x"), Document("a", "x")])

    def test_empty(self) -> None:
        with pytest.raises(InvalidInput, match="no document"):
            Corpus.of([])

    def test_fingerprint_is_of_ids_and_texts_in_order(self) -> None:
        def fingerprint(*pairs: tuple[str, str]) -> str:
            return Corpus.of([Document(id, text) for id, text in pairs]).fingerprint

        encoded = b"".join(
            len(part).to_bytes(8, "little") + part for part in (b"a", b"x", b"b", "é".encode())
        )
        assert fingerprint(("a", "x"), ("b", "é")) == hashlib.sha256(encoded).hexdigest()
        different = [
            fingerprint(("a", "x"), ("b", "é")),
            fingerprint(("b", "é"), ("a", "x")),
            fingerprint(("a", "xb"), ("b", "é")),
            fingerprint(("ax", ""), ("b", "é")),
            fingerprint(("a", "x")),
        ]
        assert len(set(different)) == len(different)


class TestDataset:
    def dataset(self, **changes: object) -> Dataset:
        documents = Corpus.of([Document("d1", "rain"), Document("d2", "sea")])
        given = {
            "name": "x",
            "split": "test",
            "documents": documents,
            "queries": {"q1": "a", "q2": "b"},
            "qrels": {"q1": {"d1": 1, "d2": 0}, "q2": {"d2": 1}},
        }
        return Dataset(**{**given, **changes})  # type: ignore[arg-type]

    def test_fingerprint_is_of_the_task(self) -> None:
        dataset = self.dataset()
        assert dataset.fingerprint == self.dataset(name="another name").fingerprint
        swapped = {"q2": {"d2": 1}, "q1": {"d2": 0, "d1": 1}}
        assert dataset.fingerprint == self.dataset(qrels=swapped).fingerprint
        others = [
            self.dataset(queries={"q1": "a", "q2": "c"}),
            self.dataset(queries={"q2": "b", "q1": "a"}),
            self.dataset(qrels={"q1": {"d1": 2, "d2": 0}, "q2": {"d2": 1}}),
            self.dataset(documents=Corpus.of([Document("d1", "rain"), Document("d2", "see")])),
            self.dataset(qrels={}, answers={"q1": ("d1",), "q2": ("d2",)}),
            dataset.select(["q1"]),
        ]
        assert len({dataset.fingerprint, *(other.fingerprint for other in others)}) == 7

    def test_select(self) -> None:
        chosen = self.dataset().select(["q2"])
        assert chosen.queries == {"q2": "b"}
        assert chosen.qrels == {"q2": {"d2": 1}}

    def test_queries_that_nothing_judges_are_refused(self) -> None:
        with pytest.raises(InvalidInput, match="1 queries have neither judgement nor answer, such as 'q2'"):
            self.dataset(qrels={"q1": {"d1": 1}})
        with pytest.raises(InvalidInput, match="has no queries to measure"):
            self.dataset().select([])


def test_a_download_says_what_it_weighs() -> None:
    files = ("a", "b")
    assert str(Download("o/n", "0123456789", files, 1500, 1500)) == "o/n@0123456: 2 files, 1.5 kB"
    partly = Download("o/n", "0123456789", files, 2_000_000, 500_000)
    assert str(partly) == "o/n@0123456: 2 files, 2 MB, 500 kB not yet downloaded"
