"""Mines negatives for files of training pairs, and adds a teacher's scores to such files; both go on after a kill."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m3_connectors.documents import check_unicode
from m3_connectors.errors import InvalidInput
from m3_connectors.json_lines import Decoder, NotARecord, numbered_lines
from m3_connectors.training.mining import (
    BLOCK_QUERIES,
    Encoder,
    MinedLine,
    Miner,
    MiningSettings,
    QueryLine,
    chunks,
    method_of,
)
from m3_connectors.training.pairs import pair_files, parse_line
from m3_connectors.training.resumable import ResumableLines
from m3_connectors.training.teacher import Teacher, teacher_scores

if TYPE_CHECKING:
    from m3_connectors.blocking import Index

_NAMED = 10
"""The number of lines of each kind that a report names."""

Progress = Callable[[str, int], None]
"""Called with the step, and with the number of passages or lines that are done in it."""


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Further passages.

    Attributes:
        files: Their files.
        field: The field of the text.
        read: Returns the texts, the same ones each time.
    """

    files: tuple[Path, ...]
    field: str
    read: Callable[[], Iterable[str]]


@dataclasses.dataclass
class MiningReport:
    """What a mining run did.

    Attributes:
        passages: The number of distinct passages that were searched.
        lines: The number of lines that were read.
        written: The number of lines that were written.
        negatives: The number of lines by number of negatives, as text.
        dropped: The number of candidates that were looked at and dropped, by reason; see ``MinedLine.dropped``.
        not_found: The number of lines none of whose positives is among the search's first results.
        without: The first queries that got no negative.
        skipped: The number of broken lines.
        skipped_lines: The first of them, with what is wrong.
    """

    passages: int = 0
    lines: int = 0
    written: int = 0
    negatives: dict[str, int] = dataclasses.field(default_factory=dict)
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    not_found: int = 0
    without: list[str] = dataclasses.field(default_factory=list)
    skipped: int = 0
    skipped_lines: list[str] = dataclasses.field(default_factory=list)

    def count(self, mined: MinedLine) -> None:
        """Add one line."""
        self.lines += 1
        self.negatives = _sum(self.negatives, {str(len(mined.negatives)): 1})
        self.dropped = _sum(self.dropped, mined.dropped)
        self.not_found += not mined.found
        if not mined.negatives and len(self.without) < _NAMED:
            self.without.append(mined.line.query)


