"""CSV and TSV: quotes, delimiters, column types, and the lines that are skipped."""

from __future__ import annotations

import csv
import io
import tracemalloc
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from reading import read, texts, write

from m3_connectors.errors import InvalidInput
from m3_connectors.readers import Fields, ReadOptions, csv_rows, read_documents

UNCLOSED = 'id,text\n1,ok one\n2,"unclosed quote here\n3,three\n4,four\n5,"five"\n6,six\n'


def metadata(path: Path) -> list[dict[str, Any]]:
    documents, letters = read(path)
    assert letters == []
    return [dict(document.metadata) for document in documents]


class TestQuotes:
    def test_an_unclosed_quote_skips_only_its_row(self, tmp_path: Path) -> None:
        documents, (letter,) = read(write(tmp_path / "q.csv", UNCLOSED))
        assert {d.id: d.text for d in documents} == {
            "1": "ok one",
            "3": "three",
            "4": "four",
            "5": "five",
            "6": "six",
        }
        assert letter.line == 3
        assert "on line 6; lines 4 to 6 are read as rows" in letter.reason

    @pytest.mark.parametrize(
        ("rows", "ids", "lines"),
        [
            ('1,"a" b\n2,c\n', ["2"], [2]),
            ('1,"never\n2,b\n3,c\n', ["2", "3"], [2]),
            ('1,"never', [], [2]),
            ('1,"never\n2,"also never\n3,c\n', ["3"], [2, 3]),
            ('1,"a\nb"\n2,"c""d"\n', ["1", "2"], []),
            ('1,"Dear all\nsee you, Bob"x\n2,c\n', ["2"], [2, 3]),  # line 3 is the end of a cell, no row
            ('1,"open\n2,"x ""y"""\n3,5" disk\n', ["2", "3"], [2]),
            ('1,5" disk\n2,say "hi"\n', ["1", "2"], []),
            ('1,"a\n\nb",x\n2,c\n', ["2"], [2]),  # a row of three lines with a cell too many is one row
        ],
    )
    def test_which_rows_are_skipped(
        self, tmp_path: Path, rows: str, ids: list[str], lines: list[int]
    ) -> None:
        documents, letters = read(write(tmp_path / "q.csv", "id,text\n" + rows))
        assert [document.id for document in documents] == ids
        assert [letter.line for letter in letters] == lines

    def test_tsv_has_no_quoting(self, tmp_path: Path) -> None:
        path = write(tmp_path / "q.tsv", 'id\ttext\n1\t"Hello, he said\n2\t"quoted"\n3\ta ""b\r\n')
        assert texts(path) == {"1": '"Hello, he said', "2": '"quoted"', "3": 'a ""b'}

    def test_tsv_with_a_delimiter_may_be_quoted(self, tmp_path: Path) -> None:
        path = write(tmp_path / "q.tsv", 'id\ttext\n1\t"two\nlines"\n')
        assert texts(path, options=ReadOptions(delimiter="\t")) == {"1": "two\nlines"}

    def test_a_quote_that_is_never_closed_is_not_read_to_the_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(csv_rows, "MAX_ROW_CHARACTERS", 100_000)
        path = tmp_path / "big.csv"
        with path.open("w") as file:
            file.write('id,text\nx,"open\n')
            file.writelines(f"{number},{'word ' * 20}\n" for number in range(60_000))
        tracemalloc.start()
        letters = []
        count = sum(
            1 for _ in read_documents([path], on_dead_letter=lambda _, letter: letters.append(letter))
        )
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (count, [letter.line for letter in letters]) == (60_000, [2])
        assert peak_bytes < path.stat().st_size / 5

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(
        rows=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), max_size=8),
        delimiter=st.sampled_from(",;\t"),
        end=st.sampled_from(["\n", "\r\n"]),
    )
    def test_what_is_written_is_read(self, tmp_path: Path, rows: list[str], delimiter: str, end: str) -> None:
        file = io.StringIO()
        writer = csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
        writer.writerows([["id", "text"], *([str(number), text] for number, text in enumerate(rows))])
        assert list(texts(write(tmp_path / "t.csv", file.getvalue())).values()) == rows


