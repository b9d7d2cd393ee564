"""nDCG@10 on held-out training pairs, in memory, to monitor a run and to tune the weights of a model.

No evaluation set is read here. Candidates follow section 4 of the paper: All and Multi-vec re-rank the top
200 of Dense. Every corpus is small here, so Dense and Sparse rank all of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from m3_connectors.embeddings import COMPONENTS, M3Embeddings, MultiVectors
from m3_connectors.encoder.heads import sparse_matrix
from m3_connectors.encoder.model import M3Model
from m3_connectors.errors import InvalidInput
from m3_connectors.scoring import score
from m3_connectors.training.batches import wrap
from m3_connectors.training.data import PairStore
from m3_connectors.training.forward import TrainingEncoder

RERANKED = 200
"""The number of Dense candidates that Multi-vec and All re-rank."""

FEWEST_QUERIES = 8
"""The minimum number of questions of a task."""


@dataclass(frozen=True)
class Task:
    """A small retrieval task made from held-out pairs.

    Attributes:
        name: ``source/query language>passage language``.
        queries: The text numbers of the queries.
        corpus: The text numbers of the passages.
        relevant: For each query, the positions of its relevant passages in ``corpus``.
    """

    name: str
    queries: NDArray[np.int64]
    corpus: NDArray[np.int64]
    relevant: list[set[int]]


def make_tasks(
    store: PairStore,
    sources: Sequence[str],
    *,
    corpus_size: int = 400,
    most_queries: int = 150,
    fewest_queries: int = FEWEST_QUERIES,
    seed: int = 0,
) -> list[Task]:
    """Make tasks from held-out pairs: one per source, passage language, and mono- or cross-lingual queries.

    Args:
        store: The pairs.
        sources: The names or prefixes of the sources.
        corpus_size: The number of passages of a task: the held-out ones and additional training passages.
        most_queries: The maximum number of queries of a task.
        fewest_queries: Tasks with fewer queries are omitted.
        seed: The seed of the random choices.
    """
    tasks: list[Task] = []
    for (number, name), language in itertools.product(enumerate(store.sources), range(len(store.languages))):
        here = (store.source == number) & (store.passage_language == language)
        if not name.startswith(tuple(sources)) or not here.any():
            continue
        rng = np.random.default_rng([seed, number, language])
        held = np.flatnonzero(here & store.held_out & ~np.asarray(store.alone))
        positives = np.unique(store.passage[held])[:corpus_size]
        others = np.setdiff1d(store.passage[here], positives)
        fill = rng.permutation(others)[: max(0, corpus_size - len(positives))]
        corpus = np.concatenate([positives, fill]).astype(np.int64)
        place = {int(text): position for position, text in enumerate(corpus)}
        for cross in (False, True):
            rows = held[np.asarray(store.cross_lingual[held]) == cross]
            wanted: dict[int, set[int]] = {}
            for row in rows:
                if int(store.passage[row]) in place:
                    wanted.setdefault(int(store.query[row]), set()).add(place[int(store.passage[row])])
            chosen = rng.permutation(np.array(sorted(wanted), np.int64))[:most_queries]
            if len(chosen) >= fewest_queries:
                label = f"{name}/{'x>' if cross else ''}{store.languages[language]}"
                tasks.append(Task(label, chosen, corpus, [wanted[int(q)] for q in chosen]))
    return tasks


def unmatched(tasks: Sequence[Task], importance: Mapping[str, float]) -> list[str]:
    """Return the keys of ``tune_importance`` that are not a prefix of any task name.

    Raises:
        InvalidInput: No key is a prefix of a task name, so there is nothing to tune on.
    """
    lost = [prefix for prefix in importance if not any(task.name.startswith(prefix) for task in tasks)]
    if len(lost) == len(importance):
        names = ", ".join(task.name for task in tasks) or "none"
        raise InvalidInput(
            f"tune_importance has {', '.join(map(repr, lost))}; the tasks of held-out pairs are: {names}.\n"
            f"  Use the prefix of a task. A task needs {FEWEST_QUERIES} held-out questions of one source and "
            "language; data.held_out_share sets their share. Without tune_importance, nothing is tuned."
        )
    return lost


@torch.no_grad()
def encode(
    model: M3Model, texts: Sequence[NDArray[np.int64]], *, dtype: torch.dtype, token_budget: int = 8192
) -> M3Embeddings:
    """Encode texts with ``<s>`` and ``</s>``, in batches of about ``token_budget`` tokens."""
    encoder = TrainingEncoder(model, dtype)
    dense = np.zeros((len(texts), model.config.hidden_size), np.float32)
    rows: list[NDArray[np.float32]] = [np.zeros((0, 0), np.float32)] * len(texts)
    parts: list[tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]] = []
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    while order:
        taken, tokens = 0, 0
        while taken < len(order) and (not taken or tokens + len(texts[order[taken]]) <= token_budget):
            tokens += len(texts[order[taken]])
            taken += 1
        batch, order = order[:taken], order[taken:]
        shown, _ = encoder([texts[i] for i in batch])
        dense[batch] = shown.dense.cpu().numpy()
        for i, part in zip(batch, torch.split(shown.rows.float().cpu(), list(shown.row_counts)), strict=True):
            rows[i] = part.numpy()
        owner = np.array(batch)[shown.token_text.cpu().numpy()]
        parts.append((shown.token_weights.cpu().numpy(), shown.token_ids.cpu().numpy(), owner))
    weights, ids, owner = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return M3Embeddings(
        dense=dense,
        # The training encoder has left out the tokens without a weight.
        sparse=sparse_matrix(
            weights, ids, owner, shape=(len(texts), model.config.vocab_size), without=np.empty(0, np.int64)
        ),
        multivectors=MultiVectors(np.concatenate(rows), np.cumsum([0, *map(len, rows)])),
        truncated=np.zeros(len(texts), np.bool_),
    )


def task_scores(queries: M3Embeddings, corpus: M3Embeddings) -> list[NDArray[np.float32]]:
    """Return the dense, sparse and multi-vector scores, each float32 ``[queries, corpus]``."""
    return [np.stack([score(component, query, corpus) for query in queries]) for component in COMPONENTS]


def ndcg(scores: NDArray[np.float32], relevant: Sequence[set[int]], cutoff: int = 10) -> float:
    """Return the mean nDCG@cutoff; equal scores are ranked by position; -inf means not retrieved."""
    total = 0.0
    for row, wanted in zip(scores, relevant, strict=True):
        top = np.argsort(-row, kind="stable")[:cutoff]
        gains = [
            1 / np.log2(rank + 2) for rank, i in enumerate(top) if int(i) in wanted and np.isfinite(row[i])
        ]
        ideal = sum(1 / np.log2(rank + 2) for rank in range(min(cutoff, len(wanted))))
        total += sum(gains) / ideal
    return total / len(relevant)


def reranked(dense: NDArray[np.float32], scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``scores`` for the top 200 of Dense, and -inf for all others."""
    if dense.shape[1] <= RERANKED:
        return scores
    border = -np.partition(-dense, RERANKED - 1, axis=1)[:, RERANKED - 1 : RERANKED]
    return np.where(dense >= border, scores, -np.inf)


