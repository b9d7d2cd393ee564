"""Files of the hub's dataset repositories; their size is reported before anything is downloaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from m3_connectors.errors import BackendError, InvalidInput, NotFound, Unauthorised, Unavailable
from m3_connectors.evaluation.datasets.catalogue import Repository
from m3_connectors.evaluation.datasets.parts import in_folders, missing_parts


@dataclasses.dataclass(frozen=True)
class Download:
    """The files of one repository that a dataset needs.

    Attributes:
        repository: Owner and name.
        revision: Commit; empty where there is none.
        files: Paths in the repository, or addresses.
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
        here = "" if self.missing_bytes == self.bytes else f", {size(self.missing_bytes)} not yet downloaded"
        commit = f"@{self.revision[:7]}" if self.revision else ""
        return f"{self.repository}{commit}: {len(self.files)} files, {size(self.bytes)}{here}"


Agree = Callable[[Sequence[Download]], bool]
"""Called before anything is downloaded; it returns whether to download."""


def size(bytes: int) -> str:
    """Return a number of bytes as text, in decimal units like those of the hub."""
    value, unit = float(bytes), "bytes"
    for bigger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, bigger
    return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:.3g} {unit}"


def plan(repository: Repository) -> Download:
    """Return the total size of a repository's files; downloads only the list of files.

    Raises:
        NotFound: No such repository, commit or file.
        Unauthorised: The hub requires a login.
        Unavailable: The hub cannot be reached.
    """
    import huggingface_hub

    where = f"dataset {repository.name}@{repository.revision[:7]}"
    try:
        info = huggingface_hub.HfApi().dataset_info(
            repository.name, revision=repository.revision, files_metadata=True
        )
    except Exception as error:  # the errors of its HTTP library: requests, httpx or httpx2, by version
        raise _failure(where, "list files", error) from error
    found = {
        file.rfilename: file.size or 0
        for file in info.siblings or ()
        if any(fnmatch(file.rfilename, pattern) for pattern in repository.files)
    }
    for pattern in repository.files:
        if not any(fnmatch(name, pattern) for name in found):
            raise NotFound(
                f"{where} has no file {pattern}.\n  Upgrade m3-connectors; the dataset's repository may have changed.",
                backend="hub",
                operation="list files",
            )
    return Download(
        repository.name,
        repository.revision,
        tuple(found),
        sum(found.values()),
        sum(size for name, size in found.items() if not _cached(repository, name)),
    )


def fetch(download: Download) -> Path:
    """Return the files in the local cache of the hub; missing files are downloaded.

    Returns:
        A folder with the repository's files under their paths.

    Raises:
        Unauthorised: The hub requires a login.
        Unavailable: The hub cannot be reached, or stopped responding; completed files are kept.
    """
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                download.repository,
                repo_type="dataset",
                revision=download.revision,
                allow_patterns=list(download.files),
            )
        )
    except Exception as error:  # as above
        raise _failure(f"dataset {download.repository}@{download.revision[:7]}", "fetch", error) from error


def snapshot(repository: Repository, parts: int | None) -> Path | None:
    """Return the files in the local cache of the hub if it has all of them; this needs no network.

    Args:
        repository: With its files filled in.
        parts: Files of a corpus whose names do not say how many there are.
    """
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                repository.name,
                repo_type="dataset",
                revision=repository.revision,
                allow_patterns=list(repository.files),
                local_files_only=True,
            )
        )
    except LocalEntryNotFoundError:
        return None
    # Some versions give a folder that an interrupted download left.
    lacking = [
        name
        for pattern in repository.files
        for name in missing_parts(pattern, in_folders([folder], pattern)[1], parts)
    ]
    return None if lacking else folder


def refuse(name: str, downloads: Sequence[Download], *, data_dir: bool = True) -> InvalidInput:
    """Return the error of a download that was not confirmed; ``data_dir``: a folder can be passed instead."""
    listed = "; ".join(map(str, downloads))
    return InvalidInput(
        f"{name} is not on this machine: {listed}. Nothing was downloaded.\n"
        "  Confirm the download with --yes (in Python: agree=lambda downloads: True)"
        f"{', or pass the files with --data-dir' if data_dir else ''}."
    )


def _failure(where: str, operation: str, error: Exception) -> BackendError:
    """What the hub's client raised, as one of our errors that says what to do."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    said = next(iter(str(error).strip().splitlines()), type(error).__name__)
    status = getattr(getattr(error, "response", None), "status_code", None)
    # A gated repository is a special case of one that is not found.
    if isinstance(error, GatedRepoError) or (
        status in (401, 403) and not isinstance(error, RepositoryNotFoundError)
    ):
        return Unauthorised(
            f"{where} requires authentication: {said}\n"
            "  Accept its terms on its page, then run `hf auth login` or set HF_TOKEN; "
            "or pass the files with --data-dir.",
            backend="hub",
            operation=operation,
        )
    if isinstance(error, RepositoryNotFoundError):
        return NotFound(
            f"{where} does not exist or requires authentication: {said}\n  Run `hf auth login`, "
            "or pass the files with --data-dir.",
            backend="hub",
            operation=operation,
        )
    return Unavailable(
        f"{where}: {said}\n  Check that the hub is reachable. On a machine without network access, copy the "
        "files and pass their folder with --data-dir.",
        backend="hub",
        operation=operation,
    )


def _cached(repository: Repository, file: str) -> bool:
    import huggingface_hub

    path = huggingface_hub.try_to_load_from_cache(
        repository.name, file, revision=repository.revision, repo_type="dataset"
    )
    return isinstance(path, str)
