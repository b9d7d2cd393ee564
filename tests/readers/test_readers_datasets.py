"""Datasets of Hugging Face: streamed by URL, and saved to a folder; there is no hub here."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from reading import read, write

from m3_connectors.documents import Document
from m3_connectors.readers import Fields, Url
from m3_connectors.readers.hub_datasets import is_dataset


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    rows = [{"id": f"r{i}", "text": f"row {i}", "n": {"deep": [i]}} for i in range(600)]
    write(folder / "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write(folder / "test.jsonl", '{"id": "t0", "text": "test", "n": {"deep": []}}\n')
    return folder


def test_a_split_of_a_folder_is_streamed(folder: Path) -> None:
    documents, letters = read(Url(f"hf://datasets/{folder}"))
    assert letters == []
    assert len(documents) == 600
    assert documents[-1] == Document("r599", "row 599", {"n": {"deep": [599]}})
    assert read(Url(f"hf://datasets/{folder}?split=test"))[0] == [Document("t0", "test", {"n": {"deep": []}})]


def test_files_and_rows_without_an_id(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"body": "t"}\n{"body": ""}\n')
    fields = Fields("body", may_be_blank=False)
    documents, (letter,) = read(Url(f"hf://datasets/json?data_files={path}"), fields=fields)
    assert documents == [Document("json/default/train:1", "t")]
    assert (letter.line, letter.reason) == (2, "body is empty")
    assert not list(tmp_path.rglob("*.arrow"))  # nothing was copied to a cache


def test_what_is_wrong_is_one_reason(folder: Path, tmp_path: Path) -> None:
    broken = write(tmp_path / "b.jsonl", '{"id": "a", "text": "t"}\n' * 5 + "{broken\n")
    for url, says in [
        (f"hf://datasets/{folder}?split=no", "cannot be opened"),
        (f"hf://datasets/{folder}?spilt=no", "unknown parameter 'spilt'"),
        ("hf://datasets/no-such-owner/no-such-name", "cannot be opened"),
        (f"hf://datasets/json?data_files={broken}", "error"),
    ]:
        _, letters = read(Url(url))
        assert says in letters[-1].reason, url


def test_a_column_that_is_not_there(folder: Path) -> None:
    _, (letter,) = read(Url(f"hf://datasets/{folder}"), fields=Fields(metadata={"x": "ids"}))
    assert "no column 'ids'" in letter.reason
    assert "did you mean 'id'?" in letter.reason


def test_a_saved_dataset_is_a_folder(tmp_path: Path) -> None:
    rows = {"id": ["a", "b"], "text": ["one", "two"]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "one", num_shards=2)
    assert read(tmp_path / "one") == ([Document("a", "one"), Document("b", "two")], [])
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows)})
    splits.save_to_disk(tmp_path / "splits")
    assert read(tmp_path / "splits") == ([Document("a", "one"), Document("b", "two")], [])


def test_other_files_beside_a_saved_dataset_are_read(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"id": ["a"], "text": ["one"]}).save_to_disk(tmp_path / "one")
    write(tmp_path / "one" / "cache-1.arrow", "no rows")
    write(tmp_path / "one" / "README.md", "# Card")
    documents, letters = read(tmp_path)
    assert letters == []
    assert {document.id for document in documents} == {"a", "one/README.md"}


def test_which_urls_are_datasets_and_which_files_of_a_repository() -> None:
    for url in ("hf://datasets/squad", "hf://datasets/a/b@main?split=x", "hf://datasets//home/x/y/z"):
        assert is_dataset(Url(url))
    for url in ("hf://datasets/a/b/data/x.parquet", "hf://a/b/c.txt"):
        assert not is_dataset(Url(url))
