"""What a run is made from: a working folder belongs to one run, and is not continued by another."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from m3_connectors.encoder.loading import Checkpoint
from m3_connectors.training.checkpoint import claim_folder
from m3_connectors.training.config import TrainingConfig
from m3_connectors.training.pairs import PairFiles, fingerprint_files

TOKENIZER, START, BEST, MINED, FINISHED = "tokenizer.json", "start.pt", "best", "mined", "finished"
_MADE = (TOKENIZER, START, BEST, MINED, FINISHED, "tensorboard")
"""The files and folders of a working folder that depend on the identity of its run."""


def claim(work: Path, config: TrainingConfig, data: PairFiles, start: Checkpoint | None) -> None:
    """Record in a working folder what the run is made from.

    Everything that a step or the choice of the best model depends on is part of it; paths and the frequency of
    checkpoints are not.

    Raises:
        InvalidInput: The folder contains the state of a run that is made from something else.
    """
    settings = dataclasses.asdict(config) | {"output": ""}
    settings["start_from"] = start.info.weights_fingerprint if start else ""
    settings["data"] |= {"folder": "", "files": ()}
    settings["evaluation"] |= {"folder": ""}
    settings["run"] |= {"save_every": 0, "threads": 0, "tensorboard": False, "device": ""}
    parts: dict[str, Any] = {"pairs": fingerprint_files(data)}
    if vectors := config.dense_teacher.vectors:
        settings["dense_teacher"] |= {"vectors": ""}
        parts["teacher vectors"] = _contents(Path(vectors))
    if config.evaluation.every and config.evaluation.folder:
        parts["evaluation data"] = _contents(Path(config.evaluation.folder))
    fingerprints = {
        what: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
        for what, value in parts.items()
    }
    # Through JSON, so that tuples equal the lists that are read back.
    values = json.loads(json.dumps(dict(_flat(settings))))
    claim_folder(work, {"settings": values, **fingerprints}, made=_MADE)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings by their names in a configuration, such as ``run.steps``."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _contents(path: Path) -> Mapping[str, str]:
    """Return the SHA-256 (hex) of a file, or of each file below a folder; those that are missing have none."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    prints = {}
    for file in files:
        name = file.relative_to(path).as_posix() if file != path else ""
        if file.is_file() and not any(part.startswith(".") for part in name.split("/")):
            with file.open("rb") as content:
                prints[name] = hashlib.file_digest(content, "sha256").hexdigest()
    return prints
