"""One split of a dataset: queries, judgements, and a corpus that is streamed."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Literal

from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput

Qrels = dict[str, dict[str, int]]
"""For each query id, the grade of each judged document id; a grade of 1 or more is relevant."""

Relevance = Literal["documents", "answers"]
"""What a judgement refers to: single documents, or any document that contains an answer (MKQA)."""


@dataclasses.dataclass(frozen=True)
class PaperProtocol:
    """How the paper evaluated a dataset (sections 4.1 to 4.3 and its scripts); an evaluation may differ.

    The candidate depths are those of the methods themselves (``m3_connectors.methods``).

    Attributes:
        measures: Their names as in tables; the first is the one that the paper reports.
        query_max_length: The maximum number of tokens of a query; None if it was not published.
        passage_max_length: The maximum number of tokens of a passage.
        dense_sparse: The published weights of Dense+Sparse, or None.
        all: The published weights of All, or None.
    """

    measures: tuple[str, ...] = ("nDCG@10", "Recall@100", "MRR@10")
    query_max_length: int | None = None
    passage_max_length: int | None = None
    dense_sparse: tuple[float, float, float] | None = None
    all: tuple[float, float, float] | None = None


class Corpus:
    """Documents that are read again at each iteration, so that memory does not grow with their number.

    A first pass counts them, checks that ids are unique and computes their fingerprint, with 8 bytes of memory
    per document.

    Args:
        read: Returns an iterator over all documents, the same ones at each call.
        where: The name of the corpus in errors.
        notice: Called with each document of the first pass.

    Attributes:
        fingerprint: SHA-256 over ids and texts in order, in hexadecimal.

    Raises:
        InvalidInput: There is no document, or two documents have the same id.
    """

    def __init__(
        self,
        read: Callable[[], Iterator[Document]],
        where: str = "the corpus",
        notice: Callable[[Document], None] = lambda document: None,
    ) -> None:
        self._read = read
        digests = array("Q")
        fingerprint = hashlib.sha256()
        for document in read():
            digests.append(_digest(document.id))
            _update(fingerprint, document.id, document.text)
            notice(document)
        self._count = len(digests)
        self.fingerprint = fingerprint.hexdigest()
        if not self._count:
            raise InvalidInput(f"{where} has no documents.\n  Add at least one document.")
        self._refuse_repeated(digests, where)

    @classmethod
    def of(cls, documents: Sequence[Document]) -> Corpus:
        """Documents that are in memory."""
        return cls(lambda: iter(documents))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Document]:
        return self._read()

    def batches(self, size: int) -> Iterator[list[Document]]:
        """All documents in order, ``size`` at a time."""
        documents = iter(self)
        while batch := list(islice(documents, size)):
            yield batch

    def select(self, ids: Collection[str]) -> dict[str, Document]:
        """Those of the documents that are there, by id; one pass, only these are held."""
        wanted = set(ids)
        return {document.id: document for document in self if document.id in wanted}

    def _refuse_repeated(self, digests: array[int], where: str) -> None:
        import numpy as np

        ordered = np.sort(np.frombuffer(digests, dtype=np.uint64))
        suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
        seen: dict[str, int] = {}
        # Two ids may share a digest: only the ids themselves tell.
        for position, document in enumerate(self if suspects else (), 1):
            if _digest(document.id) in suspects and seen.setdefault(document.id, position) != position:
                raise InvalidInput(
                    f"{where}: document {position:,} has the id {document.id!r} of document "
                    f"{seen[document.id]:,}; ids must be unique.\n"
                    "  Give each document a unique id, or remove the second one."
                )


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One split of a dataset: its queries, corpus and relevance judgements.

    Attributes:
        name: Such as ``miracl/de``, ``mlqa-dev/de`` or ``cranfield``.
        split: Name of the split.
        documents: The corpus; a title stands before its text, on a line of its own.
        queries: The queries that count, id to text: those with judgements, or with answers.
        qrels: Their judgements, those of missing documents too (they count as not found). Empty where answers
            judge.
        answers: Where no document is judged: query id to the strings of which a relevant passage holds one
            (``m3_connectors.evaluation.answers`` judges by them). Empty where qrels judge.
        family: What it is reported with: ``miracl``, ``mkqa``, ``mldr``, ``narrativeqa``, ``mlqa-dev``, …
        source: Where it came from: a hub repository, ``ir_datasets:ID`` or the name of a folder.
        revision: Commit of the hub repository, or None.
        licence: SPDX identifier or the publisher's words, or None where nobody says.
        query_language: Language code, or None where unknown or mixed.
        passage_language: As ``query_language``.
        paper: How the paper ran it.
        warnings: What does not fit together, counted, for people.
    """

    name: str
    split: str
    documents: Corpus
    queries: dict[str, str]
    qrels: Qrels
    answers: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    family: str = ""
    source: str = ""
    revision: str | None = None
    licence: str | None = None
    query_language: str | None = None
    passage_language: str | None = None
    paper: PaperProtocol = PaperProtocol()
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.queries:
            raise InvalidInput(
                f"{self.name}, split {self.split}, has no queries to measure.\n  Add queries with judgements."
            )
        unjudged = [id for id in self.queries if not (self.answers if self.answers else self.qrels).get(id)]
        if unjudged:
            raise InvalidInput(
                f"{self.name}, split {self.split}: {len(unjudged)} queries have neither judgement nor answer, "
                f"such as {unjudged[0]!r}.\n  Remove them from queries, because they cannot be measured."
            )

    @property
    def relevance(self) -> Relevance:
        """What a judgement is about."""
        return "answers" if self.answers else "documents"

    def select(self, queries: Collection[str]) -> Dataset:
        """The same corpus with these of its queries, in the dataset's order."""
        wanted = set(queries)
        return dataclasses.replace(
            self,
            queries={id: text for id, text in self.queries.items() if id in wanted},
            qrels={id: grades for id, grades in self.qrels.items() if id in wanted},
            answers={id: answers for id, answers in self.answers.items() if id in wanted},
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over corpus, queries and judgements, in hexadecimal: equal for the same task only."""
        hash = hashlib.sha256(self.documents.fingerprint.encode())
        for id, text in self.queries.items():
            _update(hash, id, text)
            for document, grade in sorted(self.qrels.get(id, {}).items()):
                _update(hash, document, str(grade))
            _update(hash, *self.answers.get(id, ()))
        return hash.hexdigest()


def _digest(id: str) -> int:
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "little")


def _update(hash: hashlib._Hash, *texts: str) -> None:
    """Lengths stand before the texts: no two sequences of texts give the same bytes."""
    for text in texts:
        encoded = text.encode()
        hash.update(len(encoded).to_bytes(8, "little") + encoded)
