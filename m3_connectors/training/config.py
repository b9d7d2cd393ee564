"""The configuration of a training run, read from TOML."""

from __future__ import annotations

import dataclasses
import textwrap
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from m3_connectors.errors import InvalidInput
from m3_connectors.training.batches import SHORTEST, LengthGroup
from m3_connectors.training.losses import LossSettings
from m3_connectors.training.optimizer import OptimizerSettings
from m3_connectors.training.ranges import (
    POSITIVE,
    SEED,
    SHARE,
    SHARE_BELOW_1,
    at_least,
    require,
    require_one_above_0,
)
from m3_connectors.training.start import StartSettings
from m3_connectors.training.tokenizer import FIRST_SPECIALS

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class TokenizerSettings:
    """The settings of a tokenizer that is trained on the texts of the run; see ``training.tokenizer``.

    Attributes:
        vocabulary_size: The total number of pieces.
        characters: The approximate number of characters to train on.
        exponent: The share of a language is proportional to its size to this power.
        emphasis: Factors for the shares of languages.
    """

    vocabulary_size: int = 56_000
    characters: int = 20_000_000
    exponent: float = 0.3
    emphasis: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(
            self,
            vocabulary_size=at_least(len(FIRST_SPECIALS) + 2),
            characters=at_least(1),
            exponent=at_least(0),
            emphasis=POSITIVE,
        )


@dataclass(frozen=True)
class ModelSettings:
    """The sizes of a model that is trained from scratch."""

    hidden_size: int = 256
    layers: int = 3
    heads: int = 4
    intermediate_size: int = 1024
    max_length: int = 8192

    def __post_init__(self) -> None:
        # Two dimensions of the initial model are reserved; see training.start.
        require(
            self,
            hidden_size=at_least(3),
            layers=at_least(1),
            heads=at_least(1),
            intermediate_size=at_least(1),
            max_length=at_least(SHORTEST),
        )
        if self.hidden_size % self.heads:
            raise InvalidInput(
                f"hidden_size is {self.hidden_size} and heads is {self.heads}.\n"
                "  Set hidden_size to a multiple of heads."
            )


@dataclass(frozen=True)
class DataSettings:
    """The pairs and the batches; see ``training.data`` and ``training.batches``.

    Attributes:
        folder: The folder of the JSONL files.
        source_weights: The share of the steps, by source name or prefix.
        groups: The length groups, shortest first.
        query_longest: The maximum number of tokens of a query.
        queries_per_passage: The maximum number of queries of a passage in a batch.
        query_tokens_per_passage: The maximum number of tokens of these queries together.
        language_exponent: The share of a language within a source is proportional to its count to this power.
        held_out_share: The share of passages kept for validation.
        linked_sources: The sources that are held out in clusters of texts that share pairs.
        shifted_share: The share of passages that get random positions, so that all positions are trained.
    """

    folder: str = field(metadata={"example": 'folder = "pairs"  # with questions.jsonl, notes.jsonl.gz, …'})
    source_weights: dict[str, float] = field(
        metadata={"example": "source_weights = { questions = 1.0, notes = 0.5 }"}
    )
    groups: tuple[LengthGroup, ...] = (LengthGroup(64, 256), LengthGroup(512, 112), LengthGroup(2048, 16))
    query_longest: int = 64
    queries_per_passage: int = 3
    query_tokens_per_passage: int = 48
    language_exponent: float = 0.7
    held_out_share: float = 0.03
    linked_sources: tuple[str, ...] = ("par_",)
    shifted_share: float = 0.3

    def __post_init__(self) -> None:
        require(
            self,
            source_weights=at_least(0),
            query_longest=at_least(SHORTEST),
            queries_per_passage=at_least(1),
            query_tokens_per_passage=at_least(1),
            language_exponent=at_least(0),
            held_out_share=SHARE_BELOW_1,
            shifted_share=SHARE,
        )
        require_one_above_0(self, "source_weights")
        longest = [group.longest for group in self.groups]
        if not longest or longest != sorted(set(longest)):
            raise InvalidInput(
                f"groups have the lengths {longest}.\n"
                "  Use at least one group, with increasing lengths, each once."
            )


@dataclass(frozen=True)
class RunSettings:
    """The length of the run and the checkpoints.

    Attributes:
        steps: The number of steps of the run, at least 1; warm-up, cosine and distillation are shares of it.
        seconds: A time budget: the schedule follows the clock if it is ahead of the steps, so that the run
            ends in time. 0 means no budget; only then is a run reproducible.
        save_every: The number of steps between checkpoints, at least 1; the end of the run is always saved.
        distil_from: The share of the run after which self-distillation is added; 1 or more means never.
        threads: The number of PyTorch threads; 0 uses PyTorch's default.
        dtype: The dtype of the layers' products, "bfloat16" or "float32".
        seed: The seed of all random choices.
    """

    steps: int = 1000
    seconds: float = 0.0
    save_every: int = 500
    distil_from: float = 0.5
    threads: int = 0
    dtype: str = "bfloat16"
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            self,
            steps=at_least(1),
            seconds=at_least(0),
            save_every=at_least(1),
            distil_from=at_least(0),
            threads=at_least(0),
            seed=SEED,
        )
        if self.dtype not in DTYPES:
            raise InvalidInput(f"dtype is {self.dtype!r}.\n  Use one of {', '.join(DTYPES)}.")


