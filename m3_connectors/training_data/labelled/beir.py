"""BEIR folders: the passages that are judged relevant to a query are its positives, the others its negatives."""

from __future__ import annotations

from collections.abc import Container, Iterator
from pathlib import Path

from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.datasets.lines import find, titled
from m3_connectors.training_data.examples import Example, NotAnExample, Unusable, broken, text_of
from m3_connectors.training_data.lines import json_records, text_rows

DEFAULT_SPLIT = "train"

_Judged = dict[str, tuple[str, dict[str, float]]]
"""The grade of each judged passage by query, behind the place of the first judgement of the query."""


def read_beir(folder: Path, kind: str, split: str | None) -> Iterator[Example | Unusable]:
    """Yield the judged queries of a split: grades above 0 are positives, others negatives. Only these are in memory.

    Args:
        folder: The folder with ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/SPLIT.tsv``, plain or ``.gz``.
        kind: The kind of the examples.
        split: The split; ``train`` by default.

    Raises:
        InvalidInput: The folder lacks a file or the split.
    """
    judged: _Judged = {}
    qrels = _qrels(folder, split or DEFAULT_SPLIT)
    yield from _judgements(qrels, judged)
    wanted = {id for _, grades in judged.values() for id in grades}
    passages: dict[str, str] = {}
    yield from _texts(find(folder, "corpus.jsonl"), wanted, passages)
    queries: dict[str, str] = {}
    yield from _texts(find(folder, "queries.jsonl"), judged.keys(), queries)
    for query, (place, grades) in judged.items():
        missing = [id for id in grades if id not in passages]
        if query not in queries or missing:
            what = (
                f"query {query!r}" if query not in queries else f"passage {missing[0]!r} of query {query!r}"
            )
            yield broken(place, f"the {what} is judged, but its text is not in the folder")
        if query not in queries:
            continue
        positives = tuple(passages[id] for id, grade in grades.items() if grade > 0 and id in passages)
        negatives = tuple(passages[id] for id, grade in grades.items() if grade <= 0 and id in passages)
        if positives:
            yield Example(queries[query], positives, place, kind, negatives)
        else:
            yield Unusable(place, "no positive", f"no passage is relevant to query {query!r}")


def _qrels(folder: Path, split: str) -> Path:
    try:
        return find(folder / "qrels", f"{split}.tsv")
    except InvalidInput:
        splits = sorted({file.name.partition(".tsv")[0] for file in (folder / "qrels").glob("*.tsv*")})
        raise InvalidInput(
            f"{folder} has no judgements qrels/{split}.tsv, only {', '.join(splits) or 'none'}.\n"
            "  Name one with --split, unless models are evaluated on it."
        ) from None


def _judgements(path: Path, judged: _Judged) -> Iterator[Unusable]:
    for row in text_rows(path):
        if isinstance(row, Unusable):
            yield row
            continue
        place, line = row
        cells = line.split("\t")
        if not line.strip() or (place == f"{path}:1" and cells[-1].strip().lower() == "score"):
            continue
        try:
            query, passage, grade = cells
            judged.setdefault(query, (place, {}))[1][passage] = float(grade)
        except ValueError:
            yield broken(place, f"{line[:60]!r} is not 'query-id TAB corpus-id TAB score'")


def _texts(path: Path, wanted: Container[str], texts: dict[str, str]) -> Iterator[Unusable]:
    """Put the texts of these ids into ``texts``, and yield the lines that cannot be read."""
    for row in json_records(path):
        if isinstance(row, Unusable):
            yield row
            continue
        place, record = row
        id = str(record.get("_id", record.get("id")))
        if id not in wanted:
            continue
        try:
            texts[id] = titled(str(record.get("title") or ""), text_of(record, "text"))
        except NotAnExample as error:
            yield broken(place, str(error))