def mine_files(
    encoder: Encoder,
    pairs: Sequence[Path],
    target: Path,
    settings: MiningSettings,
    *,
    corpus: Corpus | None = None,
    index: Index | None = None,
    index_name: str | None = None,
    teacher: Teacher | None = None,
    keep_all: bool = False,
    progress: Progress = lambda step, done: None,
) -> MiningReport:
    """Write the lines of files of training pairs with hard negatives, in FlagEmbedding's format.

    A run that was killed goes on when it is called again with the same arguments, and writes the same bytes. The
    passages are encoded once, into an embedded store beside the target, which is deleted at the end.

    Args:
        encoder: Encodes queries and passages.
        pairs: Files and folders of training pairs (``training.pairs``). Their positives and negatives are passages.
        target: The file to write, which ends in ``.jsonl``.
        settings: How negatives are chosen.
        corpus: Further passages.
        index: A collection that holds the passages, in place of the positives and the corpus; it is only read.
        index_name: Its name; a run goes on only if it is the same.
        teacher: Scores positives and negatives; without it, the scores are those of the search.
        keep_all: Whether lines without a negative are written too. FlagEmbedding's trainer cannot read them.
        progress: Called during the run.

    Returns:
        The report, which is also in ``TARGET.report.json``.

    Raises:
        InvalidInput: There is no valid line, there are too few passages, the model lacks a component of the method,
            or the target is one of the files that are read, or was written by another run.
        ModelMismatch: The index was written by another model.
    """
    files = files_to_mine(pairs)
    _check_apart(target, [*files, *(corpus.files if corpus else ())])
    run = {
        "command": "m3 mine",
        **dataclasses.asdict(settings),
        "weights": list(method_of(encoder, settings).weights),
        "model": encoder.info.weights_fingerprint or str(encoder.info),
        "pairs": _digests(files),
        "corpus": corpus and [corpus.field, *_digests(corpus.files)],
        "store": index_name,
        "teacher": teacher and teacher.fingerprint,
        "keep_all": keep_all,
    }
    with ResumableLines(target, run) as lines:
        if lines.finished is not None:
            return MiningReport(**lines.finished)
        report = MiningReport(**lines.progress["report"]) if lines.progress else MiningReport()
        stored = lines.progress.get("chunks", 0)
        report.skipped, report.skipped_lines = 0, []

        def skip(reason: str) -> None:
            report.skipped += 1
            if report.skipped <= _NAMED:
                report.skipped_lines.append(reason)

        def valid() -> Iterator[QueryLine]:
            line = None
            for line, _ in read_lines(files, skip):
                yield line
            if line is None:
                raise _nothing(files, report.skipped_lines)

        def state() -> dict[str, Any]:
            return {"chunks": stored, "report": dataclasses.asdict(report)}

        def on_stored(chunks: int, passages: int) -> None:
            nonlocal stored
            stored = chunks
            lines.save(state())
            progress("encoding passages", passages)

        with Miner(encoder, settings, lines.folder, index=index) as miner:
            further = chain(_negatives(files), corpus.read() if corpus else ())
            report.passages = miner.read(valid(), further, stored=stored, on_stored=on_stored)
            rest = islice((line for line, _ in read_lines(files)), report.lines, None)
            for block in chunks(rest, BLOCK_QUERIES):
                mined = miner.negatives(block)
                for one in mined:
                    report.count(one)
                kept = [one for one in mined if one.negatives or keep_all]
                report.written += len(kept)
                lines.append([_record(one, teacher) for one in kept], state())
                progress("mining", report.lines)
        lines.finish(dataclasses.asdict(report))
    return report


@dataclasses.dataclass
class ScoringReport:
    """What a run of ``score_files`` did: see ``MiningReport`` for the attributes."""

    lines: int = 0
    skipped: int = 0
    skipped_lines: list[str] = dataclasses.field(default_factory=list)


def score_files(
    teacher: Teacher,
    pairs: Sequence[Path],
    target: Path,
    *,
    progress: Progress = lambda step, done: None,
) -> ScoringReport:
    """Write the lines of files of training pairs with a teacher's ``pos_scores`` and ``neg_scores``.

    Other keys are kept as they are, except that ``positive`` becomes ``pos``. A run that was killed goes on when it
    is called again with the same arguments, and writes the same bytes.

    Args:
        teacher: Scores positives and negatives.
        pairs: Files and folders of training pairs.
        target: The file to write, which ends in ``.jsonl``.
        progress: Called during the run.

    Raises:
        InvalidInput: There is no valid line, or the target is one of the files that are read, or was written by
            another run.
    """
    files = files_to_mine(pairs)
    _check_apart(target, files)
    run = {"command": "m3 score-pairs", "pairs": _digests(files), "teacher": teacher.fingerprint}
    with ResumableLines(target, run) as lines:
        if lines.finished is not None:
            return ScoringReport(**lines.finished)
        report = ScoringReport(lines=lines.progress.get("lines", 0))

        def skip(reason: str) -> None:
            report.skipped += 1
            if report.skipped <= _NAMED:
                report.skipped_lines.append(reason)

        rest = islice(read_lines(files, skip), report.lines, None)
        for block in chunks(rest, BLOCK_QUERIES):
            records = []
            for line, raw in block:
                negatives = raw.get("neg") or []
                scores = teacher_scores(teacher, line.query, [*line.positives, *negatives])
                count = len(line.positives)
                changed = {"pos": list(line.positives), "neg": negatives}
                changed |= {"pos_scores": scores[:count], "neg_scores": scores[count:]}
                records.append({name: raw[name] for name in raw if name != "positive"} | changed)
            report.lines += len(block)
            lines.append(records, {"lines": report.lines})
            progress("scoring", report.lines)
        if not report.lines:
            raise _nothing(files, report.skipped_lines)
        lines.finish(dataclasses.asdict(report))
    return report


