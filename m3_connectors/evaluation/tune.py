"""Tunes the weights of a method on the user's queries, and tests them on queries not used for tuning."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.compare import query_texts
from m3_connectors.evaluation.folder import EvaluationFolder
from m3_connectors.evaluation.significance import SIGNIFICANT, PairedTest, holm, paired_test
from m3_connectors.evaluation.simplex import JudgedCandidates, direction, grid, judged_candidates, ndcg
from m3_connectors.methods import LONG_DOCUMENTS, METHODS, MIRACL, Method, Weights

Float64 = npt.NDArray[np.float64]

TUNABLE = ("all", "dense_sparse")
"""The methods that fuse several scores."""

MEASURE = "nDCG@10"

FLAT = 0.005
"""Weights whose mean nDCG@10 is this near to the best one's are as good."""

_COARSE = 20
"""Steps of the grid over the whole simplex: 0.05 each."""

_FINE = 100
"""Steps of the grid around its best point: 0.01 each, the precision of a tuned weight."""


@dataclasses.dataclass(frozen=True)
class Fold:
    """One part of the queries, measured under weights chosen by all the others.

    Attributes:
        weights: Best on the other folds.
        queries: In this fold.
        held_out: Their mean nDCG@10 under these weights.
    """

    weights: Weights
    queries: int
    held_out: float


@dataclasses.dataclass(frozen=True)
class Gain:
    """Tuning against weights that need none, on held-out queries.

    Attributes:
        name: Of the baseline, for people.
        weights: Its weights.
        test: ``before`` is the baseline, ``after`` the held-out values.
    """

    name: str
    weights: Weights
    test: PairedTest

    @property
    def real(self) -> bool:
        """The interval is above 0, and the randomisation test agrees at 5 %."""
        return self.test.low > 0 and self.test.p_value < SIGNIFICANT


