"""Datasets of ir_datasets, from a server on loopback: what it would fetch is said before."""

from __future__ import annotations

import functools
import http.server
from collections.abc import Iterator, Sequence
from pathlib import Path

import ir_datasets
import pytest
from ir_datasets.datasets.base import Dataset as IrDataset
from ir_datasets.formats import TrecQrels, TsvDocs, TsvQueries
from ir_datasets.util.download import Download as Source
from ir_datasets.util.download import LocalDownload, RequestsDownload
from loopback import serving

from m3_connectors.errors import InvalidInput, Unavailable
from m3_connectors.evaluation.datasets.hub import Download
from m3_connectors.evaluation.datasets.load import load_dataset

FILES = {
    "docs.tsv": "d1\train falls\nd2\tships sail\n",
    "queries.tsv": "q1\twhat falls\nq2\tunjudged\n",
    "qrels": "q1 0 d1 2\nq1 0 d2 0\n",
}
NAME = "irds:m3-small/test"


class Served:
    """A dataset of three files, and the names of those that were fetched."""

    def __init__(self, home: Path, url: str, fetched: list[str]) -> None:
        self.home, self.url, self.fetched = home, url, fetched

    def register(self, monkeypatch: pytest.MonkeyPatch, **other: Source) -> None:
        """As a process that starts anew sees it: ir_datasets remembers what it found."""

        def source(name: str) -> Source:
            mirror = RequestsDownload(f"{self.url}/{name}", tries=1)
            return other.get(name) or Source([mirror], cache_path=str(self.home / name), size_hint=1500)

        dataset = IrDataset(
            TsvDocs(source("docs.tsv")), TsvQueries(source("queries.tsv")), TrecQrels(source("qrels"), {})
        )
        monkeypatch.setitem(ir_datasets.registry._registered, "m3-small/test", dataset)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    for name, text in FILES.items():
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / name).write_text(text)
    fetched: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *args: object) -> None:
            fetched.append(self.path.strip("/"))

        def log_error(self, *args: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(tmp_path / "files"))
    monkeypatch.setattr("ir_datasets.util.home_path", lambda: tmp_path / "home")
    (tmp_path / "home").mkdir()
    with serving(handler) as url:
        served = Served(tmp_path / "home", url, fetched)
        served.register(monkeypatch)
        yield served


class TestIrds:
    def test_is_fetched_once_agreed_to_and_read(
        self, served: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[list[str]] = []

        def agree(downloads: Sequence[Download]) -> bool:
            assert served.fetched == []
            asked.append(sorted(map(str, downloads)))
            return True

        dataset = load_dataset(NAME, agree=agree)
        assert asked == [[f"{served.url}/{name}: 1 files, 1.5 kB" for name in sorted(FILES)]]
        assert dataset.queries == {"q1": "what falls"}
        assert dataset.qrels == {"q1": {"d1": 2, "d2": 0}}
        assert [document.text for document in dataset.documents] == ["rain falls", "ships sail"]
        assert (dataset.family, dataset.split) == ("irds:m3-small", "test")
        assert dataset.warnings == ("1 queries without a judgement in split test: not asked",)
        served.register(monkeypatch)
        assert load_dataset(NAME).fingerprint == dataset.fingerprint  # it is on this machine: nobody is asked
        assert sorted(served.fetched) == sorted(FILES)

    def test_nobody_agreed(self, served: Served) -> None:
        (served.home / "m3-small").mkdir()  # a folder of the collection says nothing of its files
        with pytest.raises(
            InvalidInput, match=r"docs\.tsv: 1 files, 1\.5 kB.*\. Nothing was downloaded\."
        ) as error:
            load_dataset(NAME)
        assert "--data-dir" not in str(error.value)
        with pytest.raises(InvalidInput, match="Nothing was downloaded"):
            load_dataset(NAME, agree=lambda downloads: False)
        assert served.fetched == []

    def test_only_what_is_missing_is_asked_for(self, served: Served) -> None:
        for name in ("docs.tsv", "qrels"):
            (served.home / name).write_text(FILES[name])
        with pytest.raises(InvalidInput) as error:
            load_dataset(NAME)
        assert f"on this machine: {served.url}/queries.tsv: 1 files, 1.5 kB. Nothing" in str(error.value)

    def test_a_size_that_nobody_knows(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        unknown = Source([RequestsDownload(f"{served.url}/qrels")], cache_path=str(served.home / "qrels"))
        served.register(monkeypatch, qrels=unknown)
        with pytest.raises(InvalidInput, match="/qrels: files of unknown size"):
            load_dataset(NAME)

    def test_a_file_that_is_never_kept_is_asked_for_too(
        self, served: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        passing = Source([RequestsDownload(f"{served.url}/qrels", tries=1)], stream=True, size_hint=20)
        served.register(monkeypatch, qrels=passing)
        with pytest.raises(InvalidInput, match="/qrels: 1 files, 20 bytes"):
            load_dataset(NAME)
        assert served.fetched == []

    def test_a_server_that_does_not_answer(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        nobody = RequestsDownload("http://127.0.0.1:9/qrels", tries=1)
        served.register(monkeypatch, qrels=Source([nobody], cache_path=str(served.home / "qrels")))
        with pytest.raises(Unavailable, match=rf"{NAME}: http://127\.0\.0\.1:9/qrels: "):
            load_dataset(NAME, agree=lambda downloads: True)

    def test_a_file_that_is_got_by_hand(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        by_hand = Source([LocalDownload(served.home / "qrels", "Sign the agreement.")])
        served.register(monkeypatch, qrels=by_hand)
        with pytest.raises(InvalidInput, match=r"must be obtained manually\.\n  Sign the agreement\."):
            load_dataset(NAME, agree=lambda downloads: True)

    def test_what_is_not_there(self, served: Served) -> None:
        with pytest.raises(InvalidInput, match="ir_datasets has no dataset 'no/such'"):
            load_dataset("irds:no/such")
        with pytest.raises(
            InvalidInput, match=r"takes neither a split nor a data directory\.\n  Put the split into the id"
        ):
            load_dataset(NAME, split="test")
