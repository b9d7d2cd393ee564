"""The folder that one evaluation leaves: component scores and runs first, numbers derived from them later.

    evaluation.json       what it is: ``record.EvaluationRecord``
    environment.json      machine and versions, one entry a session
    queries.parquet       query_id, text, language; in the order they are asked
    documents.parquet     document_id, characters, tokens, language; those judged or answered
    qrels.trec            query 0 document grade
    scores/NNNNN.parquet  component scores of all candidates, 32 queries a part; columns: ``SCORES_COLUMNS``
    runs/METHOD.trec      query Q0 document rank score method
    metrics.parquet       query_id, method, measure, value; derived
    report/               derived

Ids of TREC files have blanks and ``%`` percent-encoded. Every file appears whole or not at all, and each but
environment.json has the same bytes however often the evaluation was interrupted.
"""

from __future__ import annotations

import functools
import hashlib
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import numpy as np

from m3_connectors.errors import InvalidInput, MissingDependency
from m3_connectors.evaluation.measures import per_query
from m3_connectors.evaluation.record import EvaluationRecord, SessionRecord
from m3_connectors.files import replacing

if TYPE_CHECKING:
    import pyarrow as pa

Run = dict[str, list[tuple[str, float]]]
"""Query id to documents with their scores, best first."""

RECORD = "evaluation.json"
_REMAKE = "\n  Delete the file, and run the same m3 eval command again."
QUERIES = "queries.parquet"
DOCUMENTS = "documents.parquet"
QRELS = "qrels.trec"

SCORES_COLUMNS = (
    "query_id",
    "document_id",
    "dense",  # float32
    "sparse",  # float32
    "multivector",  # float32, null beyond the depth of the multi-vector candidates
    "dense_rank",  # int32 from 1, null for a document that is not in the dense list
    "sparse_rank",  # int32 from 1, null for a document that is not in the sparse list
    "sparse_list",  # float32, with paper fusion only: the quantised score, null if not in the list
)


