"""What a training run needs to know, read from TOML."""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m3_connectors.errors import InvalidInput
from m3_connectors.training.batches import LengthGroup
from m3_connectors.training.losses import LossSettings
from m3_connectors.training.optimizer import OptimizerSettings
from m3_connectors.training.start import StartSettings


@dataclass(frozen=True)
class TokenizerSettings:
    """A tokenizer trained on the run's own texts; see ``training.tokenizer``.

    Attributes:
        vocabulary_size: Pieces in all.
        characters: About how many characters to learn from.
        exponent: A language's share of them is its size to this power.
        emphasis: Factors on the shares of languages.
    """

    vocabulary_size: int = 56_000
    characters: int = 20_000_000
    exponent: float = 0.3
    emphasis: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelSettings:
    """Sizes of a model that starts from scratch."""

    hidden_size: int = 256
    layers: int = 3
    heads: int = 4
    intermediate_size: int = 1024
    max_length: int = 8192


@dataclass(frozen=True)
class DataSettings:
    """Which pairs, and in which batches; see ``training.data`` and ``training.batches``.

    Attributes:
        folder: Of JSONL files.
        source_weights: Share of the steps by source name or prefix.
        groups: Length groups, shortest first.
        query_longest: Tokens of a query.
        queries_per_passage: Most queries that a passage brings into a batch.
        query_tokens_per_passage: Fewer queries where these are longer in all.
        language_exponent: A language's share inside a source is its count to this power.
        held_out_share: Share of passages kept for validation.
        linked_sources: Sources held out in clusters of texts that share pairs.
        shifted_share: Share of passages that are given random positions, so that all positions are learnt.
    """

    folder: str
    source_weights: dict[str, float]
    groups: tuple[LengthGroup, ...] = (LengthGroup(64, 256), LengthGroup(512, 112), LengthGroup(2048, 16))
    query_longest: int = 64
    queries_per_passage: int = 3
    query_tokens_per_passage: int = 48
    language_exponent: float = 0.7
    held_out_share: float = 0.03
    linked_sources: tuple[str, ...] = ("par_",)
    shifted_share: float = 0.3


@dataclass(frozen=True)
class RunSettings:
    """How long, and how often to save.

    Attributes:
        steps: Steps of the whole run.
        seconds: A budget: the schedule then follows the clock where that is ahead of the steps, and the
            run ends in time. 0 for none; only then is a run the same every time.
        save_every: Steps between checkpoints.
        distil_from: Share of the run after which self-distillation is added.
        threads: Of PyTorch; 0 for its own choice.
        dtype: Of the layers' products, "bfloat16" or "float32".
        seed: Of everything drawn.
    """

    steps: int = 1000
    seconds: float = 0.0
    save_every: int = 500
    distil_from: float = 0.5
    threads: int = 0
    dtype: str = "bfloat16"
    seed: int = 0


@dataclass(frozen=True)
class TrainingConfig:
    """A whole run.

    Attributes:
        output: Directory of the finished model.
        data: Pairs and batches.
        start_from: Directory of a checkpoint to start from; empty for a start from scratch.
        tokenizer: Used from scratch.
        model: Used from scratch.
        start: Used from scratch.
        loss: Constants of section 3.3.
        optimizer: AdamW and schedule.
        run: Length and saving.
        tune_importance: Weight of held-out tasks, by prefix, when the model's weights are tuned.
    """

    output: str
    data: DataSettings
    start_from: str = ""
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    start: StartSettings = field(default_factory=StartSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    run: RunSettings = field(default_factory=RunSettings)
    tune_importance: dict[str, float] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> TrainingConfig:
        """Read a TOML file; its relative paths become relative to its folder.

        Raises:
            InvalidInput: No such file, no TOML, an unknown or missing key, a value of a wrong type.
        """
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InvalidInput(f"{path} does not exist.\n  Give a training configuration (TOML).") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{path} is not TOML: {error}\n  Mend the file.") from None
        config = typing.cast(TrainingConfig, _parse(cls, raw, str(path)))
        return dataclasses.replace(
            config,
            output=str(path.parent / config.output),
            start_from=config.start_from and str(path.parent / config.start_from),
            data=dataclasses.replace(config.data, folder=str(path.parent / config.data.folder)),
        )


def _parse(kind: Any, raw: Any, where: str) -> Any:
    """A value of the given type from what TOML gave."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(raw, Mapping):
            raise InvalidInput(f"{where} is {raw!r}.\n  It is a table of settings.")
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
        if missing:
            raise InvalidInput(f"{where} lacks {missing[0]!r}.\n  Add it.")
        return typing.cast(Any, kind)(
            **{name: _parse(types_by_name[name], value, f"{where}: {name}") for name, value in raw.items()}
        )
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


def _name(kind: Any) -> str:
    return kind.__name__ if typing.get_origin(kind) is None else str(kind)
