"""Files with known content for the readers, from a seed: each text of a file must be read unchanged or skipped by line.

``python tests/reader_files.py 20000`` writes and reads this many files and prints how many texts were written and read.
"""

from __future__ import annotations

import argparse
import collections
import csv
import dataclasses
import gzip
import html
import io
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docx
import pyarrow as pa
from backports import zstd
from pyarrow import parquet
from reportlab.pdfgen import canvas

from m3_connectors.documents import Document
from m3_connectors.readers import DeadLetter, ReadOptions, read_documents

_WORDS = [
    *(
        "rain",
        "login",
        "timeout",
        "naïve",
        "Straße",
        "日本語",
        "текст",
        "ελληνικά",
        "مرحبا",
        "🙂",
        "e\u0301",
        "a b",
    ),
    *("5\u201d", "1,5", "x;y", "50 %", "--", "#no", "- item", "ok.", "<b>", "&amp;"),
    *("a\u2028b", "c\x85d", "\ufeffmark"),  # no line ends, and no byte order mark inside a text
]
_LATIN = [
    "rain",
    "login",
    "naïve",
    "Straße",
    "café",
    "été",
    "timeout",
    "über",
    "señor",
    "5 €",
    "it\u2019s",
    "done.",
]
_CHARSETS = {
    "utf-8": "utf-8",
    "iso-8859-1": "cp1252",
    "ascii": "cp1252",
    "windows-1252": "cp1252",
    "latin1": "cp1252",
    "utf-16": "utf-8",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc-kr": "cp949",
    "koi8-r": "koi8-r",
    "windows-1251": "cp1251",
    "x-sjis": "cp932",
    "big5": "big5hkscs",
    "no-such": "utf-8",
    "undefined": "cp1252",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A file, the options to read it, and the expected result.

    Attributes:
        name: The name of the file.
        content: The bytes of the file.
        texts: The texts that must be stored, in order.
        skipped: The lines that must be skipped; None for the complete file.
        options: The options to read it.
        metadata: The metadata of each text, if known.
        cut: Whether the compressed file is truncated: the first texts are read, and one is skipped.
    """

    name: str
    content: bytes
    texts: list[str]
    skipped: list[int | None] = dataclasses.field(default_factory=list)
    options: ReadOptions = dataclasses.field(default_factory=ReadOptions)
    metadata: list[dict[str, Any]] | None = None
    cut: bool = False


def make(seed: int) -> Case:
    """Return the file of a seed."""
    pick = random.Random(seed)
    return pick.choice(_KINDS)(pick)


def read(case: Case, folder: Path) -> tuple[list[Document], list[DeadLetter]]:
    """Return what the readers find in the file of a case."""
    path = folder / case.name
    path.write_bytes(case.content)
    letters: list[DeadLetter] = []
    documents = read_documents(
        [path], options=case.options, on_dead_letter=lambda _, letter: letters.append(letter)
    )
    found = list(documents)
    path.unlink()
    return found, letters


def check(case: Case, documents: list[Document], letters: list[DeadLetter]) -> None:
    """Check that every text is read unchanged or reported as skipped, and that nothing else is read."""
    texts = [document.text for document in documents]
    lines = [letter.line for letter in letters]
    if case.cut:
        assert texts == case.texts[: len(texts)], (case, texts)
        assert lines, (case, letters)
        return
    assert texts == case.texts, (case, texts, letters)
    assert lines == case.skipped, (case, letters)
    if case.metadata is not None:
        assert [dict(document.metadata) for document in documents] == case.metadata, (case, documents)
        assert [str(dict(document.metadata)) for document in documents] == list(map(str, case.metadata))


def _text(pick: random.Random, words: list[str] | None = None) -> str:
    return " ".join(pick.choices(words or _WORDS, k=pick.randint(1, 8)))


def _packed(pick: random.Random, stem: str, ending: str, content: bytes) -> tuple[str, bytes]:
    """Return a name in lower or upper case, compressed or not."""
    name, packing = stem + ending, pick.random()
    if packing < 0.1:
        name, content = name + ".gz", gzip.compress(content, 1)
    elif packing < 0.2:
        name, content = name + ".zst", zstd.compress(content, 1)
    return (name.upper() if pick.random() < 0.2 else name), content


def _encoded(pick: random.Random, text: str) -> tuple[bytes, ReadOptions]:
    """Encode a text in one of the encodings that can be detected."""
    kind = pick.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "named"])
    if kind == "named":
        return text.encode("gb18030"), ReadOptions(encoding="gb18030")
    if kind == "utf-16-le":
        return text.encode(kind), ReadOptions(encoding="utf-16")
    return text.encode(kind), ReadOptions()


def _csv(pick: random.Random) -> Case:
    delimiter, end = pick.choice([",", ";", "\t", "|"]), pick.choice(["\n", "\r\n", "\r"])
    file = io.StringIO()
    # The csv module does not quote cells with a line feed if rows end with another line end.
    quoting = csv.QUOTE_ALL if end == "\r" else pick.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    writer = csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=quoting)
    texts: list[str] = []
    metadata: list[dict[str, Any]] = []
    skipped: list[int | None] = []
    empty = pick.randint(0, 2)
    whole, zero = pick.random() < 0.5, pick.random() < 0.5
    if end != "\r" and delimiter in ",;" and pick.random() < 0.3:
        file.write(f"sep={delimiter}{end}")
    csv.writer(file, delimiter=delimiter, lineterminator=end).writerow(
        ["id", "text", "n", "zip", *[""] * empty]
    )

    def line() -> int:
        value = file.getvalue()
        return value.count("\n") + value.replace("\r\n", "").count("\r") + 1

    n_type = "int" if whole else "float"
    for number in range(pick.randint(1, 12)):
        wrong = pick.random()
        if wrong < 0.08:
            skipped.append(line())
            file.write(
                f"{number}{delimiter}too{delimiter}many{delimiter}1{delimiter}{delimiter}{delimiter}x{end}"
            )
        elif wrong < 0.16:
            skipped.append(line())
            file.write(f'{number}{delimiter}"closed" early{delimiter}1{delimiter}{end}')
        elif wrong < 0.24:
            # The next quote is followed by a letter, so it does not close the cell.
            skipped.append(line())
            file.write(f'{number}{delimiter}"never closed{delimiter}1{delimiter}{end}')
            file.write(f'x{number}{delimiter}"b"{delimiter}{delimiter}{end}')
            texts.append("b")
            metadata.append({})
        else:
            text = _text(pick) + pick.choice(
                ["", "", " ", '"', "\nnext line", "\r\nnext", delimiter, '""', "\t"]
            )
            n = str(pick.randint(-99, 99)) if whole else pick.choice(["1.5", "2", "-0.25", "1e-05"])
            zip = pick.choice(["10115", "01067"]) if zero else "10115"
            writer.writerow([f"'{number}", "T" + text, n, zip, *[""] * empty])
            texts.append("T" + text)
            metadata.append({"n": n, "zip": zip})
    seen_n = [row["n"] for row in metadata if "n" in row]
    zips_are_text = any(row.get("zip") == "01067" for row in metadata)
    n_type = "int" if whole or set(seen_n) <= {"2"} else "float"
    for row in metadata:
        if "n" in row:
            row["n"] = int(row["n"]) if n_type == "int" else float(row["n"])
            row["zip"] = row["zip"] if zips_are_text else int(row["zip"])
    content, options = _encoded(pick, file.getvalue())
    if delimiter == "|":
        options = dataclasses.replace(options, delimiter="|")
    name, content = _packed(pick, "table", ".csv", content)
    return Case(name, content, texts, skipped, options, metadata)


def _tsv(pick: random.Random) -> Case:
    end = pick.choice(["\n", "\r\n"])
    rows, texts = ["id\ttext"], []
    skipped: list[int | None] = []
    for number in range(pick.randint(1, 12)):
        text = pick.choice(["", '"', '""', "'", ","]) + _text(pick) + pick.choice(["", '"', ",", " "])
        if pick.random() < 0.1:
            skipped.append(len(rows) + 1)
            rows.append(f"{number}\t{text}\tone too many")
        else:
            rows.append(f"{number}\t{text}")
            texts.append(text)
    content, options = _encoded(pick, end.join(rows) + pick.choice(["", end]))
    name, content = _packed(pick, "table", ".tsv", content)
    return Case(name, content, texts, skipped, options)


_BAD_LINES = [
    "{broken",
    "[1]",
    "null",
    '{"id": "a"}',
    '{"id": "a", "text": 3}',
    '{"id": "a", "text": "t", "v": NaN}',
    '{"id": "a", "text": "t", "text": "u"}',
    '{"id": "a", "text": "\\ud800"}',
    '{"id": true, "text": "t"}',
    "[" * 5000,
    '{"text": "t", "v": ' + "9" * 5000 + "}",
]


def _jsonl(pick: random.Random) -> Case:
    lines: list[str] = []
    texts: list[str] = []
    skipped: list[int | None] = []
    for number in range(pick.randint(1, 15)):
        if pick.random() < 0.1:
            lines.append(pick.choice(["", "  ", "\r"]))
        elif pick.random() < 0.25:
            lines.append(pick.choice(_BAD_LINES))
            skipped.append(len(lines))
        else:
            text = _text(pick) + pick.choice(["", "\n", "\t", "\r\n", "\0"])
            record = (
                {"text": text, "v": number} if pick.random() < 0.3 else {"id": f"r{number}", "text": text}
            )
            lines.append(json.dumps(record, ensure_ascii=pick.random() < 0.5))
            texts.append(text)
    joined = "\n".join(lines) + pick.choice(["", "\n"])
    if pick.random() < 0.2:  # a byte that is not valid in the encoding
        lines.append("")
        raw = joined.rstrip("\n").encode() + b'\n{"id": "z", "text": "\xff"}\n{"id": "y", "text": "end"}'
        last = joined.rstrip("\n").count("\n") + 2
        case = Case("lines.jsonl", raw, [*texts, "end"], [*skipped, last])
        return case if joined.strip("\n") == joined.rstrip("\n") else _jsonl(pick)
    content, options = _encoded(pick, joined)
    if not texts or lines[0] != lines[0].lstrip() or not lines[0]:
        content, options = joined.encode(), ReadOptions()
    name, content = _packed(pick, "lines", pick.choice([".jsonl", ".ndjson"]), content)
    return Case(name, content, texts, skipped, options)


def _json(pick: random.Random) -> Case:
    records: list[Any] = []
    texts: list[str] = []
    bad = 0
    for _ in range(pick.randint(1, 12)):
        if pick.random() < 0.2:
            records.append(pick.choice([1, None, "text", {"id": "x"}, ["a"], {"text": 5}]))
            bad += 1
        else:
            texts.append(_text(pick) + pick.choice(["", "\n", "]", "}", '"', "\\"]))
            records.append({"text": texts[-1], "nested": {"a": [1, {"b": "]"}]}})
    indent = pick.choice([None, 2])
    text = json.dumps(records, ensure_ascii=pick.random() < 0.5, indent=indent)
    if indent is None:
        skipped: list[int | None] = [1] * bad
    else:
        lines, skipped = 2, []
        for record in records:
            if not (isinstance(record, dict) and isinstance(record.get("text"), str)):
                skipped.append(lines)
            lines += json.dumps(record, indent=2).count("\n") + 1
    content, options = _encoded(pick, text)
    name, content = _packed(pick, "array", ".json", content)
    return Case(name, content, texts, skipped, options)


def _blocks(pick: random.Random, words: list[str]) -> list[str]:
    return [" ".join(_text(pick, words).split()) for _ in range(pick.randint(1, 6))]


def _html(pick: random.Random) -> Case:
    label = pick.choice(list(_CHARSETS))
    codec = _CHARSETS[label]
    words = _LATIN if codec == "cp1252" else [w for w in _WORDS if _fits(w, codec) and w.isprintable()]
    title, blocks = " ".join(_text(pick, words).split()), _blocks(pick, words)
    noise = [
        "<!-- <p>hidden -->",
        "<script>if (a < b) '<p>no'</script>",
        "<style>p{}</style>",
        "<svg><title>i</title></svg>",
    ]
    body = ""
    lines = [title]
    for block in blocks:
        tag = pick.choice(["p", "li", "h1", "div", "td", "blockquote"])
        lines.append(f"# {block}" if tag == "h1" else block)
        shown = html.escape(block, quote=pick.random() < 0.5)
        if pick.random() < 0.3:
            shown = shown.replace(" ", pick.choice(["  ", "\n", "&nbsp;", " <b></b>"]))
        close = f"</{tag}>" if tag in ("div", "h1", "blockquote", "td") or pick.random() < 0.5 else ""
        row = f"<table><tr><td>{shown}</table>" if tag == "td" else f"<{tag}>{shown}{close}"
        body += row + pick.choice(["", "\n", *noise])
        if not close and pick.random() < 0.3:
            body += "<p></p>"
    content_type = f'<meta http-equiv="Content-Type" content="text/html; charset={label}">'
    declared = pick.choice([f'<meta charset="{label}">', f"<META CHARSET={label}>", content_type])
    head = f"<!-- <meta charset=koi8-u> -->{declared}<title>{html.escape(title)}</title>"
    page = pick.choice(
        [
            f"<!doctype html><html><head>{head}</head><body>{body}</body></html>",
            f"<!doctype html><html><head>{head}{body}",
            f"{head}{body}",
            f"<html>{head}<body>{body}",
        ]
    )
    name, content = _packed(pick, "page", pick.choice([".html", ".htm"]), page.encode(codec))
    return Case(name, content, ["\n".join(lines)])


def _xhtml(pick: random.Random) -> Case:
    blocks = _blocks(pick, [word for word in _WORDS if word.isprintable()])
    body = "".join(f"<p>{html.escape(block)}</p><script src='x'/>" for block in blocks)
    page = f'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title/></head><body>{body}</body></html>'
    if pick.random() < 0.2:
        return Case("page.xhtml", page.replace("</p>", "", 1).encode(), [], [None])
    name, content = _packed(pick, "page", ".xhtml", page.encode())
    return Case(name, content, ["\n".join(blocks)])


def _fits(word: str, codec: str) -> bool:
    try:
        return word.encode(codec).decode(codec) == word
    except UnicodeError:
        return False


def _markdown(pick: random.Random) -> Case:
    text = "# " + "\n\n".join(_text(pick) for _ in range(pick.randint(1, 5))) + pick.choice(["", "\n"])
    before, expected = pick.choice(
        [
            ("", ""),
            ("---\ntitle: A note\ntags: [x, y]\n---\n\n", "A note\n"),
            ("---\ntags:\n  - x\ndate: 2024-13-45\n---\n", ""),
            ("---\nNote: approved.\n\nLong section.\n\n## Steps\n\n---\n\n", None),
            ("---\nA rule, and text.\n\n---\n\n", None),
            ("---\n- a\n- b\n---\n", None),
            ("---\ntitle: never closed\n", None),
            ("----\ntitle: not three\n----\n", None),
            ('---\ntitle: "unclosed\n---\n', None),
        ]
    )
    content, options = _encoded(pick, before + text)
    name, content = _packed(pick, "note", pick.choice([".md", ".markdown"]), content)
    return Case(name, content, [before + text if expected is None else expected + text], options=options)


def _plain(pick: random.Random) -> Case:
    text = "P" + _text(pick) + pick.choice(["", "\n", "\r\n", "  "])
    wrong = pick.random()
    if wrong < 0.1:
        return Case("a.txt", "café".encode("latin-1"), [], [None])
    if wrong < 0.2:
        return Case("a", bytes([0, 1, 2, 255]), [], [None])
    if wrong < 0.25:
        return Case("a.txt", b" \n", [], [None])
    if wrong < 0.3:
        return Case("a.txt.gz", b"no gzip", [], [None])
    content, options = _encoded(pick, text)
    name, content = _packed(pick, "file", pick.choice([".txt", ".rst", ""]), content)
    return Case(name, content, [text], options=options)


def _table_file(pick: random.Random) -> Case:
    rows = [None if pick.random() < 0.1 else _text(pick) for _ in range(pick.randint(1, 30))]
    table = pa.table(
        {
            "text": pa.array(rows, pa.string()),
            "n": pa.array(range(len(rows)), pa.int32()),
            "tags": [["a", "b"]] * len(rows),
        }
    )
    file, few = io.BytesIO(), pick.randint(1, 12)
    ending = pick.choice([".parquet", ".arrow", ".feather"])
    if ending == ".parquet":
        compression = pick.choice(["none", "snappy", "zstd", "gzip"])
        parquet.write_table(table, file, row_group_size=few, compression=compression)
    else:
        writer = pa.ipc.new_file if ending == ".feather" else pa.ipc.new_stream
        with writer(file, table.schema) as sink:
            sink.write_table(table, max_chunksize=few)
    name, content = _packed(pick, "rows", ending, file.getvalue())
    metadata = [{"n": n, "tags": ["a", "b"]} for n, text in enumerate(rows) if text is not None]
    skipped: list[int | None] = [line for line, text in enumerate(rows, 1) if text is None]
    return Case(name, content, [text for text in rows if text is not None], skipped, metadata=metadata)


def _pdf(pick: random.Random) -> Case:
    words = [word for word in _LATIN if word.isascii()]
    pages = ["" if pick.random() < 0.1 else _text(pick, words) for _ in range(pick.randint(1, 6))]
    file = io.BytesIO()
    sheet = canvas.Canvas(file, pageCompression=pick.randint(0, 1))
    for page in pages:
        sheet.drawString(72, 700, page)
        sheet.showPage()
    sheet.save()
    skipped: list[int | None] = [number for number, page in enumerate(pages, 1) if not page]
    name, content = _packed(pick, "pages", ".pdf", file.getvalue())
    return Case(name, content, list(filter(None, pages)), skipped if any(pages) else [None])


def _docx(pick: random.Random) -> Case:
    document, lines = docx.Document(), []
    for _ in range(pick.randint(1, 6)):
        text, kind = " ".join(_text(pick).split()), pick.random()
        if kind < 0.2:
            level = pick.randint(1, 6)
            document.add_heading(text, level)
            text = f"{'#' * level} {text}"
        elif kind < 0.4:
            row = document.add_table(1, 2).rows[0]
            row.cells[0].text, row.cells[1].text = "cell", text
            text = f"cell | {text}"
        else:
            document.add_paragraph(text)
        lines.append(text)
    file = io.BytesIO()
    document.save(file)
    name, content = _packed(pick, "word", ".docx", file.getvalue())
    return Case(name, content, ["\n".join(lines)])


def _cut(pick: random.Random) -> Case:
    texts = [f"{_text(pick)} {pick.random()}" for _ in range(pick.randint(1, 400))]
    ending, compress = pick.choice([(".gz", gzip.compress), (".zst", zstd.compress)])
    whole = compress("\n".join(json.dumps({"text": text}) for text in texts).encode())
    return Case(f"lines.jsonl{ending}", whole[: pick.randint(1, len(whole) - 1)], texts, cut=True)


def _cut_rows(pick: random.Random) -> Case:
    whole = _table_file(pick)
    return dataclasses.replace(
        whole,
        content=whole.content[: pick.randint(1, len(whole.content) - 1)],
        skipped=[],
        metadata=None,
        cut=True,
    )


_KINDS: list[Callable[[random.Random], Case]] = [
    _csv,
    _csv,
    _tsv,
    _jsonl,
    _jsonl,
    _json,
    _html,
    _html,
    _xhtml,
    _markdown,
    _plain,
    _table_file,
    _pdf,
    _docx,
    _cut,
    _cut_rows,
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=int)
    parser.add_argument("--seed", type=int, default=0, help="of the first file")
    arguments = parser.parse_args()
    started = time.monotonic()
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seed, arguments.seed + arguments.files):
            case = make(seed)
            documents, letters = read(case, Path(folder))
            check(case, documents, letters)
            kind = Path(case.name.lower().removesuffix(".gz").removesuffix(".zst")).suffix or "no ending"
            kind = f"{kind} cut" if case.cut else kind
            counts[kind] += collections.Counter(
                files=1,
                texts=len(case.texts) + len(case.skipped),
                stored=len(documents),
                skipped=len(letters),
            )
    whole = [count for kind, count in counts.items() if not kind.endswith(" cut")]
    total: collections.Counter[str] = sum(whole, collections.Counter())
    assert total["texts"] == total["stored"] + total["skipped"]
    for kind, count in [*sorted(counts.items()), ("all uncut", total)]:
        print(
            f"{kind:12}",
            "  ".join(f"{name} {count[name]:7,}" for name in ("files", "texts", "stored", "skipped")),
        )
    print(
        f"{time.monotonic() - started:.0f} s, seeds {arguments.seed} to {arguments.seed + arguments.files - 1}"
    )


if __name__ == "__main__":
    main()
