"""Progress of long commands (a live line in a terminal, otherwise occasional lines on stderr) and Ctrl-C."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Self

from rich import progress as rich_progress
from rich.console import Console
from rich.table import Column

from m3_connectors.cli.console import duration, err

_FIRST_LINE_SECONDS = 10.0
_LONGEST_PAUSE_SECONDS = 60.0
"""Without a terminal, the first line is printed after 10 s, the next after pauses of 20, 40, 60, 60 … s."""

_TICK_SECONDS = 1.0
_ENOUGH_SECONDS = 3.0
"""The time before a rate is shown, because the rate of the first batch alone is not reliable."""


@dataclasses.dataclass(frozen=True)
class _Position:
    """The state of a step at a point in time; ``share`` is None if the total is unknown."""

    seconds: float
    done: int
    share: float | None


class Progress:
    """Shows the progress of a command; a context manager.

    In a terminal it is one live line. Otherwise, a line is printed on stderr after 10 seconds and then at
    growing intervals of up to a minute, even while a single batch takes longer. Nothing is written to stdout.

    Args:
        console: The console to write to.
        clock: Returns seconds from an arbitrary start, such as ``time.monotonic``.
    """

    def __init__(self, *, console: Console = err, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._lock = threading.RLock()
        self._began = clock()
        self._pause = _FIRST_LINE_SECONDS
        self._next_line = self._began + self._pause
        self._step = ""
        self._first = self._last = _Position(self._began, 0, None)
        self._words = self._details = ""
        self._unit = ""
        self._stopped = threading.Event()
        self._bar: rich_progress.Progress | None = None
        if console.is_terminal:
            text = rich_progress.TextColumn(
                "{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis")
            )
            columns = (rich_progress.SpinnerColumn(), rich_progress.BarColumn(bar_width=20), text)
            self._bar = rich_progress.Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task("", total=None, visible=False)

    def update(
        self,
        step: str,
        done: int = 0,
        total: int | None = None,
        *,
        unit: str = "",
        share: float | None = None,
        note: str = "",
        details: str = "",
    ) -> None:
        """Update the progress. Call this when a step begins and whenever a part of it is done.

        Args:
            step: The current step, such as ``"encoding"``. The rate and the time left are measured per step.
            done: The number of units done in this step.
            total: The number of units in this step, if known.
            unit: The plural of what is counted, such as ``"documents"``.
            share: The share that is done, 0 to 1, if it cannot be computed from ``total``.
            note: Additional text, such as ``"loss 0.512"``.
            details: More text, on a line of its own in a terminal.
        """
        with self._lock:
            if share is None and total:
                share = done / total
            self._last = _Position(self._clock(), done, share)
            if step != self._step:
                self._step, self._first = step, self._last
            self._unit = unit
            counted = f"{done:,} of {total:,}" if total else f"{done:,}" if unit else ""
            amount = f"{step}: {counted} {unit}".rstrip() if counted else step
            reached = f"{share:.0%} done" if share is not None and not total else ""
            self._words = " · ".join(filter(None, (amount, reached, note)))
            self._details = details
            self._show()

    def stop(self) -> None:
        """Remove the live line and stop printing; safe to call twice, and in a signal handler."""
        self._stopped.set()
        if self._bar is not None:
            self._bar.stop()

    def tick(self) -> None:
        """Print a line if one is due; called every second, so that lines appear during a long batch too."""
        with self._lock:
            if self._step and not self._stopped.is_set():
                self._show()

    def _show(self) -> None:
        if self._bar is not None:
            completed = None if self._last.share is None else min(self._last.share, 1.0)
            self._bar.update(
                self._task,
                description="\n".join(filter(None, (self._line(), self._details))),
                completed=completed or 0,
                total=None if completed is None else 1.0,
                visible=True,
            )
        elif self._clock() >= self._next_line:
            self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)
            self._next_line = self._clock() + self._pause
            line = " · ".join(filter(None, (self._line(), self._details)))
            self._console.print(f"  {line}", markup=False, soft_wrap=True)

    def _line(self) -> str:
        now = self._clock()
        measured = self._last.seconds - self._first.seconds
        parts = [duration(now - self._began), self._words]
        if measured >= _ENOUGH_SECONDS:
            if self._unit and (count := self._last.done - self._first.done) > 0:
                parts.append(f"{_number(count / measured)} {self._unit}/s")
            if self._last.share is not None and self._first.share is not None:
                gained = self._last.share - self._first.share
                if gained > 0:
                    left = (1 - self._last.share) / gained * measured - (now - self._last.seconds)
                    parts.append(f"about {duration(left)} left" if left >= 1 else "")
        return " · ".join(filter(None, parts))

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        threading.Thread(target=self._tick_until_stopped, name="m3-progress", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _tick_until_stopped(self) -> None:
        while not self._stopped.wait(_TICK_SECONDS):
            self.tick()


def _interrupt() -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def acknowledging_interrupts(
    progress: Progress, message: Callable[[], str], on_interrupt: Callable[[], None] = _interrupt
) -> Iterator[None]:
    """Acknowledge the first Ctrl-C at once, even if the work must reach a safe point; the second one kills.

    Args:
        progress: Its live line is removed, so that a second Ctrl-C leaves the terminal in a clean state.
        message: Returns what happens next, such as ``"stopping after the current batch"``. How to stop at
            once is appended.
        on_interrupt: Called after the message; raises KeyboardInterrupt by default. A loop that must end
            between two steps sets a flag here instead.
    """
    standard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not standard or threading.current_thread() is not threading.main_thread():
        yield  # someone else handles Ctrl-C, such as a test or a shell that ignores it
        return

    def acknowledge(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends the process even while it computes
        with contextlib.suppress(RuntimeError):  # Ctrl-C interrupted the writing of another line
            progress.stop()
            err.print(f"{message()}; press Ctrl-C again to stop at once.", markup=False, soft_wrap=True)
        on_interrupt()

    signal.signal(signal.SIGINT, acknowledge)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
