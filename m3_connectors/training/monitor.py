"""Evaluation of the five methods during a run, on a dataset's folder or on held-out pairs; the best model is kept."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from m3_connectors.encoder.model import M3Model
from m3_connectors.errors import InvalidInput
from m3_connectors.files import replacing
from m3_connectors.training.ranges import STRICT, Seed
from m3_connectors.training.validate import Task, Texts, Validation

if TYPE_CHECKING:
    from m3_connectors.training.checkpoint import TrainedParts


@dataclass(frozen=True, config=STRICT)
class EvaluationSettings:
    """Evaluation during the run.

    Attributes:
        every: The number of steps between two evaluations, and the last step; 0 for none.
        folder: A folder as ``m3 eval`` reads it, such as BEIR's. Empty for held-out pairs.
        split: The split of the folder; ``test`` by default.
        most_queries: The maximum number of queries.
        most_documents: The maximum number of documents: those that are relevant, and others by chance. nDCG on a part
            of a corpus is higher than that of ``m3 eval``.
        keep_best: The method whose mean nDCG@10 decides which model is exported; "none" exports the last one. The
            stages ``unsupervised`` and ``distil`` train the dense vector only and are judged by ``dense``;
            ``retromae`` trains no score and exports its last model.
        seed: The seed of the choices.
    """

    every: int = Field(default=0, ge=0)
    folder: str = ""
    split: str = ""
    most_queries: int = Field(default=200, ge=1)
    most_documents: int = Field(default=2000, ge=2)
    keep_best: Literal["none", "dense", "sparse", "multi_vec", "dense_sparse", "all"] = "all"
    seed: Seed = 0


class FolderTexts:
    """The queries and documents of a dataset, tokenised.

    Args:
        settings: The folder and how much of it is used.
        tokenizer: The tokenizer of the model.

    Attributes:
        task: The retrieval task.
        used: How many queries and documents are used, in words.

    Raises:
        InvalidInput: The folder cannot be read, or its queries have answers in place of judgements.
    """

    def __init__(self, settings: EvaluationSettings, tokenizer: Tokenizer) -> None:
        from m3_connectors.evaluation.datasets.load import load_dataset

        dataset = load_dataset(Path(settings.folder), split=settings.split or None)
        if not dataset.qrels:
            raise InvalidInput(
                f"evaluation.folder {settings.folder} has answers, not judged documents.\n"
                "  Use a folder with judgements; m3 eval measures this one after the training."
            )
        rng = np.random.default_rng(settings.seed)
        ids = [document.id for document in dataset.documents]
        known = set(ids)
        relevant = {
            query: {id for id, grade in dataset.qrels[query].items() if grade > 0 and id in known}
            for query in dataset.queries
        }
        judged = [query for query, found in relevant.items() if found]
        if not judged:
            raise InvalidInput(
                f"no query of evaluation.folder {settings.folder} has a relevant document in its corpus.\n"
                "  Use a folder whose judgements belong to its documents."
            )
        chosen = [judged[i] for i in np.sort(rng.permutation(len(judged))[: settings.most_queries])]
        needed = set().union(*(relevant[query] for query in chosen))
        others = [id for id in ids if id not in needed]
        room = max(0, settings.most_documents - len(needed))
        corpus = sorted(needed) + [others[i] for i in np.sort(rng.permutation(len(others))[:room])]
        documents = dataset.documents.select(corpus)
        texts = [dataset.queries[query] for query in chosen] + [documents[id].text for id in corpus]
        self._ids = [
            np.array(encoding.ids, np.int64)
            for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)
        ]
        place = {id: number for number, id in enumerate(corpus)}
        self.task = Task(
            dataset.name,
            np.arange(len(chosen)),
            np.arange(len(chosen), len(texts)),
            [{place[id] for id in relevant[query]} for query in chosen],
        )
        self.used = (
            f"{len(chosen):,} of {len(judged):,} queries and {len(corpus):,} of {len(ids):,} documents"
        )

    def text(self, number: int) -> NDArray[np.int64]:
        """Return the token ids of a query or document, without special tokens."""
        return self._ids[number]


def evaluate(
    model: M3Model,
    texts: Texts,
    tasks: list[Task],
    weights: Mapping[str, tuple[float, float, float]],
    *,
    dtype: torch.dtype,
) -> dict[str, float]:
    """Return the mean nDCG@10 over tasks by method."""
    longest = model.config.max_length
    table = Validation(
        model, texts, tasks, dtype=dtype, passage_longest=longest, query_longest=longest
    ).methods(weights["dense_sparse"], weights["all"])
    return {
        method: round(statistics.fmean(row[method] for row in table.values()), 4)
        for method in next(iter(table.values()))
    }


@dataclasses.dataclass(frozen=True)
class Best:
    """The best model so far.

    Attributes:
        step: The number of steps that it was trained.
        method: The method by which it is the best.
        value: Its mean nDCG@10.
    """

    step: int
    method: str
    value: float


class BestModel:
    """The weights of the best model, in the working folder; after a kill, the last whole one is there.

    Args:
        folder: The working folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self) -> Best | None:
        """Return what is kept; None if nothing is."""
        try:
            return Best(**json.loads((self._folder / "best.json").read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise InvalidInput(
                f"{self._folder / 'best.json'} is damaged: {error}\n"
                "  Remove the file: the model of the next evaluation is then the best one."
            ) from error

    def offer(self, best: Best, trained: TrainedParts) -> bool:
        """Keep a model if it is better than the one that is kept; return whether it is."""
        known = self.read()
        if known == best:
            return True  # a resumed run evaluates it again
        if known is not None and known.value >= best.value and known.method == best.method:
            return False
        # The weights have the step in their name, so that best.json never names weights of another step.
        self._folder.mkdir(parents=True, exist_ok=True)
        with replacing(self._weights(best.step)) as fresh:
            save_file(trained.state(), fresh)
        with replacing(self._folder / "best.json") as fresh:
            fresh.write_text(json.dumps(dataclasses.asdict(best)))
        for old in self._folder.glob("best-*.safetensors"):
            if old != self._weights(best.step):
                old.unlink()
        return True

    def load(self, best: Best, trained: TrainedParts) -> None:
        """Load the weights of the best model.

        Raises:
            InvalidInput: They are missing or damaged.
        """
        path = self._weights(best.step)
        try:
            trained.load_state(load_file(path))
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise InvalidInput(
                f"{path}, the best model of the run, is damaged: {str(error).partition(chr(10))[0]}\n"
                f"  Restore the file, or remove {self._folder} and run the same command: it writes the last model."
            ) from error

    def _weights(self, step: int) -> Path:
        return self._folder / f"best-{step}.safetensors"
