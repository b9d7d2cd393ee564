"""Columns chosen by a mapping or by options: several texts, renamed metadata, and columns that are not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reading import read, write

from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput
from m3_connectors.readers import Fields, files_to_read, read_documents, read_mapping

MAPPING = """
text = ["title", "body"]
separator = "\\n\\n"
id = "doi"

[metadata]
year = "published"
lang = "language"
"""

RECORD = {"doi": "10/1", "title": "Fox", "body": "lake", "published": 2026, "language": "en", "secret": "no"}


def both(tmp_path: Path, text: str) -> Fields:
    return read_mapping(write(tmp_path / "m.toml", text))


def test_texts_are_joined_and_metadata_chosen(tmp_path: Path) -> None:
    fields = both(tmp_path, MAPPING)
    path = write(
        tmp_path / "a.jsonl", json.dumps(RECORD) + "\n" + json.dumps({**RECORD, "doi": 2, "title": None})
    )
    assert read(path, fields=fields) == (
        [
            Document("10/1", "Fox\n\nlake", {"year": 2026, "lang": "en"}),
            Document("2", "lake", {"year": 2026, "lang": "en"}),
        ],
        [],
    )
    cells = write(tmp_path / "a.csv", ",".join(RECORD) + "\n" + ",".join(map(str, RECORD.values())) + "\n")
    assert read(cells, fields=fields)[0] == [Document("10/1", "Fox\n\nlake", {"year": 2026, "lang": "en"})]


def test_a_list_keeps_names_and_the_metadata_object_is_looked_into(tmp_path: Path) -> None:
    fields = both(tmp_path, 'metadata = ["a", "id"]')
    path = write(tmp_path / "a.jsonl", '{"id": "1", "text": "t", "metadata": {"a": 1, "b": 2}}')
    assert read(path, fields=fields) == ([Document("1", "t", {"a": 1, "id": "1"})], [])


def test_a_record_without_any_of_the_texts_is_named(tmp_path: Path) -> None:
    fields = both(tmp_path, MAPPING)
    path = write(tmp_path / "a.jsonl", json.dumps(RECORD) + '\n{"doi": "x"}\n{"doi": "y", "title": 5}\n')
    documents, letters = read(path, fields=fields)
    assert len(documents) == 1
    assert [letter.reason for letter in letters] == [
        "no field 'title' or 'body', only ['doi']: choose the text field with --text",
        "title is int, not a string",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("txt = 'a'", "unknown key txt"),
        ("text = 5", "text"),
        ("text = []", "one column or more"),
        ('text = ["a", "a"]', "one column or more"),
        ("text = ", "not valid TOML"),
        ("[metadata]\nyear = 5", "metadata"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        both(tmp_path, text)
    with pytest.raises(InvalidInput, match="does not exist"):
        read_mapping(tmp_path / "no.toml")


class TestColumnsThatAreNotThere:
    @pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.parquet", "a.arrow"])
    def test_refused_before_the_start_with_the_nearest_name(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        row = {"id": "1", "text": "t", "language": "en"}
        if name == "a.csv":
            write(path, "id,text,language\n1,t,en\n")
        elif name.startswith("a.j"):
            write(path, json.dumps(row))
        else:
            import pyarrow as pa
            from pyarrow import feather, parquet

            table = pa.Table.from_pylist([row])
            if name == "a.parquet":
                parquet.write_table(table, path)
            else:
                feather.write_feather(table, path, compression="uncompressed")
        write(tmp_path / "page.txt", "a page has no columns")
        begun: list[Path] = []
        documents = read_documents(
            [tmp_path],
            fields=Fields(metadata={"lang": "languag"}),
            on_dead_letter=lambda *_: pytest.fail("skipped"),
            on_source=lambda source: begun.append(source),  # type: ignore[arg-type]
        )
        with pytest.raises(InvalidInput) as raised:
            next(documents)
        assert "no source has a column 'languag'" in str(raised.value)
        assert "Did you mean 'language'?" in str(raised.value)
        assert begun == []

    def test_also_refused_before_several_processes_read(self, tmp_path: Path) -> None:
        write(tmp_path / "a.csv", "id,text,language\n1,t,en\n")
        fields = Fields(metadata={"lang": "languag"})
        with pytest.raises(InvalidInput, match="Did you mean 'language'"):
            files_to_read([tmp_path], fields=fields, on_dead_letter=lambda *_: None)

    def test_a_column_of_one_file_is_enough(self, tmp_path: Path) -> None:
        write(tmp_path / "a.csv", "id,text\n1,t\n")
        write(tmp_path / "b.csv", "id,text,lang\n2,t,en\n")
        documents, letters = read(tmp_path, fields=Fields(metadata={"lang": "lang"}))
        assert letters == []
        assert [dict(document.metadata) for document in documents] == [{}, {"lang": "en"}]

    def test_the_text_and_id_options_too(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", '{"key": "1", "body": "t"}\n' * 1500)
        for fields in (Fields("bodi"), Fields("body", "kye")):
            with pytest.raises(InvalidInput, match="Did you mean"):
                read(path, fields=fields)

    def test_later_records_may_have_what_the_first_ones_lack(self, tmp_path: Path) -> None:
        lines = [f'{{"id": "{i}", "text": "t"}}\n' for i in range(1200)] + [
            '{"id": "x", "text": "t", "rare": 1}\n'
        ]
        notices: list[str] = []
        documents = read_documents(
            [write(tmp_path / "a.jsonl", "".join(lines))],
            fields=Fields(metadata={"rare": "rare"}),
            on_dead_letter=lambda *_: pytest.fail("skipped"),
            on_notice=notices.append,
        )
        assert list(documents)[-1].metadata == {"rare": 1}
        assert notices == ["the first records have no field 'rare', which --metadata or --mapping names"]
