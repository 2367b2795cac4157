"""Calling a method over and over, and noting how long each call took: the inside of `samehost bench`.

Two ways, as each disturbs its figures least where it is taken. One call at a time is made by the client for threads, in
one thread, whose round trip is half of an event loop's. Several at a time are tasks of one event loop, since threads
would fight for the interpreter. Everything about the terminal is left to `bench`.

With a rate the model is open: each call is due at a fixed time whatever became of the others, and its latency counts
from then, so that a server which stalls is charged with all that would have come meanwhile (coordinated omission).
"""

# ruff: noqa: SLF001 - it makes calls with arguments of any name, `timeout` included

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from time import monotonic_ns, process_time
from typing import TYPE_CHECKING, Any, NamedTuple

from samehost.aio.stream import Stream
from samehost.cli.histogram import Histogram
from samehost.cli.results import code_of
from samehost.errors import (
    ConnectionClosed,
    Error,
    InvalidArguments,
    MethodNotFound,
    NotPermitted,
    Unavailable,
    UsageError,
    WrongShape,
)
from samehost.kernel.timer import Timer
from samehost.limits import DIAL_PAUSE_SECONDS_MIN
from samehost.service.calling import CLIENTS_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from samehost.aio.client import Client as AsyncClient
    from samehost.blocking.client import Client
    from samehost.service.remote import RemoteMethod

_SECOND = 1_000_000_000
_TELL_EVERY = _SECOND // 4

_HOPELESS = (InvalidArguments, MethodNotFound, NotPermitted, UsageError, WrongShape)
"""Errors that every further call would meet as well."""

_FOREVER = 1 << 62
"""A time of `monotonic_ns` that never comes, and a number of calls that are never made."""

_HARDLY = 1e-6
"""The part of a call that is owed to the rounding of numbers."""


class Load(NamedTuple):
    """What is to be done.

    Attributes:
        seconds: for how long calls are begun; infinite until there were enough.
        calls: how many at most; None for no bound but the time.
        rate: calls a second; None for the next one as soon as one is answered.
        concurrency: calls under way at a time, at most.
    """

    seconds: float
    calls: int | None
    rate: float | None
    concurrency: int


class Target(NamedTuple):
    """What is called, and with what."""

    remote: RemoteMethod
    positional: tuple[Any, ...]
    by_name: dict[str, Any]


class Tally:
    """What came of it, so far.

    Args:
        tell: called with this now and then, for people who look on.

    Attributes:
        load: what is to be done.
        begins: when it began, as `monotonic_ns` says.
        ends: when no further call is to begin.
        begun: calls that were begun.
        calls: of those, the ones that ended, or gave the first item of their stream.
        items: of streams.
        latencies: from the time when a call was due to its result, or the first item.
        errors: how many failed, by the error's code.
        late: calls that were due and could not begin, as too many others were under way.
        seconds: from the first call to the last answer.
        cpu: seconds of a processor that this end has used meanwhile.
        is_interrupted: it was ended early.
    """

    def __init__(self, load: Load, tell: Callable[[Tally], object]) -> None:
        self.begun = self.calls = self.items = self.late = 0
        self.latencies = Histogram()
        self.errors: Counter[str] = Counter()
        self.seconds = self.cpu = 0.0
        self.is_interrupted = False
        self.load = load
        self.begins = self._told = monotonic_ns()
        self.ends = _FOREVER if load.seconds == math.inf else self.begins + round(load.seconds * _SECOND)
        self.calls_max = _FOREVER if load.calls is None else load.calls
        self._tell = tell
        self._cpu_before = process_time()

    def begin(self) -> int:
        """When a call begins that is due now; 0 if there is to be no other."""
        now = monotonic_ns()
        if now - self._told >= _TELL_EVERY:
            self.tell()
            now = monotonic_ns()
        if now >= self.ends or self.begun >= self.calls_max:
            return 0
        self.begun += 1
        return now

    def answered(self, began: int) -> None:
        """A call was answered just now."""
        self.latencies.add(monotonic_ns() - began)
        self.calls += 1

    def failed(self, error: Error, *, was_answered: bool = False) -> None:
        """A call has failed; raises the error if all others would as well.

        Args:
            was_answered: it is a stream that was begun.
        """
        if isinstance(error, _HOPELESS):
            raise error
        self.errors[code_of(error)] += 1
        self.calls += not was_answered

    def tell(self) -> None:
        """Tell whoever looks on how far it has come."""
        self._told = monotonic_ns()
        self.seconds = (self._told - self.begins) / _SECOND
        self._tell(self)

    def finish(self) -> None:
        """Note how long it took."""
        self.seconds = (monotonic_ns() - self.begins) / _SECOND
        self.cpu = process_time() - self._cpu_before


