"""Saves and loads the state of a run, and writes a finished model in the published layout."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from m3_connectors.encoder.loading import Checkpoint, load
from m3_connectors.encoder.model import M3Model
from m3_connectors.encoder.weights import extremes
from m3_connectors.errors import Diverged, InvalidInput, ModelFormat, NotFound, StorageFull, Unavailable
from m3_connectors.files import replacing, sync_directory
from m3_connectors.training.disk import naming_a_full_disk, sync
from m3_connectors.training.heads import trim_head
from m3_connectors.training.interchange import write_interchange_files
from m3_connectors.training.lora import merged_state
from m3_connectors.training.optimizer import RowAdamW
from m3_connectors.training.tokenizer import FIRST_SPECIALS, save_tokenizer

T = TypeVar("T")

HEADS = ("sparse_linear", "colbert_linear")


def export_model(
    model: M3Model, tokenizer: Tokenizer, folder: Path, dtype: torch.dtype = torch.float16
) -> None:
    """Write a model as an XLM-RoBERTa directory with ``sparse_linear.pt`` and ``colbert_linear.pt``.

    By default, the weights are float16, which is sufficient for a model that consists mostly of embeddings.

    Raises:
        Diverged: A weight is not finite, also after conversion to the dtype; nothing is written.
    """
    weights = {name: value.to("cpu", dtype).contiguous() for name, value in merged_state(model).items()}
    _check_finite(weights)
    folder.mkdir(parents=True, exist_ok=True)
    backbone = {name: value for name, value in weights.items() if not name.startswith(HEADS)}
    save_file(backbone, folder / "model.safetensors", metadata={"format": "pt"})
    for head in HEADS:
        state = {
            name.removeprefix(f"{head}."): value
            for name, value in weights.items()
            if name.startswith(f"{head}.")
        }
        torch.save(state, folder / f"{head}.pt")
    # safetensors creates files that only their owner can read; the others follow the umask.
    shutil.copymode(folder / "colbert_linear.pt", folder / "model.safetensors")
    model.config.save(folder / "config.json")
    save_tokenizer(tokenizer, folder / "tokenizer.json")
    write_interchange_files(folder, model.config)


def import_model(model: str | Path) -> Checkpoint:
    """Load a model in the published layout as float32, for training.

    Args:
        model: A directory, or a hub name such as ``BAAI/bge-m3``.

    Raises:
        ModelFormat: A file is missing, the shape of a weight does not match ``config.json``, or the special
            tokens have other ids than in XLM-RoBERTa.
        NotFound, Unauthorised, Unavailable: The hub has no such model, denies access, or cannot be reached.
    """
    try:
        checkpoint = load(str(model), revision=None, dtype=torch.float32)
    except (NotFound, Unavailable) as error:
        reason = str(error).splitlines()[0].removeprefix(f"{error.backend} {error.operation}: ")
        raise type(error)(
            f"{reason}\n  Set start_from to a directory, relative to the configuration or to the current "
            "directory, or to a hub name such as BAAI/bge-m3.",
            backend=error.backend,
            operation=error.operation,
        ) from error
    for wanted, token in enumerate(FIRST_SPECIALS):
        found = checkpoint.tokenizer.token_to_id(token)
        if found != wanted:
            raise ModelFormat(
                f"{model}: tokenizer.json gives {token} the id {found}; XLM-RoBERTa and training use {wanted}.\n"
                "  Start from a model whose first ids are <s> 0, <pad> 1, </s> 2 and <unk> 3."
            )
    trim_head(checkpoint.model)
    checkpoint.model.train().requires_grad_(True)
    return checkpoint


def _check_finite(state: Mapping[str, Tensor]) -> None:
    for name, value in state.items():
        if not all(map(math.isfinite, extremes(value))):
            damaged = int((~torch.isfinite(value)).sum())
            raise Diverged(
                f"{damaged:,} of the {value.numel():,} values of {name} are NaN, infinite or too large for "
                f"{str(value.dtype).removeprefix('torch.')}; the model was not written.\n"
                "  Train again with a lower learning_rate or a longer warm_up."
            )


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Attributes:
        step: The number of steps done, which is the number of the next step.
        seconds: The time spent in steps so far.
    """

    step: int = 0
    seconds: float = 0.0


