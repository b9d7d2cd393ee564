"""The progress of a call: silent, a progress bar, or a callback."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def reporter(progress: bool | Callable[[int, int], object], total: int) -> Iterator[Callable[[int], object]]:
    """Yield a function that must be called with the number of texts that have just been encoded."""
    if progress is False:
        yield lambda _: None
    elif progress is True:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = ("encode", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=total)
            yield lambda texts: bar.advance(task, texts)
    else:
        done = 0

        def count(texts: int) -> None:
            nonlocal done
            done += texts
            progress(done, total)

        yield count
