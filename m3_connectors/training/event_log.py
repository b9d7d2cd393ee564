"""The log of a run as TensorBoard reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from m3_connectors.errors import MissingDependency

_NOT_CURVES = ("step", "share_done", "rate_factor")


class EventLog:
    """A folder of event files; a resumed run removes the steps that it will take again.

    Args:
        folder: The folder for ``tensorboard --logdir``.
        first_step: The number of the first step; later ones from an earlier call are hidden.

    Raises:
        MissingDependency: tensorboardX is not installed.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise MissingDependency("tensorboardX", "train") from None
        self._writer = SummaryWriter(str(folder), purge_step=first_step or None)

    def __enter__(self) -> Self:
        """Return the log."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is left and close the file."""
        self._writer.close()

    def write(self, record: Mapping[str, Any]) -> None:
        """Add the numbers of a step or of an evaluation; other records are left out."""
        if record.get("event") == "evaluation":
            for method, value in record["ndcg_at_10"].items():
                self._writer.add_scalar(f"ndcg_at_10/{method}", value, record["after"])
        elif "step" in record:
            for name, value in record.items():
                if isinstance(value, int | float) and name not in _NOT_CURVES:
                    self._writer.add_scalar(f"training/{name}", value, record["step"])
