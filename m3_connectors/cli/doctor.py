"""``m3 doctor``: check the installation, the machine, the model and a store."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import anyio
import typer
from rich.table import Table
from rich.text import Text

from m3_connectors import __version__
from m3_connectors.backends.base import Backend
from m3_connectors.backends.capabilities import Capability
from m3_connectors.backends.checks import check_model
from m3_connectors.backends.registry import DEFAULT_COLLECTION, backend_for
from m3_connectors.backends.stores import STORES, other_stores
from m3_connectors.backends.urls import redacted
from m3_connectors.cli.console import lines_of, plural, print_json, print_table
from m3_connectors.cli.model_directories import directories, find_by_name
from m3_connectors.cli.opening import (
    DEFAULT_MODEL,
    MISMATCH_ADVICE,
    connect_encoder,
    how_to_fill,
    is_address,
    load_encoder,
)
from m3_connectors.cli.options import Collection, Debug, Json, Model, check_store
from m3_connectors.cores import allowed_cores, cpu_quota
from m3_connectors.embeddings import ModelInfo
from m3_connectors.errors import (
    M3Error,
    MissingDependency,
    ModelFormat,
    ModelMismatch,
    NotFound,
    Rejected,
    Unauthorised,
    Unsupported,
)

_PACKAGES = {
    "torch": "encoder",
    "tokenizers": None,
    **{package: store.extra for store in STORES for package in store.packages.values()},
    "bm25s": "eval",
    "ir-measures": "eval",
}
"""Distributions and the extra that installs each; None means that m3-connectors itself requires it."""

_TRY_SECONDS = 10.0
_SECONDS = 60.0
"""Timeouts for one request to a server, and for all requests together."""

_MARKS = {"ok": ("✓ ", "green"), "note": ("· ", "yellow"), "problem": ("✗ ", "red")}


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        what: What was checked.
        value: What was found.
        level: ``note`` if something optional is missing, ``problem`` if something does not work.
        remedy: How to fix it.
    """

    what: str
    value: str
    level: Literal["ok", "note", "problem"] = "ok"
    remedy: str | None = None


