"""``m3 tune``: find weights of the fused methods on your own queries, and test whether they help."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from m3_connectors.cli.compare import p_text, paired_document
from m3_connectors.cli.console import COMPONENT_LABELS, out, plural, print_json, print_table, warn, working
from m3_connectors.cli.evaluate import agree, collection_name, evaluate_into, preset
from m3_connectors.cli.opening import check_length, choose_encoder
from m3_connectors.cli.options import (
    WEIGHTED,
    DataDir,
    DatasetCollection,
    DatasetStore,
    Debug,
    Json,
    Model,
    PassageMaxLength,
    QueryMaxLength,
    Split,
    Yes,
    at_least,
    check_store,
    names_of,
)
from m3_connectors.embeddings import COMPONENTS
from m3_connectors.errors import InvalidInput, MissingDependency
from m3_connectors.methods import METHODS, save_weights

if TYPE_CHECKING:
    from m3_connectors.evaluation.folder import EvaluationFolder
    from m3_connectors.evaluation.tune import Tuning


def tune(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET|DIR",
            help="A dataset of m3 eval, or a folder written by m3 eval --out, for which nothing is encoded.",
        ),
    ],
    split: Split = None,
    to: DatasetStore = "memory:",
    collection: DatasetCollection = None,
    model: Model = None,
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            "--method",
            metavar="M1,M2",
            callback=names_of(WEIGHTED),
            help="Methods to tune: all, dense_sparse.",
        ),
    ] = "all,dense_sparse",
    folds: Annotated[
        int,
        typer.Option(
            "--folds",
            metavar="N",
            parser=at_least(2),
            help="Number of folds; each fold is measured with weights that are chosen on the others.",
        ),
    ] = 5,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", parser=at_least(0), help="Random seed of folds and tests.")
    ] = 0,
    weights_file: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Write the recommended weights to this file, for --weights and connect(weights=…).",
        ),
    ] = None,
    passage_max_length: PassageMaxLength = None,
    query_max_length: QueryMaxLength = None,
    data_dir: DataDir = None,
    yes: Yes = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Find weights on judged queries, measure them on held-out queries, and say whether they help."""
    from m3_connectors.evaluation.folder import RECORD, EvaluationFolder
    from m3_connectors.evaluation.tune import tune_together

    place = Path(dataset)
    if (place / RECORD).exists():
        folder = EvaluationFolder(place).require_complete()
    elif inside := sorted(path.parent for path in place.rglob(RECORD)):
        raise typer.BadParameter(
            f"{dataset} contains {plural(len(inside), 'evaluation')}; choose one, such as {inside[0]}.",
            param_hint="DATASET|DIR",
        )
    else:
        folder = _load_or_evaluate(
            dataset,
            split=split,
            to=to,
            collection=collection,
            model=model,
            passage_max_length=passage_max_length,
            query_max_length=query_max_length,
            data_dir=data_dir,
            yes=yes,
        )
    with working("tuning …"):
        found = tune_together(folder, methods.split(","), folds=folds, seed=seed)
    if weights_file:
        save_weights(weights_file, {tuning.method: tuning.advised for tuning in found})
    if json:
        print_json(_document(folder, found, weights_file))
        return
    record = folder.record
    out.print(
        f"  {record.dataset.name} · split {record.dataset.split} · {record.model.name} · "
        f"{record.dataset.queries:,} queries · {len(found[0].folds)} folds",
        markup=False,
        soft_wrap=True,
    )
    for tuning in found:
        out.print(tuning_lines(tuning), markup=False, soft_wrap=True)
        print_table(gains_table(tuning))
    if weights_file:
        untuned = [tuning.method for tuning in found if not tuning.recommended]
        note = f" (for {' and '.join(untuned)}, not the tuned ones)" if untuned else ""
        out.print(f"\n  {weights_file} contains the recommended weights{note}", markup=False, soft_wrap=True)


def tuning_lines(tuning: Tuning) -> str:
    """Return the recommended weights with the reason, and how sharp the optimum is."""
    from m3_connectors.evaluation.tune import FLAT

    spans = [
        f"{COMPONENT_LABELS[name]} {low:g}–{high:g}" if low < high else f"{COMPONENT_LABELS[name]} {low:g}"
        for name, (low, high) in zip(COMPONENTS, tuning.spread, strict=True)
        if name in METHODS[tuning.method].scored
    ]
    return (
        f"\n  {tuning.method}  {tuning.advice}\n"
        f"  best over the folds: {' · '.join(spans)} · {tuning.surface.flat:.0%} of all weights are within "
        f"{100 * FLAT:g} nDCG of the best"
    )


