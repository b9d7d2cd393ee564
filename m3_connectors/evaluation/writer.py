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
    DOCUMENTS,
    PART_OF,
    PART_QUERIES,
    QRELS,
    QUERIES,
    RECORD,
    EvaluationFolder,
    Run,
    arrow,
    digest,
    part_name,
    run_path,
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
    """The folder of an evaluation that is being created, resumed, or extended with methods.

    A complete evaluation stays one until the runs of all added methods are there: one that fails costs
    nothing.

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
        self._usable: EvaluationRecord | None = None
        self._damaged: set[str] = set()
        self._runs: set[str] = set()
        if (path / RECORD).exists():
            self._take_up(EvaluationFolder(path).record)
        elif path.exists() and (not path.is_dir() or any(p.suffix != ".tmp" for p in path.iterdir())):
            raise InvalidInput(f"{path} is not an empty folder.\n  Use a new folder for the evaluation.")
        for folder in ("scores", "runs"):
            (path / folder).mkdir(parents=True, exist_ok=True)
        if self._usable is None:
            self._write(self._record)
        if not self._is_sound(QUERIES):
            languages = query_languages or {}
            pa = arrow()
            columns = {
                "query_id": pa.array(self._queries, pa.string()),
                "text": pa.array(queries.values(), pa.string()),
                "language": pa.array([languages.get(query) for query in self._queries], pa.string()),
            }
            write_table(path / QUERIES, pa.table(columns))

    @property
    def complete(self) -> bool:
        """Nothing is left to do."""
        return self._record.complete

    def so_far(self) -> EvaluationFolder:
        """The folder with everything that is asked for, for methods that rank by others."""
        folder = EvaluationFolder(self.path)
        folder.record = self._record
        return folder

    def missing_parts(self) -> list[int]:
        """Numbers of the parts of the scores that are not there yet."""
        count = -(-len(self._queries) // PART_QUERIES)
        return [number for number in range(count) if not self._is_sound(part_name(number))]

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
        self._damaged.discard(part_name(number))

    def has_run(self, method: str) -> bool:
        """Whether the run of a method that was asked for is there."""
        return method in self._runs

    def add_run(self, method: str, run: Run) -> None:
        """Keep a method's answers, best first, as many as the protocol says.

        Raises:
            InvalidInput: A query that was asked is not in it (an empty answer is), or another is.
        """
        if run.keys() != set(self._queries):
            raise InvalidInput(
                f"the run of {method} has {len(run):,} queries; it must have all {len(self._queries):,}.\n"
                "  Include every query, with an empty list if it has no results."
            )
        depth = self._record.protocol.run_depth
        cut = {query: run[query][:depth] for query in self._queries}
        name = run_path(method)
        write_text(self.path / name, trec_run(method, cut))
        self._runs.add(method)
        digests = self._digests([name])
        self._record = dataclasses.replace(self._record, digests={**self._record.digests, **digests})
        if self._usable is None:
            self._write(self._record)
        elif method not in {one.name for one in self._usable.methods}:
            self._usable = dataclasses.replace(
                self._usable,
                added=(*self._usable.added, self._record.method(method)),
                digests={**self._usable.digests, **digests},
            )
            self._write(self._usable)

    def add_qrels(self, qrels: Mapping[str, Mapping[str, int]]) -> None:
        """Keep the judgements of the queries asked, once all runs are there.

        From here on files change that the numbers of a complete evaluation depend on, so it is none until the
        end.
        """
        self._usable = None
        self._write(self._record)
        rows = (
            f"{trec_id(query)} 0 {trec_id(document)} {grade}\n"
            for query in self._queries
            for document, grade in qrels.get(query, {}).items()
        )
        write_text(self.path / QRELS, "".join(rows))

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
        write_table(self.path / DOCUMENTS, pa.table(columns))

    def add_environment(self, environment: Mapping[str, Any]) -> None:
        """Note the machine and versions of this session beside those of the sessions before."""
        path = self.path / "environment.json"
        sessions = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        write_text(path, json.dumps([*sessions, environment], indent=2, ensure_ascii=False) + "\n")

    def finish(self, warnings: Sequence[str]) -> EvaluationFolder:
        """Mark the evaluation complete and compute its measures."""
        names = [QUERIES, DOCUMENTS, QRELS, *map(part_name, range(-(-len(self._queries) // PART_QUERIES)))]
        names += [run_path(method.name) for method in self._record.methods]
        self._record = dataclasses.replace(
            self._record, warnings=tuple(warnings), complete=True, digests=self._digests(sorted(names))
        )
        (self.path / "metrics.parquet").unlink(missing_ok=True)
        self._write(self._record)
        folder = EvaluationFolder(self.path)
        folder.metrics()
        return folder

    def _take_up(self, there: EvaluationRecord) -> None:
        """Go on with what the folder has.

        Raises:
            InvalidInput: It is another evaluation.
        """
        self._damaged = {
            name for name, known in there.digests.items() if self._digests([name]) != {name: known}
        }
        # A method that was asked for and failed has no run: it binds nobody.
        held = tuple(method for method in there.methods if self._is_sound(run_path(method.name)))
        if differences := dataclasses.replace(there, methods=held).differences(self._record):
            raise InvalidInput(
                f"{self.path} contains another evaluation: {'; '.join(differences)}.\n"
                "  Use another --out, or remove the folder."
            )
        asked = {method.name: method for method in self._record.methods}
        added = [
            method
            for method in there.added
            if self._is_sound(run_path(method.name))
            and method.name in asked
            and method.ranking == asked[method.name].ranking
        ]
        # One of the model's without a digest is computed anew: that costs nothing, and it may have been cut
        # off.
        self._runs = {
            method.name
            for method in (*held, *added)
            if method.kind == "baseline" or run_path(method.name) in there.digests
        }
        superseded = {run_path(method.name) for method in there.added} - {run_path(m.name) for m in added}
        digests = {
            name: known
            for name, known in there.digests.items()
            if name not in self._damaged and name not in superseded
        }
        self._record = dataclasses.replace(self._record, digests=digests)
        names = (QUERIES, DOCUMENTS, QRELS)
        sound = bool(digests) and all(map(self._is_sound, names)) and not self.missing_parts()
        if there.complete and sound and len(held) == len(there.methods):
            self._usable = dataclasses.replace(there, added=tuple(added), digests=digests)
            self._record = dataclasses.replace(self._record, complete=len(held) == len(asked))

    def _is_sound(self, name: str) -> bool:
        """Whether a file is there, and as it was written where that is known."""
        return name not in self._damaged and (self.path / name).exists()

    def _digests(self, names: Sequence[str]) -> dict[str, str]:
        """By name, of those that are there."""
        return {
            name: digest((self.path / name).read_bytes()) for name in names if (self.path / name).exists()
        }

    def _write(self, record: EvaluationRecord) -> None:
        write_text(self.path / RECORD, json.dumps(record.to_json(), indent=2, ensure_ascii=False) + "\n")
