"""What ``m3 ingest`` and ``m3 index`` print at the end of a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from m3_connectors.cli.console import duration, out, plural, warn
from m3_connectors.cli.ingest_curation import Curating
from m3_connectors.cli.ingest_verify import print_verification
from m3_connectors.cli.reading import Reading

if TYPE_CHECKING:
    from m3_connectors.backends.schema import Schema
    from m3_connectors.ingestion import IngestReport

_NAMED = 20


def as_json(
    report: IngestReport, reading: Reading, curating: Curating | None, schema: Schema, count: int
) -> dict[str, object]:
    """Return the report as JSON takes it; ``count`` is the number of ids in the store after the run."""
    return {
        "model": schema.model.name,
        "read": report.read,
        "unchanged": report.unchanged,
        "documents": report.documents,
        "chunks": report.chunks,
        "replaced": report.replaced,
        "removed": report.removed,
        "kept": list(report.kept[:_NAMED]),
        "kept_count": len(report.kept),
        "refused": report.refused,
        "duplicates": list(report.repeated),
        "duplicates_count": report.repeated_count,
        "repeats": [letter.to_dict() for letter in reading.repeats],
        "truncated": report.add.truncated,
        "lost_tokens": report.add.lost_tokens,
        "cut_documents": [str(path) for path in reading.cut.paths],
        "pooled": report.add.pooled,
        "skipped": reading.dead.count,
        "dead_letters": [str(path) for path in reading.dead.paths],
        "missing": report.missing and dataclasses.asdict(report.missing),
        "count": count,
        "seconds": round(report.seconds, 3),
        "documents_per_second": round(_rate(report), 3),
        "tokens": report.tokens,
        "tokens_per_second": round(report.tokens / max(report.seconds, 1e-9), 3),
        "encoder_busy_share": round(report.encoder_busy_share, 3),
        "encoding_seconds": round(report.add.encoding_seconds, 3),
        "batches": report.batches,
        "writing_seconds": round(report.writing_seconds, 3),
        "waited_seconds": round(report.waited_seconds, 3),
        "text_columns": reading.mixed_columns,
        "curation": curating and curating.as_json(),
    }


def print_report(
    report: IngestReport,
    reading: Reading,
    curating: Curating | None,
    schema: Schema,
    *,
    sync: bool,
    of: str = "",
) -> None:
    """Print the report as one line that begins with ``of``, and on stderr what must not be overlooked."""
    if report.missing is not None:
        print_verification(report.missing)
    parts = [f"{of}{plural(report.documents, 'document')}"]
    if report.chunks != report.documents:
        parts.append(plural(report.chunks, "chunk"))
    for count, what in (
        (report.replaced, "of them replaced earlier ones"),
        (report.unchanged, "unchanged"),
        (report.removed, "removed"),
    ):
        if count:
            parts.append(f"{count:,} {what}")
    if report.repeated_count:
        first = f" ({reading.repeats[0]})" if reading.repeats else ""
        parts.append(
            f"{plural(report.repeated_count, 'id')} occurred more than once, the last was kept{first}"
        )
    if report.add.truncated:
        lost = f"{report.add.lost_tokens:,} of their {reading.cut_tokens:,} tokens"
        share = f"{report.add.lost_tokens / max(reading.cut_tokens, 1):.0%}"
        parts.append(
            f"{report.add.truncated:,} truncated to the model's limit: {lost} lost, {share} "
            f"(see {names(reading.cut.paths)})"
        )
    if report.add.pooled:
        parts.append(f"{report.add.pooled:,} long, with rows pooled by {schema.storage.pool_factor}")
    if reading.dead.count:
        parts.append(f"{reading.dead.count:,} skipped (see {names(reading.dead.paths)})")
    if curating is not None and (dropped := curating.summary(sync=sync)):
        parts.append(dropped)
    parts.append(duration(report.seconds))
    if report.documents:
        parts.append(f"encoder busy {report.encoder_busy_share:.0%}")
    if report.waited_seconds:
        parts.append(f"{duration(report.waited_seconds)} waiting for the store")
    rate = _rate(report)
    parts.append(f"{rate:,.0f} documents/s" if rate >= 10 else f"{rate:.1f} documents/s")
    out.print(f"  {' · '.join(parts)}", markup=False, soft_wrap=True)
    if report.kept:
        some = ", ".join(map(repr, report.kept[:3]))
        warn(
            f"{plural(len(report.kept), 'document')} not found and not removed, because a file could not be read "
            f"completely, or the source has no documents at all: {some}{', …' if len(report.kept) > 3 else ''}"
        )


def names(paths: list[Path]) -> str:
    """Return the names of report files, for messages."""
    return ", ".join(path.name for path in paths)


def _rate(report: IngestReport) -> float:
    """Return the number of documents, stored or unchanged, per second."""
    return (report.documents + report.unchanged) / max(report.seconds, 1e-9)
