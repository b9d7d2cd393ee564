"""A dataset by name: a folder, one of the paper's, or any of ir_datasets."""

from __future__ import annotations

from pathlib import Path

from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.datasets.beir import load_beir
from m3_connectors.evaluation.datasets.catalogue import Entry, find_entry
from m3_connectors.evaluation.datasets.dataset import Dataset
from m3_connectors.evaluation.datasets.hub import Agree, Download, fetch, plan, refuse, snapshot
from m3_connectors.evaluation.datasets.hub_sets import read_hub_set
from m3_connectors.evaluation.datasets.irds import PREFIX, load_irds
from m3_connectors.evaluation.datasets.own import DEFAULT_SPLIT, load_own
from m3_connectors.evaluation.datasets.sizes import size_of


def load_dataset(
    name: str | Path, *, split: str | None = None, data_dir: Path | None = None, agree: Agree | None = None
) -> Dataset:
    """Read one split of a dataset.

    Args:
        name: A folder (BEIR's files, or ``documents.jsonl`` and ``queries.jsonl``), one of the catalogue
            (``miracl/de``, ``mkqa/fr``, ``mldr/en``, ``narrativeqa``), or ``irds:ID``. A folder of that name
            comes first.
        split: Which judgements; the paper's split, or ``test``, by default.
        data_dir: For the catalogue: a folder with the files of the hub under the paths that they have there.
            The hub is not asked then.
        agree: Asked before anything is fetched, with what it weighs. Nobody agrees by default.

    Raises:
        InvalidInput: No such dataset or split, malformed data, or a download that nobody agreed to.
        NotFound, Unauthorised, Unavailable: The hub does not have it, requires a login, or does not respond.
        MissingDependency: An optional package that this dataset needs is not installed.
    """
    if isinstance(name, str) and name.startswith(PREFIX):
        return _irds(name, split, data_dir, agree)
    folder = Path(name)
    if folder.is_dir():
        if data_dir is not None:
            raise InvalidInput(
                f"{name} is a folder, but --data-dir is only for datasets of the hub.\n  Omit --data-dir."
            )
        return _folder(folder, split)
    entry, language = find_entry(str(name))
    chosen = split or entry.splits[0]
    if chosen not in entry.splits:
        raise InvalidInput(f"{name} has no split {chosen!r}.\n  Use one of {', '.join(entry.splits)}.")
    roots = [data_dir] if data_dir is not None else _fetched(str(name), entry, language, chosen, agree)
    return read_hub_set(entry, language, chosen, roots)


def downloads(name: str, split: str | None = None) -> list[Download]:
    """Return the downloads that a dataset of the catalogue needs, and how much of them is not on this machine.

    Raises:
        InvalidInput: No such dataset.
        NotFound, Unauthorised, Unavailable: The hub does not have it, requires a login, or does not respond.
    """
    entry, language = find_entry(name)
    return _plans(entry, language, split or entry.splits[0])


def _folder(folder: Path, split: str | None) -> Dataset:
    for file, load, default in (
        ("corpus.jsonl", load_beir, "test"),
        ("documents.jsonl", load_own, DEFAULT_SPLIT),
    ):
        if (folder / file).is_file() or (folder / f"{file}.gz").is_file():
            return load(folder, split or default)
    raise InvalidInput(
        f"{folder} is not a dataset: it has neither corpus.jsonl (BEIR) nor documents.jsonl (your own data), "
        "plain or .gz.\n  Use one of the two layouts in docs/datasets.md."
    )


def _irds(name: str, split: str | None, data_dir: Path | None, agree: Agree | None) -> Dataset:
    if split is not None or data_dir is not None:
        raise InvalidInput(
            f"{name} takes neither a split nor a data directory.\n"
            "  Put the split into the id, and set IR_DATASETS_HOME for the files."
        )
    return load_irds(name.removeprefix(PREFIX), agree)


def _fetched(name: str, entry: Entry, language: str | None, split: str, agree: Agree | None) -> list[Path]:
    size = size_of(entry.family, language, split)
    repositories = [repository.filled(language, split) for repository in entry.repositories]
    here = {r.name: snapshot(r, size.parts if size else None) for r in repositories}
    planned = {r.name: plan(r) for r in repositories if here[r.name] is None}
    if planned and not (agree and agree(list(planned.values()))):
        raise refuse(name, list(planned.values()))
    return [folder or fetch(planned[name]) for name, folder in here.items()]


def _plans(entry: Entry, language: str | None, split: str) -> list[Download]:
    return [plan(repository.filled(language, split)) for repository in entry.repositories]
