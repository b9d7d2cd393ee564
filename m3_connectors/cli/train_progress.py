"""What ``m3 train`` shows of a run: phases, steps with their losses, evaluations, warnings; and Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from m3_connectors.cli.console import err, warn
from m3_connectors.cli.progress import Progress, acknowledging_interrupts

PARTS = ("dense", "lex", "mul", "inter", "distilled", "encoder", "decoder", "distance", "similarity")
"""The components of the losses of all stages."""


class TrainingProgress:
    """Shows a run to the user: each phase, the first step at once, and then the progress."""

    def __init__(self) -> None:
        self.stopping = False
        """Whether Ctrl-C was pressed during training: the run ends after the current step, which is saved."""
        self._in_steps = False
        self._steps: int | None = None
        self._progress = Progress()

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Show the progress, and acknowledge Ctrl-C."""
        with (
            self._progress,
            acknowledging_interrupts(self._progress, self._what_now, self._interrupt),
        ):
            yield

    @contextlib.contextmanager
    def stopping_silently(self) -> Iterator[None]:
        """Show nothing: another process of the run does; Ctrl-C ends all of them after the same step."""

        def stop(number: int, frame: object) -> None:
            self.stopping = True
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def __call__(self, record: dict[str, Any]) -> None:
        """Show a record of the log."""
        if "step" in record:
            self._show_step(record)
        elif record["event"] == "phase":
            self._in_steps = record["phase"] == "training"
            if record["phase"] != "training":  # training prints its first line with its first step
                self._say(f"· {record['phase']}")
            self._progress.update(record["phase"])
        elif record["event"] == "warning":
            warn(record["message"])
        elif record["event"] == "evaluation":
            values = " · ".join(f"{method} {value:.3f}" for method, value in record["ndcg_at_10"].items())
            best = " · the best so far" if record["is_best"] else ""
            self._say(f"step {record['after']:6}  nDCG@10: {values}{best}")
        elif record["event"] == "evaluated_on":
            self._say(f"· evaluating on {record['name']}: {record['used']}")
        elif record["event"] == "best":
            self._say(
                f"· exporting the best model: step {record['after']:,}, {record['method']} {record['value']:.3f}"
            )
        elif record["event"] == "groups":
            for group in record["groups"]:
                self._say(
                    f"· passages of up to {group['group']:,} tokens: {group['steps']:,} steps, "
                    f"{group['token_share']:.0%} of the tokens, loss {group['loss']:.3f}, "
                    f"{group['padding']:.0%} padding in its batches, {group['tokens_per_second']:,} tokens/s"
                )
        elif record["event"] == "mined":
            self._say(f"step {record['after']:6}  {record['negatives']:,} hard negatives mined")
        elif record["event"] == "start_from":
            revision = f"@{record['revision'][:7]}" if record["revision"] else ""
            self._say(f"· starting from {record['model']}{revision}")

    def where_it_goes_on(self) -> str:
        """Return what a person does after Ctrl-C."""
        if self._steps is None:
            return "Stopped before the first step. Run the same command to continue."
        if self.stopping:
            return f"Stopped: {self._steps:,} steps are saved. Run the same command to continue."
        return "Stopped. Run the same command to continue from the last saved state."

    def _show_step(self, record: dict[str, Any]) -> None:
        rate = record["tokens"] / max(record["seconds"], 1e-9)
        note = f"loss {record['loss']:.3f} · {rate:,.0f} tokens/s · {record['source']}"
        details = " · ".join(
            f"{name} {record[name]:.3f}"
            + (f" (margin {record[f'{name}_margin']:.2f})" if f"{name}_margin" in record else "")
            for name in PARTS
            if name in record
        )
        if self._steps is None:
            self._say(f"step {record['step']:6}  {note}")
        self._steps = record["step"] + 1
        self._progress.update(
            "training", self._steps, unit="steps", share=record["share_done"], note=note, details=details
        )

    def _what_now(self) -> str:
        return "Stopping after this step, which will be saved" if self._in_steps else "Stopping"

    def _interrupt(self) -> None:
        if not self._in_steps:
            raise KeyboardInterrupt
        self.stopping = True

    def _say(self, line: str) -> None:
        err.print(line, markup=False, soft_wrap=True)
