"""asyncio's streams at both ends, in asyncio's own loop or in uvloop's."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import struct
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from bench.memory import allow_descriptors, private_bytes
from bench.side import MESSAGE, at_a_time, timed_async

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[[float], list[float]]
    Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]

WARM_UP = 100


def _runner(loop: str) -> asyncio.Runner:
    if loop == "asyncio":
        return asyncio.Runner()
    import uvloop

    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


async def _serve(path: str) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, gc.collect)
    server = await asyncio.start_unix_server(_echo, path, backlog=4096)
    await server.serve_forever()


def serve(path: str, loop: str, connections: str = "1") -> None:
    allow_descriptors(int(connections))
    with _runner(loop) as runner:
        runner.run(_serve(path))


async def _trip(ends: Ends) -> None:
    reader, writer = ends
    writer.write(MESSAGE)
    assert await reader.readexactly(len(MESSAGE)) == MESSAGE


@contextmanager
def call(path: str, loop: str) -> Iterator[Run]:
    with _runner(loop) as runner:
        trip = partial(_trip, runner.run(asyncio.open_unix_connection(path)))
        runner.run(trip())
        yield lambda seconds: runner.run(timed_async(trip, seconds))


async def _connect(path: str, count: int) -> list[Ends]:
    found = []
    for _ in range(count):
        found.append(await asyncio.open_unix_connection(path))
        await _trip(found[-1])
    return found


@contextmanager
def call_many(path: str, loop: str, connections: str) -> Iterator[Run]:
    with _runner(loop) as runner:
        trips = [partial(_trip, ends) for ends in runner.run(_connect(path, int(connections)))]
        yield lambda seconds: runner.run(at_a_time(trips, seconds))


@contextmanager
def memory(path: str, loop: str, connections: str) -> Iterator[Run]:
    """Bytes in the server for each connection that does nothing, and has had an answer before."""
    allow_descriptors(int(connections))
    with _runner(loop) as runner:
        idle = runner.run(_connect(path, WARM_UP))
        pid = _server_of(idle[0])

        def measured() -> int:
            os.kill(pid, signal.SIGUSR1)
            runner.run(_trip(idle[0]))
            return private_bytes(pid)

        def run(_seconds: float) -> list[float]:
            before = measured()
            idle.extend(runner.run(_connect(path, int(connections) - WARM_UP)))
            return [(measured() - before) / (int(connections) - WARM_UP)]

        yield run


def _server_of(ends: Ends) -> int:
    credentials = ends[1].get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid: int = struct.unpack("3i", credentials)[0]
    return pid
