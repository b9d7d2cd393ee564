"""Find the files of sources: a file, a stream, or all files below a folder."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from m3_connectors.readers.dead_letters import DeadLetter, is_report
from m3_connectors.readers.formats import ReadOptions, ending_of, known_ending, named_ending
from m3_connectors.readers.inputs import STDIN, Input, Source, is_stream, shown
from m3_connectors.readers.schemes import opener_of
from m3_connectors.readers.urls import Url

_DATASET_FILES = frozenset({"dataset_dict.json", "dataset_info.json", "state.json"})
"""The files that a dataset of Hugging Face has in its folder beside those of Arrow with its rows."""

_COLLECTION_MARK = "m3.json"
"""The file that an embedded Qdrant collection has in its folder; some of the files below it would pass for texts."""

_EMBEDDINGS_LIST = "embeddings.json"
"""The list of a folder of embeddings that m3 saved, which begins with its format."""
_EMBEDDINGS_FORMAT = b'"m3-embeddings/'


class Walk:
    """Finds the files of sources, in the order of their paths.

    Args:
        sources: Files, folders and streams, all of which exist, and URLs.
        options: The exclusions, and the format of files without a known extension.
        without: A folder to skip.
    """

    def __init__(self, sources: list[Source], options: ReadOptions, without: Path | None) -> None:
        self._options = options
        self._left_out = None if without is None else without.resolve()
        folders = [source for source in sources if _may_be_folder(source)]
        self._prefixes = _folder_prefixes(folders)
        self._names = _file_names([source for source in sources if source not in folders])

    def inputs(self, source: Source, on_dead_letter: Callable[[Source, DeadLetter], None]) -> Iterator[Input]:
        """Yield the files of a source; skipped files become dead letters, excluded files do not.

        Raises:
            InvalidInput, MissingDependency: The source is a URL that cannot be opened.
        """
        if isinstance(source, Url):
            for found in opener_of(source)(source, self._options, self._excluded):
                if isinstance(found, DeadLetter):
                    on_dead_letter(source, found)
                elif found.path == source:
                    yield dataclasses.replace(found, name=self._names.get(source, found.name))
                else:
                    yield dataclasses.replace(found, name=self._prefixes.get(source, "") + found.name)
            return
        if not source.is_dir():
            ending = named_ending(source, self._options)
            # The shell's *.jsonl names the reports of earlier runs too.
            left_out = len(self._names) > 1 and is_report(source)
            if ending is not None and not left_out and not self._excluded(source.name, source.as_posix()):
                yield Input(source, source, self._names[source], ending, limits=self._options.limits)
            return

        def skip(path: str | Path, reason: str) -> None:
            on_dead_letter(source, DeadLetter(str(path), None, reason))

        walk = os.walk(
            source, onerror=lambda error: skip(error.filename, f"cannot be read: {error.strerror}")
        )
        for folder, folders, files in walk:
            here = Path(folder)
            if not _DATASET_FILES.isdisjoint(files) and _is_dataset(here, files):
                files = [
                    name for name in files if name not in _DATASET_FILES and not name.startswith("cache-")
                ]
            folders[:] = sorted(name for name in folders if self._enters(source, here / name, skip))
            for name in sorted(files):
                path = here / name
                below = path.relative_to(source).as_posix()
                if is_report(path) or self._excluded(name, below):
                    continue  # the first is a report of an earlier run about this folder
                if path == STDIN:  # a file of that name, in the current directory
                    path = path.absolute()
                reason = _why_not(path)
                ending = known_ending(path)
                if reason is None and ending is not None:
                    name = self._prefixes.get(source, "") + below
                    yield Input(source, path, name, ending, limits=self._options.limits)
                else:
                    skip(path, reason or f"unsupported format ({ending_of(path)})")

    def _enters(self, source: Path, folder: Path, skip: Callable[[Path, str], None]) -> bool:
        if self._excluded(folder.name, folder.relative_to(source).as_posix()):
            return False
        if folder.name.startswith("."):
            skip(folder, "a hidden folder")
            return False
        if folder.is_symlink():
            skip(folder, "links to folders are not followed: give the folder itself")
            return False
        if (folder / _COLLECTION_MARK).is_file():
            skip(folder, "a collection that m3 made, which holds no source documents")
            return False
        if _has_embeddings(folder):
            skip(
                folder, "saved embeddings, which are stored by m3 ingest if this folder itself is its source"
            )
            return False
        return folder.resolve() != self._left_out

    def _excluded(self, name: str, below: str) -> bool:
        return any(
            fnmatch.fnmatchcase(below if "/" in pattern else name, pattern.removesuffix("/"))
            for pattern in self._options.exclude
        )


def _why_not(path: Path) -> str | None:
    """Return why a file of a folder is skipped regardless of its format, or None."""
    if path.name.startswith("."):
        return "a hidden file"
    if known_ending(path) is not None and not path.is_file():
        return "not a regular file" if path.exists() else "a broken link"
    return None


def _has_embeddings(folder: Path) -> bool:
    """Return whether embeddings were saved in a folder: its Parquet files would pass for tables of texts."""
    with contextlib.suppress(OSError), (folder / _EMBEDDINGS_LIST).open("rb") as file:
        return _EMBEDDINGS_FORMAT in file.read(100)
    return False


def _is_dataset(folder: Path, files: list[str]) -> bool:
    """Return whether a dataset was saved in a folder with ``save_to_disk``."""
    if "state.json" not in files:
        return "dataset_dict.json" in files
    with contextlib.suppress(OSError, ValueError):
        return "_data_files" in json.loads((folder / "state.json").read_bytes())
    return False


def _may_be_folder(source: Source) -> bool:
    """Return whether a source is a folder; of a URL this is judged by its name, because it is not opened for it."""
    if isinstance(source, Path):
        return source.is_dir()
    return "*" in source.name or known_ending(source) is None or not ending_of(source)


def _folder_prefixes(folders: list[Source]) -> dict[Source, str]:
    """Return the prefix of the ids of each folder, so that equal names in several folders do not collide."""
    if len(folders) < 2:
        return {}
    names = [folder.name if isinstance(folder, Url) else folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):  # a/notes and b/notes
        names = [folder.as_posix() for folder in folders]
    return {folder: f"{name}/" for folder, name in zip(folders, names, strict=True)}


def _file_names(files: list[Source]) -> dict[Source, str]:
    """Return the prefix of the ids of each file: its name, or its path if another file has the same name."""
    count = Counter(file.name for file in set(files))
    return {
        file: shown(file) if is_stream(file) else file.name if count[file.name] == 1 else file.as_posix()
        for file in files
    }
