"""``m3 add-component``: add a component to a collection that was created without it."""

from __future__ import annotations

import time
from typing import Annotated, cast

import typer

from m3_connectors.backends.registry import DEFAULT_COLLECTION
from m3_connectors.backends.schema import ADDABLE
from m3_connectors.cli.console import INTERRUPTED, duration, err, out, plural, print_json
from m3_connectors.cli.opening import open_index
from m3_connectors.cli.options import Collection, Debug, Json, Model, Url, one_of
from m3_connectors.cli.progress import Progress, acknowledging_interrupts
from m3_connectors.embeddings import Component
from m3_connectors.errors import M3Error


def add_component(
    url: Url,
    component: Annotated[
        str, typer.Argument(metavar="COMPONENT", callback=one_of(ADDABLE), help=" or ".join(ADDABLE) + ".")
    ],
    collection: Collection = DEFAULT_COLLECTION,
    model: Model = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Add a component to an existing collection, from its stored texts. Run the same command again to continue.

    The texts are encoded again, for this component only. Until all documents have it, searches that need it are
    refused, and all others work as before.
    """
    done = 0
    again = "Run the same command again to continue."
    with open_index(url, collection, model) as index, Progress() as progress:
        documents, started = index.count(), time.monotonic()

        def show(count: int) -> None:
            nonlocal done
            done = count
            progress.update("adding", count, unit="documents", share=min(1.0, count / max(1, documents)))

        try:
            with acknowledging_interrupts(
                progress, lambda: f"Stopping after the current batch ({plural(done, 'document')} done)"
            ):
                report = index.add_component(cast(Component, component), progress=show)
        except KeyboardInterrupt:
            err.print(f"{plural(done, 'document')} done. {again}", markup=False)
            raise typer.Exit(INTERRUPTED) from None
        except M3Error as error:
            if done:
                error.add_note(f"  {plural(done, 'document')} done. {again}")
            raise
        components, seconds = list(index.schema.components), time.monotonic() - started
    if json:
        print_json(
            {
                "component": component,
                "components": components,
                "documents": report.written,
                "truncated": report.truncated,
                "pooled": report.pooled,
                "count": documents,
                "seconds": round(seconds, 3),
            }
        )
        return
    what = f"added to {plural(report.written, 'document')}" if report.written else "is already complete"
    cut = f" · {report.truncated:,} truncated to the model's limit" if report.truncated else ""
    out.print(f"{component} {what}{cut} · {duration(seconds)}", markup=False)