class EvaluationFolder:
    """One evaluation, read from its folder.

    Args:
        path: The folder.

    Attributes:
        path: The folder.
        record: What was evaluated.

    Raises:
        InvalidInput: It holds no evaluation, or one of another version's format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.record = EvaluationRecord.read(path / RECORD)
        except FileNotFoundError:
            raise InvalidInput(
                f"{path} contains no evaluation: there is no {RECORD}.\n"
                f"  Create one with m3 eval DATASET --out {path}."
            ) from None

    def require_complete(self) -> EvaluationFolder:
        """This folder, if its evaluation went to the end.

        Raises:
            InvalidInput: It did not.
        """
        if not self.record.complete:
            raise InvalidInput(
                f"{self.path} is incomplete: its evaluation was interrupted.\n"
                "  Run the same m3 eval command to complete it, then repeat this command."
            )
        return self

    def environment(self) -> list[SessionRecord]:
        """Machine of every session that worked on it.

        Raises:
            InvalidInput: The file is damaged.
        """
        from m3_connectors.records import read_record

        path = self.path / "environment.json"
        return (
            read_record(list[SessionRecord], path.read_bytes(), path, "Delete it.") if path.exists() else []
        )

    def qrels(self) -> dict[str, dict[str, int]]:
        """Query id to document id to grade, 1 or more is relevant; every query that was asked is there.

        Raises:
            InvalidInput: The file is missing, malformed or of another dataset.
        """
        path = self.path / QRELS
        qrels: dict[str, dict[str, int]] = {query: {} for query in self.asked}
        for line, (query, _, document, grade) in self._trec(QRELS, 4):
            if query not in qrels:
                raise InvalidInput(
                    f"{path}:{line}: query {query!r} is not in {self.record.dataset.name}.{_REMAKE}"
                )
            try:
                qrels[query][document] = int(grade)
            except ValueError:
                raise InvalidInput(f"{path}:{line}: {grade!r} is not a grade.{_REMAKE}") from None
        return qrels

    @functools.cached_property
    def asked(self) -> tuple[str, ...]:
        """Ids of the queries, in evaluation order."""
        return tuple(self.queries()["query_id"].to_pylist())

    def queries(self) -> pa.Table:
        """query_id, text, language; in evaluation order."""
        return self._table(QUERIES)

    def documents(self) -> pa.Table:
        """document_id, characters, tokens (null where unknown), language; those judged or answered, by id."""
        return self._table(DOCUMENTS)

    def scores(self) -> pa.Table:
        """The component scores of all candidates: queries in evaluation order, documents by id.

        Raises:
            InvalidInput: A part is missing.
        """
        return arrow().concat_tables(list(self.score_parts()))

    def score_parts(self) -> Iterator[pa.Table]:
        """``scores``, a part of 32 queries at a time.

        Raises:
            InvalidInput: A part is missing, or is of another evaluation.
        """
        for number in range(-(-self.record.dataset.queries // PART_QUERIES)):
            name = part_name(number)
            table = self._table(name)
            of = (table.schema.metadata or {}).get(PART_OF, b"?").decode()
            if of != self.record.scores_key:
                raise InvalidInput(
                    f"{self.path / name} contains the scores of another evaluation, {of}, not "
                    f"{self.record.scores_key}.\n  Delete it, and run the same m3 eval command again."
                )
            yield table

    def run(self, method: str) -> Run:
        """The answers of a method, best first; a query without any has an empty list.

        Raises:
            InvalidInput: No such method, or its run is missing, malformed or of another dataset.
        """
        self.record.method(method)
        path = self.path / run_path(method)
        run: Run = {query: [] for query in self.asked}
        for line, (query, _, document, _, score, _) in self._trec(run_path(method), 6):
            if query not in run:
                raise InvalidInput(
                    f"{path}:{line}: query {query!r} is not in {self.record.dataset.name}.{_REMAKE}"
                )
            try:
                value = float(score)
            except ValueError:
                raise InvalidInput(f"{path}:{line}: {score!r} is not a score.{_REMAKE}") from None
            if run[query] and value > run[query][-1][1]:
                raise InvalidInput(
                    f"{path}:{line}: the scores of query {query!r} increase; the best must be first.{_REMAKE}"
                )
            run[query].append((document, value))
        known = self._documents_known
        for query, answer in run.items():
            documents = {document for document, _ in answer}
            if len(documents) < len(answer):
                raise InvalidInput(f"{path}: query {query!r} has a document twice.{_REMAKE}")
            if known is not None and not documents <= known:
                raise InvalidInput(
                    f"{path}: {min(documents - known)!r} is not a document of {self.record.dataset.name}."
                    f"{_REMAKE}"
                )
        return run

    @functools.cached_property
    def _documents_known(self) -> set[str] | None:
        """Every document that was answered; None while they are not yet known."""
        return set(self.documents()["document_id"].to_pylist()) if self.record.complete else None

    def metrics(self) -> pa.Table:
        """query_id, method, measure, value of every judged query; computed and kept if it is not there yet.

        A query that a method has no answer for counts 0.

        Raises:
            InvalidInput: The evaluation is incomplete, or a file is missing or malformed.
            MissingDependency: ir_measures is not installed.
        """
        if not (self.path / "metrics.parquet").exists():
            self.measure()
        return self._table("metrics.parquet")

    def measure(self) -> None:
        """Compute metrics.parquet anew from the runs and the judgements; errors as ``metrics``."""
        self.require_complete()
        rows: dict[str, list[Any]] = {"query_id": [], "method": [], "measure": [], "value": []}
        qrels, protocol = self.qrels(), self.record.protocol
        for method in self.record.methods:
            run = _documents(self.run(method.name))
            values = per_query(qrels, run, protocol.measures, protocol.relevance)
            for measure, by_query in values.items():
                rows["query_id"] += by_query
                rows["value"] += by_query.values()
                rows["method"] += [method.name] * len(by_query)
                rows["measure"] += [measure] * len(by_query)
        write_table(self.path / "metrics.parquet", arrow().table(rows))
        self.__dict__.pop("values", None)

    @functools.cached_property
    def values(self) -> dict[str, dict[str, dict[str, float]]]:
        """The value of every query, by method and measure.

        Raises:
            InvalidInput: As ``metrics``, or metrics.parquet lacks a query.
        """
        values: dict[str, dict[str, dict[str, float]]] = {
            method.name: {measure: {} for measure in self.record.protocol.measures}
            for method in self.record.methods
        }
        columns = self.metrics().to_pydict()
        names = ("method", "measure", "query_id", "value")
        for method, measure, query, value in zip(*(columns[name] for name in names), strict=True):
            values[method][measure][query] = value
        for method, by_measure in values.items():
            for measure, by_query in by_measure.items():
                if len(by_query) != self.record.dataset.queries:
                    raise InvalidInput(
                        f"{self.path / 'metrics.parquet'} has {measure} of {method} for {len(by_query):,} of "
                        f"{self.record.dataset.queries:,} queries.\n"
                        "  Delete the file; it will be recomputed from the runs."
                    )
        return values

    def means(self) -> dict[str, dict[str, float]]:
        """The mean of each measure over all queries, by method; errors as ``values``."""
        return {
            method: {measure: statistics.fmean(by_query.values()) for measure, by_query in by_measure.items()}
            for method, by_measure in self.values.items()
        }

    def _read(self, name: str) -> bytes:
        """A file, as it was written.

        Raises:
            InvalidInput: It is missing, or was cut off or changed since: half a file would give other numbers
                without a sign of it.
        """
        path = self.path / name
        if not path.exists():
            raise InvalidInput(f"{path} is missing.\n  Run the same m3 eval command again to complete it.")
        content = path.read_bytes()
        if digest(content) != self.record.digests.get(name, digest(content)):
            raise InvalidInput(
                f"{path} was truncated or changed: its SHA-256 differs from that in {RECORD}.\n"
                "  Run the same m3 eval command again to recreate the file."
            )
        return content

    def _table(self, name: str) -> pa.Table:
        arrow()
        import pyarrow.parquet as pq

        content = self._read(name)
        try:
            return pq.read_table(arrow().BufferReader(content))
        except (OSError, ValueError) as error:  # pyarrow.ArrowInvalid is a ValueError
            raise InvalidInput(
                f"{self.path / name} is damaged: {error}\n  Delete it and run m3 eval again."
            ) from error

    def _trec(self, name: str, columns: int) -> Iterator[tuple[int, list[str]]]:
        """Lines of a TREC file as decoded cells, with their numbers."""
        path = self.path / name
        for line, raw in enumerate(self._read(name).decode("utf-8").split("\n"), 1):
            if raw:
                cells = raw.split()
                if len(cells) != columns:
                    raise InvalidInput(
                        f"{path}:{line} has {len(cells)} columns; it must have {columns}.{_REMAKE}"
                    )
                yield (
                    line,
                    [unquote(cell) if "%" in cell else cell for cell in cells] if "%" in raw else cells,
                )


PART_OF = b"m3_connectors.evaluation"
"""Key of a part's metadata that says what its scores are of, ``EvaluationRecord.scores_key``."""

