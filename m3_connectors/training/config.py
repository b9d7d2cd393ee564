"""The configuration of a training run, read from TOML."""

from __future__ import annotations

import dataclasses
import difflib
import textwrap
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from m3_connectors.embeddings import COMPONENTS, Component
from m3_connectors.errors import InvalidInput
from m3_connectors.records import Key, read_raw_toml, read_settings
from m3_connectors.training.batches import SHORTEST, LengthGroup
from m3_connectors.training.dense_teacher import DenseTeacherSettings
from m3_connectors.training.lora import LoraSettings
from m3_connectors.training.losses import LossSettings
from m3_connectors.training.monitor import EvaluationSettings
from m3_connectors.training.optimizer import OptimizerSettings
from m3_connectors.training.pairs import PairFiles
from m3_connectors.training.ranges import (
    STRICT,
    NotNegative,
    Positive,
    Seed,
    Share,
    ShareBelow1,
    require_one_above_0,
)
from m3_connectors.training.refresh import RefreshSettings
from m3_connectors.training.retromae import RetroMAESettings
from m3_connectors.training.start import StartSettings
from m3_connectors.training.tokenizer import FIRST_SPECIALS

_EXAMPLES = {
    "output": 'output = "my-model"  # the directory of the finished model',
    "data": '[data]\nfolder = "pairs"\nsource_weights = { questions = 1.0 }',
    "data.folder": 'folder = "pairs"  # with questions.jsonl, notes.jsonl.gz, …',
    "data.source_weights": "source_weights = { questions = 1.0, notes = 0.5 }",
    "run.device": 'device = "auto"  # or "cpu", "cuda", "cuda:1"',
    "data.groups": "groups = [{ longest = 64, batch = 256 }, { longest = 512, batch = 112 }]",
}

_SEE = "See docs/training.md."

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, config=STRICT)
class TokenizerSettings:
    """The settings of a tokenizer that is trained on the texts of the run; see ``training.tokenizer``.

    Attributes:
        vocabulary_size: The total number of pieces.
        characters: The approximate number of characters to train on.
        exponent: The share of a language is proportional to its size to this power.
        emphasis: Factors for the shares of languages.
    """

    vocabulary_size: int = Field(default=56_000, ge=len(FIRST_SPECIALS) + 2)
    characters: int = Field(default=20_000_000, ge=1)
    exponent: NotNegative = 0.3
    emphasis: dict[str, Positive] = Field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class ModelSettings:
    """The sizes of a model that is trained from scratch."""

    hidden_size: int = Field(default=256, ge=3)  # training.start reserves two dimensions
    layers: int = Field(default=3, ge=1)
    heads: int = Field(default=4, ge=1)
    intermediate_size: int = Field(default=1024, ge=1)
    max_length: int = Field(default=8192, ge=SHORTEST)

    def __post_init__(self) -> None:
        if self.hidden_size % self.heads:
            raise InvalidInput(
                f"hidden_size is {self.hidden_size} and heads is {self.heads}.\n"
                "  Set hidden_size to a multiple of heads."
            )


