"""Writes the folder of an evaluation, part by part, and knows which parts are there already."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.candidates import CandidateScores
from m3_connectors.evaluation.folder import (
    PART_OF,
    PART_QUERIES,
    RECORD,
    EvaluationFolder,
    Run,
    arrow,
    part_name,
    trec_id,
    trec_run,
    write_table,
    write_text,
)
from m3_connectors.evaluation.record import EvaluationRecord


@dataclasses.dataclass(frozen=True)
class DocumentRow:
    """What the folder keeps of a document.

    Attributes:
        id: Its id.
        characters: Length of its text.
        tokens: Tokens that the model reads of it, where counted.
        language: Language tag, where known.
    """

    id: str
    characters: int
    tokens: int | None = None
    language: str | None = None


class FolderWriter:
    """An evaluation's folder while it is made, begun anew or where it was left, or while methods are added to it.

    Args:
        path: The folder; made if it is not there.
        record: What is evaluated.
        queries: Query id to text, in the order they are asked.
        query_languages: Language tag by query id, where known.

    Raises:
        InvalidInput: The folder holds another evaluation (says what differs), or other files.
    """

    def __init__(
        self,
        path: Path,
        record: EvaluationRecord,
        queries: Mapping[str, str],
        query_languages: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        self._record = record
        self._queries = list(queries)
        if (path / RECORD).exists():
            there = EvaluationFolder(path).record
            if differences := there.differences(record):
                raise InvalidInput(
                    f"{path} holds another evaluation: {'; '.join(differences)}.\n"
                    "  Give another --out, or remove the folder."
                )
            complete = (
                there.complete and len(there.methods) == len(record.methods) and not self._missing(record)
            )
            self._record = dataclasses.replace(record, complete=complete)
        elif path.exists() and (not path.is_dir() or any(p.suffix != ".tmp" for p in path.iterdir())):
            raise InvalidInput(f"{path} is no empty folder: an evaluation needs one of its own.")
        for folder in ("scores", "runs"):
            (path / folder).mkdir(parents=True, exist_ok=True)
        if not self._record.complete:
            self._write_record()
        if not (path / "queries.parquet").exists():
            languages = query_languages or {}
            pa = arrow()
            columns = {
                "query_id": pa.array(self._queries, pa.string()),
                "text": pa.array(queries.values(), pa.string()),
                "language": pa.array([languages.get(query) for query in self._queries], pa.string()),
            }
            write_table(path / "queries.parquet", pa.table(columns))

    @property
    def complete(self) -> bool:
        """Nothing is left to do."""
        return self._record.complete

    def missing_parts(self) -> list[int]:
        """Numbers of the parts of the scores that are not there yet."""
        count = -(-len(self._queries) // PART_QUERIES)
        return [number for number in range(count) if not (self.path / part_name(number)).exists()]

    def part_queries(self, number: int) -> list[str]:
        """The queries of one part of the scores."""
        return self._queries[number * PART_QUERIES : (number + 1) * PART_QUERIES]

    def add_scores(self, number: int, scores: Sequence[CandidateScores]) -> None:
        """Keep one part of the scores.

        Args:
            number: Which part, from 0.
            scores: Those of ``part_queries(number)``, in that order.
        """
        queries = self.part_queries(number)
        pa = arrow()

        def joined(name: str) -> npt.NDArray[Any]:
            return np.concatenate([getattr(found, name) for found in scores])

        def nullable(name: str, is_null: npt.NDArray[np.bool_]) -> Any:
            return pa.array(joined(name), mask=is_null)

        counts = [len(found.ids) for found in scores]
        columns = {
            "query_id": pa.array(
                [query for query, n in zip(queries, counts, strict=True) for _ in range(n)], pa.string()
            ),
            "document_id": pa.array([id for found in scores for id in found.ids], pa.string()),
            "dense": pa.array(joined("dense")),
            "sparse": pa.array(joined("sparse")),
            "multivector": nullable("multivector", np.isnan(joined("multivector"))),
            "dense_rank": nullable("dense_rank", joined("dense_rank") == 0),
            "sparse_rank": nullable("sparse_rank", joined("sparse_rank") == 0),
        }
        if scores[0].sparse_list is not None:
            columns["sparse_list"] = nullable("sparse_list", np.isnan(joined("sparse_list")))
        table = pa.table(columns).replace_schema_metadata({PART_OF: self._record.scores_key.encode()})
        write_table(self.path / part_name(number), table)

    def has_run(self, method: str) -> bool:
        """Whether a method's run is there."""
        return self._run_path(method).exists()

    def add_run(self, method: str, run: Run) -> None:
        """Keep a method's answers, best first, as many as the protocol says.

        Raises:
            InvalidInput: A query that was asked is not in it (an empty answer is), or another is.
        """
        if run.keys() != set(self._queries):
            raise InvalidInput(
                f"the run of {method} answers {len(run):,} queries, not the {len(self._queries):,} asked."
            )
        depth = self._record.protocol.run_depth
        cut = {query: run[query][:depth] for query in self._queries}
        write_text(self._run_path(method), trec_run(method, cut))

    def add_qrels(self, qrels: Mapping[str, Mapping[str, int]]) -> None:
        """Keep the judgements of the queries asked."""
        rows = (
            f"{trec_id(query)} 0 {trec_id(document)} {grade}\n"
            for query in self._queries
            for document, grade in qrels.get(query, {}).items()
        )
        write_text(self.path / "qrels.trec", "".join(rows))

    def add_documents(self, documents: Sequence[DocumentRow]) -> None:
        """Keep the lengths and languages of the documents that are judged or answered."""
        pa = arrow()
        ordered = sorted(documents, key=lambda document: document.id)
        columns = {
            "document_id": pa.array([document.id for document in ordered], pa.string()),
            "characters": pa.array([document.characters for document in ordered], pa.int32()),
            "tokens": pa.array([document.tokens for document in ordered], pa.int32()),
            "language": pa.array([document.language for document in ordered], pa.string()),
        }
        write_table(self.path / "documents.parquet", pa.table(columns))

    def add_environment(self, environment: Mapping[str, Any]) -> None:
        """Note the machine and versions of this session beside those of the sessions before."""
        path = self.path / "environment.json"
        sessions = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        write_text(path, json.dumps([*sessions, environment], indent=2, ensure_ascii=False) + "\n")

    def finish(self, warnings: Sequence[str]) -> EvaluationFolder:
        """Mark the evaluation complete and compute its measures."""
        self._record = dataclasses.replace(self._record, warnings=tuple(warnings), complete=True)
        (self.path / "metrics.parquet").unlink(missing_ok=True)
        self._write_record()
        folder = EvaluationFolder(self.path)
        folder.metrics()
        return folder

    def _missing(self, record: EvaluationRecord) -> bool:
        """Whether a file that cannot be derived is not there: deleted, since it was damaged perhaps."""
        files = ["queries.parquet", "documents.parquet", "qrels.trec"]
        there = all((self.path / name).exists() for name in files)
        return (
            not there or bool(self.missing_parts()) or not all(self.has_run(m.name) for m in record.methods)
        )

    def _run_path(self, method: str) -> Path:
        return self.path / "runs" / f"{method}.trec"

    def _write_record(self) -> None:
        write_text(
            self.path / RECORD, json.dumps(self._record.to_json(), indent=2, ensure_ascii=False) + "\n"
        )
