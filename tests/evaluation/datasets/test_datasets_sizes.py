"""All of a dataset or an error: missing parts, cut files, samples, and the sizes that are asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_files import (
    small_sizes,  # noqa: F401
    write_lines,
    write_miracl,
    write_mkqa,
    write_mldr,
    write_narrativeqa,
)

from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.datasets.catalogue import CATALOGUE, MLDR
from m3_connectors.evaluation.datasets.load import load_dataset
from m3_connectors.evaluation.datasets.parts import in_folders, missing_parts
from m3_connectors.evaluation.datasets.sizes import SIZES, size_of

REAL_SIZES = dict(SIZES)
pytestmark = pytest.mark.usefixtures("small_sizes")


class TestAllOfIt:
    """A measure is never computed over a silently smaller set."""

    def lacking(self, root: Path, name: str, file: str) -> str:
        (root / file).unlink()
        with pytest.raises(InvalidInput) as error:
            load_dataset(name, data_dir=root)
        return str(error.value)

    def test_a_part_of_a_corpus_is_missing(self, tmp_path: Path) -> None:
        for number in range(3):
            root = write_miracl(tmp_path / str(number))
            file = f"miracl-corpus-v1.0-yo/docs-{number}.jsonl.gz"
            assert self.lacking(root, "miracl/yo", file).startswith(f"no {file} in {root}.\n")

    def test_a_part_that_the_names_of_the_others_tell_of(self, tmp_path: Path) -> None:
        for number in range(2):
            root = write_narrativeqa(tmp_path / str(number))
            file = f"data/test-0000{number}-of-00002.parquet"
            assert self.lacking(root, "narrativeqa", file).startswith(f"no {file} in {root}.\n")

    def test_documents_or_questions_are_missing(self, tmp_path: Path) -> None:
        root = write_mldr(tmp_path)
        write_lines(root / "mldr-v1.0-de/corpus.jsonl.gz", {"docid": "doc-de-0", "text": "Langer Text 0."})
        with pytest.raises(InvalidInput) as error:
            load_dataset("mldr/de", data_dir=root)
        assert str(error.value) == (
            f"mldr/de, split test: 1 documents of 4 in {root}: files are missing, truncated or of another version.\n"
            "  Copy or download them again: mldr-v1.0-de/corpus.jsonl.gz mldr-v1.0-de/test.jsonl.gz. For an intended "
            "sample, add a file SAMPLE beside them."
        )
        root = write_miracl(tmp_path)
        topics = root / "miracl-v1.0-yo/topics/topics.miracl-v1.0-yo-dev.tsv"
        topics.write_text("3\tone\n7\ttwo\n", encoding="utf-8")
        with pytest.raises(InvalidInput, match="miracl/yo, split dev: 2 questions of 3 in "):
            load_dataset("miracl/yo", data_dir=root)

    @pytest.mark.parametrize(
        ("write", "name"),
        [
            (write_miracl, "miracl/yo"),
            (write_mldr, "mldr/de"),
            (write_mkqa, "mkqa/fr"),
            (write_narrativeqa, "narrativeqa"),
        ],
    )
    def test_the_real_sizes_are_asked_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Path], name: str
    ) -> None:
        for task, real in REAL_SIZES.items():
            monkeypatch.setitem(SIZES, task, dataclasses.replace(real, parts=None))
        with pytest.raises(InvalidInput, match=r"documents of [\d,]+ and \d questions of [\d,]+ in"):
            load_dataset(name, data_dir=write(tmp_path))

    def test_a_sample_says_so_and_stays_marked(self, tmp_path: Path) -> None:
        root = write_miracl(tmp_path)
        (root / "miracl-corpus-v1.0-yo/docs-1.jsonl.gz").unlink()
        (root / "SAMPLE").touch()
        dataset = load_dataset("miracl/yo", data_dir=root)
        assert len(dataset.documents) == 2
        assert dataset.warnings[0] == (
            f"a sample: 2 documents of 3 in {root}; no number compares with a published one"
        )
        (root / "miracl-corpus-v1.0-yo/docs-0.jsonl.gz").unlink()
        (root / "miracl-corpus-v1.0-yo/docs-2.jsonl.gz").unlink()
        with pytest.raises(InvalidInput, match=r"no miracl-corpus-v1\.0-yo/docs-0\.jsonl\.gz"):
            load_dataset("miracl/yo", data_dir=root)

    def test_a_sample_that_is_whole_is_none(self, tmp_path: Path) -> None:
        root = write_mldr(tmp_path)
        (root / "SAMPLE").touch()
        assert load_dataset("mldr/de", data_dir=root).warnings == ()

    def test_every_task_has_a_size(self) -> None:
        for entry in CATALOGUE.values():
            for language in entry.languages or (None,):
                for split in entry.splits:
                    task = (entry.family, language, split)
                    # German and Yoruba have no train in MIRACL.
                    assert (size_of(*task) is None) == (
                        task in {("miracl", "de", "train"), ("miracl", "yo", "train")}
                    )

    def test_sizes_sum_to_the_published_totals(self) -> None:
        # 16 languages in table 1 of MIRACL's paper, first version; the card of MLDR.
        known = [
            size
            for (family, language, split), size in REAL_SIZES.items()
            if (family, split) == ("miracl", "dev") and language not in ("de", "yo")
        ]
        assert sum(size.documents or 0 for size in known) == 90_416_887
        assert sum(size.queries for size in known) == 13_071
        train = [
            size.queries
            for (family, _, split), size in REAL_SIZES.items()
            if (family, split) == ("miracl", "train")
        ]
        assert sum(train) == 40_203
        mldr = {
            split: [size for (family, _, s), size in REAL_SIZES.items() if (family, s) == ("mldr", split)]
            for split in MLDR.splits
        }
        assert {split: sum(size.queries for size in sizes) for split, sizes in mldr.items()} == {
            "test": 3_800,
            "dev": 2_600,
            "train": 41_434,
        }
        assert sum(size.documents or 0 for size in mldr["test"]) == 493_709

    def test_parts_of_miracl_hold_half_a_million_passages_each(self) -> None:
        for (family, language, _), real in REAL_SIZES.items():
            if family == "miracl":
                assert real.parts == -(-(real.documents or 0) // 500_000), language


@pytest.mark.parametrize(
    ("pattern", "names", "parts", "missing"),
    [
        ("a/docs-*.gz", [], None, ["a/docs-*.gz"]),
        ("a/docs-*.gz", [], 2, ["a/docs-0.gz", "a/docs-1.gz"]),
        (
            "a/docs-*.gz",
            [f"a/docs-{i}.gz" for i in (0, 1, 11)],
            None,
            [f"a/docs-{i}.gz" for i in range(2, 11)],
        ),
        ("a/docs-*.gz", ["a/docs-0.gz"], 1, []),
        ("t-*.p", ["t-00001-of-00003.p"], None, ["t-00000-of-00003.p", "t-00002-of-00003.p"]),
        ("t-*.p", ["t-00000-of-00001.p"], None, []),
        ("one.tsv", [], None, ["one.tsv"]),
        ("one.tsv", ["one.tsv"], 3, []),
    ],
)
def test_missing_parts(pattern: str, names: list[str], parts: int | None, missing: list[str]) -> None:
    assert missing_parts(pattern, names, parts) == missing


def test_parts_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 0):
        (tmp_path / f"docs-{number}.gz").touch()
    assert in_folders([tmp_path], "docs-*.gz")[1] == ["docs-0.gz", "docs-2.gz", "docs-10.gz"]