@dataclass(frozen=True, config=STRICT)
class DataSettings:
    """The pairs and the batches; see ``training.data`` and ``training.batches``.

    Attributes:
        folder: The folder of the JSONL files.
        files: Files and folders of pairs, instead of one folder.
        source_weights: The share of the steps, by source name or prefix; without it, the number of pairs of each
            source.
        groups: The length groups, shortest first.
        query_longest: The maximum number of tokens of a query.
        queries_per_passage: The maximum number of queries of a passage in a batch.
        query_tokens_per_passage: The maximum number of tokens of these queries together.
        negatives_per_query: The maximum number of hard negatives (``neg``) of a query in a batch; 0 for none.
        language_exponent: The share of a language within a source is proportional to its count to this power.
        held_out_share: The share of passages kept for validation.
        linked_sources: The sources that are held out in clusters of texts that share pairs.
        shifted_share: The share of passages that get random positions, so that all positions are trained.
        segment_shuffle: The share of long passages that are cut into three segments in random order, against
            over-reading of the first sentences (section 3.1).
        segment_shuffle_above: The number of tokens above which a passage is long for this purpose.
    """

    folder: str = ""
    files: tuple[str, ...] = ()
    source_weights: dict[str, NotNegative] = Field(default_factory=dict)
    groups: tuple[LengthGroup, ...] = (LengthGroup(64, 256), LengthGroup(512, 112), LengthGroup(2048, 16))
    query_longest: int = Field(default=64, ge=SHORTEST)
    queries_per_passage: int = Field(default=3, ge=1)
    query_tokens_per_passage: int = Field(default=48, ge=1)
    negatives_per_query: int = Field(default=7, ge=0)
    language_exponent: NotNegative = 0.7
    held_out_share: ShareBelow1 = 0.03
    linked_sources: tuple[str, ...] = ("par_",)
    shifted_share: Share = 0.3
    segment_shuffle: Share = 0.002
    segment_shuffle_above: int = Field(default=100, ge=SHORTEST)

    def __post_init__(self) -> None:
        if bool(self.folder) == bool(self.files):
            raise InvalidInput(
                f"folder is {self.folder!r}, and files are {list(self.files)}.\n"
                '  Set one of them, such as folder = "pairs", a folder with questions.jsonl, notes.jsonl.gz, …'
            )
        if self.source_weights:
            require_one_above_0("source_weights", self.source_weights.values())
        longest = [group.longest for group in self.groups]
        if not longest or longest != sorted(set(longest)):
            raise InvalidInput(
                f"groups have the lengths {longest}.\n"
                "  Use at least one group, with increasing lengths, each once."
            )

    @property
    def paths(self) -> PairFiles:
        """The folder, or the files."""
        return tuple(map(Path, self.files)) if self.files else Path(self.folder)


@dataclass(frozen=True, config=STRICT)
class RunSettings:
    """The length of the run and the checkpoints.

    Attributes:
        steps: The number of steps of the run, at least 1; warm-up, cosine and distillation are shares of it.
        seconds: A time budget: the schedule follows the clock if it is ahead of the steps, so that the run
            ends in time. 0 means no budget; only then is a run reproducible.
        save_every: The number of steps between checkpoints, at least 1; the end of the run is always saved.
        distil_from: The share of the run after which self-distillation is added; 1 or more means never.
        threads: The number of PyTorch threads of each process; 0 uses PyTorch's default, or the container's CPU quota
            if that is lower.
        device: Where the model is trained: "cpu", "cuda" (with several processes, each takes the GPU of its number
            on its machine), "cuda:1" (one process), or "auto", which takes a GPU if there is one.
        dtype: The dtype of the layers' products, "bfloat16" or "float32".
        tokens_at_once: Steps with more tokens are encoded in sub-batches of about this many, with the same
            gradients and less memory (section B.3); 0 encodes every step at once.
        tensorboard: Whether to write event files for TensorBoard to ``tensorboard`` in the working folder.
        seed: The seed of all random choices.
    """

    steps: int = Field(default=1000, ge=1)
    seconds: NotNegative = 0.0
    save_every: int = Field(default=500, ge=1)
    distil_from: NotNegative = 0.5
    threads: int = Field(default=0, ge=0)
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    tokens_at_once: int = Field(default=0, ge=0)
    tensorboard: bool = False
    seed: Seed = 0


