"""``m3 encode --file``: one text a line, whatever the lines end with and whatever stands in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from m3_connectors.cli.app import main


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"\xef\xbb\xbffox\nlake\n", ["fox", "lake"]),
        (b"fox\r\nlake", ["fox", "lake"]),
        ("fox\x0clake\u2028dog\x85cat\nbook\n".encode(), ["fox\x0clake\u2028dog\x85cat", "book"]),
        (b"fox\n\nlake\n", ["fox", "", "lake"]),
    ],
)
def test_a_line_is_a_text(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, texts: list[str]
) -> None:
    (tmp_path / "texts.txt").write_bytes(content)
    assert main(["encode", "--json", "-m", str(checkpoint), "--file", str(tmp_path / "texts.txt")]) == 0
    assert [entry["text"] for entry in json.loads(capsys.readouterr().out)["embeddings"]] == texts
