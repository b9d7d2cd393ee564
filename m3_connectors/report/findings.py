"""The findings of a report as sentences, shown at its top. They claim only what the numbers support."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from m3_connectors.bench.records import Load, Summary
from m3_connectors.evaluation.compare import query_texts
from m3_connectors.evaluation.folder import EvaluationFolder
from m3_connectors.evaluation.significance import SIGNIFICANT, PairedTest, paired_test
from m3_connectors.report.cost_plots import lightest, p50_milliseconds
from m3_connectors.report.fair import Fair, fair
from m3_connectors.report.quality_plots import alike, compared_means
from m3_connectors.report.variants import family_name

_DECIMALS = 3


def quality_findings(folders: Sequence[EvaluationFolder]) -> list[str]:
    """Return, for each family of datasets, the best method and whether it is significantly better than the next.

    Each dataset of a family counts once, and methods are compared on the datasets that all of them have. The
    p-value is multiplied by the number of pairs that could have been the best two, in all families together.

    Args:
        folders: Complete evaluations.
    """
    families = _families(folders)
    pairs = sum(len(one.methods) * (len(one.methods) - 1) // 2 for one in families.values())
    return [_quality(name, compared, pairs) for name, compared in families.items()]


def cost_findings(folders: Sequence[EvaluationFolder], summaries: Mapping[str, Summary]) -> list[str]:
    """Return, for each benchmark, the fastest store and method, and the quality of that method.

    Args:
        folders: Complete evaluations: the quality of the methods.
        summaries: Of benchmarks, by name.
    """
    families = _families(folders)
    return [_cost(name, summary, families) for name, summary in summaries.items()]


def _families(folders: Sequence[EvaluationFolder]) -> dict[str, Fair]:
    """Return the evaluations of each family, by a unique name, with the methods that all of them have."""
    found: dict[str, list[EvaluationFolder]] = defaultdict(list)
    for (variant, _), members in alike(folders).items():
        for folder in members:
            found[f"{family_name(folder.record.dataset)}{variant}"].append(folder)
    every = {
        name: fair(members, [method.name for folder in members for method in folder.record.methods])
        for name, members in found.items()
    }
    return {_specific(name, compared): compared for name, compared in every.items() if compared.methods}


def _specific(name: str, compared: Fair) -> str:
    """Return the family's name, or the name of its dataset if it has only one."""
    if len(compared.folders) > 1:
        return name
    dataset = compared.folders[0].record.dataset
    return name.replace(dataset.family, dataset.name, 1)


def _quality(name: str, compared: Fair, pairs: int) -> str:
    means = compared_means(compared)
    order = sorted(means, key=lambda method: -means[method])
    measure = compared.folders[0].record.protocol.measures[0]
    queries = sum(folder.record.dataset.queries for folder in compared.folders)
    sets = f"{len(compared.folders)} sets, " if len(compared.folders) > 1 else ""
    where = f"{name} ({sets}{_count(queries, 'query', 'queries')})"
    best = order[0]
    if len(order) == 1:
        return f"{where}: only {best} was evaluated ({measure} {_shown(means[best])}), so there is nothing to compare."
    first = [method for method in order if _shown(means[method]) == _shown(means[best])]
    if len(first) > 1:
        return (
            f"{where}: {_listed(first)} share the best {measure}, {_shown(means[best])}; "
            "nothing can be concluded about which of them is better."
        )
    test = _test(compared, order[1], best)
    lead = (
        f"{where}: {best} has the best {measure}, {_shown(means[best])}, "
        f"ahead of {order[1]} with {_shown(means[order[1]])}"
    )
    if not math.isfinite(test.low):
        return f"{lead}; nothing can be concluded from a single query."
    interval = f"{test.difference:+.3f}, 95 % interval {test.low:+.3f} to {test.high:+.3f}"
    if min(1.0, test.p_value * pairs) < SIGNIFICANT:
        return f"{lead}. The difference ({interval}) is real."
    return (
        f"{lead}. The difference ({interval}) may be chance: nothing can be concluded about which is better."
    )


def _test(compared: Fair, before: str, after: str) -> PairedTest:
    """Compare two methods on all queries of the evaluations, weighted so that each evaluation counts once."""
    values: dict[str, dict[str, float]] = {before: {}, after: {}}
    units: dict[str, str] = {}
    total = sum(folder.record.dataset.queries for folder in compared.folders)
    for number, folder in enumerate(compared.folders):
        weight = total / (len(compared.folders) * folder.record.dataset.queries)
        measure = folder.record.protocol.measures[0]
        for method, column in values.items():
            by_query = folder.values[method][measure]
            column |= {f"{number} {query}": weight * value for query, value in by_query.items()}
        units |= {f"{number} {query}": text for query, text in query_texts(folder).items()}
    return paired_test(values[before], values[after], units=units)


def _cost(name: str, summary: Summary, families: Mapping[str, Fair]) -> str:
    rows = [row for row in lightest(summary) if row.method is not None and not row.void]
    if not rows:
        return f"{name}: every load is void, so nothing can be concluded about cost."
    documents = max(row.documents for row in rows)
    rows = sorted((row for row in rows if row.documents == documents), key=p50_milliseconds)
    fastest = rows[0]
    method, store = fastest.method, fastest.store
    sentence = (
        f"{name} ({documents:,} documents): {method} on {store} is fastest, {_milliseconds(fastest)} at p50"
    )
    other = next((row for row in rows if row.store != store), None)
    if other is not None:
        sentence += (
            f"; the fastest on another store is {other.method} on {other.store}, {_milliseconds(other)}"
        )
    qualities = []
    for family, compared in families.items():
        means = compared_means(compared)
        if method in means:
            best = max(means, key=lambda each: means[each])
            also = next((row for row in rows if (row.store, row.method) == (store, best)), None)
            price = f", {_milliseconds(also)} on {store}" if also is not None else ""
            than = "the best" if best == method else f"the best is {best}, {_shown(means[best])}{price}"
            measure = compared.folders[0].record.protocol.measures[0]
            qualities.append(f"{measure} {_shown(means[method])} on {family} ({than})")
    if not qualities:
        return f"{sentence}. No evaluation here measures the quality of {method}."
    return f"{sentence}. {method} reaches {'; '.join(qualities)}."


def _milliseconds(row: Load) -> str:
    return f"{p50_milliseconds(row):.2f} ms"


def _shown(value: float) -> str:
    return f"{value:.{_DECIMALS}f}"


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