NOISE = 0.002
"""Differences of nDCG@10 below this value are ignored."""


class Texts(Protocol):
    """The token ids of numbered texts, as ``PairStore`` has them."""

    def text(self, number: int) -> NDArray[Any]:
        """Return the token ids of one text, without special tokens."""


class Validation:
    """The encoded tasks of one model, which can be evaluated with any weights.

    Args:
        model: The model.
        store: The pairs, or other texts that the tasks number.
        tasks: The tasks, such as those from :func:`make_tasks`.
        dtype: The dtype of the products.
        passage_longest: Passages are truncated to this many tokens, and to the model's maximum.
        query_longest: Queries are truncated to this many tokens, and to the model's maximum.
    """

    def __init__(
        self,
        model: M3Model,
        store: Texts,
        tasks: Sequence[Task],
        *,
        dtype: torch.dtype = torch.bfloat16,
        passage_longest: int = 8192,
        query_longest: int = 64,
    ) -> None:
        self.tasks = list(tasks)
        self._scores = []
        passage_longest, query_longest = (
            min(longest, model.config.max_length) for longest in (passage_longest, query_longest)
        )
        for _, same_corpus in itertools.groupby(self.tasks, key=lambda task: task.corpus.tobytes()):
            group = list(same_corpus)
            corpus = encode(
                model, [wrap(store.text(n), passage_longest) for n in group[0].corpus], dtype=dtype
            )
            for task in group:
                queries = encode(
                    model, [wrap(store.text(n), query_longest) for n in task.queries], dtype=dtype
                )
                self._scores.append(task_scores(queries, corpus))

    def methods(
        self, dense_sparse: tuple[float, float, float], everything: tuple[float, float, float]
    ) -> dict[str, dict[str, float]]:
        """Return nDCG@10 by task and method."""
        table: dict[str, dict[str, float]] = {}
        for task, (dense, sparse, multivector) in zip(self.tasks, self._scores, strict=True):
            found = np.where(sparse > 0, sparse, -np.inf)
            table[task.name] = {
                "dense": ndcg(dense, task.relevant),
                "sparse": ndcg(found, task.relevant),
                "multi_vec": ndcg(reranked(dense, multivector), task.relevant),
                "dense_sparse": ndcg(dense_sparse[0] * dense + dense_sparse[1] * sparse, task.relevant),
                "all": self._weighted(task, (dense, sparse, multivector), everything),
            }
        return table

    def _weighted(
        self, task: Task, scores: Sequence[NDArray[np.float32]], weights: tuple[float, float, float]
    ) -> float:
        fused = weights[0] * scores[0] + weights[1] * scores[1] + weights[2] * scores[2]
        return ndcg(reranked(scores[0], fused.astype(np.float32)), task.relevant)

    def tune(self, importance: Mapping[str, float]) -> dict[str, tuple[float, float, float]]:
        """Return the best weights on a grid; if several are equal within ``NOISE``, the ones with most Dense.

        Args:
            importance: The weight of a task's nDCG, by a prefix of its name; other tasks are ignored.

        Returns:
            The weights of the dense, sparse and multi-vector scores for ``dense_sparse`` and ``all``.

        Raises:
            InvalidInput: No task has a weight.
        """
        unmatched(self.tasks, importance)
        grid = [0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 4.0]
        both = [(1.0, sparse, 0.0) for sparse in [*grid, 6.0, 8.0]]
        every = [(dense, sparse, 1.0) for dense, sparse in itertools.product([0.0, *grid], grid)]
        return {
            "dense_sparse": _most_dense(both, [self._mean(w, importance, False) for w in both]),
            "all": _most_dense(every, [self._mean(w, importance, True) for w in every]),
        }

    def _mean(
        self, weights: tuple[float, float, float], importance: Mapping[str, float], rerank: bool
    ) -> float:
        total = whole = 0.0
        for task, scores in zip(self.tasks, self._scores, strict=True):
            share = sum(value for prefix, value in importance.items() if task.name.startswith(prefix))
            if not share:
                continue
            whole += share
            if rerank:
                total += share * self._weighted(task, scores, weights)
            else:
                total += share * ndcg(weights[0] * scores[0] + weights[1] * scores[1], task.relevant)
        return total / whole


def _most_dense(
    weights: Sequence[tuple[float, float, float]], values: Sequence[float]
) -> tuple[float, float, float]:
    """Return, among the weights as good as the best, the ones with the most weight on the dense score.

    Held-out questions come from few kinds of text, in which shared words are more important than elsewhere. A
    difference below the noise must not remove the score that does not depend on words.
    """
    good = [w for w, value in zip(weights, values, strict=True) if value >= max(values) - NOISE]
    return max(good, key=lambda w: (w[0] / sum(w), -w[1]))
