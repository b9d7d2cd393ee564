"""Shows what ``m3 train --dry-run`` found."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from m3_connectors.cli.console import duration, out, print_json

if TYPE_CHECKING:
    from m3_connectors.training.plan import StagePlan

_NAMED = 8
"""The number of sources and languages that are listed."""


def show_plan(plans: list[StagePlan], would_write: list[str], *, as_json: bool) -> None:
    """Print the plans, and what would be written."""
    if as_json:
        print_json({"stages": [dataclasses.asdict(plan) for plan in plans], "would_write": would_write})
        return
    for number, plan in enumerate(plans, 1):
        title = f"stage {number} of {len(plans)}: {plan.objective}" if len(plans) > 1 else plan.objective
        _print(f"{title}, from {plan.start or 'scratch'}")
        for name, value in _rows(plan):
            _print(f"  {name:11} {value}")
    for line in would_write:
        _print(f"would write {line}")
    _print("dry run: nothing was written")


def _rows(plan: StagePlan) -> list[tuple[str, str]]:
    rows = [
        ("pairs", f"{sum(plan.pairs.values()):,} for training, {plan.held_out:,} held out"),
        ("sources", _most(plan.pairs)),
        ("languages", _most(plan.languages)),
    ]
    shorter = 0
    for longest, passages, batch in plan.groups:
        if passages:
            tokens = f"{shorter + 1 if shorter else 1:,} to {longest:,} tokens"
            rows.append(("passages", f"{passages:,} of {tokens}, {min(batch, passages):,} a step"))
        shorter = longest
    for count, what in ((plan.truncated_passages, "passages"), (plan.truncated_queries, "queries")):
        if count:
            rows.append(("truncated", f"{count:,} {what} are longer than the limit"))
    total, trained = plan.parameters
    memory = " + ".join(f"{name} {_size(size)}" for name, size in plan.memory.items())
    return [
        *rows,
        ("steps", f"{plan.steps:,}, of about {plan.tokens_per_step:,.0f} tokens"),
        ("trained", f"{trained:,} of {total:,} parameters"),
        ("memory", f"about {_size(sum(plan.memory.values()))}: {memory}"),
        ("", f"{_size(plan.peak_bytes)} was the peak of this process in the measured steps"),
        ("time", f"about {duration(plan.seconds)} at {plan.tokens_per_second:,.0f} tokens/s"),
        (
            "weights",
            f"tuned on {plan.tuned_tasks} tasks of held-out pairs" if plan.tuned_tasks else "not tuned",
        ),
    ]


def _most(counts: dict[str, int]) -> str:
    named = sorted(counts.items(), key=lambda item: -item[1])
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return ", ".join(f"{name} {count:,}" for name, count in named[:_NAMED]) + more


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _print(line: str) -> None:
    out.print(line.rstrip(), markup=False, highlight=False, soft_wrap=True)
