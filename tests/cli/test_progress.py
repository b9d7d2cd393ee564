"""How far a long command is: what is shown, where and how often; Ctrl-C."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading

import pytest
from rich.console import Console

from m3_connectors.cli.progress import Progress, acknowledging_interrupts


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def piped() -> Console:
    return Console(file=io.StringIO(), width=140, force_terminal=False)


def lines(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def run(seconds: int, step: float = 1.0, documents_per_step: int = 50) -> list[tuple[float, str]]:
    """When which line is printed while documents are encoded at a steady rate."""
    clock, console = Clock(), piped()
    shown: list[tuple[float, str]] = []
    progress = Progress(console=console, clock=clock)
    for i in range(int(seconds / step) + 1):
        clock.seconds = 1000 + i * step
        progress.update("encoding", i * documents_per_step, 100_000, unit="documents")
        if len(lines(console)) > len(shown):
            shown.append((clock.seconds - 1000, lines(console)[-1]))
    return shown


def test_without_a_terminal_lines_are_printed_at_growing_intervals() -> None:
    shown = run(320)
    assert [seconds for seconds, _ in shown] == [10, 30, 70, 130, 190, 250, 310]
    assert shown[0][1] == (
        "  10 s · encoding: 500 of 100,000 documents · 50 documents/s · about 33 min 10 s left"
    )
    assert shown[2][1].startswith("  1 min 10 s · encoding: 3,500 of 100,000 documents · 50 documents/s")


def test_details_follow_in_a_line_and_have_their_own_in_a_terminal() -> None:
    clock, console = Clock(), piped()
    progress = Progress(console=console, clock=clock)
    clock.seconds += 10
    progress.update("storing", 500, unit="documents", details="encoder busy 97%")
    assert lines(console) == ["  10 s · storing: 500 documents · encoder busy 97%"]
    terminal = Console(file=io.StringIO(), width=100, force_terminal=True)
    with Progress(console=terminal, clock=clock) as progress:
        progress.update("storing", 500, unit="documents", details="encoder busy 97%")
    shown = [line for line in lines(terminal) if "encoder busy" in line]
    assert shown
    assert not any("storing" in line for line in shown)


def test_a_short_command_prints_nothing() -> None:
    assert run(9) == []


def test_long_batches_are_reported_between_two_events() -> None:
    clock, console = Clock(), piped()
    progress = Progress(console=console, clock=clock)
    progress.update("storing", 0, unit="documents")
    clock.seconds += 9
    progress.tick()
    assert lines(console) == []
    clock.seconds += 3
    progress.tick()
    progress.tick()
    assert lines(console) == ["  12 s · storing: 0 documents"]
    progress.stop()
    clock.seconds += 100
    progress.tick()
    assert len(lines(console)) == 1


def test_rate_and_time_left_are_measured_per_step() -> None:
    clock, console = Clock(), piped()
    progress = Progress(console=console, clock=clock)
    progress.update("encoding", 0, 10, unit="documents")
    clock.seconds += 100
    progress.update("scoring", 500, 1000, unit="queries")  # 500 were there before
    clock.seconds += 100
    progress.update("scoring", 600, 1000, unit="queries", note="3 methods")
    assert lines(console)[-1] == (
        "  3 min 20 s · scoring: 600 of 1,000 queries · 3 methods · 1.0 queries/s · about 6 min 40 s left"
    )


def test_a_share_is_shown_if_the_total_is_unknown() -> None:
    clock, console = Clock(), piped()
    progress = Progress(console=console, clock=clock)
    progress.update("storing", 0, unit="documents", share=0.0)
    clock.seconds += 20
    progress.update("storing", 1000, unit="documents", share=0.25)
    assert lines(console) == [
        "  20 s · storing: 1,000 documents · 25% done · 50 documents/s · about 1 min 0 s left"
    ]


def test_a_step_that_counts_nothing() -> None:
    clock, console = Clock(), piped()
    progress = Progress(console=console, clock=clock)
    clock.seconds += 20
    progress.update("measuring")
    assert lines(console) == ["  20 s · measuring"]


def test_a_terminal_shows_one_live_line() -> None:
    console = Console(file=io.StringIO(), width=140, force_terminal=True)
    clock = Clock()
    with Progress(console=console, clock=clock) as progress:
        progress.update("storing", 0, unit="documents", share=0.0)
        clock.seconds += 20
        progress.update("storing", 1000, unit="documents", share=0.25)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "1,000 documents · 25% done" in shown
    assert shown.index("\x1b[?25l") < shown.rindex("\x1b[?25h")  # the cursor is there again


def test_ctrl_c_is_acknowledged_before_the_work_ends(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with acknowledging_interrupts(
            Progress(), lambda: "stopping after the current batch, 7 documents are safe"
        ):
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(60)  # what the signal interrupts

    with pytest.raises(KeyboardInterrupt):
        work()
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "stopping after the current batch, 7 documents are safe; press Ctrl-C again to stop at once.\n"
    )
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_loop_can_stop_between_two_steps(capsys: pytest.CaptureFixture[str]) -> None:
    stop = threading.Event()
    with acknowledging_interrupts(Progress(), lambda: "stopping after this step", stop.set):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(60)
    assert capsys.readouterr().err.startswith("stopping after this step; ")


def test_a_second_ctrl_c_ends_the_process_at_once() -> None:
    code = (
        "import os, signal, threading\n"
        "from m3_connectors.cli.progress import *\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with acknowledging_interrupts(Progress(), lambda: 'stopping', lambda: None):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    threading.Event().wait(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGINT
    assert done.stderr == "stopping; press Ctrl-C again to stop at once.\n"


def test_an_existing_ctrl_c_handler_is_kept() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with acknowledging_interrupts(Progress(), lambda: "stopping"):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
