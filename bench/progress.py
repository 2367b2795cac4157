"""How far a run is, on standard error: a live line where that is a terminal, and lines now and then elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.harness import Table

PAUSE_SECONDS = 10


class Progress:
    """Compares what was planned with what it took, and says how long the rest takes at that pace."""

    def __init__(self, tables: list[Table]) -> None:
        self._tables = tables
        self._begun = time.monotonic()
        self._done_seconds = 0.0
        self._at = -1
        self._said = 0.0
        self._is_live = sys.stderr.isatty()

    def begin(self, table: Table) -> None:
        self._at += 1
        self._done_seconds = sum(each.planned_seconds for each in self._tables[: self._at])
        self._write("starting its rows")
        self._done_seconds += table.set_up_seconds

    def show(self, number: int, row: str) -> None:
        if self._is_live or time.monotonic() > self._said + PAUSE_SECONDS:
            turn = f"round {number} of {self._tables[self._at].rounds}" if number else "warming up"
            self._write(f"{turn}: {row}")

    def advance(self, seconds: float) -> None:
        self._done_seconds += seconds

    def end(self) -> None:
        if self._is_live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def _left(self) -> str:
        planned = sum(each.planned_seconds for each in self._tables) - self._done_seconds
        pace = (time.monotonic() - self._begun) / self._done_seconds if self._done_seconds else 1.0
        minutes, seconds = divmod(round(planned * pace), 60)
        return f"{minutes}:{seconds:02d} left"

    def _write(self, what: str) -> None:
        self._said = time.monotonic()
        line = f"[{self._at + 1}/{len(self._tables)}] {self._left()} · {self._tables[self._at].title} · {what}"
        if self._is_live:
            columns = shutil.get_terminal_size().columns
            print(f"\r{line[: columns - 1]}\033[K", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)