def call_singly(client: Client, target: Target, load: Load, tell: Callable[[Tally], object]) -> Tally:
    """Make one call after the other, until it is enough or Ctrl-C.

    Raises:
        Error: one that every other call would meet as well.
    """
    tally = Tally(load, tell)
    call = client._call
    try:
        while began := tally.begin():
            try:
                call(*target)
            except Error as error:
                tally.failed(error)
                time.sleep(_pause_after(error))
            else:
                tally.answered(began)
    except KeyboardInterrupt:
        tally.is_interrupted = True
    tally.finish()
    return tally


async def call_together(
    clients: Sequence[AsyncClient], target: Target, load: Load, tell: Callable[[Tally], object]
) -> Tally:
    """Make several calls at a time, until it is enough or this is cancelled, as asyncio does on Ctrl-C.

    Raises:
        Error: one that every other call would meet as well.
    """
    tally = Tally(load, tell)
    pacer = None if load.rate is None else _Pacer(load.rate, tally)
    workers = [
        asyncio.create_task(_work(clients[number % len(clients)], target, tally, pacer))
        for number in range(load.concurrency)
    ]
    looker = asyncio.create_task(_look_on(tally))
    # Calls in flight may finish; streams may have no end.
    timeout = load.seconds if target.remote.is_stream and load.seconds < math.inf else None
    try:
        await asyncio.wait(workers, timeout=timeout, return_when=asyncio.FIRST_EXCEPTION)
    except asyncio.CancelledError:
        tally.is_interrupted = True
    tally.finish()
    if pacer is not None:
        pacer.close()
    for task in (looker, *workers):
        task.cancel()
    for ended in await asyncio.gather(*workers, looker, return_exceptions=True):
        if isinstance(ended, Exception):
            raise ended
    return tally


async def _look_on(tally: Tally) -> None:
    while True:
        await asyncio.sleep(_TELL_EVERY / _SECOND)
        tally.tell()


async def _work(client: AsyncClient, target: Target, tally: Tally, pacer: _Pacer | None) -> None:
    """Make one call after the other."""
    while began := tally.begin() if pacer is None else await pacer.begin():
        try:
            found = await client._call(*target, CLIENTS_TIMEOUT)
        except Error as error:
            tally.failed(error)
            await asyncio.sleep(_pause_after(error))
        else:
            if isinstance(found, Stream):
                await _take(found, tally, began)
            else:
                tally.answered(began)


async def _take(stream: Stream[Any], tally: Tally, began: int) -> None:
    """Go through all items of a stream."""
    was_answered = False
    try:
        async with stream:
            async for _ in stream:
                tally.items += 1
                if not was_answered:
                    tally.answered(began)
                    was_answered = True
        if not was_answered:  # an empty one, whose end is all there is
            tally.answered(began)
    except Error as error:
        tally.failed(error, was_answered=was_answered)


def _pause_after(error: Error) -> float:
    """Seconds until the next try, so that a server which is gone is not asked for without a pause."""
    return DIAL_PAUSE_SECONDS_MIN if isinstance(error, ConnectionClosed | Unavailable) else 0.0


class _Pacer:
    """Says when calls are due, and hands each to a worker that waits for one."""

    def __init__(self, rate: float, tally: Tally) -> None:
        self._tally = tally
        self._every = _SECOND / rate
        lasts = (tally.ends - tally.begins) / self._every
        self._calls_max = min(tally.calls_max, math.ceil(lasts - _HARDLY))
        self._waiting: deque[asyncio.Future[int]] = deque()
        self._loop = asyncio.get_running_loop()
        self._timer = Timer(tally.begins + round(self._every), max(round(self._every), 1))
        self._loop.add_reader(self._timer.fileno(), self._tick)

    async def begin(self) -> int:
        """When the next call was due, once it is; 0 if there is to be no other."""
        now = monotonic_ns()
        due = 0 if now >= self._tally.ends else self._due(now)
        if due is not None:
            return due
        waiting: asyncio.Future[int] = self._loop.create_future()
        self._waiting.append(waiting)
        return await waiting

    def _due(self, now: int) -> int | None:
        """When a call was due that begins now; None if the next one is to come, and 0 if there is none."""
        if self._tally.begun >= self._calls_max:
            return 0
        due = self._tally.begins + round(self._tally.begun * self._every)
        if due > now:
            return None
        self._tally.begun += 1
        return due

    def _tick(self) -> None:
        self._timer.heed()
        now = monotonic_ns()
        while self._waiting and (due := self._due(now)) is not None:
            self._waiting.popleft().set_result(due)

    def close(self) -> None:
        """Note what became of all the calls that were due."""
        tally = self._tally
        lasted = (min(monotonic_ns(), tally.ends) - tally.begins) / self._every
        tally.late = max(min(math.ceil(lasted - _HARDLY), self._calls_max) - tally.begun, 0)
        if not tally.is_interrupted:  # the last call has its share of the time as well
            tally.seconds = max(tally.seconds, tally.begun * self._every / _SECOND)
        self._loop.remove_reader(self._timer.fileno())
        self._timer.close()
