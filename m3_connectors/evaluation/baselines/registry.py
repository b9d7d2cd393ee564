"""Baselines by their names for ``--baseline``; each is imported when it is used."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable

from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.baselines.baseline import Baseline

BASELINES: dict[str, str] = {
    "bm25": "m3_connectors.evaluation.baselines.bm25:WordBM25",
    "bm25-xlmr": "m3_connectors.evaluation.baselines.bm25:TokenBM25",
    "rrf": "m3_connectors.evaluation.baselines.rrf:ReciprocalRankFusion",
    "st": "m3_connectors.evaluation.baselines.sentence_models:SentenceModel",
    "openai": "m3_connectors.evaluation.baselines.endpoint:EmbeddingEndpoint",
    "rerank": "m3_connectors.evaluation.baselines.rerank:CrossEncoderRanking",
}
"""For each name, ``module:callable``. The callable receives the text after the colon of ``rerank:MODEL``, if any."""


def baseline_for(spec: str) -> Baseline:
    """Return a baseline that is ready to run.

    Args:
        spec: ``NAME`` or ``NAME:ARGUMENT``.

    Raises:
        InvalidInput: There is no such baseline, or it does not accept this argument.
        MissingDependency: A package that it needs is not installed.
    """
    name, colon, argument = spec.partition(":")
    if name not in BASELINES:
        raise InvalidInput(f"{spec!r} is not a baseline.\n  Use one of {', '.join(BASELINES)}.")
    module, _, attribute = BASELINES[name].partition(":")
    make: Callable[..., Baseline] = getattr(importlib.import_module(module), attribute)
    arguments = (argument,) if colon else ()
    try:
        inspect.signature(make).bind(*arguments)
    except TypeError:
        what, fix = ("takes no argument", name) if colon else ("needs a model", f"{name}:MODEL")
        raise InvalidInput(f"baseline {spec!r} {what}.\n  Use {fix}.") from None
    return make(*arguments)
