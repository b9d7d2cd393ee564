"""Downloads of ir_datasets, which need the user's consent before the first file.

ir_datasets downloads a file when one of its readers opens it, and only the reader determines which files it needs:
a dataset whose index is built no longer needs its archive, and datasets of one collection share files. Consent is
therefore requested when a file is opened, and not by inspecting folders beforehand.
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
    """Let ir_datasets download only with the user's consent while the context is active.

    Args:
        name: The name of the dataset in errors.
        dataset: The dataset of ir_datasets that is read meanwhile.
        agree: Called once with all missing files of the dataset, when the first of them is needed.

    Raises:
        InvalidInput: The user did not agree, or a file must be downloaded manually.
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
