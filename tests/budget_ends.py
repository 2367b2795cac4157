"""Both ends of a call whose cost is counted, each of them a program.

`serve PATH LOOP` serves until its standard input ends. `call PATH METER FEW MANY FRONT…` makes so many calls, and then
so many others, by each of the fronts, and prints a line for each: what its meter has counted meanwhile, and the
server's. They count between two calls of the client's, so that start-up has no part in it; what those two cost is the
same both times, and so not in the difference.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

import uvloop

import samehost
import samehost.aio
from samehost import limits

WARM_UP = 130
"""Calls before anything is counted; the ids of those that follow are beyond the numbers that Python keeps ready."""

TEXT = "x" * 64
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}

for name in ("HANGUP_SECONDS", "LOOP_BLOCKED_SECONDS", "PATH_CHECK_SECONDS"):
    assert hasattr(limits, name)
    setattr(limits, name, 3600.0)  # what is done now and then, by the clock, is no part of a call


# What is counted


class Meter(Protocol):
    def start(self) -> None: ...

    def stop(self) -> int: ...


class SystemCalls:
    """strace writes them down; among them are these two, which say from where to where."""

    def start(self) -> None:
        os.access("/budget/start", os.F_OK)

    def stop(self) -> int:
        os.access("/budget/stop", os.F_OK)
        return 0


class Allocations:
    """What is asked of Python's allocators, by whatever is called."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ["BUDGET_ALLOCATOR"])
        self._library.allocations.restype = ctypes.c_size_t
        self._before = 0

    def start(self) -> None:
        self._before = self._library.allocations()

    def stop(self) -> int:
        found: int = self._library.allocations()
        return found - self._before


class Instructions:
    """The bytecode of whatever is called, but of this file."""

    def start(self) -> None:
        self._count = 0
        sys.settrace(self._enter)

    def stop(self) -> int:
        sys.settrace(None)
        return self._count

    def _enter(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename == __file__:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._step

    def _step(self, frame: FrameType, event: str, argument: object) -> Any:
        self._count += event == "opcode"
        return self._step


class Blocks:
    """Pieces of memory that are kept."""

    def start(self) -> None:
        gc.collect()
        self._before = sys.getallocatedblocks()

    def stop(self) -> int:
        gc.collect()
        return sys.getallocatedblocks() - self._before


class Memory:
    """Bytes that are kept."""

    def start(self) -> None:
        gc.collect()
        tracemalloc.start()

    def stop(self) -> int:
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return kept


METERS: dict[str, Callable[[], Meter]] = {
    "system calls": SystemCalls,
    "allocations": Allocations,
    "instructions": Instructions,
    "blocks": Blocks,
    "memory": Memory,
}


# The server

service = samehost.Service("budget")
running: list[Meter] = []


@service.method
async def echo(text: str) -> str:
    return text


@service.method(inline=True)
def start(meter: str) -> None:
    running.append(METERS[meter]())
    running[-1].start()


@service.method(inline=True)
def stop() -> int:
    return running.pop().stop()


async def serve_until_told(path: str) -> None:
    is_over = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, is_over.set)
    await samehost.aio.serve(
        service, path, connections_per_uid_max=1000, ready=lambda: print("ready", flush=True), stop=is_over
    )


def serve(path: str, loop: str) -> None:
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(serve_until_told(path))


# The clients


class Blocking(samehost.Client):
    def echo(self, text: str) -> str:
        raise NotImplementedError

    def start(self, meter: str) -> None:
        raise NotImplementedError

    def stop(self) -> int:
        raise NotImplementedError


class Asyncio(samehost.aio.Client):
    async def echo(self, text: str) -> str:
        raise NotImplementedError

    async def start(self, meter: str) -> None:
        raise NotImplementedError

    async def stop(self) -> int:
        raise NotImplementedError


def call_blocking(path: str, kind: str, counts: list[int], is_pipelined: bool) -> list[tuple[int, int]]:
    found = []
    meter = METERS[kind]()
    with samehost.connect(path, Blocking) as client:
        for count in counts:
            client.start(kind)
            meter.start()
            if is_pipelined:
                for _ in client.map("echo", [TEXT] * count):
                    pass
            else:
                for _ in range(count):
                    client.echo(TEXT)
            found.append((meter.stop(), client.stop()))
    return found


async def call_asyncio(path: str, kind: str, counts: list[int], is_pipelined: bool) -> list[tuple[int, int]]:
    found = []
    meter = METERS[kind]()
    async with await samehost.aio.connect(path, Asyncio) as client:
        for count in counts:
            await client.start(kind)
            meter.start()
            if is_pipelined:
                async for _ in client.map("echo", [TEXT] * count):
                    pass
            else:
                for _ in range(count):
                    await client.echo(TEXT)
            found.append((meter.stop(), await client.stop()))
    return found


def call(path: str, kind: str, few: str, many: str, *fronts: str) -> None:
    counts = [WARM_UP, int(few), int(many)]
    for front in fronts:
        name, _, how = front.partition(" ")
        if name == "blocking":
            found = call_blocking(path, kind, counts, how == "pipelined")
        else:
            with asyncio.Runner(loop_factory=LOOPS[name]) as runner:
                found = runner.run(call_asyncio(path, kind, counts, how == "pipelined"))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    mode, *arguments = sys.argv[1:]
    if mode == "serve":
        serve(*arguments)
    else:
        call(*arguments)
