"""Join corpus, queries and judgements into a dataset; what cannot be measured is omitted and counted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from m3_connectors.documents import Document
from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.datasets.dataset import Corpus, Qrels


def add_query(queries: dict[str, str], id: str, text: str, where: str) -> None:
    """Add a query.

    Raises:
        InvalidInput: The id was already added.
    """
    if id in queries:
        raise InvalidInput(
            f"{where}: the query id {id!r} came before; query ids must be unique.\n"
            "  Rename or remove one of them."
        )
    queries[id] = text


def add_judgement(qrels: Qrels, query: str, document: str, grade: int, where: str) -> None:
    """Add a judgement.

    Raises:
        InvalidInput: The document already has a different grade for this query.
    """
    before = qrels.setdefault(query, {}).setdefault(document, grade)
    if before != grade:
        raise InvalidInput(
            f"{where}: document {document!r} has grade {grade} for query {query!r}, and {before} before.\n"
            "  Remove the wrong one."
        )


def join(
    where: str,
    split: str,
    queries: Mapping[str, str],
    qrels: Qrels,
    read: Callable[[Callable[[Document], None]], Corpus],
) -> tuple[Corpus, dict[str, str], Qrels, tuple[str, ...]]:
    """Return the corpus, the judged queries, their judgements, and warnings with the number of what was omitted.

    Args:
        where: The name of the dataset in errors.
        split: Name of the split, for the warnings.
        queries: All queries, id to text.
        qrels: All judgements of the split.
        read: Reads the corpus; it calls its argument with each document of the first pass.

    Raises:
        InvalidInput: No query is judged, or the corpus is invalid.
    """
    judged = {id: qrels[id] for id in queries if id in qrels}
    if not judged:
        raise InvalidInput(
            f"{where}: none of the {len(queries):,} queries is judged in split {split!r}.\n"
            "  Check that the judgements use the ids of the queries."
        )
    missing = {document for grades in judged.values() for document in grades}
    corpus = read(lambda document: missing.discard(document.id))
    counts = (
        (len(queries) - len(judged), f"queries without a judgement in split {split}: not asked"),
        (len(qrels) - len(judged), "judged queries whose text is not there: left out"),
        (
            sum(id in missing for grades in judged.values() for id in grades),
            "judgements of documents that the corpus does not have: they count as not found",
        ),
        (
            sum(not any(grade > 0 for grade in grades.values()) for grades in judged.values()),
            "queries without a relevant document: every measure of theirs is 0",
        ),
    )
    return corpus, {id: queries[id] for id in judged}, judged, said(counts)


def folder_names(directory: Path) -> tuple[str, str, str | None]:
    """Return name, family and language of a folder: ``mlqa-dev/de`` is the German part of ``mlqa-dev``.

    A folder whose name is no language code is named by itself, and says nothing of its language.
    """
    folder = directory.resolve()
    if is_language(folder.name) and folder.parent.name:
        return f"{folder.parent.name}/{folder.name}", folder.parent.name, folder.name
    return folder.name, folder.name, None


def is_language(name: str) -> bool:
    """Whether a name looks like a language code: two lower-case letters."""
    return len(name) == 2 and name.isascii() and name.isalpha() and name.islower()


def said(counts: Collection[tuple[int, str]]) -> tuple[str, ...]:
    """Counts that are not 0, as warnings for people."""
    return tuple(f"{count:,} {what}" for count, what in counts if count)
