"""Selects the evaluations on which a figure can compare methods: those that all methods have."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence

from m3_connectors.evaluation.folder import EvaluationFolder

_MOST_NAMED = 12
"""The most methods or evaluations that a caption names."""


@dataclasses.dataclass(frozen=True)
class Fair:
    """The methods to compare, with the evaluations that all of them have.

    Attributes:
        methods: In the order asked.
        folders: In the order given.
        missing_methods: Those asked for that have too few evaluations.
        missing_folders: Evaluations that one of ``methods`` lacks.
    """

    methods: tuple[str, ...]
    folders: tuple[EvaluationFolder, ...]
    missing_methods: tuple[str, ...]
    missing_folders: tuple[EvaluationFolder, ...]


def fair(folders: Sequence[EvaluationFolder], methods: Collection[str]) -> Fair:
    """Select what can be compared; means over different sets of queries cannot.

    A method that fewer than half of the evaluations have would exclude most of them for all others, so it is
    omitted. If necessary, the rarest methods are omitted too, until there is an evaluation that all have.

    Args:
        folders: Complete evaluations.
        methods: Those to compare.
    """
    have = [{method.name for method in folder.record.methods} for folder in folders]
    asked = list(dict.fromkeys(name for name in methods if any(name in names for names in have)))
    counts = {name: sum(name in names for names in have) for name in asked}
    fewest = min(len(folders) / 2, max(counts.values(), default=0))
    kept = [name for name in asked if counts[name] >= fewest]
    while kept and not any(names.issuperset(kept) for names in have):
        kept.remove(min(reversed(kept), key=lambda name: counts[name]))
    shared = [folder for folder, names in zip(folders, have, strict=True) if kept and names.issuperset(kept)]
    return Fair(
        tuple(kept),
        tuple(shared),
        tuple(name for name in asked if name not in kept),
        tuple(folder for folder in folders if folder not in shared),
    )


def left_out(parts: Iterable[Fair]) -> str:
    """Return the end of a figure's caption that lists what is omitted; empty if nothing is."""
    everything = list(parts)
    sentences = ""
    methods = dict.fromkeys(name for part in everything for name in part.missing_methods)
    if methods:
        sentences += f" Omitted because too few evaluations have them: {_listed(methods)}."
    folders = dict.fromkeys(_name(folder) for part in everything for folder in part.missing_folders)
    if folders:
        sentences += f" Omitted because not all methods shown have them: {_listed(folders)}."
    return sentences


def _name(folder: EvaluationFolder) -> str:
    return f"{folder.record.dataset.name} {folder.record.dataset.split}"


def _listed(names: Iterable[str]) -> str:
    """Return the names as text; of many names only the first ones."""
    every = list(names)
    more = f" and {len(every) - _MOST_NAMED} more" if len(every) > _MOST_NAMED else ""
    return ", ".join(every[:_MOST_NAMED]) + more
