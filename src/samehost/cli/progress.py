"""How far a call has come, on standard error: a bar on a terminal, and lines for whoever asks for them elsewhere.

rich is imported when there is something to be shown as a bar, and not before.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from samehost.kernel.owners import printable

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from samehost.service.call import Progress

_TERMINATED = 128 + signal.SIGTERM


def reporter(*, wants_lines: bool) -> Bar | Lines | None:
    """What shows how far a call has come; None where nobody looks."""
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return Bar()
    return Lines() if wants_lines else None


class Lines:
    """A line for each report."""

    def __call__(self, progress: Progress) -> None:
        """Show what a method reports."""
        if line := ", ".join(filter(None, (_count(progress), printable(progress.message)))):
            with contextlib.suppress(OSError):  # nobody reads that any more, and the call goes on
                print(f"samehost: {line}", file=sys.stderr, flush=True)

    def hide(self) -> None:
        """Make room for other output, which lines need not."""

    def close(self) -> None:
        """Do nothing more."""


class Bar:
    """A bar, or a moving one as long as nobody knows how much there is to do; gone when the call is over."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._handler: Any = None

    def __call__(self, progress: Progress) -> None:
        """Show what a method reports."""
        if progress.done is None and progress.total is None and not progress.message:
            return  # of a topic, which only tells what was dropped
        bar = self._bar = self._bar or self._new_bar()
        task = bar.tasks[0]
        total = progress.total if _is_number(progress.total) else None
        bar.update(
            task.id,
            total=total,
            completed=progress.done if _is_number(progress.done) else None,
            description=printable(progress.message),
            count=_count(progress),
        )
        bar.update(task.id, rate=f"{_number(task.speed)}/s" if task.speed else "")
        bar.start()

    def hide(self) -> None:
        """Make room for other output; the next report shows it again."""
        if self._bar is not None:
            self._bar.stop()

    def close(self) -> None:
        """Remove the bar."""
        self.hide()
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)

    def _new_bar(self) -> RichProgress:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._handler = signal.signal(signal.SIGTERM, _end)
        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True, emoji=False, markup=False),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        bar.add_task("", total=None, count="", rate="")
        return bar


def _end(number: int, frame: object) -> NoReturn:
    """End as by the signal, once the terminal has its cursor back."""
    raise SystemExit(_TERMINATED)


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value >= 0


def _count(progress: Progress) -> str:
    done = "" if progress.done is None else _number(progress.done)
    return done if progress.total is None else f"{done or '?'}/{_number(progress.total)}"


def _number(value: float) -> str:
    return f"{round(value, 1):.15g}"