class TrainedParts:
    """Everything that a run trains: the model, and the layers of its stage that are not part of the model.

    Attributes:
        parameters: All parameters by name; those of the stage begin with ``stage.``.
    """

    def __init__(self, model: M3Model, extra: nn.Module | None) -> None:
        self.modules: dict[str, nn.Module] = {"": model} | ({"stage.": extra} if extra else {})
        self.parameters = {
            prefix + name: value
            for prefix, module in self.modules.items()
            for name, value in module.named_parameters()
        }

    def state(self) -> dict[str, Tensor]:
        """Return all weights by name."""
        return {
            prefix + name: value
            for prefix, module in self.modules.items()
            for name, value in module.state_dict().items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load weights that ``state`` returned.

        Raises:
            RuntimeError: A weight is missing, unknown or of another shape.
        """
        for prefix, module in self.modules.items():
            module.load_state_dict(
                {
                    name.removeprefix(prefix): value
                    for name, value in state.items()
                    if name.startswith("stage.") == bool(prefix)
                }
            )


_STATE_FILES = ("model.safetensors", "optimizer.safetensors", "progress.json")


_MOST_SHOWN = 60
"""The number of characters of a value in a message."""


def claim_folder(
    folder: Path, identity: Mapping[str, str | Mapping[str, object]], made: Sequence[str]
) -> None:
    """Record the inputs of a run in its working folder, so that no other run uses the files there.

    A folder without a saved state can be reused: a run that has not taken a step can be corrected and
    restarted.

    Args:
        folder: The working folder of the run.
        identity: What the run is made from, by name: a fingerprint, or values of JSON that a message may name.
        made: The names of the files and folders that depend on the identity; they are removed when a folder is
            reused.

    Raises:
        InvalidInput: The folder contains the state of a run with another identity.
    """
    path = folder / "identity.json"
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    if not isinstance(known, dict):
        known = {}
    other = _differences(known, identity)
    if other and is_saved(folder):
        raise _other_run(folder, path, known, identity, other)
    for name in made if other else ():
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    with replacing(path) as fresh:
        fresh.write_text(json.dumps(dict(identity)))


def _other_run(
    folder: Path, path: Path, known: Mapping[str, Any], identity: Mapping[str, Any], other: Sequence[str]
) -> InvalidInput:
    if not known:
        return InvalidInput(
            f"{path} is missing or damaged, so the saved run cannot be identified.\n"
            "  Restore the file, or use another working folder (--work DIR) to start a new run."
        )
    if any(isinstance(now, Mapping) and isinstance(known.get(what), str) for what, now in identity.items()):
        return InvalidInput(
            f"{folder} belongs to a run of an earlier version, which recorded only a fingerprint of the settings, "
            "so they cannot be compared.\n"
            "  Use that version to continue, or another working folder (--work DIR) to start a new run."
        )
    return InvalidInput(
        f"{folder} belongs to a run with other {' and '.join(other)}.\n"
        "  Use the original ones to continue, or another working folder (--work DIR) to start a new run."
    )


def _differences(known: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """Return the names of what differs, with both values where they are known."""
    found = []
    for what in {**identity, **known}:
        was, now = known.get(what), identity.get(what)
        if isinstance(was, dict) and isinstance(now, Mapping):
            names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
            values = [f"{name} ({_shown(was, name)}, now {_shown(now, name)})" for name in names[:3]]
            if rest := len(names) - len(values):
                values.append(f"{rest} more")
            found += [f"{what}: {', '.join(values)}"] if names else []
        elif was != now:
            found.append(what)
    return found


def _shown(values: Mapping[str, object], name: str) -> str:
    """Return a value as a message shows it: a table can have hundreds of entries."""
    if name not in values:  # another version has other settings
        return "not there"
    shown = json.dumps(values[name], ensure_ascii=False)
    return shown if len(shown) <= _MOST_SHOWN else f"{shown[:_MOST_SHOWN]} …"


def save_state(folder: Path, trained: TrainedParts, optimizer: RowAdamW, progress: Progress) -> None:
    """Save the state of a run; if this fails at any point, by a kill or a power failure, a whole state is left.

    Raises:
        Diverged: A weight is not finite; the previous state is kept.
        StorageFull: The disk is full; the previous state is kept, and what was written is removed.
    """
    _check_finite(trained.state())
    fresh, kept = folder / "state.new", folder / "state"
    shutil.rmtree(fresh, ignore_errors=True)
    contents = {"model.safetensors": trained.state(), "optimizer.safetensors": optimizer.state()}
    megabytes = sum(value.nbytes for content in contents.values() for value in content.values()) / 1e6
    previous = "the previous state is kept" if _is_whole(kept) else "there is no earlier state"
    remedy = f"Free {megabytes:,.0f} MB there and run the same command to continue: {previous}."
    try:
        with naming_a_full_disk(fresh, remedy):
            fresh.mkdir(parents=True)
            for name, content in contents.items():
                save_file(content, fresh / name)
                sync(fresh / name)
            # Written last: a state with this file is whole.
            with replacing(fresh / "progress.json", durable=True) as path:
                path.write_text(json.dumps(dataclasses.asdict(progress)))
            sync_directory(fresh)
    except StorageFull:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(kept, ignore_errors=True)
    fresh.rename(kept)
    sync_directory(folder)


def is_saved(folder: Path) -> bool:
    """Return whether a working folder has the state of a run."""
    return _is_whole(folder / "state") or _is_whole(folder / "state.new")


def load_state(folder: Path, trained: TrainedParts, optimizer: RowAdamW) -> Progress:
    """Load a saved state, or start at step 0 if there is none."""
    kept, fresh = folder / "state", folder / "state.new"
    if not _is_whole(kept):
        # The run was killed in its first save, or between removing the old state and renaming the new one.
        if not _is_whole(fresh):
            if kept.exists():
                lost = next(name for name in _STATE_FILES if not (kept / name).exists())
                raise _damaged(kept, f"it lacks {lost}")
            return Progress()
        shutil.rmtree(kept, ignore_errors=True)
        fresh.rename(kept)
    try:
        saved = json.loads((kept / "progress.json").read_text())
        progress = Progress(saved["step"], saved["seconds"])
        trained.load_state(load_file(kept / "model.safetensors"))
        optimizer.load_state(load_file(kept / "optimizer.safetensors"))
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError) as error:
        raise _damaged(kept, str(error).partition("\n")[0]) from error
    return progress


def _damaged(state: Path, reason: str) -> InvalidInput:
    return InvalidInput(
        f"{state} is damaged: {reason}.\n"
        "  Restore the folder from a copy, or remove it to begin again at step 0: the steps that it held are lost."
    )


def read_kept(path: Path, read: Callable[[], T]) -> T:
    """Read a file of the working folder that can be made again.

    Raises:
        InvalidInput: It is damaged.
    """
    try:
        return read()
    except Exception as error:  # the libraries raise many kinds, bare Exception among them
        raise InvalidInput(
            f"{path} is damaged: {str(error) or type(error).__name__}\n"
            "  Remove the file: the same command makes it again."
        ) from error


def _is_whole(state: Path) -> bool:
    """Return whether the state is complete; the last file is written after all others."""
    return all((state / name).exists() for name in _STATE_FILES)
