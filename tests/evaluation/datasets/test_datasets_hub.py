"""The paper's datasets, from small files of the hub's shapes: in a folder, and from a hub on loopback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_files import (
    hub,
    small_sizes,  # noqa: F401
    write_lines,
    write_miracl,
    write_mkqa,
    write_mldr,
    write_narrativeqa,
)

from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.answers import judge
from m3_connectors.evaluation.datasets.__main__ import table, with_table
from m3_connectors.evaluation.datasets.catalogue import CATALOGUE, MIRACL, MKQA, MLDR
from m3_connectors.evaluation.datasets.hub import size
from m3_connectors.evaluation.datasets.load import load_dataset
from m3_connectors.evaluation.datasets.published import PUBLISHED_NUMBERS, numbers_by_task
from m3_connectors.methods import METHODS

pytestmark = pytest.mark.usefixtures("small_sizes")


class TestMiracl:
    def test_reads_topics_judgements_and_all_parts_of_the_corpus(self, tmp_path: Path) -> None:
        dataset = load_dataset("miracl/yo", data_dir=write_miracl(tmp_path))
        assert dataset.queries == {"3": "Kí ni òjò?", "7": "Ta ni ó kọ Faust?"}
        assert dataset.qrels == {"3": {"12#0": 1, "12#1": 0}, "7": {"99#3": 1}}
        # Parts in the order of their numbers; the passage whose id is a query's stays (paper, version 4).
        assert list(dataset.documents) == [
            Document("12#0", "Òjò\nÒjò ń rọ̀."),
            Document("12#1", "Òjò\nOmi ni."),
            Document("3", "Its id is a query's."),
        ]
        assert (dataset.name, dataset.family, dataset.split) == ("miracl/yo", "miracl", "dev")
        assert (dataset.query_language, dataset.passage_language) == ("yo", "yo")
        assert dataset.revision == ", ".join(repository.revision for repository in MIRACL.repositories)
        assert dataset.licence == "Apache-2.0"
        assert dataset.relevance == "documents"
        assert dataset.warnings == (
            "1 queries without a judgement in split dev: not asked",
            "1 judgements of documents that the corpus does not have: they count as not found",
        )

    def test_a_malformed_line_is_named(self, tmp_path: Path) -> None:
        root = write_miracl(tmp_path)
        topics = root / "miracl-v1.0-yo/topics/topics.miracl-v1.0-yo-dev.tsv"
        topics.write_text("3\tone\textra\n", encoding="utf-8")
        with pytest.raises(InvalidInput, match=r"yo-dev\.tsv:1: '3\\tone\\textra' is not 'query TAB text'"):
            load_dataset("miracl/yo", data_dir=root)
        topics.write_text("3\tone\n", encoding="utf-8")
        (root / "miracl-v1.0-yo/qrels/qrels.miracl-v1.0-yo-dev.tsv").write_text("3\tQ0\t12#0\tyes\n")
        with pytest.raises(InvalidInput, match=r"yo-dev\.tsv:1: the grade is 'yes'"):
            load_dataset("miracl/yo", data_dir=root)

    def test_a_query_that_comes_twice(self, tmp_path: Path) -> None:
        root = write_miracl(tmp_path)
        (root / "miracl-v1.0-yo/topics/topics.miracl-v1.0-yo-dev.tsv").write_text("3\tone\n3\ttwo\n")
        with pytest.raises(InvalidInput, match=r"yo-dev\.tsv:2: the query id '3' came before"):
            load_dataset("miracl/yo", data_dir=root)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(
            InvalidInput, match=r"no miracl-v1\.0-de/topics/topics\.miracl-v1\.0-de-dev\.tsv in"
        ):
            load_dataset("miracl/de", data_dir=write_miracl(tmp_path))


class TestMldr:
    def test_reads_positives_and_negatives(self, tmp_path: Path) -> None:
        dataset = load_dataset("mldr/de", data_dir=write_mldr(tmp_path))
        assert dataset.qrels == {"q-de-0": {"doc-de-0": 1, "doc-de-2": 0}, "q-de-1": {"doc-de-1": 1}}
        assert dataset.queries["q-de-1"] == "Was?"
        assert len(dataset.documents) == 4
        assert dataset.paper.passage_max_length == 8192
        assert dataset.warnings == ()

    def test_a_field_of_another_type_is_named(self, tmp_path: Path) -> None:
        root = write_mldr(tmp_path)
        write_lines(
            root / "mldr-v1.0-de/test.jsonl.gz", {"query_id": "q", "query": "?", "positive_passages": "d"}
        )
        with pytest.raises(InvalidInput, match=r"test\.jsonl\.gz:1: negative_passages is NoneType"):
            load_dataset("mldr/de", data_dir=root)


class TestMkqa:
    def test_questions_answers_and_prepared_passages(self, tmp_path: Path) -> None:
        dataset = load_dataset("mkqa/fr", data_dir=write_mkqa(tmp_path))
        assert dataset.answers == {"-12": ("Goethe", "Johann Wolfgang"), "7": ("3,000",)}
        assert dataset.queries == {"-12": "Qui a écrit Faust ?", "7": "Combien ?"}
        assert dataset.relevance == "answers"
        # As the paper's scripts prepare them: lower case, plain quotes, hyphens and dots.
        assert [document.text for document in dataset.documents] == [
            'faust\na play by "goethe".',
            "numbers\nabout 3,000 - not more...",
        ]
        assert (dataset.query_language, dataset.passage_language) == ("fr", "en")
        assert dataset.warnings == (
            "1 questions without an answer: not asked",
            "1 answers without a letter or sign: left out",
        )
        assert judge(dataset, {"-12": ["doc0", "doc1"], "7": ["doc1"]}) == {
            "-12": {"doc0": 1, "doc1": 0},
            "7": {"doc1": 1},
        }

    def test_a_language_that_the_archive_lacks(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match=r"has 0 files zh_cn\.jsonl"):
            load_dataset("mkqa/zh_cn", data_dir=write_mkqa(tmp_path))

    def test_a_damaged_archive(self, tmp_path: Path) -> None:
        root = write_mkqa(tmp_path)
        (root / "MKQA_test-data.zip").write_bytes(b"PK not really")
        with pytest.raises(InvalidInput, match=r"MKQA_test-data\.zip cannot be decompressed after line 0"):
            load_dataset("mkqa/fr", data_dir=root)


class TestNarrativeQa:
    def test_each_story_once_and_every_question(self, tmp_path: Path) -> None:
        dataset = load_dataset("narrativeqa", data_dir=write_narrativeqa(tmp_path))
        assert list(dataset.documents) == [
            Document("book-b", "Once upon a time."),
            Document("book-a", "It was a dark night."),
        ]
        assert dataset.queries == {"0": "Who?", "1": "When?", "2": "How dark?"}
        assert dataset.qrels == {"0": {"book-b": 1}, "1": {"book-b": 1}, "2": {"book-a": 1}}
        assert (dataset.name, dataset.query_language) == ("narrativeqa", "en")

    def test_a_column_that_is_not_there(self, tmp_path: Path) -> None:
        root = write_narrativeqa(tmp_path)
        rows = pa.table({"document": [{"id": "a"}], "question": [{"text": "Who?"}]})
        pq.write_table(rows, root / "data" / "test-00000-of-00002.parquet")
        with pytest.raises(
            InvalidInput, match=r"00000-of-00002\.parquet is Parquet without the column document\.text"
        ):
            load_dataset("narrativeqa", data_dir=root)

    def test_a_story_without_text_is_named(self, tmp_path: Path) -> None:
        root = write_narrativeqa(tmp_path)
        rows = pa.table({"document": [{"id": "a", "text": None}], "question": [{"text": "Who?"}]})
        rows = rows.cast(pq.read_schema(root / "data" / "test-00001-of-00002.parquet").remove_metadata())
        pq.write_table(rows, root / "data" / "test-00000-of-00002.parquet")
        with pytest.raises(InvalidInput, match=r"00000-of-00002\.parquet: row 1: text is NoneType"):
            load_dataset("narrativeqa", data_dir=root)

    def test_a_file_that_is_no_parquet(self, tmp_path: Path) -> None:
        root = write_narrativeqa(tmp_path)
        (root / "data" / "test-00000-of-00002.parquet").write_text("text")
        with pytest.raises(InvalidInput, match=r"test-00000-of-00002\.parquet is not Parquet"):
            load_dataset("narrativeqa", data_dir=root)


class TestNames:
    def test_the_catalogue_has_the_papers_tasks_at_known_commits(self) -> None:
        assert [len(entry.names()) for entry in CATALOGUE.values()] == [18, 25, 13, 1]
        for entry in CATALOGUE.values():
            assert len(set(entry.names())) == len(entry.names())
            for repository in entry.repositories:
                assert re.fullmatch("[0-9a-f]{40}", repository.revision)
        assert MKQA.paper.measures == ("Recall@100", "Recall@20")
        assert MLDR.splits[0] == "test"

    @pytest.mark.parametrize(
        ("name", "split", "message"),
        [
            ("nothing", None, "'nothing' is neither a folder nor the name of a dataset"),
            ("miracl", None, "'miracl' is not a dataset of miracl"),
            ("miracl/xx", None, "'miracl/xx' is not a dataset of miracl"),
            ("narrativeqa/en", None, "'narrativeqa/en' is not a dataset of narrativeqa"),
            ("mldr/de", "exam", "mldr/de has no split 'exam'.\n  Use one of test, dev, train"),
        ],
    )
    def test_what_is_not_there(self, tmp_path: Path, name: str, split: str | None, message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            load_dataset(name, split=split, data_dir=tmp_path)


SCRIPT = """
import json, sys
from m3_connectors.errors import M3Error
from m3_connectors.evaluation.datasets.load import downloads, load_dataset
from m3_connectors.evaluation.datasets.sizes import SIZES, Size
SIZES["miracl", "yo", "dev"] = Size(3, 3, 3)
answer, heard = sys.argv[1], []
def agree(planned):
    heard.append([str(download) for download in planned])
    return answer == "yes"
