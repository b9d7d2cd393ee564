"""Files made from a seed: every text comes out as it went in, or its line is skipped by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import reader_files
from reading import read, write


@pytest.mark.parametrize("first_seed", range(100_000, 100_400, 100))
def test_every_text_is_stored_or_skipped_by_name(tmp_path: Path, first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 100):
        case = reader_files.make(seed)
        documents, letters = reader_files.read(case, tmp_path)
        reader_files.check(case, documents, letters)


def test_no_file_content_or_name_stops_the_run(tmp_path: Path) -> None:
    """Damaged files of every format, between two good ones."""
    pick = reader_files.random.Random(7)
    write(tmp_path / "0.txt", "first")
    write(tmp_path / "zz.txt", "last")
    for seed in range(300):
        case = reader_files.make(seed)
        content = bytearray(case.content)
        for _ in range(pick.randint(1, 6)):
            content[pick.randrange(len(content))] = pick.randrange(256)
        write(tmp_path / f"{seed:03}-{case.name}", bytes(content[: pick.randint(1, len(content))]))
    documents, letters = read(tmp_path)
    assert (documents[0].text, documents[-1].text) == ("first", "last")
    assert not [letter for letter in letters if "bug in its reader" in letter.reason]
    named = {Path(letter.file).name for letter in letters} | {d.id.partition(":")[0] for d in documents}
    assert {path.name for path in tmp_path.iterdir() if "-a" in path.name} <= named
