"""``m3 doctor``: what is installed, what the machine can do, and what is wrong with a store."""

from __future__ import annotations

import dataclasses
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from m3_connectors import __version__
from m3_connectors.backends.registry import DEFAULT_COLLECTION
from m3_connectors.cli.console import lines_of, out, print_json
from m3_connectors.cli.opening import DEFAULT_MODEL, describe, find_model
from m3_connectors.cli.options import Collection, Debug, Json, Model
from m3_connectors.errors import M3Error

_PACKAGES = {
    "torch": None,
    "tokenizers": None,
    "qdrant-edge-py": "qdrant",
    "bm25s": "eval",
    "ir-measures": "eval",
}
"""Distributions and the extra that installs each; None comes with m3-connectors itself."""


_MARKS = {"ok": ("✓ ", "green"), "note": ("· ", "yellow"), "problem": ("✗ ", "red")}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        what: Its name.
        value: What was found.
        level: ``note`` if something could be had that is not there, ``problem`` if something does not work.
        remedy: What to do about it.
    """

    what: str
    value: str
    level: Literal["ok", "note", "problem"] = "ok"
    remedy: str | None = None


def doctor(
    url: Annotated[str | None, typer.Argument(metavar="URL", help="A store to look at.")] = None,
    collection: Collection = DEFAULT_COLLECTION,
    model: Model = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Check the installation, the machine, the model and a store, and say how to mend what is wrong."""
    findings = [*_installation(), *_machine()]
    recorded: str | None = None
    if url is not None:
        found, recorded = _store(url, collection)
        findings += found
    findings.append(_model(model or recorded or DEFAULT_MODEL))
    well = all(finding.level != "problem" for finding in findings)
    if json:
        print_json({"ok": well, "findings": [dataclasses.asdict(finding) for finding in findings]})
    else:
        out.print(_table(findings))
    if not well:
        raise typer.Exit(1)


def _installation() -> list[Finding]:
    findings = [Finding("m3-connectors", __version__), Finding("Python", platform.python_version())]
    for package, extra in _PACKAGES.items():
        try:
            findings.append(Finding(package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            wanted = f"m3-connectors[{extra}]" if extra else "m3-connectors"
            findings.append(Finding(package, "not installed", "note", f'pip install "{wanted}"'))
    return findings


def _machine() -> list[Finding]:
    import torch

    from m3_connectors.encoder.devices import choose_device, choose_dtype

    device = choose_device(None)
    precision = str(choose_dtype("auto", device)).removeprefix("torch.")
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{_cores()} cores, {platform.machine()}"
    )
    why = {"bfloat16": "computed natively", "float16": "computed natively"}.get(
        precision, "bfloat16 would be emulated"
    )
    return [Finding("device", f"{device} ({name})"), Finding("precision", f"{precision}, {why}")]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _model(name: str) -> Finding:
    directory = find_model(name)
    if directory is not None:
        from m3_connectors.encoder.config import ModelConfig

        try:
            config = ModelConfig.load(Path(directory) / "config.json")
        except M3Error as error:
            return _problem("model", error)
        needed = ("tokenizer.json", "sparse_linear.pt", "colbert_linear.pt")
        missing = [file for file in needed if not (Path(directory) / file).exists()]
        if missing:
            return Finding(
                "model",
                f"{directory} lacks {', '.join(missing)}",
                "problem",
                "Take a complete M3 checkpoint.",
            )
        size = f"{config.hidden_size} dims, {config.num_hidden_layers} layers, {config.max_length:,} tokens"
        return Finding("model", f"{directory} ({size})")
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    except ValueError:
        cached = False
    if cached:
        return Finding("model", f"{name} (in the hub's cache)")
    return Finding(
        "model",
        f"{name} is not on this machine",
        "note",
        f"It is fetched on first use, if it is on the hub: m3 encode hello --json -m {name}, or give -m DIRECTORY.",
    )


def _store(url: str, collection: str) -> tuple[list[Finding], str | None]:
    """What there is to say about a store, and the model that it was written by."""
    try:
        description = describe(url, collection)
    except M3Error as error:
        return [_problem(url, error)], None
    schema = description.schema
    model = schema.model
    return [
        Finding("store", description.backend),
        Finding("collection", f"{description.collection}, {description.count:,} documents"),
        Finding("written by", f"{model}, {model.vocabulary_size:,} tokens"),
        Finding(
            "components", f"{', '.join(schema.components)} ({schema.storage.multivector_dtype} multi-vectors)"
        ),
    ], model.name


def _problem(what: str, error: M3Error) -> Finding:
    first, *rest = lines_of(error)
    remedy = " ".join(" ".join(rest).split()) or None
    return Finding(what, f"{type(error).__name__}: {first}", "problem", remedy)


def _table(findings: list[Finding]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column("what", no_wrap=True, style="dim")
    table.add_column("found", overflow="fold")
    for finding in findings:
        table.add_row(finding.what, Text.assemble(_MARKS[finding.level], finding.value))
        if finding.remedy:
            table.add_row("", Text(f"  {finding.remedy}", style="yellow"))
    return table
