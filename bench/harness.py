"""Measuring a table: a server and a client for each of its rows, on their cores, and rounds that go through all rows.

Every row is measured once a round, for about the same time, so that a machine whose mood changes changes it for all. A
round before them warms up.
The processes of a table live as long as it does, and only those of one row do anything at a time. A row whose process
cannot start, or ends before it should, is missing from then on, with what it said last as the reason.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.programs import Missing, program

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.progress import Progress

OWN = "samehost"
READY_SECONDS = 90
ANSWER_SECONDS = 60
END_SECONDS = 15


@dataclass(frozen=True)
class Row:
    """One way to do a table's work.

    Args:
        key: what targets and plots call it.
        name: what people read.
        peer: whose row it is: a name in `bench.peers.LACKS`, or samehost.
        serve: its server: MODULE:FUNCTION, or a program in `bench/peers` and a word; None if it needs none.
        call: its client, likewise.
        arguments: what both get behind the path, which is a directory for a client that has no server.
        python: the interpreter of both.
    """

    key: str
    name: str
    peer: str
    serve: str | None
    call: str
    arguments: tuple[str, ...] = ()
    python: str = sys.executable


@dataclass(frozen=True)
class Table:
    """Rows that do the same work.

    Args:
        key: what targets and plots call it.
        title: what people read.
        rows: the first that is there is what the ratios of the others refer to.
        unit: of what is shown.
        scale: of what is shown to what is measured.
        rate: the unit of so many a second, and how many of it each sample stands for; None where that says nothing.
        cores: "one" for both sides on the same, "two" for each on its own.
        rounds: how often each row is measured.
        seconds: for how long each time.
        of: for one of several tables that differ in a size: what they are called together, and this one's size.
    """

    key: str
    title: str
    rows: tuple[Row, ...]
    unit: str = "µs"
    scale: float = 1e6
    rate: tuple[str, float] | None = None
    cores: str = "two"
    rounds: int = 15
    seconds: float = 0.15
    of: tuple[str, int] | None = None
    set_up_seconds: float = 3.0

    @property
    def planned_seconds(self) -> float:
        """About how long it takes."""
        return self.set_up_seconds + (self.rounds + self.warm_ups) * self.seconds * len(self.rows)

    @property
    def warm_ups(self) -> int:
        """Rounds before those that count; none where one round is all that there can be."""
        return 1 if self.rounds > 1 else 0


@dataclass
class Measured:
    """What came of a row: the median of each round, and all samples."""

    row: Row
    rounds: list[float] = field(default_factory=list)
    samples: array[float] = field(default_factory=lambda: array("d"))
    missing: str | None = None
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


@dataclass
class Result:
    """What came of a table."""

    table: Table
    rows: list[Measured]

    @property
    def first(self) -> Measured | None:
        """What ratios refer to."""
        return next((row for row in self.rows if row.missing is None), None)

    def get(self, key: str) -> Measured | None:
        return next((row for row in self.rows if row.row.key == key), None)


class Worker:
    """A process of a row, on its cores."""

    def __init__(self, stack: ExitStack, command: list[str], cores: set[int], *, is_server: bool = False) -> None:
        self._is_server = is_server
        self._errors = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack is its context
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)  # inherited, so that threads which it starts at once are there as well
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
            )
        finally:
            os.sched_setaffinity(0, before)
        stack.callback(self._end)

    def line(self, seconds: float, beside: Worker | None = None) -> str:
        """What it says next; the other worker has to live meanwhile.

        Raises:
            Missing: it ended, or said nothing for so long.
        """
        end = time.monotonic() + seconds
        assert self._process.stdout is not None
        while not select.select([self._process.stdout], [], [], 0.1)[0]:
            if beside is not None and beside.has_ended:
                raise Missing(f"its server ended: {beside.last_words()}")
            if time.monotonic() > end:
                raise Missing(f"no answer within {seconds} s")
        line = self._process.stdout.readline()
        if not line:
            raise Missing(self.last_words())
        return line

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            print(line, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise Missing(self.last_words()) from None

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def last_words(self) -> str:
        """The end of what it said on standard error."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"ended with status {self._process.poll()}"

    def dismiss(self) -> None:
        """Have it end: a client does with its input, a server when it is told to."""
        with suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        if self._is_server:
            self._process.terminate()

    def _end(self) -> None:
        """Have it end, and wait until it has."""
        self.dismiss()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def cores_of(table: Table) -> tuple[set[int], set[int]]:
    """Where clients and servers run.

    Raises:
        Missing: there is no second core.
    """
    first, second = chosen_cores()
    if table.cores == "one":
        return {first}, {first}
    if second is None:
        raise Missing("this process may use one core only")
    return {first}, {second}