@dataclass(frozen=True)
class TrainingConfig:
    """The configuration of a run.

    Attributes:
        output: The directory of the finished model.
        data: The pairs and the batches.
        start_from: The directory of a checkpoint to start from, or a hub name such as ``BAAI/bge-m3``; empty
            to train from scratch.
        tokenizer: The tokenizer; used only when training from scratch.
        model: The sizes; used only when training from scratch.
        start: The initial model; used only when training from scratch.
        loss: The constants of section 3.3.
        optimizer: AdamW and the schedule.
        run: The length of the run and the checkpoints.
        tune_importance: The importance of held-out tasks, by prefix, when the weights of the model are tuned.
            Without it, they are not tuned: a model that starts from a checkpoint keeps its weights, and a new
            model gets the paper's.

    Raises:
        InvalidInput: A value is out of range.
    """

    output: str = field(metadata={"example": 'output = "my-model"  # the directory of the finished model'})
    data: DataSettings = field(
        metadata={"example": '[data]\nfolder = "pairs"\nsource_weights = { questions = 1.0 }'}
    )
    start_from: str = ""
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    start: StartSettings = field(default_factory=StartSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    run: RunSettings = field(default_factory=RunSettings)
    tune_importance: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self, tune_importance=POSITIVE)
        if not self.start_from:
            self.check_lengths(self.model.max_length)

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
        """Read a TOML file; its relative paths are resolved relative to its folder.

        ``start_from`` is resolved only if there is such a directory; otherwise it is kept, as a directory
        relative to the current one or a hub name.

        Raises:
            InvalidInput: The file does not exist or is not TOML, a key is unknown or missing, or a value has
                a wrong type or is out of range.
        """
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            raise InvalidInput(f"{path} does not exist.\n  Pass a training configuration (TOML).") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{path} is not TOML: {error}\n  Fix the file.") from None
        config = typing.cast(TrainingConfig, _parse(cls, raw, str(path)))
        beside = path.parent / config.start_from
        return dataclasses.replace(
            config,
            output=str(path.parent / config.output),
            start_from=str(beside.resolve()) if config.start_from and beside.is_dir() else config.start_from,
            data=dataclasses.replace(config.data, folder=str(path.parent / config.data.folder)),
        )


def _parse(kind: Any, raw: Any, where: str, example: str = "") -> Any:
    """Convert a TOML value to the given type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(raw, Mapping):
            raise InvalidInput(f"{where} is {raw!r}.\n  It must be a table of settings{_such_as(example)}")
        types_by_name = typing.get_type_hints(kind)
        fields = {item.name: item for item in dataclasses.fields(kind)}
        unknown = sorted(set(raw) - set(fields))
        if unknown:
            raise InvalidInput(f"{where} has an unknown key {unknown[0]!r}.\n  Known: {', '.join(fields)}.")
        missing = [
            name
            for name, item in fields.items()
            if name not in raw
            and item.default is dataclasses.MISSING
            and item.default_factory is dataclasses.MISSING
        ]
        examples = {name: str(item.metadata.get("example", "")) for name, item in fields.items()}
        if missing:
            raise InvalidInput(f"{where} lacks {missing[0]!r}.\n  Add it{_such_as(examples[missing[0]])}")
        values = {
            name: _parse(types_by_name[name], value, f"{where}: {name}", examples[name])
            for name, value in raw.items()
        }
        try:
            return typing.cast(Any, kind)(**values)
        except InvalidInput as error:  # the dataclass checks ranges only; add the place in the file
            raise InvalidInput(f"{where}: {error}") from None
    if origin is tuple and isinstance(raw, list):
        if arguments[-1] is Ellipsis:
            return tuple(_parse(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(raw))
        if len(arguments) == len(raw):
            return tuple(_parse(one, item, where) for one, item in zip(arguments, raw, strict=True))
    elif origin is dict and isinstance(raw, Mapping):
        return {name: _parse(arguments[1], value, f"{where}.{name}") for name, value in raw.items()}
    elif kind is float and isinstance(raw, int | float) and not isinstance(raw, bool):
        return float(raw)
    elif isinstance(kind, type) and type(raw) is kind:
        return raw
    raise InvalidInput(f"{where} is {raw!r}.\n  It must be {_name(kind)}.")


def _such_as(example: str) -> str:
    return f", such as:\n{textwrap.indent(example, '    ')}" if example else "."


def _name(kind: Any) -> str:
    return kind.__name__ if typing.get_origin(kind) is None else str(kind)