def doctor(
    url: Annotated[str | None, typer.Argument(metavar="URL", help="The store to check.")] = None,
    collection: Collection = DEFAULT_COLLECTION,
    model: Model = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Check the installation, the machine, the model and a store, and say how to fix each problem."""
    if url is not None:
        check_store(url, collection)
    findings = [*_installation(), *_other_stores(), *_machine()]
    store = _Store()
    if url is not None:
        store = anyio.run(_look, url, collection)
        findings += store.findings
    findings.append(_model(model, store.written_by, url, collection))
    well = all(finding.level != "problem" for finding in findings)
    if json:
        listed = [dataclasses.asdict(finding) for finding in findings]
        print_json({"ok": well, "findings": listed, "capabilities": store.capabilities})
    else:
        print_table(_table(findings))
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


def _other_stores() -> Iterator[Finding]:
    """Check the stores of other distributions, of which a faulty one does not affect the others."""
    stores, faults = other_stores()
    for store in stores:
        try:
            store.load()
        except MissingDependency as error:
            # A note, as for the clients of this package's stores.
            yield dataclasses.replace(_problem(store.distribution, error), level="note")
        except M3Error as error:
            yield _problem(store.distribution, error)
        else:
            version = metadata.version(store.distribution)
            yield Finding(store.distribution, f"{version}, the store {store.name}:")
    for fault in faults:
        what = f"the store {fault.name}: {fault.what}"
        yield Finding(fault.distribution, what, "problem", fault.remedy)


def _machine() -> list[Finding]:
    """Return what the model would be computed with; nothing where PyTorch is missing, which is named above."""
    try:
        import torch
    except ImportError:
        return []

    from m3_connectors.encoder.devices import choose_device, choose_dtype
    from m3_connectors.encoder.int8 import largest_weight

    device = choose_device(None)
    precision = str(choose_dtype("auto", device)).removeprefix("torch.")
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{_cores()}, {platform.machine()}"
    )
    why = {"bfloat16": "computed natively", "float16": "computed natively"}.get(
        precision, "because bfloat16 would be emulated"
    )
    findings = [Finding("device", f"{device} ({name})"), Finding("precision", f"{precision}, {why}")]
    if device.type == "cpu":
        try:
            largest_weight()
        except Unsupported as error:
            findings.append(Finding("int8", str(error).splitlines()[0]))
        else:
            findings.append(Finding("int8", 'computed exactly here; used only with precision="int8"'))
    return findings


def _cores() -> str:
    quota, allowed = cpu_quota(), allowed_cores()
    return (
        f"{allowed} cores"
        if quota is None or quota >= allowed
        else f"a CPU quota of {quota:g} of {allowed} cores"
    )


def _model(asked: str | None, written_by: ModelInfo | None, url: str | None, collection: str) -> Finding:
    """Check the model that a command would use: load its directory and compare it with the collection's."""
    if asked and is_address(asked):
        return _server(asked, written_by, collection)
    name = asked or (written_by.name if written_by else DEFAULT_MODEL)
    try:
        place = find_by_name(name)
    except ModelFormat as error:
        return _problem("model", error)
    places = [place] if place else []
    if not asked and written_by:
        places = directories(written_by, url or "")
    if not places and Path(name).expanduser().is_dir():
        places = [Path(name)]  # without config.json; loading it reports that
    if not places:
        if (
            not asked and written_by and not written_by.revision
        ):  # it was a directory, so it is not on the hub
            remedy = "Give its location: --model DIRECTORY, or M3_MODEL=DIRECTORY."
            return Finding("model", f"the directory {name} was not found", "problem", remedy)
        return _hub_model(name)
    found = [_directory(str(place), written_by, collection) for place in places]
    return next((finding for finding in found if finding.level != "problem"), found[0])


def _server(address: str, written_by: ModelInfo | None, collection: str) -> Finding:
    """Ask a server for its model, and compare it with the collection's."""
    try:
        with connect_encoder(address) as encoder:
            if written_by:
                check_model(written_by, collection, encoder.info, what="this server has")
    except ModelMismatch as error:
        return Finding("model", _problem("model", error).value, "problem", MISMATCH_ADVICE)
    except M3Error as error:
        return _problem("model", error)
    size = f"{encoder.info.dimension} dims, {encoder.max_length:,} tokens"
    return Finding("model", f"{encoder.info.name} on {redacted(address)} ({size})")


def _directory(directory: str, written_by: ModelInfo | None, collection: str) -> Finding:
    """Load a model directory and compare it with the collection's model."""
    try:
        encoder = load_encoder(directory)
        if written_by:
            check_model(written_by, collection, encoder.info, what="this model is")
    except ModelMismatch as error:
        return Finding("model", _problem("model", error).value, "problem", MISMATCH_ADVICE)
    except M3Error as error:
        return _problem("model", error)
    size = f"{encoder.info.dimension} dims, {encoder.max_length:,} tokens"
    return Finding("model", f"{directory} ({size})")


def _hub_model(name: str) -> Finding:
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    except ValueError:
        return Finding(
            "model", f"{name} is neither a directory nor a hub name", "problem", "Use -m DIRECTORY."
        )
    if cached:
        return Finding("model", f"{name} (in the hub's cache)")
    return Finding(
        "model",
        f"{name} is not on this machine",
        "note",
        f"If it is on the hub, it is downloaded on first use: m3 encode hello --json -m {name}. "
        "Otherwise use -m DIRECTORY.",
    )


@dataclasses.dataclass
class _Store:
    """The findings about a store.

    Attributes:
        findings: The findings in the order of the report.
        capabilities: Whether the store has each capability, by name; empty if the store was not reached.
        written_by: The collection's model, if the collection exists.
    """

    findings: list[Finding] = dataclasses.field(default_factory=list)
    capabilities: dict[str, bool] = dataclasses.field(default_factory=dict)
    written_by: ModelInfo | None = None


async def _look(url: str, collection: str) -> _Store:
    """Check the server, then the collection; each failure becomes a finding."""
    found = _Store()
    backend = backend_for(url, collection)
    seconds = None
    if Capability.DEADLINES in backend.capabilities:
        backend = backend_for(url, collection, {"timeout_seconds": _TRY_SECONDS, "attempts": 1})
        seconds = _SECONDS
    try:
        with anyio.fail_after(seconds):
            await _look_at_server(backend, found)
            await _look_at_collections(backend, found)
            await _look_at_collection(backend, found, url)
    except M3Error as error:
        found.findings.append(_problem("collection" if found.findings else redacted(url), error))
    except TimeoutError:
        remedy = (
            "The server may be overloaded, or a proxy or firewall may drop packets: check the server's log."
        )
        found.findings.append(
            Finding(redacted(url), f"no complete response within {seconds} s", "problem", remedy)
        )
    finally:
        with anyio.CancelScope(shield=True):
            await backend.close()
    if found.findings[0].what == "store":
        # After opening, because a collection may have fewer capabilities than its store.
        found.capabilities = {one.name: one in backend.capabilities for one in Capability}
        for what, wanted in (("supports", True), ("does not support", False)):
            names = [one.asked for one in Capability if (one in backend.capabilities) is wanted]
            found.findings.append(Finding(what, " · ".join(names) or "nothing"))
    return found


async def _look_at_server(backend: Backend, found: _Store) -> None:
    info = await backend.server()
    found.findings += [
        Finding("store", f"{backend.name} {info.version or ''}".strip()),
        Finding("URL", info.url),
    ]
    found.findings += [Finding(name, value) for name, value in info.details.items()]
    for remark in info.remarks:
        level: Literal["note", "problem"] = "problem" if remark.is_problem else "note"
        found.findings.append(Finding("store", remark.what, level, remark.remedy))


async def _look_at_collections(backend: Backend, found: _Store) -> None:
    """List the collections; lacking the permission to list them is not a problem."""
    try:
        listed = sorted(await backend.collections(), key=lambda one: one.name)
    except NotFound:
        return
    except (Unauthorised, Rejected, Unsupported) as error:
        found.findings.append(dataclasses.replace(_problem("collections", error), level="note"))
        return
    names = [one.name for one in listed if one.is_ours]
    others = len(listed) - len(names)
    value = ", ".join(names) or "none made by m3-connectors"
    found.findings.append(
        Finding("collections", value + (f" (and {others:,} of other programs)" if others else ""))
    )
    found.findings += [
        Finding(
            "collections",
            f"{one.name}: {one.problem}",
            "problem",
            "Index its documents again into another collection.",
        )
        for one in listed
        if one.is_ours and one.problem
    ]


async def _look_at_collection(backend: Backend, found: _Store, url: str) -> None:
    try:
        schema = await backend.open()
    except NotFound:
        value = f'"{backend.collection}" does not exist yet'
        remedy = how_to_fill(url, backend.collection)
        found.findings.append(Finding("collection", value, "note", remedy))
        return
    model, storage = schema.model, schema.storage
    found.written_by = model
    count = await backend.count()
    components = ", ".join(schema.components)
    if "multivector" in schema.written:
        components += f" ({storage.multivector_dtype} multi-vectors, long documents: {storage.pooling})"
    found.findings += [
        Finding("collection", f"{backend.collection}, {plural(count, 'document')}"),
        Finding("written by", f"{model}, {model.vocabulary_size:,} tokens"),
        Finding("components", components),
    ]
    if schema.adding:
        command = f"m3 add-component {redacted(url)} {schema.adding} -c {backend.collection}"
        what = (
            f"{schema.adding} is being added; searches that need it are refused until all documents have it"
        )
        found.findings.append(Finding("components", what, "problem", f"Finish it:  {command}"))
    try:
        await _read_one(backend)
    except M3Error as error:
        found.findings.append(_problem("read back", error))
    else:
        read = "one document with its vectors" if count else "no document yet"
        found.findings.append(Finding("read back", read))
    found.findings += [
        Finding("collection", remark.what, "problem" if remark.is_problem else "note", remark.remedy)
        for remark in await backend.remarks()
    ]


async def _read_one(backend: Backend) -> None:
    """Read one document, because a store's status does not prove that its data can be read."""
    async for id in backend.scan_ids():
        await backend.fetch([id])
        await backend.vectors([id])
        return


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