def files_to_mine(pairs: Sequence[Path]) -> list[Path]:
    """Return the files of pairs: those given, and those in the given folders.

    Raises:
        InvalidInput: A file does not exist, or a folder has no file of pairs.
    """
    files: list[Path] = []
    for path in pairs:
        here = [path] if path.is_file() else pair_files(path)
        if not here:
            reason = "has no *.jsonl or *.jsonl.gz file" if path.is_dir() else "does not exist"
            raise InvalidInput(f"{path} {reason}.\n  Give files or folders of training pairs.")
        files += here
    return files


def read_lines(
    files: Sequence[Path], skip: Callable[[str], object] = lambda reason: None
) -> Iterator[tuple[QueryLine, dict[str, Any]]]:
    """Yield the valid lines with their JSON objects; ``skip`` is told what is wrong with each other line.

    Raises:
        InvalidInput: A file is damaged.
    """
    decoder = Decoder()

    def undecodable(message: str) -> None:
        skip(message.splitlines()[0])

    for file in files:
        for number, text in numbered_lines(file, undecodable=undecodable):
            where = f"{file}:{number}"
            try:
                raw = decoder.record(text)
                line = parse_line(file.name, raw, where)
                _check_negatives(raw.get("neg"), where)
            except NotARecord as error:
                skip(f"{where} is not a training pair: {error}.")
            except InvalidInput as error:
                skip(str(error).splitlines()[0])
            else:
                first = line.pairs[0]
                positives = tuple(pair.positive for pair in line.pairs)
                yield QueryLine(first.query, positives, first.lang_q, first.lang_p), raw


def _check_negatives(negatives: object, where: str) -> None:
    if negatives is None:
        return
    if not isinstance(negatives, list) or not all(isinstance(text, str) for text in negatives):
        raise InvalidInput(
            f"{where} is not a training pair: neg is {negatives!r:.60}, not a list of strings.\n  Correct the line."
        )
    for number, text in enumerate(negatives):
        check_unicode(text, f"{where}: neg[{number}]")


def _negatives(files: Sequence[Path]) -> Iterator[str]:
    for _, raw in read_lines(files):
        yield from raw.get("neg") or ()


def _record(mined: MinedLine, teacher: Teacher | None) -> dict[str, Any]:
    if teacher is not None:
        texts = [*mined.line.positives, *mined.negatives]
        scores = teacher_scores(teacher, mined.line.query, texts)
        count = len(mined.line.positives)
        mined = dataclasses.replace(mined, pos_scores=tuple(scores[:count]), neg_scores=tuple(scores[count:]))
    return mined.to_dict()


def _check_apart(target: Path, files: Iterable[Path]) -> None:
    if target.exists() and (read := [file for file in files if target.samefile(file)]):
        raise InvalidInput(
            f"{target} is both read, as {read[0]}, and to be written.\n"
            "  Choose another file for the output: the one that is read stays as it is."
        )


def _digests(files: Sequence[Path]) -> list[str]:
    found = []
    for file in files:
        with file.open("rb") as content:
            found.append(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()[:16]}")
    return found


def _sum(counts: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    return {name: counts.get(name, 0) + more.get(name, 0) for name in {**counts, **more}}


def _nothing(files: Sequence[Path], reasons: Sequence[str]) -> InvalidInput:
    why = f" The first problem: {reasons[0]}" if reasons else ""
    return InvalidInput(
        f"{', '.join(map(str, files))} has no training pair.{why}\n"
        '  Write each line as {"query": "…", "pos": ["…"]}.'
    )
