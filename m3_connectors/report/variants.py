"""Distinguish the evaluations of a tree, so that no table or figure mixes models, stores or protocols."""

from __future__ import annotations

from collections.abc import Sequence

from m3_connectors.evaluation.folder import EvaluationFolder
from m3_connectors.evaluation.record import DatasetRecord, EvaluationRecord


def variants(folders: Sequence[EvaluationFolder]) -> list[str]:
    """Return what distinguishes each evaluation of a dataset: model, store and protocol, if they differ.

    Where that is not enough, the name of the folder in which their paths part, else the whole path: two
    evaluations never share a line, and no mean counts a dataset twice.

    Returns:
        A suffix for each name, such as ``" (paper fusion)"``; empty where nothing differs.
    """
    models = [folder.record.model for folder in folders]
    weights: dict[str, set[str | None]] = {}
    for model in models:
        weights.setdefault(model.name, set()).add(model.weights_fingerprint)
    # A checkpoint that was trained further in place keeps its name.
    shown_models = [
        f"{model.name} {(model.weights_fingerprint or 'unknown')[:7]}"
        if len(weights[model.name]) > 1
        else model.name
        for model in models
    ]
    named = [(model, *_aspects(folder.record)) for model, folder in zip(shown_models, folders, strict=True)]
    differing = (
        [i for i in range(len(named[0])) if len({aspects[i] for aspects in named}) > 1] if named else []
    )
    paths = [folder.path.resolve().parts for folder in folders]
    parting = next((i for i, parts in enumerate(zip(*paths, strict=False)) if len(set(parts)) > 1), -1)
    found: list[str] = []
    for place in (lambda parts: "", lambda parts: parts[parting], lambda parts: "/".join(parts[parting:])):
        found = []
        for aspects, parts in zip(named, paths, strict=True):
            shown = [aspects[i] for i in differing] + [place(parts)]
            found.append(f" ({', '.join(filter(None, shown))})" if any(shown) else "")
        keys = {
            (folder.record.dataset.name, folder.record.dataset.split, variant)
            for folder, variant in zip(folders, found, strict=True)
        }
        if len(keys) == len(folders):
            break
    return found


def by_variant(folders: Sequence[EvaluationFolder]) -> dict[str, list[EvaluationFolder]]:
    """Return the evaluations that may be averaged and drawn together, by variant."""
    groups: dict[str, list[EvaluationFolder]] = {}
    for folder, variant in zip(folders, variants(folders), strict=True):
        groups.setdefault(variant, []).append(folder)
    return groups


def crosses(dataset: DatasetRecord) -> bool:
    """Return whether the queries are in another language than the documents."""
    languages = (dataset.query_language, dataset.passage_language)
    return None not in languages and languages[0] != languages[1]


def family_name(dataset: DatasetRecord) -> str:
    """Return the name of the dataset's family; datasets with queries in another language are one of their own."""
    return f"{dataset.family}, cross-lingual" if crosses(dataset) else dataset.family


def _aspects(record: EvaluationRecord) -> tuple[str, ...]:
    protocol = record.protocol
    cuts = (protocol.query_max_length, protocol.passage_max_length)
    return (
        protocol.precision,
        record.store.backend,
        f"{protocol.fusion} fusion",
        f"truncated at {'/'.join(str(cut) if cut else 'none' for cut in cuts)} tokens",
        "exact lists" if protocol.exact_lists else "approximate lists",
        f"first {protocol.limit_queries} queries" if protocol.limit_queries else "all queries",
    )