class TestHeaders:
    def test_columns_without_a_name(self, tmp_path: Path) -> None:
        documents, letters = read(
            write(tmp_path / "t.csv", "id,text,,\n1,a,,\n2,b\n3,c,x,\n4\n5,e,,,,\n6,f,,,,g\n")
        )
        assert [(d.id, d.text, d.metadata) for d in documents] == [
            ("1", "a", {}),
            ("2", "b", {}),
            ("3", "c", {"column_3": "x"}),
            ("5", "e", {}),
        ]
        assert [(letter.line, letter.reason) for letter in letters] == [
            (5, "1 cells, but the header has 4"),
            (7, "6 cells, but the header has 4"),
        ]

    def test_the_index_column_of_a_data_frame(self, tmp_path: Path) -> None:
        assert metadata(write(tmp_path / "t.csv", ",id,text\n0,a,x\n1,b,y\n")) == [
            {"column_1": 0},
            {"column_1": 1},
        ]

    @pytest.mark.parametrize(
        "content",
        [
            "id;text\n1;a,b\n",
            "sep=;\nid;text\n1;a,b\n",
            '"sep=;"\r\nid;text\r\n1;a,b\r\n',
            "SEP=|\nid|text\n1|a,b\n",
            "\n\nid\ttext\n1\ta,b\n",
            '"id","text"\n"1","a,b"\n',
        ],
    )
    def test_delimiters(self, tmp_path: Path, content: str) -> None:
        assert texts(write(tmp_path / "t.csv", content)) == {"1": "a,b"}

    def test_line_numbers_count_the_line_of_the_delimiter(self, tmp_path: Path) -> None:
        documents, (letter,) = read(write(tmp_path / "t.csv", "sep=;\nid;text\n1\n2;b\n"))
        assert (letter.line, [d.id for d in documents]) == (3, ["2"])

    def test_a_named_delimiter(self, tmp_path: Path) -> None:
        path = write(tmp_path / "t.csv", "id|text\n1|a,b\n")
        assert texts(path, options=ReadOptions(delimiter="|")) == {"1": "a,b"}
        with pytest.raises(InvalidInput, match="not a single character"):
            ReadOptions(delimiter="||")

    def test_a_header_without_the_text_names_its_columns(self, tmp_path: Path) -> None:
        _, (letter,) = read(write(tmp_path / "t.csv", "id;body\n1;a\n"))
        assert letter.reason == "no column 'text', only ['id', 'body']: choose the text column with --text"
        _, (letter,) = read(write(tmp_path / "u.csv", 'id,"text\n1,a\n'))
        assert "header" in letter.reason


class TestTypes:
    @pytest.mark.parametrize(
        ("cells", "values"),
        [
            (["10115", "99"], [10115, 99]),
            (["01067", "10115"], ["01067", "10115"]),
            (["1.9", "1.10"], ["1.9", "1.10"]),
            (["1.9", "2"], [1.9, 2.0]),
            (["-3", "0"], [-3, 0]),
            (["1e-05", "0.5"], [1e-05, 0.5]),
            (["1e5", "2"], ["1e5", "2"]),
            (["1", "x"], ["1", "x"]),
            ([" 1", "2"], [" 1", "2"]),
            (["1,5", "2"], ["1,5", "2"]),
            (["nan", "1.5"], ["nan", "1.5"]),
            (["inf", "1"], ["inf", "1"]),
            (["true", "1"], ["true", "1"]),
            (["+1", "2"], ["+1", "2"]),
            (["-0", "2"], ["-0", "2"]),
            (["١", "2"], ["١", "2"]),
            (["9007199254740992", "1"], [2**53, 1]),
            (["9007199254740993", "1"], ["9007199254740993", "1"]),
            (["1768907725507217522", "7"], ["1768907725507217522", "7"]),
            (["9" * 400, "1"], ["9" * 400, "1"]),
            (["0.1234567890123456789", "1"], ["0.1234567890123456789", "1"]),
        ],
    )
    def test_a_column_is_of_one_type(self, tmp_path: Path, cells: list[str], values: list[Any]) -> None:
        for order in (1, -1):
            file = io.StringIO()
            csv.writer(file).writerows([["text", "v"], *(["t", cell] for cell in cells[::order]), ["t", ""]])
            found = metadata(write(tmp_path / "t.csv", file.getvalue()))
            assert found == [*({"v": value} for value in values[::order]), {}]
            assert [type(row["v"]) for row in found[:-1]] == [type(value) for value in values[::order]]

    def test_a_column_is_of_one_type_in_all_files(self, tmp_path: Path) -> None:
        write(tmp_path / "a.csv", "id,text,zip\n1,a,10115\n")
        write(tmp_path / "sub" / "b.tsv", "id\ttext\tzip\n2\tb\t01067\n")
        assert [d.metadata["zip"] for d in read(tmp_path)[0]] == ["10115", "01067"]

    def test_columns_of_text_and_numbers_are_named(self, tmp_path: Path) -> None:
        path = write(tmp_path / "t.csv", "text,a,b,c,d\nt,1,x,1,x\nt,n/a,2,2.5,y\nt,?,3,,\n")
        mixed: dict[str, str] = {}
        list(
            read_documents(
                [path],
                on_dead_letter=lambda *_: pytest.fail("nothing is skipped"),
                on_mixed_column=mixed.__setitem__,
            )
        )
        assert mixed == {"a": "n/a", "b": "x"}

    def test_a_skipped_row_does_not_affect_column_types(self, tmp_path: Path) -> None:
        documents, letters = read(write(tmp_path / "t.csv", "id,text,v\n1,a,5\n2,b,x,too many\n"))
        assert ([d.metadata for d in documents], len(letters)) == ([{"v": 5}], 1)

    def test_ids_and_texts_are_text(self, tmp_path: Path) -> None:
        path = write(tmp_path / "t.csv", "key,body,id\n07,1,3\n")
        (document,), _ = read(path, fields=Fields("body", "key"))
        assert (document.id, document.text, document.metadata) == ("07", "1", {"id": 3})

    def test_a_file_that_changes_between_the_two_readings(self, tmp_path: Path) -> None:
        path = write(tmp_path / "t.csv", "id,text,v\n1,a,5\n")
        documents = read_documents(
            [path],
            on_dead_letter=lambda *_: None,
            on_source=lambda _: path.write_text("id,text,v,w\n1,a,x,7\n") and None,
        )
        assert [document.metadata for document in documents] == [{"v": "x", "w": "7"}]
