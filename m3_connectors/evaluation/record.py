"""The record of an evaluation in ``evaluation.json``: its dataset, model, store, protocol and methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from m3_connectors.embeddings import Component, ModelInfo
from m3_connectors.errors import InvalidInput

if TYPE_CHECKING:
    from pydantic import ConfigDict

FORMAT: Literal[1] = 1
"""Of evaluation.json and the files beside it."""

Fusion = Literal["exact", "paper"]
"""``exact``: every candidate has all its true scores. ``paper``: as the reference scripts (``Protocol``)."""

Relevance = Literal["documents", "answers"]
"""What a judgement is about: single documents, or any document that holds an answer (MKQA)."""

DEPTHS: dict[Component, int] = {"dense": 1000, "sparse": 1000, "multivector": 200}
"""The paper's candidate depths (sections 4.1 to 4.3)."""

MEASURES = ("nDCG@10", "Recall@100", "MRR@10")
"""The measures of an evaluation that states no others."""


class _Recorded:
    """A part of ``evaluation.json``, in which a key that this version does not know is an error."""

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}


@dataclasses.dataclass(frozen=True)
class DatasetRecord(_Recorded):
    """Where the queries, documents and judgements come from.

    Attributes:
        name: For people and as a key, such as ``miracl/de`` or the path of a folder below its root.
        family: What several datasets are means of, such as ``miracl``.
        split: Which judgements.
        source: Hub name, URL or folder name.
        revision: Commit of the source, where known.
        licence: Of the texts, where known.
        documents: How many.
        queries: How many are asked.
        query_language: Language tag of all queries, None where unknown or mixed.
        passage_language: Language tag of all documents, None where unknown or mixed.
        fingerprint: SHA-256 (hex) over ids and texts of documents and queries and over the judgements.
    """

    name: str
    family: str
    split: str
    source: str
    revision: str | None
    licence: str | None
    documents: int
    queries: int
    query_language: str | None
    passage_language: str | None
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class StoreRecord(_Recorded):
    """Where the vectors were.

    Attributes:
        url: Without credentials.
        collection: Name there.
        backend: Short name of the adapter.
    """

    url: str
    collection: str
    backend: str


@dataclasses.dataclass(frozen=True)
class Protocol(_Recorded):
    """How queries were asked and measured.

    Attributes:
        fusion: ``exact``, or ``paper``: the sparse list and Dense+Sparse use sparse weights rounded up to
            hundredths, as the reference's scripts hand them to Lucene, and a candidate missing from one list
            counts 0 there.
        depths: Candidates of the dense and of the sparse list; the multi-vector depth is that of the dense
            candidates which have a multi-vector score.
        query_max_length: Most tokens of a query; None is the model's own maximum.
        passage_max_length: Most tokens of a document; None is the model's own maximum.
        precision: Of the model's arithmetic, which the last digits of every score depend on.
        limit_queries: Only so many of the split's queries were asked, the first; None is all. Means over a
            part are other numbers than means over all.
        run_depth: Most answers of a run, a query.
        exact_lists: No approximate list in the store.
        measures: Names as ``measures.per_query`` takes them, the main one first.
        relevance: What a judgement is about.
    """

    fusion: Fusion = "exact"
    depths: Mapping[Component, int] = dataclasses.field(default_factory=lambda: dict(DEPTHS))
    query_max_length: int | None = None
    passage_max_length: int | None = None
    precision: str = "float32"
    limit_queries: int | None = None
    run_depth: int = 100
    exact_lists: bool = True
    measures: tuple[str, ...] = MEASURES
    relevance: Relevance = "documents"


@dataclasses.dataclass(frozen=True)
class MethodRecord(_Recorded):
    """One ranking of the evaluation; its run is ``runs/NAME.trec``.

    Attributes:
        name: Key of the run, a file name.
        kind: One of the paper's methods, or something to compare with.
        weights: Of dense, sparse and multi-vector scores; None for a baseline.
        candidates: Depth of each proposing list; None for a baseline.
        description: For people; of a baseline it says everything that its ranking depends on, so that another
            one of the same name is told from it.
    """

    name: str
    kind: Literal["m3", "baseline"]
    weights: tuple[float, float, float] | None = None
    candidates: Mapping[Component, int] | None = None
    description: str = ""

    @property
    def ranking(self) -> str:
        """By what it ranks, in full: a run of another ranking is another one, whatever its name."""
        weights = " ".join(map(repr, self.weights or ()))
        return f"weights {weights} of {dict(self.candidates or {})}" if weights else self.description


