"""``m3 index URL SOURCE…``: the short form of ``m3 ingest SOURCE… --to URL``, with everything that it can do."""

from __future__ import annotations

import inspect
from typing import Any

from m3_connectors.cli.ingest import run
from m3_connectors.cli.options import Url


def index(**options: Any) -> None:
    """Store what is new or changed of files and folders: the short form of m3 ingest SOURCE… --to URL.

    Run the same command again to continue, or to update what has changed. Records that cannot be read or stored are
    written to SOURCE.dead.jsonl with the reason. A document that exceeds the model's limit is stored with its whole
    text, but only its beginning is encoded; SOURCE.cut.jsonl lists these documents and how much of each is lost.
    """
    run(**options)


def _store_first(signature: inspect.Signature) -> inspect.Signature:
    """Return the signature of ``m3 ingest`` with ``--to URL`` as the first argument."""
    to, *others = (
        signature.parameters[name] for name in ("to", *(n for n in signature.parameters if n != "to"))
    )
    return signature.replace(parameters=[to.replace(annotation=Url), *others])


index.__signature__ = _store_first(inspect.signature(run, eval_str=True))  # type: ignore[attr-defined]
