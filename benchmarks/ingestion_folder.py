"""Make a folder of PDF, DOCX, HTML and Markdown files with real tools, ingest it, and search for facts on their pages.

    python benchmarks/ingestion_folder.py --model models/m3-tiny
    python benchmarks/ingestion_folder.py --keep ./folder       # keep the files

The files are made with reportlab, pandoc and LibreOffice (those of them that are installed are named in the output).
Each has facts whose numbers occur nowhere else. Some files are damaged, encrypted, scanned or empty. The output shows
what became of each file, and for each fact whether the best hit of ``m3 search`` names its file and page.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fixtures import PACKAGES, RESULTS
from ingesting import Row, Rows, ids_of, read_rows, table

from m3_connectors import M3Encoder, connect
from m3_connectors.environment import describe, environment

PDFS = 20
_TOPICS = {
    "pumps": "The cooling pump in hall {n} is serviced every {k} weeks",
    "library": "The manuscript of the {n}th abbot has {k} coloured drawings",
    "harbour": "The ferry to island {n} leaves from pier {k} on weekdays",
    "kitchen": "Recipe {n} of the bakery needs {k} grams of roasted hazelnuts",
    "archive": "Box {n} of the city archive contains {k} letters about the flood",
    "orchard": "Row {n} of the orchard has {k} apple trees of an old variety",
    "network": "Switch {n} in the server room drops packets after {k} hours of full load",
    "museum": "Showcase {n} of the museum displays {k} coins from the copper age",
}
_FILLER = (
    "This section was written for the yearly report. It repeats what was agreed before, and names who is responsible. "
    "Questions are answered by the office on the ground floor. "
)


@dataclasses.dataclass(frozen=True)
class Fact:
    """A sentence that one page of one file has."""

    file: str
    page: int | None
    text: str


@dataclasses.dataclass
class Folder:
    """The files that were made."""

    path: Path
    rng: random.Random
    facts: list[Fact] = dataclasses.field(default_factory=list)
    made_with: dict[str, str] = dataclasses.field(default_factory=dict)
    expected_to_fail: dict[str, str] = dataclasses.field(default_factory=dict)
    _used: set[int] = dataclasses.field(default_factory=set)

    def fact(self, file: str, page: int | None) -> str:
        numbers = []
        while len(numbers) < 2:
            number = self.rng.randint(100, 9999)
            if number not in self._used:
                self._used.add(number)
                numbers.append(number)
        topic = self.rng.choice(list(_TOPICS.values()))
        fact = Fact(file, page, topic.format(n=numbers[0], k=numbers[1]) + ".")
        self.facts.append(fact)
        return fact.text

    def markdown(self, file: str, sections: int) -> str:
        parts = ["# Report of the year\n\n" + _FILLER]
        parts += [f"## Section {i + 1}\n\n{_FILLER}{self.fact(file, None)}\n" for i in range(sections)]
        return "\n\n".join(parts)


def make(folder: Path, seed: int) -> Folder:
    """Write all files."""
    made = Folder(folder, random.Random(seed))
    pandoc, office = shutil.which("pandoc"), shutil.which("soffice")
    for i in range(PDFS - 6):
        name = f"report-{i:02d}.pdf"
        _pdf(made, name, pages=1 + i % 4)
        made.made_with[name] = "reportlab"
    for i in range(8):
        name = f"notes-{i}.md"
        front = '---\ntitle: "Notes"\nyear: 2024\n---\n' if i % 2 else ""
        (folder / name).write_text(front + made.markdown(name, 1 + i % 3))
        made.made_with[name] = "text"
    for i in range(8):
        name = f"page-{i}.html"
        if pandoc:
            _pandoc(made.markdown(name, 2), folder / name, "--standalone", "--metadata", "title=Report")
        else:
            body = made.markdown(name, 2).replace("\n\n", "<p>")
            (folder / name).write_text(f"<html><title>Report</title><body>{body}</body></html>")
        made.made_with[name] = "pandoc" if pandoc else "text"
    for i in range(6):
        name = f"letter-{i}.docx"
        if pandoc:
            _pandoc(made.markdown(name, 2), folder / name)
        else:
            _docx(made, name)
        made.made_with[name] = "pandoc" if pandoc else "python-docx"
    _converted(made, office)
    _unreadable(made)
    return made


def _pdf(made: Folder, name: str, pages: int) -> None:
    from reportlab.lib.styles import getSampleStyleSheet
    from reportlab.platypus import PageBreak, Paragraph, SimpleDocTemplate

    style = getSampleStyleSheet()
    story: list[Any] = []
    for page in range(1, pages + 1):
        story += [
            Paragraph("Report of the year", style["Heading1"]),
            Paragraph(_FILLER * 3, style["BodyText"]),
        ]
        story += [Paragraph(made.fact(name, page), style["BodyText"]), PageBreak()]
    SimpleDocTemplate(str(made.path / name)).build(story)


def _pandoc(markdown: str, out: Path, *more: str) -> None:
    subprocess.run(["pandoc", "-f", "markdown", "-o", str(out), *more], input=markdown, text=True, check=True)


def _docx(made: Folder, name: str) -> None:
    import docx

    document = docx.Document()
    for _ in range(2):
        document.add_heading("Section")
        document.add_paragraph(_FILLER + made.fact(name, None))
    document.save(str(made.path / name))


def _converted(made: Folder, office: str | None) -> None:
    """Three PDF files of a word processor, or of reportlab if there is none."""
    for i in range(3):
        name = f"office-{i}.pdf"
        if office is None:
            _pdf(made, name, pages=2)
            made.made_with[name] = "reportlab"
            continue
        with tempfile.TemporaryDirectory() as home:
            source = Path(home) / f"office-{i}.html"
            pages = [f"<p>{_FILLER * 3}</p><p>{made.fact(name, page)}</p>" for page in (1, 2)]
            breaking = '<p style="page-break-before: always"></p>'
            source.write_text(f"<html><body>{breaking.join(pages)}</body></html>")
            command = [office, f"-env:UserInstallation=file://{home}/profile", "--headless", "--convert-to"]
            command += ["pdf:writer_web_pdf_Export", "--outdir", str(made.path), str(source)]
            subprocess.run(command, check=True, capture_output=True, timeout=180)
        made.made_with[name] = "LibreOffice"


def _unreadable(made: Folder) -> None:
    """Files from which a text cannot be read, or only a part."""
    from reportlab.pdfgen import canvas

    folder = made.path
    whole = (folder / "report-00.pdf").read_bytes()
    (folder / "damaged.pdf").write_bytes(whole[: len(whole) // 3])
    made.expected_to_fail["damaged.pdf"] = "the first third of a PDF file"
    encrypted = canvas.Canvas(str(folder / "encrypted.pdf"), encrypt="secret")
    encrypted.drawString(72, 720, "Nobody can read this without the password.")
    encrypted.save()
    made.expected_to_fail["encrypted.pdf"] = "encrypted with a password"
    scanned = canvas.Canvas(str(folder / "scanned.pdf"))
    scanned.rect(72, 72, 400, 600, fill=1)
    scanned.save()
    made.expected_to_fail["scanned.pdf"] = "a page without text"
    docx = (folder / "letter-0.docx").read_bytes()
    (folder / "damaged.docx").write_bytes(docx[: len(docx) // 2])
    made.expected_to_fail["damaged.docx"] = "the first half of a DOCX file"
    (folder / "empty.md").write_text("")
    made.expected_to_fail["empty.md"] = "an empty file"
    (folder / "binary.txt").write_bytes(bytes(range(256)) * 4)
    made.expected_to_fail["binary.txt"] = "no text"
    for name in made.expected_to_fail:
        made.made_with[name] = {".pdf": "reportlab", ".docx": "pandoc"}.get(Path(name).suffix, "text")


def m3(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state")}
    command = [sys.executable, "-m", "m3_connectors", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"m3 {' '.join(arguments)} failed with {done.returncode}: {done.stderr}")
    return done.stdout


def run(options: argparse.Namespace, rows: Rows) -> None:
    with tempfile.TemporaryDirectory(prefix="m3-folder-") as name:
        work = Path(name)
        folder = work / "files"
        folder.mkdir()
        made = make(folder, options.seed)
        tools = dict(Counter(made.made_with.values()))
        rows.write(environment(*PACKAGES, "pypdfium2", "python-docx", "reportlab", tools=tools))
        store = ["--to", "qdrant:./data"]
        model = ["--model", str(options.model.resolve())]
        said = json.loads(m3(work, "ingest", "files", *store, *model, "--chunk", options.chunk, "--json"))
        letters_of = [Path(path).name for path in said["dead_letters"]]
        rows.write({"kind": "run", **said, "dead_letters": letters_of})
        letters = [
            json.loads(line)
            for path in said["dead_letters"]
            for line in (work / path).read_text().splitlines()
        ]
        stored: dict[str, list[str]] = defaultdict(list)
        with connect(f"qdrant:{work}/data", create=False) as index:
            for id in ids_of(index):
                stored[_file_of(id)].append(id)
        for file in sorted(path.name for path in folder.iterdir()):
            reasons = [letter["reason"] for letter in letters if Path(letter["file"]).name == file]
            why = made.expected_to_fail.get(file, "")
            rows.write(
                {
                    "kind": "file",
                    "file": file,
                    "made_with": made.made_with[file],
                    "why": why,
                    "reasons": reasons,
                }
                | {
                    "chunks": len(stored[file]),
                    "documents": len({id.rpartition("#")[0] for id in stored[file]}),
                }
            )
        with connect(f"qdrant:{work}/data", encoder=M3Encoder(str(options.model)), create=False) as index:
            for fact, hits in zip(
                made.facts, index.search_many([f.text for f in made.facts], k=1), strict=True
            ):
                best = hits and {"id": hits[0].document.id, "text": hits[0].document.text}
                row = {"kind": "search", **dataclasses.asdict(fact), "hit": best or None}
                if best:
                    best["metadata"] = dict(hits[0].document.metadata)
                rows.write(row)
        on_pages = [fact for fact in made.facts if fact.page]
        for fact in on_pages[:2]:
            command = ["m3", "search", "qdrant:./data", fact.text, "-k", "1"]
            rows.write({"kind": "output", "command": command, "output": m3(work, *command[1:], *model)})
        if options.keep:
            shutil.copytree(folder, options.keep, dirs_exist_ok=True)


def _file_of(id: str) -> str:
    """Return the file of a chunk's id, such as ``report-00.pdf#2#0``."""
    return id.partition("#")[0]


