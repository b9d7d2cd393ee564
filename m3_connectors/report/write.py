"""The report of a tree of evaluations: every table anew, from their files alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from m3_connectors.evaluation.folder import find_folders, write_text
from m3_connectors.report.table import Table
from m3_connectors.report.tables import incomplete_table, quality_tables


@dataclasses.dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        tables: In order.
        files: Where they are.
        incomplete: Evaluations that are in no table of numbers.
    """

    tables: tuple[Table, ...]
    files: tuple[Path, ...]
    incomplete: tuple[Path, ...]


def write_report(root: Path, out: Path | None = None) -> Report:
    """Compute the measures anew and write every table of the evaluations at or below a folder.

    Args:
        root: The tree.
        out: Where to; ``ROOT/report`` by default.

    Raises:
        InvalidInput: No evaluation is there, or files of one do not belong together.
    """
    target = out or root / "report"
    folders = find_folders(root)
    complete = [folder for folder in folders if folder.record.complete]
    incomplete = [folder for folder in folders if not folder.record.complete]
    for folder in complete:
        folder.measure()
    tables = quality_tables(complete) if complete else []
    if incomplete:
        tables.insert(0, incomplete_table(incomplete))
    target.mkdir(parents=True, exist_ok=True)
    markdown, data = target / "tables.md", target / "tables.json"
    write_text(markdown, "\n".join(table.to_markdown() for table in tables))
    write_text(data, json.dumps([table.to_json() for table in tables], indent=2, ensure_ascii=False) + "\n")
    return Report(tuple(tables), (markdown, data), tuple(folder.path for folder in incomplete))