def chosen_cores() -> tuple[int, int | None]:
    """A core, and another that shares nothing with it, if there is one."""
    cores = sorted(os.sched_getaffinity(0))
    siblings = Path(f"/sys/devices/system/cpu/cpu{cores[0]}/topology/thread_siblings_list")
    try:
        ranges = [part.split("-") for part in siblings.read_text().strip().split(",")]
    except OSError:
        ranges = []
    shared = {core for each in ranges for core in range(int(each[0]), int(each[-1]) + 1)}
    return cores[0], next((core for core in cores[1:] if core not in shared), None)


def with_interpreters(table: Table, others: dict[str, str]) -> Table:
    """The same with samehost's rows once more for each of the other interpreters, by their labels."""
    rows = []
    for row in table.rows:
        rows.append(row)
        if row.peer == OWN:
            rows += [
                replace(row, key=f"{row.key}:{label}", name=f"{row.name} ({label})", python=python)
                for label, python in others.items()
            ]
    return replace(table, rows=tuple(rows))


def measure(table: Table, progress: Progress) -> Result:
    """Measure all rows of a table, round after round."""
    result = Result(table, [Measured(row) for row in table.rows])
    progress.begin(table)
    with _ready(result) as clients:
        for number in range(1 - table.warm_ups, table.rounds + 1):
            for measured in result.rows:
                progress.show(number, measured.row.name)
                if measured.missing is None:
                    _measure(measured, clients[measured.row.key], table.seconds, counts=number > 0)
                progress.advance(table.seconds)
    return result


def _measure(measured: Measured, client: Worker, seconds: float, *, counts: bool) -> None:
    try:
        client.tell(str(seconds))
        samples = json.loads(client.line(ANSWER_SECONDS))
    except Missing as error:
        measured.missing = str(error)
        return
    if counts:
        measured.samples.extend(samples)
        measured.rounds.append(statistics.median(samples))


@contextmanager
def _ready(result: Result) -> Iterator[dict[str, Worker]]:
    """The clients of the rows, which have had their first answer and wait to be told to measure."""
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="samehost-"))
        clients: dict[str, Worker] = {}
        servers: dict[str, Worker] = {}
        try:
            for number, measured in enumerate(result.rows):
                path = directory if measured.row.serve is None else f"{directory}/{number}"
                try:
                    _start(stack, result.table, measured.row, path, servers, clients)
                except Missing as error:
                    measured.missing = str(error)
            for measured in result.rows:
                key = measured.row.key
                if measured.missing is None:
                    try:
                        measured.note = clients[key].line(READY_SECONDS, servers.get(key)).removeprefix("ready").strip()
                    except Missing as error:
                        measured.missing = str(error)
            yield clients
        finally:
            for worker in (*clients.values(), *servers.values()):  # all of them first, and only then wait for any
                worker.dismiss()


def _start(
    stack: ExitStack, table: Table, row: Row, path: str, servers: dict[str, Worker], clients: dict[str, Worker]
) -> None:
    """Start both sides of a row, if it has two."""
    ours, theirs = cores_of(table)
    end = [path, *row.arguments]
    if row.serve is not None:
        servers[row.key] = Worker(stack, [*_command("serve", row.serve, row), *end], theirs, is_server=True)
    clients[row.key] = Worker(stack, [*_command("call", row.call, row), *end], ours)


def _command(role: str, side: str, row: Row) -> list[str]:
    if ":" in side:
        return [row.python, "-m", "bench.side", role, side]
    name, word = side.split()
    return [program(name), word]
