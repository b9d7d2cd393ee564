"""Small evaluations with given scores, written in the same form as by ``m3 eval``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from m3_connectors.embeddings import ModelInfo
from m3_connectors.evaluation.candidates import CandidateScores
from m3_connectors.evaluation.folder import EvaluationFolder, Run
from m3_connectors.evaluation.record import (
    DatasetRecord,
    EvaluationRecord,
    Fusion,
    MethodRecord,
    Protocol,
    StoreRecord,
)
from m3_connectors.evaluation.runs import method_run
from m3_connectors.evaluation.writer import DocumentRow, FolderWriter
from m3_connectors.methods import METHODS, Method, Weights

Cells = Mapping[str, Mapping[str, tuple[float, float, float]]]
"""Query id → document id → dense, sparse and multi-vector scores."""

MODEL = ModelInfo(
    name="toy",
    revision=None,
    dimension=4,
    vocabulary_size=9,
    vocabulary_fingerprint="v",
    weights_fingerprint="w",
)


def recorded_method(folder: EvaluationFolder, name: str) -> Method:
    """The method of a folder's record, with its weights."""
    record = folder.record.method(name)
    assert record.weights is not None
    assert record.candidates is not None
    return Method(name, record.candidates, Weights(*record.weights))


def write_evaluation(
    path: Path,
    cells: Cells,
    qrels: Mapping[str, Mapping[str, int]],
    *,
    texts: Mapping[str, str] | None = None,
    methods: Sequence[Method] = tuple(METHODS.values()),
    baselines: Mapping[str, Run] | None = None,
    name: str = "toy",
    split: str = "test",
    protocol: Protocol | None = None,
    languages: tuple[str | None, str | None] = (None, None),
    characters: Mapping[str, int] | None = None,
    complete: bool = True,
) -> EvaluationFolder:
    """Write an evaluation with every document in the dense list, and in the sparse one if its sparse score is above 0.

    ``languages`` are those of the queries and the documents, ``characters`` the lengths of documents (10 by default).
    """
    record = EvaluationRecord(
        dataset=DatasetRecord(
            name=name,
            family=name.partition("/")[0],
            split=split,
            source=name,
            revision=None,
            licence=None,
            documents=len({document for documents in cells.values() for document in documents}),
            queries=len(cells),
            query_language=languages[0],
            passage_language=languages[1],
            fingerprint=f"{name} {split}",
        ),
        model=MODEL,
        store=StoreRecord("memory:", name, "memory"),
        protocol=protocol or Protocol(),
        methods=(
            *(MethodRecord(m.name, "m3", tuple(m.weights), dict(m.candidates)) for m in methods),  # type: ignore[arg-type]
            *(MethodRecord(baseline, "baseline") for baseline in baselines or {}),
        ),
    )
    writer = FolderWriter(path, record, texts or {query: f"question {query}" for query in cells})
    for part in writer.missing_parts():
        queries = writer.part_queries(part)
        writer.add_scores(part, [_scores(cells[query], record.protocol.fusion) for query in queries])
    if not complete:
        return EvaluationFolder(path)
    writer.add_qrels(qrels)
    for method in methods:
        writer.add_run(
            method.name,
            method_run(EvaluationFolder(path), recorded_method(EvaluationFolder(path), method.name)),
        )
    for baseline, run in (baselines or {}).items():
        writer.add_run(baseline, run)
    sizes = characters or {}
    ids = {id for documents in cells.values() for id in documents}
    writer.add_documents([DocumentRow(id, sizes.get(id, 10)) for id in ids])
    return writer.finish([])


def without_digests(folder: EvaluationFolder) -> EvaluationFolder:
    """Change the folder to the form of versions that did not record its files."""
    path = folder.path / "evaluation.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    del raw["digests"], raw["added"]
    path.write_text(json.dumps(raw, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return EvaluationFolder(folder.path)


def _scores(documents: Mapping[str, tuple[float, float, float]], fusion: Fusion) -> CandidateScores:
    ids = sorted(documents)
    dense, sparse, multivector = np.array([documents[id] for id in ids], dtype=np.float32).reshape(-1, 3).T
    sparse_rank = _ranks(ids, sparse, sparse > 0)
    listed = np.where(sparse_rank > 0, np.ceil(10 * sparse) / 10, np.nan) if fusion == "paper" else None
    return CandidateScores(
        ids, dense, sparse, multivector, _ranks(ids, dense, dense > -9), sparse_rank, listed
    )


def _ranks(ids: Sequence[str], scores: np.ndarray, listed: np.ndarray) -> np.ndarray:
    ranks = np.zeros(len(ids), dtype=np.int32)
    best = sorted(np.flatnonzero(listed), key=lambda i: (-scores[i], ids[i]))
    ranks[best] = np.arange(1, len(best) + 1)
    return ranks