if answer == "size":
    print(json.dumps([str(download) for download in downloads("miracl/yo")]))
    sys.exit()
try:
    dataset = load_dataset("miracl/yo", agree=None if answer == "nobody" else agree)
    print(json.dumps([heard, dataset.fingerprint, len(dataset.documents)]))
except M3Error as error:
    print(json.dumps([heard, type(error).__name__, str(error)]))
"""


class TestHub:
    def run(self, endpoint: str, home: Path, answer: str) -> list[object]:
        environment = {
            **os.environ,
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        command = [sys.executable, "-W", "ignore", "-c", SCRIPT, answer]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=True
        )
        answered: list[object] = json.loads(done.stdout.splitlines()[-1])
        return answered

    def test_nothing_is_fetched_before_its_size_is_agreed_to(self, tmp_path: Path) -> None:
        files = write_miracl(tmp_path / "files")
        write_lines(files / "miracl-corpus-v1.0-de/docs-0.jsonl.gz", {"docid": "not asked for"})
        repositories = {"miracl/miracl": files, "miracl/miracl-corpus": files}
        with hub(repositories) as (endpoint, given):
            heard, error, message = self.run(endpoint, tmp_path / "home", "no")
            assert given == []
            assert error == "InvalidInput"
            topics = sum(file.stat().st_size for file in files.rglob("*-dev.tsv"))
            docs = sum(file.stat().st_size for file in (files / "miracl-corpus-v1.0-yo").iterdir())
            sizes = [
                f"miracl/miracl@5be20db: 2 files, {topics} bytes",
                f"miracl/miracl-corpus@d921ec7: 3 files, {docs} bytes",
            ]
            assert heard == [sizes]
            assert "; ".join(sizes) + ". Nothing was downloaded.\n  Confirm the download with --yes" in str(
                message
            )

            _, _, unasked = self.run(endpoint, tmp_path / "home", "nobody")
            assert unasked == message
            assert self.run(endpoint, tmp_path / "home", "size") == sizes
            assert given == []

            heard, fingerprint, documents = self.run(endpoint, tmp_path / "home", "yes")
            assert heard == [sizes]
            assert len(given) == 5
            assert not any("v1.0-de" in file for file in given)
            assert documents == 3
            assert fingerprint == load_dataset("miracl/yo", data_dir=files).fingerprint

            heard, again, _ = self.run(endpoint, tmp_path / "home", "no")
            assert (heard, again) == ([], fingerprint)  # it is here: nobody is asked
            assert len(given) == 5
        heard, again, _ = self.run(endpoint, tmp_path / "home", "no")
        assert (heard, again) == ([], fingerprint)  # nor is a hub: this one is gone

    def test_what_is_left_of_an_interrupted_download_is_not_taken_for_all(self, tmp_path: Path) -> None:
        files = write_miracl(tmp_path / "files")
        with hub({"miracl/miracl": files, "miracl/miracl-corpus": files}) as (endpoint, given):
            self.run(endpoint, tmp_path / "home", "yes")
            last = next((tmp_path / "home").rglob("snapshots/*/miracl-corpus-v1.0-yo/docs-2.jsonl.gz"))
            last.resolve().unlink()
            last.unlink()
            heard, *_ = self.run(endpoint, tmp_path / "home", "yes")
            size = (files / "miracl-corpus-v1.0-yo/docs-2.jsonl.gz").stat().st_size
            assert [
                line.endswith(f", {size} bytes not yet downloaded") for asked in heard for line in asked
            ] == [True]
            assert given[-1].endswith("docs-2.jsonl.gz")
            assert len(given) == 6

    def test_a_repository_that_asks_for_a_login(self, tmp_path: Path) -> None:
        files = write_miracl(tmp_path / "files")
        repositories = {"miracl/miracl": files, "miracl/miracl-corpus": files}
        with hub(repositories, gated=["miracl/miracl"]) as (endpoint, _):
            _, error, message = self.run(endpoint, tmp_path / "home", "yes")
        assert error == "Unauthorised"
        assert "dataset miracl/miracl@5be20db requires authentication: 401" in str(message)
        assert "Accept its terms on its page, then run `hf auth login` or set HF_TOKEN" in str(message)

    def test_a_hub_without_the_repository_and_no_hub_at_all(self, tmp_path: Path) -> None:
        with hub({}) as (endpoint, _):
            _, error, message = self.run(endpoint, tmp_path / "home", "yes")
            assert error == "NotFound"
            assert "miracl/miracl@5be20db does not exist or requires authentication" in str(message)
        _, error, message = self.run(endpoint, tmp_path / "home", "yes")
        assert error == "Unavailable"
        assert "--data-dir" in str(message)


@pytest.mark.parametrize(
    ("bytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (498_000_000, "498 MB"), (3_254_000_000, "3.25 GB")],
)
def test_size(bytes: int, text: str) -> None:
    assert size(bytes) == text


class TestPublishedNumbers:
    def test_means_of_the_languages_are_the_published_means(self) -> None:
        numbers = numbers_by_task()
        for entry in (MIRACL, MLDR):
            measure = entry.paper.measures[0]
            languages = [numbers[name, "all", measure] for name in entry.names()]
            mean = sum(languages) / len(languages)
            assert mean == pytest.approx(numbers[entry.family, "all", measure], abs=0.0006), entry.family

    def test_every_number_is_of_a_task_and_measure_of_the_catalogue(self) -> None:
        tasks = {name: entry for entry in CATALOGUE.values() for name in (entry.family, *entry.names())}
        keys = [(n.task, n.method, n.measure, n.model) for n in PUBLISHED_NUMBERS]
        assert len(set(keys)) == len(keys)
        for number in PUBLISHED_NUMBERS:
            assert number.measure in tasks[number.task].paper.measures
            assert number.source.startswith("section 4.")
            assert 0 < number.per_cent < 100
        for family in CATALOGUE:
            measure = CATALOGUE[family].paper.measures[0]
            assert {(family, method, measure) for method in METHODS} <= numbers_by_task().keys()


def test_the_page_has_the_catalogue_of_now() -> None:
    page = (Path(__file__).parents[3] / "docs" / "datasets.md").read_text(encoding="utf-8")
    assert table() in page, "python -m m3_connectors.evaluation.datasets docs/datasets.md"
    assert with_table(page) == page
