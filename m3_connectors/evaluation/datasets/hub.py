"""Files of the hub's dataset repositories: what they weigh is said before anything is fetched."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from m3_connectors.errors import InvalidInput, NotFound, Unauthorised, Unavailable
from m3_connectors.evaluation.datasets.catalogue import Repository


@dataclasses.dataclass(frozen=True)
class Download:
    """What a dataset needs of one repository.

    Attributes:
        repository: Owner and name.
        revision: Commit.
        files: Paths in the repository.
        bytes: Of all files together; None where nobody says before.
        missing_bytes: Of those that are not in the hub's cache on this machine; None as ``bytes``.
    """

    repository: str
    revision: str
    files: tuple[str, ...]
    bytes: int | None
    missing_bytes: int | None

    def __str__(self) -> str:
        if self.bytes is None or self.missing_bytes is None:
            return f"{self.repository}: files of unknown size"
        here = "" if self.missing_bytes == self.bytes else f", {size(self.missing_bytes)} still to fetch"
        return f"{self.repository}@{self.revision[:7]}: {len(self.files)} files, {size(self.bytes)}{here}"


Agree = Callable[[Sequence[Download]], bool]
"""Asked before anything is fetched; True fetches."""


def size(bytes: int) -> str:
    """A number of bytes for people, in decimal units as the hub shows them."""
    value, unit = float(bytes), "bytes"
    for bigger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, bigger
    return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:.3g} {unit}"


def plan(repository: Repository) -> Download:
    """What a repository's files weigh; fetches their list only.

    Raises:
        NotFound: No such repository, commit or file.
        Unauthorised: The hub asks for a login.
        Unavailable: The hub cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    where = f"dataset {repository.name}@{repository.revision[:7]}"
    try:
        info = huggingface_hub.HfApi().dataset_info(
            repository.name, revision=repository.revision, files_metadata=True
        )
    except GatedRepoError as error:
        raise Unauthorised(
            f"{where} asks for a login: {_first_line(error)}\n  Accept its terms on its page, then `hf auth login`.",
            backend="hub",
            operation="list files",
        ) from error
    except RepositoryNotFoundError as error:
        raise NotFound(
            f"{where} is not there, or only for those who log in: {_first_line(error)}\n  `hf auth login`, "
            "or give the files with --data-dir.",
            backend="hub",
            operation="list files",
        ) from error
    except Exception as error:  # the errors of its HTTP library: requests, httpx or httpx2, by version
        raise _unreachable(where, "list files", error) from error
    found = {
        file.rfilename: file.size or 0
        for file in info.siblings or ()
        if any(fnmatch(file.rfilename, pattern) for pattern in repository.files)
    }
    for pattern in repository.files:
        if not any(fnmatch(name, pattern) for name in found):
            raise NotFound(f"{where} has no file {pattern}.", backend="hub", operation="list files")
    return Download(
        repository.name,
        repository.revision,
        tuple(found),
        sum(found.values()),
        sum(size for name, size in found.items() if not _cached(repository, name)),
    )


def fetch(download: Download) -> Path:
    """The files in the hub's cache on this machine, fetched where missing.

    Returns:
        A folder with the repository's files under their paths.

    Raises:
        Unavailable: The hub cannot be reached, or stopped answering; what came is kept.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(
            huggingface_hub.snapshot_download(
                download.repository,
                repo_type="dataset",
                revision=download.revision,
                allow_patterns=list(download.files),
            )
        )
    except (HfHubHTTPError, OSError) as error:
        raise _unreachable(
            f"dataset {download.repository}@{download.revision[:7]}", "fetch", error
        ) from error


def refuse(name: str, downloads: Sequence[Download]) -> InvalidInput:
    """The error of a download that nobody agreed to."""
    listed = "; ".join(map(str, downloads))
    return InvalidInput(
        f"{name} is not on this machine: {listed}. Nothing was fetched.\n"
        "  Agree with --yes (in Python: agree=lambda downloads: True), or give the files with --data-dir."
    )


def _unreachable(where: str, operation: str, error: Exception) -> Unavailable:
    return Unavailable(
        f"{where}: {_first_line(error)}\n  Is the hub reachable? On a machine without one, copy the files and give "
        "their folder with --data-dir.",
        backend="hub",
        operation=operation,
    )


def _cached(repository: Repository, file: str) -> bool:
    import huggingface_hub

    path = huggingface_hub.try_to_load_from_cache(
        repository.name, file, revision=repository.revision, repo_type="dataset"
    )
    return isinstance(path, str)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
