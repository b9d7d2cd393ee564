"""Find a collection's model on this machine: by its name, next to the store, or where it was used before.

A collection records the last two parts of a model directory and its fingerprint, not its path: paths contain
names of people and machines, they change, and a collection on a server is opened from many machines.
Therefore each machine keeps its own list of the model directories that were used on it, by fingerprint. The
code that opens a model compares its fingerprint with the collection's, so a wrong directory is never used.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from m3_connectors.embeddings import ModelInfo
from m3_connectors.errors import ModelFormat
from m3_connectors.files import replacing

_MOST_REMEMBERED = 200


def remember(info: ModelInfo, directory: Path) -> None:
    """Record on this machine that a model is in a directory; a failure to write the list is ignored."""
    if info.weights_fingerprint is None:
        return
    used = _used()
    place = str(directory.expanduser().resolve())
    others = [path for path in used.pop(info.weights_fingerprint, []) if path != place]
    used[info.weights_fingerprint] = [place, *others]
    kept = dict(list(used.items())[-_MOST_REMEMBERED:])
    target = _list_path()
    with contextlib.suppress(OSError):
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target, shared=True) as partial:
            partial.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def directories(info: ModelInfo, url: str) -> list[Path]:
    """Return directories that may contain a model, the most likely first; the caller checks the fingerprint.

    Args:
        info: The model as recorded in a collection.
        url: The store of the collection; the folder of an embedded store is searched too.
    """
    found: dict[Path, Path] = {}
    for path in (*_used_before(info), *_by_name(info.name, url)):
        with contextlib.suppress(OSError):
            if (path / "config.json").is_file():
                found.setdefault(path.resolve(), path)
    return list(found.values())


def find_by_name(name: str) -> Path | None:
    """Find a model directory by its path or its last parts, below the current directory and its parents.

    The models of this project are found wherever they are installed.

    Raises:
        ModelFormat: The model belongs to this project, and its package is not installed.
    """
    from m3_connectors.encoder.shipped import shipped_model

    here = Path.cwd()
    places = (base / Path(name).expanduser() for base in (here, *here.parents))
    found = next((place for place in places if (place / "config.json").is_file()), None)
    return found or shipped_model(Path(name).name)


def _used_before(info: ModelInfo) -> Iterator[Path]:
    if info.weights_fingerprint is not None:
        yield from map(Path, _used().get(info.weights_fingerprint, []))


def _by_name(name: str, url: str) -> Iterator[Path]:
    with contextlib.suppress(ModelFormat):  # a model of this project that is not installed
        if named := find_by_name(name):
            yield named
    if store := _place_of(url):
        yield from (base / name for base in (store, *store.parents))


def _place_of(url: str) -> Path | None:
    """Return the folder of an embedded store, or None for a server."""
    path = url.partition(":")[2]
    return Path(path).expanduser().resolve() if path and not path.startswith("//") else None


def _list_path() -> Path:
    own = os.environ.get("M3_CACHE_DIR")
    return (Path(own) if own else platformdirs.user_cache_path("m3-connectors")) / "models.json"


def _used() -> dict[str, list[str]]:
    """Return directories by fingerprint; a missing or damaged list counts as empty."""
    try:
        used = json.loads(_list_path().read_text(encoding="utf-8"))
        return {str(fingerprint): [str(path) for path in paths] for fingerprint, paths in used.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
