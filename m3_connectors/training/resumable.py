"""A JSON Lines file that is written in whole blocks: a run that was killed goes on, and writes the same bytes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from m3_connectors.errors import InvalidInput
from m3_connectors.files import replacing, sync_directory


class ResumableLines:
    """The lines of a file that does not exist before all of them are written; a context manager.

    Until then they are in a folder beside it, ``NAME.work``, together with the state of the run. When the file is
    complete, what the run depended on and what it reported are beside it in ``NAME.report.json``.

    Args:
        target: The file; its folder must exist.
        run: What the lines depend on, as JSON: settings, model and digests of the files that are read.

    Raises:
        InvalidInput: The file, or the unfinished one, was written by another run (the message says what is
            different), or it cannot be written there.
    """

    def __init__(self, target: Path, run: Mapping[str, Any]) -> None:
        self._target = target
        self._run = json.loads(json.dumps(run))
        self._report = target.with_name(f"{target.name}.report.json")
        self.folder = target.with_name(f"{target.name}.work")
        """The folder of the run, for what else it keeps; it is deleted at the end."""
        self._lines, self._state = self.folder / "lines", self.folder / "state.json"
        self.finished: dict[str, Any] | None = None
        """The report of a run that wrote the complete file; None if there is still something to do."""
        self.progress: dict[str, Any] = {}
        """What was last passed to ``append`` or ``save``; empty at the beginning."""
        self._bytes = 0
        self._check_writable()
        if target.exists():
            self.finished = self._read(self._report, "report")
        elif self._state.exists():
            state = self._read(self._state, "progress")
            self.progress = state["progress"]
            self._bytes = state["bytes"]
        self.folder.mkdir(exist_ok=True)
        self._file = self._lines.open("ab")
        self._file.truncate(self._bytes)

    def append(self, records: Iterable[Mapping[str, Any]], progress: Mapping[str, Any]) -> None:
        """Append one block. Either all of it and this progress survive a kill, or nothing of either."""
        block = b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)
        self._file.write(block)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._bytes += len(block)
        self.save(progress)

    def save(self, progress: Mapping[str, Any]) -> None:
        """Record the progress without lines."""
        self.progress = dict(progress)
        state = {"run": self._run, "bytes": self._bytes, "progress": self.progress}
        with replacing(self._state, durable=True) as fresh:
            fresh.write_text(json.dumps(state), encoding="utf-8")

    def finish(self, report: Mapping[str, Any]) -> None:
        """Put the file in its place."""
        self._file.close()
        with replacing(self._report, durable=True) as fresh:
            text = json.dumps({"run": self._run, "report": report}, ensure_ascii=False, indent=2)
            fresh.write_text(text + "\n", encoding="utf-8")
        os.replace(self._lines, self._target)
        sync_directory(self._target.parent)

    def __enter__(self) -> Self:
        """Return the lines."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file; the folder of the run is deleted if the file is complete, or if nothing is worth keeping."""
        self._file.close()
        useless = not self._state.exists() or (isinstance(error, InvalidInput) and not self._bytes)
        if self._target.exists() or useless:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, path: Path, wanted: str) -> Any:
        """Return the state or the report of the same run."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            before, value = found["run"], found if wanted == "progress" else found[wanted]
        except (OSError, ValueError, KeyError, TypeError):
            remedy = (
                f"because {self._target.name} may not be the output of an earlier run"
                if wanted == "report"
                else f"or delete {self.folder.name} to begin again"
            )
            raise InvalidInput(
                f"{self._target} cannot be continued: {path} is missing or damaged.\n"
                f"  Choose another file, {remedy}."
            ) from None
        if different := [
            f"{name} was {_short(before.get(name))} and is {_short(self._run.get(name))}"
            for name in {**before, **self._run}
            if before.get(name) != self._run.get(name)
        ]:
            state = "was written" if self._target.exists() else "was begun"
            old = self._target.name if self._target.exists() else self.folder.name
            raise InvalidInput(
                f"{self._target} {state} by another run: {'; '.join(different)}.\n"
                f"  Choose another file, or delete {old} to begin again."
            )
        return value

    def _check_writable(self) -> None:
        folder = self._target.parent
        if self._target.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
            reason = (
                "it is a folder"
                if self._target.is_dir()
                else f"{folder} is not a folder"
                if not folder.is_dir()
                else f"{folder} is not writable"
            )
            raise InvalidInput(
                f"{self._target} cannot be written: {reason}.\n  Choose a file in an existing folder."
            )


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:79] + "…"
