"""Files of training pairs: every encoding is read or refused by file and line, and FlagEmbedding's form is read."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_worlds import CONFIG

from m3_connectors.errors import InvalidInput
from m3_connectors.training.config import TrainingConfig
from m3_connectors.training.pairs import UNDETERMINED, Pair, read_lines, read_pairs
from m3_connectors.training.trainer import Trainer


def line(query: str, positive: str, *, ascii: bool = False) -> str:
    pair = {"query": query, "positive": positive, "lang_q": "fr", "lang_p": "fr"}
    return json.dumps(pair, ensure_ascii=ascii) + "\n"


def fields(pairs: list[Pair]) -> list[tuple[str, ...]]:
    return [(pair.source, pair.query, pair.positive, pair.lang_q, pair.lang_p) for pair in pairs]


LINES = line("où ?", "la forêt") + line("quand ?", "l’été")


def refusal(folder: Path) -> list[str]:
    """The message about a broken line, or about a folder that cannot be used."""
    try:
        return next(line.broken for line in read_lines(folder) if line.broken).splitlines()
    except InvalidInput as error:
        return str(error).splitlines()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom", "utf-16-be-bom"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_encodings_with_a_mark_are_read_and_blank_lines_skipped(
    tmp_path: Path, encoding: str, packed: bool, ending: str
) -> None:
    text = ("\n \n" + LINES + "\n\t\n").replace("\n", ending)
    if encoding.endswith("-bom"):
        content = ("\ufeff" + text).encode(encoding.removesuffix("-bom"))
    else:
        content = text.encode(encoding)
    (tmp_path / f"qa.jsonl{'.gz' if packed else ''}").write_bytes(
        gzip.compress(content) if packed else content
    )
    pairs = list(read_pairs(tmp_path))
    assert fields(pairs) == [("qa", "où ?", "la forêt", "fr", "fr"), ("qa", "quand ?", "l’été", "fr", "fr")]


@given(
    st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), max_size=20),
    st.sampled_from(["utf-8", "utf-16"]),
)
def test_every_pair_of_texts_is_read_back(texts: list[tuple[str, str]], encoding: str) -> None:
    texts = [(query, positive) for query, positive in texts if query.strip() and positive.strip()]
    with tempfile.TemporaryDirectory() as name:
        content = "".join(line(query, positive) + "\n" for query, positive in [*texts, ("last", "one")])
        (Path(name) / "x.jsonl").write_bytes(content.encode(encoding))
        read = [(pair.query, pair.positive) for pair in read_pairs(Path(name))]
    assert read == [*texts, ("last", "one")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LINES.encode() + line("où ?", "été").encode("latin-1"), "qa.jsonl:3 is not UTF-8 at byte"),
        (LINES.encode("utf-16-le"), "qa.jsonl:1"),
        (LINES.encode("utf-16")[:-3], "qa.jsonl:2 or shortly after it is not UTF-16"),
        (LINES.encode() + b'{"query": "a\xff', "qa.jsonl:3 is not UTF-8"),
        (
            LINES.encode() + line("\ud800", "b", ascii=True).encode(),
            "qa.jsonl:3: query has a lone surrogate U+D800",
        ),
        (
            LINES.encode() + line("a", "b\udfff", ascii=True).encode(),
            "positive has a lone surrogate U+DFFF at character 2",
        ),
        (b"\n\n{\n", "qa.jsonl:3 is not a training pair: not JSON"),
        (
            b"[" * 100_000,
            "qa.jsonl:1 is not a training pair: not readable JSON: nested too deeply, or a number is too long",
        ),
        (b"1" * 5000, "qa.jsonl:1 is not a training pair"),
        (b"null", "qa.jsonl:1 is not a training pair: a JSON null"),
        (b'{"positive": "a", "lang_q": "x", "lang_p": "x"}', "it lacks 'query'"),
        (b'{"query": "a", "lang_q": "x", "lang_p": "x"}', "it lacks 'positive'"),
        (b'{"query": "a", "positive": "b", "lang_p": "x"}', "it lacks 'lang_q'"),
        (b'{"query": " ", "positive": "b", "lang_q": "x", "lang_p": "x"}', "query is ' '"),
        (b'{"query": "a", "pos": []}', "pos is []"),
        (b'{"query": "a", "pos": "text"}', "pos is 'text'"),
        (b'{"query": "a", "pos": ["b", 3]}', "pos[1] is 3"),
        (b'{"pos": ["b"]}', "it lacks 'query'"),
        (b"", "has only empty files: qa.jsonl"),
        (b"\n\n", "has only empty files: qa.jsonl"),
    ],
)
def test_an_invalid_pair_is_named_with_file_and_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "qa.jsonl").write_bytes(content)
    first, *rest = refusal(tmp_path)
    assert said in first
    assert rest
    assert rest[0].startswith("  ")


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    packed = gzip.compress(LINES.encode() * 500)
    (tmp_path / "qa.jsonl.gz").write_bytes(packed[:-20])
    assert "qa.jsonl.gz cannot be decompressed after line" in refusal(tmp_path)[0]
    (tmp_path / "qa.jsonl.gz").write_bytes(LINES.encode())
    assert "qa.jsonl.gz cannot be decompressed after line 0" in refusal(tmp_path)[0]


def test_a_folder_named_like_a_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").mkdir()
    assert "contains no *.jsonl" in refusal(tmp_path)[0]


def test_flagembeddings_files_give_a_pair_for_each_positive(tmp_path: Path) -> None:
    rows = [
        {
            "query": "q1",
            "pos": ["p1", "p2", "p1"],
            "neg": ["n1"],
            "prompt": "",
            "pos_scores": [1.0, 0.9, 1.0],
        },
        {"query": "q2", "pos": ["p3"], "lang_q": "de", "lang_p": "en"},
    ]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + line("q3", "p4"))
    assert fields(list(read_pairs(tmp_path))) == [
        ("mixed", "q1", "p1", UNDETERMINED, UNDETERMINED),
        ("mixed", "q1", "p2", UNDETERMINED, UNDETERMINED),
        ("mixed", "q2", "p3", "de", "en"),
        ("mixed", "q3", "p4", "fr", "fr"),
    ]


def test_flagembeddings_files_are_trained_on_and_what_is_not_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    words = [f"{a}{b}" for a in ("ba", "de", "fi", "go") for b in ("ran", "sil", "tor", "mek")]
    with (tmp_path / "pairs" / "qa.jsonl").open("w") as file:
        for i in range(80):
            row = {
                "query": f"{words[i % 16]} {words[i // 5]}?",
                "pos": [f"{words[i // 5]} number {i} {words[i % 7]}"],
            }
            row |= {"neg": ["another"]} if i < 30 else {}
            row |= {"neg_scores": [0.5], "prompt": "Find it"} if i < 2 else {}
            file.write(json.dumps(row) + "\n")
    (tmp_path / "tiny.toml").write_text(CONFIG.replace("[tune_importance]\nqa = 1.0", ""))
    config = TrainingConfig.load(tmp_path / "tiny.toml")
    for _ in range(2):  # the second time from the cache
        records: list[dict[str, object]] = []
        Trainer(config, tmp_path / "pairs", tmp_path / "work", records.append).run(steps=1)
        said = [str(record["message"]) for record in records if record.get("event") == "warning"]
        assert not [message for message in said if message.startswith("neg in")]
        assert "neg_scores in 2 lines of the training pairs is not used." in said  # without pos_scores
        assert "prompt in 2 lines of the training pairs is not used." in said