def found(row: Row) -> tuple[str, int | None]:
    """Return the file and page that the best hit names."""
    hit = row["hit"]
    if hit is None:
        return "", None
    metadata = hit["metadata"]
    page = metadata.get("chunk", {}).get("page", metadata.get("page"))
    return _file_of(hit["id"]), page


def report(path: Path) -> tuple[str, bool]:
    machine, *rows = read_rows(path)
    files = [row for row in rows if row["kind"] == "file"]
    searches = [row for row in rows if row["kind"] == "search"]
    (said,) = (row for row in rows if row["kind"] == "run")
    shown = [
        [
            row["file"],
            row["made_with"],
            row["documents"],
            row["chunks"],
            "; ".join(row["reasons"]) or row["why"],
        ]
        for row in files
    ]
    silent = [row["file"] for row in files if not row["chunks"] and not row["reasons"]]
    right = [found(row) == (row["file"], row["page"]) for row in searches]
    text_found = sum(
        row["hit"] is not None and row["text"] in " ".join(row["hit"]["text"].split()) for row in searches
    )
    example = [
        [row["text"], f"{row['file']}, page {row['page']}", *found(row)] for row in searches if row["page"]
    ][:5]
    tools = ", ".join(f"{count} with {tool}" for tool, count in machine["tools"].items())
    lines = [
        f"{len(files)} files ({tools}): {said['documents']} documents, {said['chunks']} chunks, "
        f"{said['skipped']} skipped; "
        f"{len(silent)} files without a chunk and without a reason {silent or ''}; {describe(machine)}.",
        "",
        table(["file", "made with", "documents", "chunks", "reason"], shown),
        "",
        f"{len(searches)} searches for a sentence: the best hit names the file and page of {sum(right)}, and contains "
        f"the sentence in {text_found}.",
        "",
        table(["query", "where it is", "the best hit's file", "page"], example),
    ]
    wrong = [
        (row["text"], row["file"], row["page"], found(row))
        for row, ok in zip(searches, right, strict=True)
        if not ok
    ]
    lines += [f"  wrong: {one}" for one in wrong]
    for row in rows:
        if row["kind"] == "output":
            lines += ["", f"$ {shlex.join(row['command'])}", row["output"].rstrip()]
    return "\n".join(lines), not silent and not wrong


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    today = datetime.datetime.now(datetime.UTC).date()
    parser.add_argument("--model", type=Path, default=Path("models/m3-tiny"))
    parser.add_argument("--chunk", default="headings:256")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="copy the files into this folder")
    parser.add_argument("--out", type=Path, default=RESULTS / f"ingestion-folder-{today}.jsonl")
    parser.add_argument("--report", type=Path, help="only print the tables of this file")
    options = parser.parse_args(arguments)
    if options.report is None:
        with Rows(options.out) as rows:
            run(options, rows)
    text, well = report(options.report or options.out)
    print(text)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
