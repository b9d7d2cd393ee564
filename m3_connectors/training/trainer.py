"""A training run: initial model, steps, checkpoints, and the finished model with its tuned weights.

A step is a function of (settings, seed, step number, weights): a run that stops and resumes from its
checkpoint takes the same steps, bit for bit, as a run that never stopped (unless it has a time budget).
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from m3_connectors.encoder.config import ModelConfig
from m3_connectors.encoder.model import M3Model
from m3_connectors.encoder.threads import set_threads
from m3_connectors.errors import Diverged, InvalidInput
from m3_connectors.files import replacing
from m3_connectors.methods import MIRACL, Weights, save_weights
from m3_connectors.training.checkpoint import (
    Progress,
    TrainedParts,
    export_model,
    import_model,
    is_saved,
    load_state,
    read_kept,
    save_state,
)
from m3_connectors.training.config import DTYPES, TokenizerSettings, TrainingConfig
from m3_connectors.training.data import open_pairs
from m3_connectors.training.data_warnings import data_warnings
from m3_connectors.training.dense_teacher import TeacherVectors
from m3_connectors.training.forward import TrainingEncoder
from m3_connectors.training.identity import BEST, MINED, START, TOKENIZER, claim
from m3_connectors.training.interchange import write_dense_widths
from m3_connectors.training.monitor import Best, BestModel, FolderTexts, evaluate
from m3_connectors.training.optimizer import RowAdamW
from m3_connectors.training.pairs import PairFiles, read_pairs
from m3_connectors.training.positions import extend_positions
from m3_connectors.training.ranks import ALONE, Ranks
from m3_connectors.training.refresh import CurrentWeights, refresh
from m3_connectors.training.stages import STAGES, Outcome, StageInputs
from m3_connectors.training.stages.pairs import PairStage
from m3_connectors.training.start import RESERVED, build_start, fit_sparse_head
from m3_connectors.training.tokenizer import sample_texts, save_tokenizer, train_tokenizer
from m3_connectors.training.trained import prepare_model
from m3_connectors.training.validate import (
    FEWEST_QUERIES,
    Task,
    Texts,
    Validation,
    make_tasks,
    unmatched,
)
from m3_connectors.training.watch import Watch

Report = Callable[[dict[str, Any]], None]
"""Called with every record of the log."""


class Trainer:
    """A training run in a working folder.

    Args:
        config: The configuration of the run.
        data: The folder of pairs, or files and folders.
        work: The working folder: token cache, tokenizer, initial model, state and log. A run in it is
            resumed.
        report: Called with every record of the log.
        ranks: The processes of the run. Only rank 0 writes files.

    Raises:
        InvalidInput: The pairs, the settings or the device cannot be used, or ``work`` belongs to another run.
    """

    def __init__(
        self,
        config: TrainingConfig,
        data: PairFiles,
        work: Path,
        report: Report = lambda record: None,
        ranks: Ranks = ALONE,
    ) -> None:
        self._ranks = ranks
        device = ranks.device(config.run.device)
        self._config = config
        self._data = data
        self._work = work
        self._report = report
        set_threads(config.run.threads or None)
        work.mkdir(parents=True, exist_ok=True)
        with ranks.first():
            self._prepare()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self.model.to(device)
        encoder = TrainingEncoder(
            self.model, DTYPES[config.run.dtype], tokens_at_once=config.run.tokens_at_once, ranks=ranks
        )
        self.stage = STAGES[config.objective](
            StageInputs(config, self.store, self.model, encoder, self.tokenizer, work)
        )
        for warning in self.stage.warnings:
            self._warn(warning)
        if self.stage.extra:
            self.stage.extra.to(device)
        self._trained = TrainedParts(self.model, self.stage.extra)
        trainable = {name: value for name, value in self._trained.parameters.items() if value.requires_grad}
        self.optimizer = RowAdamW(trainable, config.optimizer)
        with ranks.first():
            self.progress = load_state(work, self._trained, self.optimizer)
        self._check_shared_folder()
        ranks.copy_from_first(self._trained.parameters.values())
        self._watch = Watch(trains_sparse="sparse" in config.train)
        self._mined_at = 0
        self._evaluated = self._evaluated_texts()
        self._best = BestModel(work / BEST)

    def _prepare(self) -> None:
        """Open the pairs, the tokenizer and the initial model; the files that are missing are made."""
        config, data, work = self._config, self._data, self._work
        start = import_model(config.start_from) if config.start_from else None
        if config.lora and not start:
            raise InvalidInput(
                f"[lora] changes a trained model, but start_from is {config.start_from!r}.\n"
                "  Set start_from to a directory or a hub name, or remove [lora]."
            )
        if config.extend_positions:
            if not start:
                raise InvalidInput(
                    f"extend_positions is {config.extend_positions:,}, but the run starts from scratch.\n"
                    "  Set start_from to a checkpoint, or model.max_length to the number of positions."
                )
            extended = extend_positions(start.model, config.extend_positions)
            start = dataclasses.replace(start, model=extended)
        if start:
            config.check_lengths(start.model.config.max_length)
            self._report({"event": "start_from", "model": start.info.name, "revision": start.info.revision})
        self._weights = {
            method: (weights.dense, weights.sparse, weights.multivector) for method, weights in MIRACL.items()
        }
        if start:
            self._weights |= start.recommended_weights
        if self._ranks.is_first:
            claim(work, config, data, start)
        self._phase("reading pairs")
        self.tokenizer = start.tokenizer if start else self._tokenizer()
        self.store = open_pairs(
            data,
            self.tokenizer,
            work / "tokens",
            longest=start.model.config.max_length if start else config.model.max_length,
            held_out_share=config.data.held_out_share,
            linked_sources=config.data.linked_sources,
        )
        for message in data_warnings(data, self.store):
            self._warn(message)
        self._tasks = self._held_out_tasks()
        self.model = start.model if start else self._scratch()
        if start and config.start.fit_sparse_head and not is_saved(work):
            fit_sparse_head(self.model, self.store, config.start)
        prepare_model(self.model, config, self.store)

    def _check_shared_folder(self) -> None:
        """Check that every rank sees the working folder of rank 0."""
        step = int(self._ranks.of_first(self.progress.step))
        if self._ranks.any(step != self.progress.step):
            raise InvalidInput(
                f"process {self._ranks.rank} finds step {self.progress.step} in {self._work}, process 0 step {step}.\n"
                "  Set --work to a folder that all machines share."
            )

    @property
    def tasks(self) -> Sequence[Task]:
        """The tasks of held-out pairs on which the weights of the fused methods are tuned."""
        return self._tasks

    def _phase(self, phase: str) -> None:
        self._report({"event": "phase", "phase": phase})

    def _warn(self, message: str) -> None:
        self._report({"event": "warning", "message": message})

    def _held_out_tasks(self) -> list[Task]:
        """Return the tasks for tuning, before the first step, so that a wrong name fails early."""
        importance = self._config.tune_importance
        if not importance:
            return []
        tasks = make_tasks(self.store, [name.split("/")[0] for name in importance])
        # If no task matches, the message lists all tasks.
        for prefix in unmatched(tasks or make_tasks(self.store, [""]), importance):
            self._warn(f"tune_importance: {prefix!r} matches no task of held-out pairs and is ignored.")
        return tasks

    def _evaluated_texts(self) -> tuple[Texts, list[Task]] | None:
        """Return what the run is evaluated on, before the first step, so that a wrong folder fails early."""
        settings = self._config.evaluation
        if not settings.every:
            return None
        if settings.folder:
            texts = FolderTexts(settings, self.tokenizer)
            self._report({"event": "evaluated_on", "name": texts.task.name, "used": texts.used})
            return texts, [texts.task]
        tasks = make_tasks(self.store, [""], most_queries=settings.most_queries, seed=settings.seed)
        if not tasks:
            raise InvalidInput(
                "evaluation.every is set, but the held-out pairs make no task: a task needs "
                f"{FEWEST_QUERIES} questions of one source and language.\n"
                "  Set evaluation.folder to a folder as m3 eval reads it, or raise data.held_out_share."
            )
        return self.store, tasks

    def _mine(self) -> None:
        """Give the next step the negatives of the latest search, which is made now if it is due."""
        settings = self._config.mining
        due = settings.step_of(self.progress.step)
        if due == self._mined_at or not isinstance(self.stage, PairStage):
            return
        target = self._work / MINED / f"step-{due}.jsonl"
        if due < self.progress.step and not target.exists():
            raise InvalidInput(
                f"{target} is missing; it has the negatives of the steps from {due} on, which were mined with the "
                "weights of then.\n  Restore the file, or use another working folder (--work DIR)."
            )
        is_new = not target.exists()
        self._phase("mining hard negatives" if is_new else "reading the mined negatives")
        encoder = CurrentWeights(
            self.model,
            self.tokenizer,
            step=due,
            recommended_weights=self._weights,
            dtype=DTYPES[self._config.run.dtype],
        )
        with self._ranks.first():  # the others read what rank 0 has mined
            hard = refresh(encoder, self._data, target, settings, self.store)
        self.stage.sampler.negatives.hard = hard
        self._mined_at = due
        if is_new:
            self._report({"event": "mined", "after": due, "negatives": len(hard.texts)})
        self._phase("training")

    @property
    def _keep_best(self) -> str:
        """The method by which a model of this stage is the best; "none" if the last one is exported."""
        wanted, possible = self._config.evaluation.keep_best, self.stage.judged_by
        if wanted == "none" or not possible:
            return "none"
        return wanted if wanted in possible else possible[0]

    def evaluate(self) -> None:
        """Evaluate the current model, and keep it if it is the best one so far."""
        if self._evaluated is None:
            return
        began = time.perf_counter()
        texts, tasks = self._evaluated
        values = evaluate(self.model, texts, tasks, self._weights, dtype=DTYPES[self._config.run.dtype])
        keep = self._keep_best
        is_best = keep != "none" and self._best.offer(
            Best(self.progress.step, keep, values[keep]), self._trained
        )
        self._report(
            {
                "event": "evaluation",
                "after": self.progress.step,
                "ndcg_at_10": values,
                "is_best": is_best,
                "evaluation_seconds": round(time.perf_counter() - began, 1),
            }
        )

    def _tokenizer(self) -> Tokenizer:
        """Return the tokenizer of a run from scratch, which is stored in the working folder."""
        path = self._work / TOKENIZER
        if not path.exists():
            self._phase("training the tokenizer")
            began = time.perf_counter()
            with replacing(path) as fresh:
                save_tokenizer(learn_tokenizer(self._data, self._config.tokenizer), fresh)
            self._report({"event": "tokenizer", "seconds": round(time.perf_counter() - began, 1)})
        return read_kept(path, lambda: Tokenizer.from_file(str(path)))

    def _scratch(self) -> M3Model:
        """Return the initial model of a run from scratch, which is stored in the working folder."""
        sizes = self._config.model
        config = ModelConfig(
            vocab_size=self.tokenizer.get_vocab_size(),
            hidden_size=sizes.hidden_size,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            intermediate_size=sizes.intermediate_size,
            # Positions start after the padding id.
            max_position_embeddings=sizes.max_length + 2,
        )
        kept = self._work / START
        if kept.exists():
            model = M3Model(config)
            read_kept(kept, lambda: model.load_state_dict(torch.load(kept, weights_only=True)))
            return model
        self._phase("computing the initial model")
        began = time.perf_counter()
        vectors = self._config.dense_teacher.vectors
        teacher = (
            TeacherVectors(Path(vectors), self.store.keys, config.hidden_size - RESERVED) if vectors else None
        )
        model = build_start(self.store, config, self._config.start, self._config.run.seed, teacher)
        with replacing(kept) as fresh:
            torch.save(model.state_dict(), fresh)
        self._report({"event": "start", "seconds": round(time.perf_counter() - began, 1)})
        return model

    def share_done(self) -> float:
        """The share of the run that is done: by steps, or by the clock of a time budget if it is ahead."""
        run = self._config.run
        by_steps = self.progress.step / run.steps
        return max(by_steps, self.progress.seconds / run.seconds) if run.seconds else by_steps

    def run(self, steps: int | None = None, *, stop: Callable[[], bool] = lambda: False) -> None:
        """Take steps until the run ends, at most ``steps``, or until ``stop``; save regularly and at the end.

        Raises:
            Diverged: A loss, a gradient or a weight is not finite; the previous checkpoint is kept.
        """
        self._phase("training")
        last = None if steps is None else self.progress.step + steps
        while (
            self.share_done() < 1
            and (last is None or self.progress.step < last)
            and not self._ranks.any(stop())
        ):
            self._mine()
            record = self.step()
            self._report(record)
            for warning in self._watch.warnings(record):
                self._warn(warning)
            every = self._config.evaluation.every
            due = self.progress.step % every == 0 or self.share_done() >= 1 if every else False
            if due and self._ranks.is_first:
                self.evaluate()
            if self.progress.step % self._config.run.save_every == 0:
                self.save()
        self.save()

    def save(self) -> None:
        """Save the state from which the run can be resumed."""
        if self._ranks.is_first:
            save_state(self._work, self._trained, self.optimizer, self.progress)

    def step(self) -> dict[str, Any]:
        """Take one step and return its record for the log.

        Raises:
            Diverged: The loss or the gradient is not finite; the batch is saved and no weight is changed.
        """
        began = time.perf_counter()
        number, done = self.progress.step, self.share_done()
        rate_factor = self._config.optimizer.rate_factor(done)
        outcome = self.stage.loss(number, done)
        self._check_finite("loss", outcome.loss.item(), outcome)
        # The objective is the mean of the losses of all ranks; see ``training.ranks``.
        (outcome.loss / self._ranks.size).backward()  # type: ignore[no-untyped-call]
        self._ranks.sum_gradients(
            [*self._trained.parameters.values(), *(rows.values for rows in outcome.tables.values())]
        )
        norm = self.optimizer.step(outcome.tables, rate_factor)
        self._check_finite("gradient", norm, outcome)
        # The schedule of a run with a time budget follows the clock of rank 0.
        seconds = self._ranks.of_first(time.perf_counter() - began)
        self.progress = Progress(number + 1, self.progress.seconds + seconds)
        return {
            "step": number,
            **outcome.counts,
            "loss": round(outcome.loss.item(), 4),
            **{name: round(value, 4) for name, value in outcome.parts.items()},
            "gradient_norm": round(norm, 3),
            "rate_factor": round(rate_factor, 4),
            "learning_rate": float(f"{rate_factor * self._config.optimizer.learning_rate:.4g}"),
            "tokens_per_second": round(outcome.counts["tokens"] / max(seconds, 1e-9)),
            "seconds": round(seconds, 3),
            "share_done": round(min(self.share_done(), 1.0), 4),
        }

    def _check_finite(self, what: str, value: float, outcome: Outcome) -> None:
        if not self._ranks.any(not math.isfinite(value)):
            return
        step = self.progress.step
        path = self._work / f"diverged-step-{step}.json"
        content = {
            "step": step,
            what: str(value),
            "parts": {name: str(part) for name, part in outcome.parts.items()},
            **self.stage.batch_record(step),
        }
        if self._ranks.is_first:
            path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        self._ranks.wait()
        raise Diverged(
            f"step {step} ({outcome.counts['source']}): the {what} is {value}. "
            f"The batch is saved in {path}; no model was written.\n"
            "  Train again with a lower learning_rate, a longer warm_up or a higher temperature, and with "
            f"another --work folder; {self._work} keeps the checkpoint before this step."
        )

    def validation(self) -> Validation:
        """Evaluate the model on held-out pairs of the sources in ``tune_importance``."""
        return Validation(
            self.model,
            self.store,
            self._tasks,
            dtype=DTYPES[self._config.run.dtype],
            passage_longest=self.model.config.max_length,
        )

    def measure_start(self) -> None:
        """Report how the model that the run starts from does on the tasks, if there are any."""
        if self._tasks and self._config.start_from and not self.progress.step:
            self._phase("measuring the start")
            table = self.validation().methods(self._weights["dense_sparse"], self._weights["all"])
            self._report({"event": "validation", "when": "start", "ndcg_at_10": table})

    def finish(
        self, output: Path, dtype: torch.dtype = torch.float16
    ) -> dict[str, tuple[float, float, float]]:
        """Write the model, with weights tuned on held-out pairs or with the weights that it started from.

        Args:
            output: The directory of the model.
            dtype: The dtype of its weights; float32 for a model from which another stage starts.

        Returns:
            The weights by method.

        Raises:
            Diverged: A weight of the model is not finite; nothing is written.
        """
        self._phase("writing the model")
        best = self._best.read() if self._evaluated is not None and self._keep_best != "none" else None
        if best is not None:
            self._best.load(best, self._trained)
            self._report({"event": "best", "after": best.step, "method": best.method, "value": best.value})
        export_model(self.model, self.tokenizer, output, dtype)
        widths = self._config.loss.matryoshka
        if widths and self.stage.trains_prefixes:
            write_dense_widths(output, [*widths, self.model.config.hidden_size])
        weights = dict(self._weights)
        if self._config.tune_importance:
            self._phase("tuning the weights of the fused methods")
            validation = self.validation()
            weights |= validation.tune(self._config.tune_importance)
            table = validation.methods(weights["dense_sparse"], weights["all"])
            self._report({"event": "validation", "when": "end", "ndcg_at_10": table})
        save_weights(
            output / "weights.json", {method: Weights(*values) for method, values in weights.items()}
        )
        return weights


def learn_tokenizer(data: PairFiles, settings: TokenizerSettings) -> Tokenizer:
    """Train a tokenizer on the distinct texts of pairs."""
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
