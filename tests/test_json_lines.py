"""Lines of JSON that only one of its readers would meet by chance; the tests of the readers cover the rest."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from m3_connectors.errors import InvalidInput
from m3_connectors.json_lines import numbered_lines


def test_the_mark_of_an_empty_file_that_was_appended_is_a_blank_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n\xef\xbb\xbf\n \r\n\xef\xbb\xbf')
    assert list(numbered_lines(path)) == [(1, '{"a": 1}\n')]


@pytest.mark.parametrize(("at", "value", "why"), [(6, 1, "encrypted"), (8, 99, "compression method")])
def test_an_archive_that_cannot_be_decompressed_is_named(
    tmp_path: Path, at: int, value: int, why: str
) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jsonl", "{}")
    content = bytearray(path.read_bytes())
    content[at] = content[content.find(b"PK\x01\x02") + at + 2] = value  # in both headers of the file
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=rf"a\.zip cannot be decompressed after line 0: .*{why}"):
        list(numbered_lines(path, "a.jsonl"))
