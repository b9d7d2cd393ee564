"""The argument of a baseline: a model, with options after a question mark as in a URL."""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import parse_qs

from m3_connectors.errors import InvalidInput


def model_and_options(spec: str, known: Collection[str]) -> tuple[str, dict[str, str]]:
    """Parse ``MODEL?query=query:%20&passage=passage:%20`` into the model and its options.

    Args:
        spec: What follows the colon.
        known: Names of options that the baseline has.

    Raises:
        InvalidInput: No model, or an unknown or repeated option.
    """
    model, _, rest = spec.partition("?")
    try:
        given = parse_qs(rest, keep_blank_values=True, strict_parsing=bool(rest))
    except ValueError:
        given = {rest: []}
    for name, values in given.items():
        if name not in known or len(values) != 1:
            raise InvalidInput(
                f"option {name!r} of {spec!r} is unknown or repeated.\n"
                f"  Use {' and '.join(known)}, once, as NAME=VALUE."
            )
    if not model:
        raise InvalidInput(f"{spec!r} has no model.\n  Use NAME:MODEL.")
    return model, {name: value for name, (value,) in given.items()}


def run_name(kind: str, model: str) -> str:
    """A run's key, a file name: ``st-intfloat-multilingual-e5-large``."""
    return f"{kind}-{re.sub(r'[^A-Za-z0-9._-]+', '-', model).strip('-.')}"


def prefixes(query: str | None, passage: str | None) -> str:
    """What stands before the texts, as the end of a description; nothing for a prefix that there is not."""
    parts = ((query, "queries"), (passage, "passages"))
    return "".join(f", {text!r} before {what}" for text, what in parts if text)