@dataclasses.dataclass(frozen=True)
class Surface:
    """Mean nDCG@10 over the simplex of weights, for a heat map.

    Attributes:
        weights: float64 ``[m, 3]``, each row sums to 1.
        means: float64 ``[m]``.
    """

    weights: Float64
    means: Float64

    @property
    def flat(self) -> float:
        """Share of the weights that are as good as the best within ``FLAT``."""
        return float((self.means >= self.means.max() - FLAT).mean())


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What tuning found for one method.

    Attributes:
        method: Its name.
        weights: Best on all queries, sum 1.
        fitted: Their mean nDCG@10 on the same queries: too good, since they were chosen by them.
        held_out: Mean nDCG@10 of the folds, each under weights chosen by the others.
        folds: The folds.
        gains: Against each baseline; the first is what is in use.
        decisive: The one of the gains that has to be real: against what is in use, or against a baseline that
            is itself really better than that.
        surface: The whole grid.
        adjusted_p_value: Of the decisive gain, corrected for the methods that were tuned with this one.
    """

    method: str
    weights: Weights
    fitted: float
    held_out: float
    folds: tuple[Fold, ...]
    gains: tuple[Gain, ...]
    decisive: Gain
    surface: Surface
    adjusted_p_value: float

    @property
    def recommended(self) -> bool:
        """Whether the tuned weights are advised."""
        return self.decisive.real and self.adjusted_p_value < SIGNIFICANT

    @property
    def advised(self) -> Weights:
        """The weights to use: the tuned ones only if their gain is real."""
        return self.weights if self.recommended else self.decisive.weights

    @property
    def advice(self) -> str:
        """The weights to use and why, in a sentence."""
        test, untuned = self.decisive.test, f"{self.shown(self.decisive.weights)} ({self.decisive.name})"
        low, high = 100 * test.low, 100 * test.high
        gain = f"{100 * test.difference:+.1f} nDCG on held-out folds [{low:.1f}, {high:.1f}]"
        if self.recommended:
            return f"w = {self.shown(self.weights)} · {gain} against {untuned}"
        if high < 0:
            reason = "a loss"
        elif low > 0:
            reason = f"noise, p = {self.adjusted_p_value:.2f}"
        else:
            reason = "noise, the interval contains 0"
        in_use = self.gains[0]
        standing = f"keep {untuned}"
        if self.decisive is not in_use:
            standing = f"take {untuned}, really better than {self.shown(in_use.weights)} ({in_use.name})"
        return f"{standing} · tuned to {self.shown(self.weights)} {gain}: {reason}"

    def shown(self, weights: Weights) -> str:
        """Weights of the components that the method scores."""
        return " ".join(f"{weights.of(component):g}" for component in METHODS[self.method].scored)

    @property
    def spread(self) -> tuple[tuple[float, float], ...]:
        """Smallest and largest weight of each component over the folds."""
        columns = zip(*(fold.weights for fold in self.folds), strict=True)
        return tuple((min(column), max(column)) for column in columns)


def tune(
    folder: EvaluationFolder,
    method: str = "all",
    *,
    baselines: Mapping[str, Weights] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> Tuning:
    """Find the weights of a method by cross-validation over the queries of an evaluation.

    The candidates are those of the method's lists, whatever the weights. Weights are chosen on a grid of 0.05
    over the simplex, then of 0.01 around its best point; of equally good ones the most central. For each fold
    they are chosen anew by the other folds, so that every query has one value under weights that it had no
    part in. Copies of a query are in one fold, and count as one in the tests.

    Args:
        folder: A complete evaluation.
        method: ``all`` or ``dense_sparse``.
        baselines: Other weights to compare with, by name, before the paper's and equal ones; the first is
            what is in use. By default the weights that the evaluation used.
        folds: How many; fewer if there are fewer different queries.
        seed: Of folds and tests.

    Raises:
        InvalidInput: Another method, fewer than two folds or different queries, or an evaluation that does
            not have the scores.
    """
    ranked_by = _tunable(folder, method)
    judged = judged_candidates(folder, ranked_by)
    queries, candidates = list(judged), list(judged.values())
    texts = query_texts(folder)
    fold_of = assign_folds([texts[query] for query in queries], folds, seed)
    numbers = range(int(fold_of.max()) + 1)
    everyone = np.full(len(queries), True)
    weights, values, whole = _choose(
        ranked_by, candidates, [everyone, *(fold_of != number for number in numbers)]
    )
    held_out = values[1 + fold_of, np.arange(len(queries))]

    def test(before: Float64, after: Float64) -> PairedTest:
        sides = (dict(zip(queries, side.tolist(), strict=True)) for side in (before, after))
        return paired_test(*sides, units=texts, seed=seed)

    compared = _baselines(folder, method, baselines or {})
    untuned = ndcg(candidates, np.array([list(one) for one in compared.values()]))
    gains = tuple(
        Gain(name, one, test(row, held_out))
        for (name, one), row in zip(compared.items(), untuned, strict=True)
    )
    standing = _standing([test(untuned[0], row) for row in untuned])
    return Tuning(
        method=method,
        weights=Weights(*weights[0]),
        fitted=float(values[0].mean()),
        held_out=float(held_out.mean()),
        folds=tuple(
            Fold(Weights(*row), int((fold_of == number).sum()), float(held_out[fold_of == number].mean()))
            for number, row in zip(numbers, weights[1:], strict=True)
        ),
        gains=gains,
        decisive=gains[standing],
        surface=whole,
        adjusted_p_value=gains[standing].test.p_value,
    )


def tune_together(
    folder: EvaluationFolder, methods: Sequence[str], *, folds: int = 5, seed: int = 0
) -> list[Tuning]:
    """``tune`` for several methods; Holm's correction keeps the chance that any is wrongly advised below 5 %.

    Raises:
        InvalidInput: As ``tune``.
    """
    found = [tune(folder, method, folds=folds, seed=seed) for method in methods]
    adjusted = holm([tuning.decisive.test.p_value for tuning in found])
    return [
        dataclasses.replace(tuning, adjusted_p_value=p_value)
        for tuning, p_value in zip(found, adjusted, strict=True)
    ]


def surface(folder: EvaluationFolder, method: str = "all", divisions: int = _COARSE) -> Surface:
    """Mean nDCG@10 of every query of an evaluation over the grid of a method's weights.

    Args:
        folder: A complete evaluation.
        method: ``all`` or ``dense_sparse``.
        divisions: Steps of the grid from 0 to 1.

    Raises:
        InvalidInput: Another method, or an evaluation that does not have the scores.
    """
    ranked_by = _tunable(folder, method)
    weights = grid(ranked_by, divisions)
    return Surface(weights, ndcg(list(judged_candidates(folder, ranked_by).values()), weights).mean(axis=1))


def assign_folds(groups: Sequence[str], folds: int, seed: int) -> npt.NDArray[np.int64]:
    """Assign a fold to each query, ``[q]``: each group, in random order, goes to the smallest fold.

    Raises:
        InvalidInput: Fewer than two folds or groups.
    """
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    if folds < 2:
        raise InvalidInput(
            f"folds is {folds}; tuning needs at least two, to choose on some queries and test on others.\n"
            "  Use 2 or more folds."
        )
    if len(members) < 2:
        raise InvalidInput(
            f"there are {len(members)} different queries; tuning needs at least two.\n  Use more queries."
        )
    sizes = np.zeros(min(folds, len(members)), dtype=np.int64)
    fold_of = np.empty(len(groups), dtype=np.int64)
    names = list(members)
    for i in np.random.default_rng(seed).permutation(len(names)):
        smallest = int(sizes.argmin())
        fold_of[members[names[i]]] = smallest
        sizes[smallest] += len(members[names[i]])
    return fold_of


def _choose(
    method: Method, candidates: Sequence[JudgedCandidates], choosers: Sequence[npt.NDArray[np.bool_]]
) -> tuple[Float64, Float64, Surface]:
    """Return the best weights ``[s, 3]`` for ``s`` query sets, and the values ``[s, q]`` of all queries."""
    coarse = grid(method, _COARSE)
    values = ndcg(candidates, coarse)
    starts = [coarse[_best(coarse, values[:, chooser].mean(axis=1))] for chooser in choosers]
    fine = grid(method, _FINE)
    near = np.array([np.abs(fine - start).max(axis=1) < 1 / _COARSE - 1e-9 for start in starts])
    used = near.any(axis=0)
    fine, near = fine[used], near[:, used]
    fine_values = ndcg(candidates, fine)
    best = []
    for chooser, close in zip(choosers, near, strict=True):
        means = np.where(close, fine_values[:, chooser].mean(axis=1), -1)
        best.append(_best(fine, means))
    return fine[best], fine_values[best], Surface(coarse, values.mean(axis=1))


def _best(weights: Float64, means: Float64) -> int:
    """Return the row of the largest mean; among equal ones the most central, with good neighbours."""
    equal = np.flatnonzero(means >= means.max() - 1e-12)
    distances = np.square(weights[equal] - weights[equal].mean(axis=0)).sum(axis=1)
    return int(equal[distances.argmin()])


def _tunable(folder: EvaluationFolder, method: str) -> Method:
    if method not in TUNABLE:
        raise InvalidInput(f"method {method!r} has no weights to tune.\n  Use one of {', '.join(TUNABLE)}.")
    if folder.record.protocol.relevance != "documents":
        raise InvalidInput(
            f"{folder.path} is judged by answers, but tuning uses {MEASURE}, which needs judged documents.\n"
            "  Use an evaluation with judged documents."
        )
    recorded = {record.name: record.candidates for record in folder.record.methods}
    return dataclasses.replace(METHODS[method], candidates=recorded.get(method) or METHODS[method].candidates)


def _baselines(folder: EvaluationFolder, method: str, first: Mapping[str, Weights]) -> dict[str, Weights]:
    """Return the baselines by name, first those in use; weights that rank equally are listed once."""
    evaluated = [record.weights for record in folder.record.methods if record.name == method]
    used = dict.fromkeys(["as evaluated"], Weights(*evaluated[0])) if evaluated and evaluated[0] else {}
    paper = {"paper, MIRACL": MIRACL[method], "paper, long documents": LONG_DOCUMENTS[method]}
    equal = {"equal": Weights(1, 1, 1 if "multivector" in METHODS[method].scored else 0)}
    names: dict[tuple[float, ...], list[str]] = {}
    kept: dict[tuple[float, ...], Weights] = {}
    for name, weights in {**first, **used, **paper, **equal}.items():
        names.setdefault(direction(weights), []).append(name)
        kept.setdefault(direction(weights), weights)
    return {" = ".join(names[of_weights]): weights for of_weights, weights in kept.items()}


def _standing(tests: Sequence[PairedTest]) -> int:
    """Which baseline tuning has to beat: the one in use, or one that is really better than it.

    Args:
        tests: Of the one in use against each baseline, itself first.
    """
    adjusted = [1.0, *holm([test.p_value for test in tests[1:]])]
    better = [i for i, test in enumerate(tests) if adjusted[i] < SIGNIFICANT and test.low > 0]
    return max(better, key=lambda i: tests[i].difference, default=0)