@dataclasses.dataclass(frozen=True)
class SessionRecord:
    """The machine of one session, in ``environment.json``; the other keys there are not read.

    Attributes:
        date: Time of the session's start, ISO 8601.
        commit: Of this package, where known.
        processor: Name of the processor.
    """

    date: str | None = None
    commit: str | None = None
    processor: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationRecord(_Recorded):
    """Everything that decides the numbers, but for the machine.

    Attributes:
        format: Of the file.
        dataset: The texts and judgements.
        model: Who encoded them.
        store: Where they were searched.
        protocol: How.
        methods: What was compared, in the order asked.
        warnings: What did not fit together, counted, for people.
        complete: Every run is there; until then the folder is work in progress.
        added: Further methods whose runs are there already, while others are still being added to a complete
            evaluation: they are in no number yet.
        digests: SHA-256 (hex) of the files that are not derived, by their path in the folder.
    """

    format: Literal[1] = FORMAT
    dataset: DatasetRecord
    model: ModelInfo
    store: StoreRecord
    protocol: Protocol
    methods: tuple[MethodRecord, ...]
    warnings: tuple[str, ...] = ()
    complete: bool = False
    added: tuple[MethodRecord, ...] = ()
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def method(self, name: str) -> MethodRecord:
        """The method of a name.

        Raises:
            InvalidInput: There is none.
        """
        for method in self.methods:
            if method.name == name:
                return method
        raise InvalidInput(
            f"method {name!r} was not evaluated on {self.dataset.name}.\n  Use one of "
            f"{', '.join(method.name for method in self.methods)}."
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object that ``read`` reads."""
        return dataclasses.asdict(self) | {"model": self.model.to_json()}

    @classmethod
    def read(cls, path: Path) -> EvaluationRecord:
        """The record in a file that ``to_json`` was written to.

        Raises:
            InvalidInput: It is damaged, or of another version of this package.
            FileNotFoundError: The file does not exist.
        """
        from m3_connectors.records import read_record  # here, because commands without files need no pydantic

        return read_record(cls, path.read_bytes(), path, "Repeat the evaluation in another folder.")

    @property
    def scores_key(self) -> str:
        """What component scores depend on, in short: scores with another key are another evaluation's."""
        model, protocol = self.model, self.protocol
        return (
            f"dataset {self.dataset.fingerprint[:16]}, model {(model.weights_fingerprint or model.name)[:16]}, "
            f"{protocol.fusion} fusion, depths {'/'.join(map(str, protocol.depths.values()))}, "
            f"lengths {protocol.query_max_length}/{protocol.passage_max_length}, {protocol.precision}"
        )

    def differences(self, other: EvaluationRecord) -> list[str]:
        """What makes another evaluation another one, as lines for people; warnings and progress do not.

        A dataset is known by its name, split and fingerprint, a model by its fingerprints: its name may
            change. The
        other one may have further methods: they are computed from the same scores and change nothing of what
            is there.
        """
        same_model = _model_key(self.model) == _model_key(other.model)
        mine, others = _identity(self), _identity(other)
        differing = [
            f"{name}: {mine[name]!r}, not {others[name]!r}" for name in mine if mine[name] != others[name]
        ]
        if not same_model:
            differing.insert(0, f"model: {self.model}, not {other.model}")
        methods = {method.name: method for method in other.methods}
        for method in self.methods:
            if method.name not in methods:
                differing.append(f"method {method.name} is there, but was not requested")
            elif method.ranking != methods[method.name].ranking:
                differing.append(
                    f"method {method.name}: {method.ranking}, not {methods[method.name].ranking}"
                )
        return differing


def _model_key(model: ModelInfo) -> tuple[object, ...]:
    return (model.dimension, model.vocabulary_fingerprint, model.weights_fingerprint)


def _identity(record: EvaluationRecord) -> dict[str, object]:
    protocol = dataclasses.asdict(record.protocol)
    return {
        "dataset": record.dataset.name,
        "split": record.dataset.split,
        "dataset's fingerprint": record.dataset.fingerprint,
        "store": f"{record.store.url} {record.store.collection}",
        **{name.replace("_", " "): value for name, value in protocol.items()},
    }
