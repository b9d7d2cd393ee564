"""The run: start, steps, checkpoints, and the finished model with its tuned weights.

One step is a function of (settings, seed, step number, weights): a run that stops and goes on from its
checkpoint takes the same steps, bit for bit, as one that never stopped (unless a time budget steers it).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from m3_connectors.encoder.config import ModelConfig
from m3_connectors.encoder.model import M3Model
from m3_connectors.errors import InvalidInput
from m3_connectors.methods import Weights, save_weights
from m3_connectors.training.batches import Batch, Sampler
from m3_connectors.training.checkpoint import (
    Progress,
    claim_folder,
    export_model,
    import_model,
    load_state,
    replacing,
    save_state,
)
from m3_connectors.training.config import TokenizerSettings, TrainingConfig
from m3_connectors.training.data import fingerprint_files, open_pairs, read_pairs
from m3_connectors.training.forward import TrainingEncoder, split
from m3_connectors.training.losses import objective, score_all
from m3_connectors.training.optimizer import RowAdamW
from m3_connectors.training.start import build_start
from m3_connectors.training.tokenizer import sample_texts, save_tokenizer, train_tokenizer
from m3_connectors.training.validate import Validation, make_tasks

_TOKENIZER, _START = "tokenizer.json", "start.pt"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

Report = Callable[[dict[str, Any]], None]
"""Called with every record of the log."""


class Trainer:
    """One run in a working folder.

    Args:
        config: The run.
        data: Folder of pairs.
        work: Working folder: token cache, tokenizer, start, state, log. A run found there goes on.
        report: Called with every record of the log.
    """

    def __init__(
        self, config: TrainingConfig, data: Path, work: Path, report: Report = lambda record: None
    ) -> None:
        if config.run.dtype not in DTYPES:
            raise InvalidInput(f"run.dtype is {config.run.dtype!r}.\n  Give one of {', '.join(DTYPES)}.")
        self._config = config
        self._data = data
        self._work = work
        self._report = report
        if config.run.threads:
            torch.set_num_threads(config.run.threads)
        work.mkdir(parents=True, exist_ok=True)

        start = import_model(Path(config.start_from)) if config.start_from else None
        # What a step is a function of; where things lie and how often they are saved is not part of it.
        settings = dataclasses.asdict(config) | {"output": ""}
        settings["start_from"] = start.info.weights_fingerprint if start else ""
        settings["data"] |= {"folder": ""}
        settings["run"] |= {"save_every": 0, "threads": 0}
        parts = {"settings": settings, "pairs": fingerprint_files(data)}
        identity = {
            what: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
            for what, value in parts.items()
        }
        claim_folder(work, identity, made=(_TOKENIZER, _START))
        self.tokenizer = start.tokenizer if start else self._tokenizer()
        self.store = open_pairs(
            data,
            self.tokenizer,
            work / "tokens",
            longest=start.model.config.max_length if start else config.model.max_length,
            held_out_share=config.data.held_out_share,
            linked_sources=config.data.linked_sources,
        )
        self.model = start.model if start else self._scratch()
        self.sampler = Sampler(
            self.store,
            source_weights=config.data.source_weights,
            groups=config.data.groups,
            query_longest=config.data.query_longest,
            queries_per_passage=config.data.queries_per_passage,
            query_tokens_per_passage=config.data.query_tokens_per_passage,
            language_exponent=config.data.language_exponent,
            seed=config.run.seed,
        )
        self.optimizer = RowAdamW(dict(self.model.named_parameters()), config.optimizer)
        self._encoder = TrainingEncoder(self.model, DTYPES[config.run.dtype])
        self.progress = load_state(work, self.model, self.optimizer)

    def _tokenizer(self) -> Tokenizer:
        """The tokenizer of a run from scratch, kept in the working folder."""
        path = self._work / _TOKENIZER
        if not path.exists():
            began = time.perf_counter()
            with replacing(path) as fresh:
                save_tokenizer(learn_tokenizer(self._data, self._config.tokenizer), fresh)
            self._report({"event": "tokenizer", "seconds": round(time.perf_counter() - began, 1)})
        return Tokenizer.from_file(str(path))

    def _scratch(self) -> M3Model:
        """The start of a run from scratch, kept in the working folder."""
        sizes = self._config.model
        config = ModelConfig(
            vocab_size=self.tokenizer.get_vocab_size(),
            hidden_size=sizes.hidden_size,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            intermediate_size=sizes.intermediate_size,
            # Positions begin after the padding id.
            max_position_embeddings=sizes.max_length + 2,
        )
        kept = self._work / _START
        if kept.exists():
            model = M3Model(config)
            model.load_state_dict(torch.load(kept, weights_only=True))
            return model
        began = time.perf_counter()
        model = build_start(self.store, config, self._config.start, self._config.run.seed)
        with replacing(kept) as fresh:
            torch.save(model.state_dict(), fresh)
        self._report({"event": "start", "seconds": round(time.perf_counter() - began, 1)})
        return model

    def share_done(self) -> float:
        """Share of the run that is done, by steps or, with a budget, by the clock if that is ahead."""
        run = self._config.run
        by_steps = self.progress.step / run.steps
        return max(by_steps, self.progress.seconds / run.seconds) if run.seconds else by_steps

    def run(self, steps: int | None = None) -> None:
        """Take steps until the run ends, or at most ``steps``; save on the way and at the end."""
        last = None if steps is None else self.progress.step + steps
        while self.share_done() < 1 and (last is None or self.progress.step < last):
            self._report(self.step())
            if self.progress.step % self._config.run.save_every == 0:
                self.save()
        self.save()

    def save(self) -> None:
        """Write the state to go on from."""
        save_state(self._work, self.model, self.optimizer, self.progress)

    def step(self) -> dict[str, Any]:
        """One step; its record for the log."""
        began = time.perf_counter()
        config, number, done = self._config, self.progress.step, self.share_done()
        batch = self.sampler.batch(number)
        shown, tables = self._encoder(batch.queries + batch.passages, self._first_positions(batch, number))
        loss, parts = objective(
            score_all(*split(shown, len(batch))),
            torch.from_numpy(batch.targets),
            config.loss,
            cross_lingual=torch.from_numpy(batch.cross_lingual),
            self_distillation=done >= config.run.distil_from,
        )
        loss.backward()  # type: ignore[no-untyped-call]
        norm = self.optimizer.step(tables, config.optimizer.rate_factor(done))
        seconds = time.perf_counter() - began
        self.progress = Progress(number + 1, self.progress.seconds + seconds)
        return {
            "step": number,
            "source": batch.source,
            "loss": round(loss.item(), 4),
            **{name: round(value, 4) for name, value in parts.items()},
            "gradient_norm": round(norm, 3),
            "rate_factor": round(config.optimizer.rate_factor(done), 4),
            "queries": len(batch),
            "passages": len(batch.passages),
            "tokens": batch.tokens,
            "seconds": round(seconds, 3),
        }

    def _first_positions(self, batch: Batch, step: int) -> list[int]:
        """Random places for some passages, so that every position embedding is learnt from short texts."""
        rng = np.random.default_rng([self._config.run.seed, 3, step])
        room = self.model.config.max_length
        shifted = rng.random(len(batch.passages)) < self._config.data.shifted_share
        drawn = rng.random(len(batch.passages))
        places = [
            int(share * (room - len(passage) + 1)) if moved else 0
            for share, moved, passage in zip(drawn, shifted, batch.passages, strict=True)
        ]
        return [0] * len(batch) + places

    def validation(self) -> Validation:
        """The model on held-out pairs of the sources that count in ``tune_importance``."""
        tasks = make_tasks(self.store, [name.split("/")[0] for name in self._config.tune_importance])
        return Validation(
            self.model,
            self.store,
            tasks,
            dtype=DTYPES[self._config.run.dtype],
            passage_longest=self.model.config.max_length,
        )

    def finish(self, output: Path) -> dict[str, tuple[float, float, float]]:
        """Write the model with weights tuned on held-out pairs.

        Returns:
            The weights, by method.
        """
        export_model(self.model, self.tokenizer, output)
        weights = {"dense_sparse": (1.0, 0.3, 0.0), "all": (1.0, 0.3, 1.0)}
        if self._config.tune_importance:
            validation = self.validation()
            weights = validation.tune(self._config.tune_importance)
            table = validation.methods(weights["dense_sparse"], weights["all"])
            self._report({"event": "validation", "ndcg_at_10": table})
        save_weights(
            output / "weights.json", {method: Weights(*values) for method, values in weights.items()}
        )
        return weights


def learn_tokenizer(data: Path, settings: TokenizerSettings) -> Tokenizer:
    """Train the tokenizer on the distinct texts of a folder of pairs."""
    texts: dict[str, set[str]] = {}
    for pair in read_pairs(data):
        texts.setdefault(pair.lang_q, set()).add(pair.query)
        texts.setdefault(pair.lang_p, set()).add(pair.positive)
    sample = sample_texts(
        {language: sorted(distinct) for language, distinct in texts.items()},
        total_characters=settings.characters,
        exponent=settings.exponent,
        emphasis=settings.emphasis,
    )
    return train_tokenizer(sample, settings.vocabulary_size)
