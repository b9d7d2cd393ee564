"""What ir_datasets fetches: said and agreed to before, file by file.

ir_datasets fetches whenever one of its readers opens a file, and only that reader knows which ones it needs:
a dataset whose index is built needs its archive no more, and datasets of one collection share files. So the
question is put at the moment of opening, and not by looking at folders before.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from m3_connectors.errors import InvalidInput, M3Error, Unavailable
from m3_connectors.evaluation.datasets.hub import Agree, Download, refuse


@contextlib.contextmanager
def fetching_what_is_agreed(name: str, dataset: Any, agree: Agree | None) -> Iterator[None]:
    """While it lasts, ir_datasets fetches only what was agreed to.

    Args:
        name: Of the dataset, for errors.
        dataset: The dataset of ir_datasets that is read meanwhile.
        agree: Asked once with all files of the dataset that are not here, as soon as the first is needed.

    Raises:
        InvalidInput: Nobody agreed, or a file must be got by hand.
        Unavailable: A file cannot be fetched.
    """
    from ir_datasets.util.download import Download as Source

    path, stream = Source.path, Source.stream
    agreed: set[int] = set()

    def ask(source: Any) -> None:
        if id(source) in agreed or _is_here(source):
            return
        by_hand = _by_hand(source)
        if by_hand is not None:
            raise InvalidInput(f"{name} needs a file that must be obtained manually.\n  {by_hand}")
        missing = [
            other for other in _sources(dataset, Source) if not _is_here(other) and _by_hand(other) is None
        ]
        if source not in missing:
            missing.append(source)
        # Several readers may open one file.
        planned = list({_address(other): _planned(other) for other in missing}.values())
        if not (agree and agree(planned)):
            raise refuse(name, planned, data_dir=False)
        agreed.update(map(id, missing))

    def agreed_path(source: Any, force: bool = True) -> Any:
        if force:
            ask(source)
        try:
            return path(source, force)
        except Exception as error:  # of whichever library fetches, or a damaged file
            raise _unavailable(name, source, error) from error

    def agreed_stream(source: Any) -> Any:
        if source._stream:  # fetched anew at each reading and never kept
            ask(source)
        return stream(source)

    Source.path, Source.stream = agreed_path, agreed_stream
    try:
        yield
    finally:
        Source.path, Source.stream = path, stream


def _sources(thing: Any, kind: type) -> list[Any]:
    """The files that a dataset may open: all that its readers hold, and theirs in turn."""
    found: list[Any] = []
    seen: set[int] = set()
    waiting = [thing]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, kind):
            found.append(one)
        elif isinstance(one, list | tuple | set):
            waiting.extend(one)
        elif isinstance(one, dict):
            waiting.extend(one.values())
        elif type(one).__module__.startswith("ir_datasets"):
            waiting.extend(getattr(one, "__dict__", {}).values())
    return found


def _is_here(source: Any) -> bool:
    if source._path is not None or (source._cache_path is not None and os.path.exists(source._cache_path)):
        return True
    # A copy of one's own, which ir_datasets takes instead of fetching.
    local = [mirror for mirror in source.mirrors if hasattr(mirror, "_path")]
    return any(mirror.path(force=False).exists() for mirror in local)


def _by_hand(source: Any) -> str | None:
    """What to do for a file that ir_datasets does not fetch; None for one that it does."""
    if all(hasattr(mirror, "_path") for mirror in source.mirrors):
        return str(source.mirrors[-1]._message)
    return None


def _planned(source: Any) -> Download:
    return Download(_address(source), "", (_address(source),), source._size_hint, source._size_hint)


def _address(source: Any) -> str:
    return next((str(mirror.url) for mirror in source.mirrors if hasattr(mirror, "url")), "a file")


def _unavailable(name: str, source: Any, error: Exception) -> Exception:
    if isinstance(error, M3Error):
        return error
    said = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return Unavailable(
        f"{name}: {_address(source)}: {said}\n"
        "  Check that the server is reachable and try again; ir_datasets keeps the downloaded files.",
        backend="ir_datasets",
        operation="fetch",
    )
