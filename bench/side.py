"""What a measured process runs: the server of a row, or its client, which measures whenever a line tells it to.

`python -m bench.side serve MODULE:FUNCTION PATH ...` calls the function, which serves for as long as it is let.
`python -m bench.side call MODULE:FUNCTION PATH ...` enters the context manager that the function gives, says `ready`,
and from then on reads seconds, a line each, measures for about so long, and prints the samples as JSON. The programs
in C and Go keep to the same lines. The helpers here are for the clients: they measure for a while.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    Run = Callable[[float], list[float]]

CONNECT_SECONDS = 15
MESSAGE = b"x" * 64
TEXT = MESSAGE.decode()
WINDOW = 128
"""Calls under way where calls are pipelined."""


def timed(trip: Callable[[], object], seconds: float) -> list[float]:
    """Go there and back for so many seconds; how long each time took."""
    clock, taken = time.perf_counter, []
    begin = clock()
    end = begin + seconds
    while begin < end:
        trip()
        taken.append(clock() - begin)
        begin = clock()
    return taken


async def timed_async(trip: Callable[[], Awaitable[object]], seconds: float) -> list[float]:
    """The same in a loop."""
    clock, taken = time.perf_counter, []
    begin = clock()
    end = begin + seconds
    while begin < end:
        await trip()
        taken.append(clock() - begin)
        begin = clock()
    return taken


def each(batch: Callable[[], int], seconds: float) -> list[float]:
    """Do batch after batch for so many seconds, each of which says how many it was; the time for each one."""
    count, begin = 0, time.perf_counter()
    end = begin + seconds
    while time.perf_counter() < end:
        count += batch()
    return [(time.perf_counter() - begin) / count]


def pipelined(send: Callable[[], object], receive: Callable[[], object], seconds: float) -> list[float]:
    """Keep a window of messages under way for so many seconds; the time for each of them."""
    count, begin = WINDOW, time.perf_counter()
    end = begin + seconds
    for _ in range(WINDOW):
        send()
    while time.perf_counter() < end:
        for _ in range(WINDOW):
            receive()
            send()
        count += WINDOW
    for _ in range(WINDOW):
        receive()
    return [(time.perf_counter() - begin) / count]


async def at_a_time(trips: Sequence[Callable[[], Awaitable[object]]], seconds: float) -> list[float]:
    """Make all of these trips again and again, at the same time, for so many seconds; the time for each of them."""
    import asyncio

    begin = time.perf_counter()
    end, counts = begin + seconds, []

    async def go(trip: Callable[[], Awaitable[object]]) -> None:
        count = 0
        while time.perf_counter() < end:
            await trip()
            count += 1
        counts.append(count)

    await asyncio.gather(*(go(trip) for trip in trips))
    return [(time.perf_counter() - begin) / sum(counts)]


def attempts(path: str) -> Iterator[bool]:
    """Wait for the server: again and again, until it may be called; True for the last time that is worth a try."""
    end = time.monotonic() + CONNECT_SECONDS
    while True:
        is_last = time.monotonic() > end
        if os.path.exists(path) or is_last:
            yield is_last
        time.sleep(0.01)


def call(function: Callable[..., AbstractContextManager[Run]], path: str, *arguments: str) -> None:
    """Connect, and measure whenever a line says for how long."""
    with ExitStack() as stack:
        for is_last in attempts(path):
            try:
                run = stack.enter_context(function(path, *arguments))
                break
            except OSError:  # bound, and not listening yet
                if is_last:
                    raise
        gc.collect()  # what it took to get here is not what is measured
        print("ready", getattr(run, "note", ""), flush=True)
        for line in sys.stdin:
            print(json.dumps(run(float(line))), flush=True)


def main() -> None:
    role, where, path, *arguments = sys.argv[1:]
    module, _, name = where.partition(":")
    function = getattr(importlib.import_module(module), name)
    with suppress(EOFError, KeyboardInterrupt):
        if role == "call":
            call(function, path, *arguments)
        else:
            function(path, *arguments)


if __name__ == "__main__":
    main()