PART_QUERIES = 32
"""Queries of one part of the scores: what an interruption loses at most."""


def find_folders(root: Path) -> list[EvaluationFolder]:
    """Every evaluation at or below a folder, by path.

    Raises:
        InvalidInput: There is none, or one cannot be read.
    """
    folders = [EvaluationFolder(path.parent) for path in sorted(root.rglob(RECORD))]
    if not folders:
        raise InvalidInput(
            f"{root} contains no evaluation: there is no {RECORD} at or below it.\n"
            f"  Create one with m3 eval DATASET --out {root}."
        )
    return folders


def part_name(number: int) -> str:
    """Where part ``number`` (from 0) of the scores lies in the folder."""
    return f"scores/{number:05}.parquet"


def run_path(method: str) -> str:
    """Where the run of a method lies in the folder."""
    return f"runs/{method}.trec"


def digest(content: bytes) -> str:
    """By which a file of the folder is known: SHA-256, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def trec_id(id: str) -> str:
    """An id as one word of a TREC file; ``urllib.parse.unquote`` gives it back."""
    return re.sub(r"[\s%]", lambda match: quote(match[0]), id)


def trec_run(method: str, run: Mapping[str, Sequence[tuple[str, float]]]) -> str:
    """A run as a TREC file, whose order trec_eval keeps.

    trec_eval reads scores as float32, sorts by them, and puts equal ones in descending order of their ids;
    our ties are in ascending order. So scores must fall from line to line in float32 already: one that does
    not is written as the next smaller float32 after the one before it. All others are written as they are.
    """
    lines = []
    tag = trec_id(method)
    for query, answer in run.items():
        name = trec_id(query)
        scores = falling([score for _, score in answer])
        for position, ((document, _), score) in enumerate(zip(answer, scores, strict=True), 1):
            lines.append(f"{name} Q0 {trec_id(document)} {position} {score!r} {tag}\n")
    return "".join(lines)


def falling(scores: Sequence[float]) -> list[float]:
    """The scores, those that do not fall in float32 replaced by the next smaller one."""
    singles = np.array(scores, dtype=np.float32)
    falling = list(map(float, scores))
    for i in np.flatnonzero(singles[1:] >= singles[:-1]) + 1 if len(scores) > 1 else ():
        # One that was lowered may come to lie below those after it.
        at = int(i)
        while at < len(singles) and singles[at] >= singles[at - 1]:
            singles[at] = np.nextafter(singles[at - 1], np.float32(-np.inf))
            falling[at] = float(singles[at])
            at += 1
    return falling


def write_table(path: Path, table: pa.Table) -> None:
    """Write Parquet, whole or not at all."""
    import pyarrow.parquet as pq

    with replacing(path, durable=True) as partial:
        pq.write_table(table, partial, compression="zstd")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8, whole or not at all."""
    with replacing(path, durable=True) as partial:
        partial.write_bytes(text.encode("utf-8"))


def arrow() -> Any:
    """The module pyarrow.

    Raises:
        MissingDependency: It is not installed.
    """
    try:
        import pyarrow
    except ImportError:
        raise MissingDependency("pyarrow", "eval") from None
    return pyarrow


def _documents(run: Run) -> dict[str, list[str]]:
    return {query: [document for document, _ in answer] for query, answer in run.items()}
