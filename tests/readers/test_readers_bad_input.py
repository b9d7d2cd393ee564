"""Bad input, kind by kind: each is counted and named, or refused before the start. Other files here have more of each.

Encrypted and damaged PDFs are in test_readers_pdf.py, links in circles and changing files in test_readers_sources.py,
columns that are not there in test_readers_mapping.py, sources that end in an error in test_readers_sql.py.
"""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from pathlib import Path

import pytest
from backports import zstd
from reading import read, write

from m3_connectors.errors import InvalidInput
from m3_connectors.readers import DeadLetter, Fields, Limits, ReadOptions, read_documents


def test_broken_encodings_lose_only_their_record(tmp_path: Path) -> None:
    lines = [b'{"id": "a", "text": "t"}', b'{"id": "b", "text": "caf\xe9"}', b'{"id": "c", "text": "u"}']
    documents, (letter,) = read(write(tmp_path / "a.jsonl", b"\n".join(lines)))
    assert [document.id for document in documents] == ["a", "c"]
    assert (letter.line, letter.reason[:9]) == (2, "not UTF-8")


def test_a_line_of_100_mb_is_skipped_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"id": "a", "text": "t"}\n{"id": "b", "text": "')
        for _ in range(100):
            file.write(b"x" * 2**20)
        file.write(b'"}\n{"id": "c", "text": "u"}\n')
    tracemalloc.start()
    documents, (letter,) = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [document.id for document in documents] == ["a", "c"]
    assert (letter.line, letter.reason) == (2, "a line of more than 64 Mi characters")
    assert peak < 300 * 2**20


class TestCompressed:
    @pytest.mark.parametrize(("ending", "compress"), [(".gz", gzip.compress), (".zst", zstd.compress)])
    def test_a_bomb_of_lines_ends_at_the_ratio(self, tmp_path: Path, ending: str, compress: object) -> None:
        content = b'{"id": "a", "text": "t"}\n' + (b" " * 2**20 + b"\n") * 70
        path = write(tmp_path / f"a.jsonl{ending}", compress(content))  # type: ignore[operator]
        documents, (letter,) = read(path)
        assert [document.id for document in documents] == ["a"]
        assert letter.reason.startswith("expands to more than 200 times its size")
        assert "--max-expansion" in letter.reason
        documents, letters = read(path, options=ReadOptions(limits=Limits(expansion=100_000)))
        assert (len(documents), letters) == (1, [])

    def test_texts_that_compress_well_are_read(self, tmp_path: Path) -> None:
        lines = b"".join(b'{"id": "%d", "text": "the same text again"}\n' % i for i in range(20_000))
        path = write(tmp_path / "a.jsonl.zst", zstd.compress(lines, 19))
        documents, letters = read(path)
        assert (len(documents), letters) == (20_000, [])

    @pytest.mark.parametrize("limits", [{"expansion": 0}, {"expanded_bytes": 0}])
    def test_limits_below_one(self, limits: dict[str, int]) -> None:
        with pytest.raises(InvalidInput, match="is not a limit"):
            Limits(**limits)

    def test_damage_without_a_checksum_is_announced(self, tmp_path: Path) -> None:
        """A wrong byte may give other text without any error: this is what cannot be detected, so it is said before."""
        pick = random.Random(3)
        lines = [json.dumps({"id": str(i), "text": pick.randbytes(20).hex()}) for i in range(200)]
        content = "\n".join(lines).encode()
        checked = zstd.compress(content, options={zstd.CompressionParameter.checksum_flag: 1})
        unchecked = zstd.compress(content)
        wrong_unnoticed = 0
        for raw, has_checksum in [(checked, True), (unchecked, False)]:
            for position in range(20, len(raw), 97):
                damaged = bytearray(raw)
                damaged[position] ^= 0x10
                path = write(tmp_path / "a.jsonl.zst", bytes(damaged))
                notices: list[str] = []
                letters: list[DeadLetter] = []
                found = read_documents(
                    [path],
                    on_dead_letter=lambda _, letter, to=letters: to.append(letter),
                    on_notice=notices.append,
                )
                texts = [document.text for document in found]
                is_wrong = texts != [json.loads(line)["text"] for line in lines]
                assert len(notices) == (0 if has_checksum else 1)
                if has_checksum:
                    assert letters or not is_wrong
                wrong_unnoticed += is_wrong and not letters
        assert wrong_unnoticed > 0  # otherwise the notice would not be needed
        assert notices == [
            f"{tmp_path / 'a.jsonl.zst'} has no checksum: damage of its bytes may go unnoticed "
            "(zstd --check writes one)"
        ]


def test_empty_and_repeated_documents_and_ids_that_collide(tmp_path: Path) -> None:
    write(
        tmp_path / "a.jsonl", '{"id": "1", "text": " "}\n{"id": "2", "text": "t"}\n{"id": 2, "text": "t"}\n'
    )
    write(tmp_path / "b.csv", "id,text\n2,other\n3,t\n")
    write(tmp_path / "empty.txt", "")
    letters: list[DeadLetter] = []

    def add(_: object, letter: DeadLetter) -> None:
        letters.append(letter)

    documents = list(
        read_documents([tmp_path], fields=Fields(may_be_blank=False), on_dead_letter=add, on_replaced=add)
    )
    assert [(document.id, document.text) for document in documents] == [
        ("2", "t"),
        ("2", "t"),
        ("2", "other"),
        ("3", "t"),
    ]
    assert [(letter.line, letter.reason.split(":")[0].split(" (")[0]) for letter in letters] == [
        (1, "text is empty"),
        (2, "replaced"),
        (3, "replaced"),
        (None, "empty"),
    ]


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ('"v": NaN', "which is not a JSON number"),
        ('"v": 99999999999999999999', "must fit into 64 bits"),
        ('"v": "\\ud800"', "lone surrogate"),
        ('"v": ' + "[" * 30 + "]" * 30, "nested more than"),
        ('"v": 1, "v": 2', "occurs twice"),
    ],
)
def test_metadata_of_wrong_types(tmp_path: Path, metadata: str, reason: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"id": "a", "text": "t", ' + metadata + '}\n{"id": "b", "text": "u"}')
    documents, (letter,) = read(path)
    assert [document.id for document in documents] == ["b"]
    assert reason in letter.reason