@dataclass(frozen=True, config=STRICT)
class TrainingConfig:
    """The configuration of a run.

    Attributes:
        output: The directory of the finished model.
        data: The pairs and the batches.
        objective: The stage of the recipe; see ``training.stages``.
        start_from: The directory of a checkpoint to start from, or a hub name such as ``BAAI/bge-m3``; empty
            to train from scratch.
        train: The heads that are trained; the others do not change. Without "dense", only the linear layers of
            the named heads are trained: the dense vector is a state of the backbone.
        lora: Train low-rank changes of the backbone's layers instead of the layers; None trains the layers.
        colbert_dim: The width of the multi-vector head, at most that of the model; 0 keeps the width of the start.
        extend_positions: The number of positions that the start model gets if it has fewer; 0 keeps its own. See
            ``training.positions``.
        tokenizer: The tokenizer; used only when training from scratch.
        model: The sizes; used only when training from scratch.
        start: The initial model; used only when training from scratch.
        dense_teacher: Dense vectors of another model to learn from.
        loss: The constants of section 3.3.
        retromae: The masks of the stage ``retromae``.
        optimizer: AdamW and the schedule.
        run: The length of the run and the checkpoints.
        mining: Hard negatives that are mined during the run.
        evaluation: Evaluation during the run.
        tune_importance: The importance of held-out tasks, by prefix, when the weights of the model are tuned.
            Without it, they are not tuned: a model that starts from a checkpoint keeps its weights, and a new
            model gets the paper's.

    Raises:
        ValidationError: A value is out of range.
    """

    output: str
    data: DataSettings
    objective: Literal["retromae", "distil", "unsupervised", "finetune"] = "finetune"
    start_from: str = ""
    train: tuple[Component, ...] = COMPONENTS
    lora: LoraSettings | None = None
    colbert_dim: int = Field(default=0, ge=0)
    extend_positions: int = Field(default=0, ge=0)
    tokenizer: TokenizerSettings = Field(default_factory=TokenizerSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    start: StartSettings = Field(default_factory=StartSettings)
    dense_teacher: DenseTeacherSettings = Field(default_factory=DenseTeacherSettings)
    loss: LossSettings = Field(default_factory=LossSettings)
    retromae: RetroMAESettings = Field(default_factory=RetroMAESettings)
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings)
    run: RunSettings = Field(default_factory=RunSettings)
    mining: RefreshSettings = Field(default_factory=RefreshSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    tune_importance: dict[str, Positive] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_train()
        if self.mining.every and self.loss.kd != "none":
            raise InvalidInput(
                f"mining.every is {self.mining.every} and loss.kd is {self.loss.kd!r}, but negatives that are mined "
                "during the run have no teacher's scores.\n"
                "  Remove one of them, or mine and score before the run: m3 mine --teacher MODEL."
            )
        if self.lora and self.objective == "retromae":
            raise InvalidInput(
                f"objective is {self.objective!r}, which trains the word embeddings with their softmax, but [lora] "
                "freezes them.\n  Remove [lora] from this stage, or use another objective."
            )
        if not self.start_from:
            # A later stage of a run from scratch may extend the positions of the one before.
            self.check_lengths(max(self.model.max_length, self.extend_positions))

    def _check_train(self) -> None:
        if not self.train or len(set(self.train)) < len(self.train):
            raise InvalidInput(
                f"train is {list(self.train)}.\n  Name each head that is trained once: {', '.join(COMPONENTS)}."
            )
        if self.colbert_dim == 1:
            raise InvalidInput(
                f"colbert_dim is {self.colbert_dim}: rows of one dimension are all 1 or -1.\n  Use 2 or more."
            )
        backbone = {
            f"objective = {self.objective!r}": self.objective != "finetune",
            "[lora]": self.lora is not None,
            "loss.matryoshka": bool(self.loss.matryoshka),
            "dense_teacher.vectors": bool(self.dense_teacher.vectors),
        }
        needed = [(what, "dense") for what, used in backbone.items() if used]
        needed += [("colbert_dim", "multivector")] if self.colbert_dim else []
        for what, head in needed:
            if head not in self.train:
                raise InvalidInput(
                    f"train is {list(self.train)}, but {what} trains {head}.\n"
                    f"  Add {head!r} to train, or remove {what}."
                )

    def check_lengths(self, max_length: int) -> None:
        """Check that the model has a position for every token of any batch.

        Raises:
            InvalidInput: A length in ``data`` exceeds ``max_length``.
        """
        lengths = {"query_longest": self.data.query_longest, "groups": self.data.groups[-1].longest}
        for name, longest in lengths.items():
            if longest > max_length:
                raise InvalidInput(
                    f"data: {name} allows {longest:,} tokens, but the model has {max_length:,} positions.\n"
                    f"  Set {name} to at most {max_length}"
                    + (", or increase model.max_length." if not self.start_from else ".")
                )

    @classmethod
    def load(cls, path: Path) -> TrainingConfig:
        """Read the TOML file of a run with one stage; see ``load_stages``.

        Raises:
            InvalidInput: Also if the file has several stages.
        """
        stages = load_stages(path)
        if len(stages) > 1:
            raise InvalidInput(f"{path} has {len(stages)} stages.\n  Use a file with one stage.")
        return stages[0]


def load_stages(path: Path) -> list[TrainingConfig]:
    """Read a TOML file: the stages of a run, in their order.

    A file without ``[[stages]]`` is one stage. Otherwise, each table of ``[[stages]]`` changes the settings at
    the top of the file for its stage, and every stage but the first starts from the model of the one before.

    Relative paths are resolved relative to the folder of the file; ``start_from`` only if there is such a
    directory, otherwise it is kept, as a directory relative to the current one or a hub name.

    Raises:
        InvalidInput: The file does not exist or is not TOML, a key is unknown or missing, or a value has
            a wrong type or is out of range.
    """
    raw = read_raw_toml(path)
    changes = raw.pop("stages", None)
    if changes is None:
        return [_resolved(read_settings(TrainingConfig, raw, path, _remedy), path.parent)]
    if not isinstance(changes, list) or not changes or not all(isinstance(each, dict) for each in changes):
        raise InvalidInput(f"{path}: stages is {changes!r:.60}.\n  Write each stage as a table [[stages]].")
    stages = []
    for number, change in enumerate(changes, 1):
        for key in ("output", "start_from", "tokenizer", "model", "start"):
            if number > 1 and key in change:
                raise InvalidInput(
                    f"{path}, stage {number} has the key {key}, but it starts from the model of stage "
                    f"{number - 1}.\n  Move the key to the first stage or to the top of the file."
                )
        merged = _merged(raw, change)
        stages.append(
            _resolved(read_settings(TrainingConfig, merged, f"{path}, stage {number}", _remedy), path.parent)
        )
    return stages


def _merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return the base with the values of the change; tables are merged key by key."""
    merged = dict(base)
    for key, value in change.items():
        known = merged.get(key)
        merged[key] = _merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return merged


def _resolved(config: TrainingConfig, folder: Path) -> TrainingConfig:
    beside = folder / config.start_from
    return dataclasses.replace(
        config,
        output=str(folder / config.output),
        start_from=str(beside.resolve()) if config.start_from and beside.is_dir() else config.start_from,
        data=dataclasses.replace(
            config.data,
            folder=str(folder / config.data.folder) if config.data.folder else "",
            files=tuple(str(folder / file) for file in config.data.files),
        ),
        dense_teacher=dataclasses.replace(
            config.dense_teacher,
            vectors=str(folder / config.dense_teacher.vectors) if config.dense_teacher.vectors else "",
        ),
        evaluation=dataclasses.replace(
            config.evaluation,
            folder=config.evaluation.folder and str(folder / config.evaluation.folder),
        ),
    )


def _remedy(key: Key) -> str:
    """Return the next step for a wrong, missing or unknown key: the nearest known key, or an example."""
    known = _settings(key[:-1])
    if known and key and isinstance(key[-1], str) and key[-1] not in known:
        return _nearest(key[-1], known)
    places = (".".join(part for part in key[:end] if isinstance(part, str)) for end in range(len(key), 0, -1))
    example = next((_EXAMPLES[place] for place in places if place in _EXAMPLES), None)
    if example is None:
        return f"Correct it; the settings of this table are {', '.join(known)}." if known else _SEE
    return f"Write it as in this example:\n{textwrap.indent(example, '    ')}"


def _nearest(name: str, known: list[str]) -> str:
    """Return the next step for an unknown key: the one that was meant, or the table to which it belongs."""
    tables = {field: _settings((field,)) for field in _settings(())}
    if homes := [f"[{table}]" for table, settings in tables.items() if name in settings]:
        return f"Move it: {name} is a setting of {' and '.join(homes)}."
    if near := difflib.get_close_matches(name, known, 1):
        return f"Did you mean {near[0]}? The settings of this table are {', '.join(known)}."
    everywhere = {setting: table for table, settings in tables.items() for setting in settings}
    if near := difflib.get_close_matches(name, everywhere, 1, cutoff=0.8):
        return f"Did you mean {near[0]}, a setting of [{everywhere[near[0]]}]?"
    return f"Remove it; the settings of this table are {', '.join(known)}."


def _settings(table: Key) -> list[str]:
    """Return the names of the settings of a table; none if the place is not a table of settings."""
    kind: Any = TrainingConfig
    for name in table:
        if isinstance(name, str):
            field = getattr(kind, "__pydantic_fields__", {}).get(name)
            kind = field and field.annotation
            # A list of tables, or a table that may be missing.
            kind = next((part for part in typing.get_args(kind) if dataclasses.is_dataclass(part)), kind)
    names = list(getattr(kind, "__pydantic_fields__", ()))
    return names if table or not names else [*names, "stages"]