def gains_table(tuning: Tuning) -> Table:
    """Return a table of the held-out nDCG@10 compared with each baseline."""
    table = Table(box=None, padding=(0, 2), header_style="dim")
    table.add_column("baseline", style="bold")
    table.add_column("weights", style="dim")
    for name in ("nDCG@10", "tuned, held out", "gain", "95 %", "p"):
        table.add_column(name, justify="right")
    for gain in tuning.gains:
        test = gain.test
        table.add_row(
            gain.name,
            tuning.shown(gain.weights),
            f"{100 * test.before:.1f}",
            f"{100 * test.after:.1f}",
            f"{100 * test.difference:+.1f}",
            f"[{100 * test.low:.1f}, {100 * test.high:.1f}]",
            p_text(test.p_value),
        )
    return table


def _load_or_evaluate(
    name: str,
    *,
    split: str | None,
    to: str,
    collection: str | None,
    model: str | None,
    passage_max_length: int | None,
    query_max_length: int | None,
    data_dir: Path | None,
    yes: bool,
) -> EvaluationFolder:
    """Return the evaluation of a dataset from the user's cache; run or complete it if necessary."""
    from m3_connectors.evaluation.datasets.load import load_dataset
    from m3_connectors.evaluation.evaluate import Plan

    check_store(to, collection or "documents", "--to")
    with working("reading the dataset …"):
        loaded = load_dataset(name, split=split, data_dir=data_dir, agree=agree(yes))
    for message in loaded.warnings:
        warn(message)
    if loaded.relevance != "documents":
        raise InvalidInput(
            f"{name} is judged by answers, but weights are tuned by nDCG@10, which needs judged documents.\n"
            "  Choose a dataset with relevance judgements for documents."
        )
    at = collection or collection_name(name, passage_max_length)
    encoder = choose_encoder(to, at, model)
    check_length(passage_max_length, encoder, "--passage-max-length")
    check_length(query_max_length, encoder, "--query-max-length")
    plan = Plan(
        url=to,
        collection=at,
        methods={method: preset(method, encoder, loaded, paper=False) for method in WEIGHTED},
        query_max_length=query_max_length,
        passage_max_length=passage_max_length,
    )
    place = (
        _cache() / f"{at}-{loaded.split}-{_key(loaded.fingerprint, encoder.info, encoder.precision, plan)}"
    )
    return evaluate_into(loaded, encoder, plan, place, kept=True)


def _cache() -> Path:
    try:
        import platformdirs
    except ImportError:
        raise MissingDependency("platformdirs", "eval") from None
    return platformdirs.user_cache_path("m3-connectors") / "evaluations"


def _key(*parts: object) -> str:
    """Return a key that differs for evaluations that are not the same."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _document(
    folder: EvaluationFolder, found: Sequence[Tuning], weights_file: Path | None
) -> dict[str, object]:
    dataset = folder.record.dataset
    return {
        "dataset": dataset.name,
        "split": dataset.split,
        "model": folder.record.model.name,
        "queries": dataset.queries,
        "evaluation": str(folder.path),
        "weights_file": weights_file and str(weights_file),
        "methods": [
            {
                "method": tuning.method,
                "measure": "nDCG@10",
                "weights": list(tuning.weights),
                "fitted": tuning.fitted,
                "held_out": tuning.held_out,
                "recommended": tuning.recommended,
                "adjusted_p_value": tuning.adjusted_p_value,
                "advised": list(tuning.advised),
                "advice": tuning.advice,
                "gains": [
                    {
                        "baseline": gain.name,
                        "weights": list(gain.weights),
                        "mean": gain.test.before,
                        **paired_document(gain.test),
                    }
                    for gain in tuning.gains
                ],
                "folds": [
                    {"weights": list(fold.weights), "queries": fold.queries, "held_out": fold.held_out}
                    for fold in tuning.folds
                ],
                "flat": tuning.surface.flat,
            }
            for tuning in found
        ],
    }
