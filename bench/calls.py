"""What a typed call costs, beside peers that only move bytes: one at a time, and many under way.

samehost's rows are the whole product: the caller's identity, types checked on both sides, deadlines, limits, figures.
The peers' rows move the same 64 bytes and check nothing. `python -m bench.calls SERVER PATH` is a row's server.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import connection as multiprocessing_connection
from typing import TYPE_CHECKING

import samehost
import samehost.aio
from bench.round_trip import MESSAGE, connected, running, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TEXT = MESSAGE.decode()
TRIPS = 2000
CALLS = 20_000
WINDOW = 128
C_SOURCE = os.path.join(os.path.dirname(__file__), "ping_pong.c")

echo = samehost.Service("echo")


@echo.method(name="echo")
async def answer(text: str) -> str:
    return text


class Echo(samehost.Client):
    def echo(self, text: str) -> str:
        raise NotImplementedError


def serve_uvloop(path: str) -> None:
    import uvloop

    uvloop.run(samehost.aio.serve(echo, path))


def serve_asyncio(path: str) -> None:
    asyncio.run(samehost.aio.serve(echo, path))


def serve_multiprocessing(path: str) -> None:
    with multiprocessing_connection.Listener(path, "AF_UNIX") as listener, listener.accept() as connection:
        while True:
            connection.send_bytes(connection.recv_bytes())


def serve_zmq(path: str) -> None:
    import zmq

    with zmq.Context() as context, context.socket(zmq.REP) as socket:
        socket.bind(f"ipc://{path}")
        while True:
            socket.send(socket.recv())


def serve_zmq_router(path: str) -> None:
    import zmq

    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.bind(f"ipc://{path}")
        while True:
            socket.send_multipart(socket.recv_multipart())


def call_samehost(path: str) -> Iterator[None]:
    with samehost.connect(path, Echo) as client:
        while True:
            assert client.echo(TEXT) == TEXT
            yield


def call_multiprocessing(path: str) -> Iterator[None]:
    with multiprocessing_connection.Client(path, "AF_UNIX") as connection:
        while True:
            connection.send_bytes(MESSAGE)
            assert connection.recv_bytes() == MESSAGE
            yield


def call_zmq(path: str) -> Iterator[None]:
    import zmq

    if not os.path.exists(path):
        raise FileNotFoundError(path)
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.connect(f"ipc://{path}")
        while True:
            socket.send(MESSAGE)
            assert socket.recv() == MESSAGE
            yield


def pipeline_samehost(path: str) -> Iterator[None]:
    with samehost.connect(path, Echo) as client:
        while True:
            count = 0
            for text in client.map("echo", (TEXT for _ in range(CALLS)), window=WINDOW):
                assert text == TEXT
                count += 1
            assert count == CALLS
            yield


def pipeline_samehost_asyncio(path: str) -> Iterator[None]:
    """A task for each of the calls under way, as users write it."""

    class AsyncEcho(samehost.aio.Client):
        async def echo(self, text: str) -> str:
            raise NotImplementedError

    import uvloop

    async def calls(client: AsyncEcho) -> None:
        for _ in range(CALLS // WINDOW):
            assert await client.echo(TEXT) == TEXT

    async def run(client: AsyncEcho) -> None:
        await asyncio.gather(*(calls(client) for _ in range(WINDOW)))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        client = runner.run(samehost.aio.connect(path, AsyncEcho))
        with client:
            while True:
                runner.run(run(client))
                yield


def pipeline_zmq(path: str) -> Iterator[None]:
    import zmq

    if not os.path.exists(path):
        raise FileNotFoundError(path)
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.connect(f"ipc://{path}")
        while True:
            for _ in range(WINDOW):
                socket.send(MESSAGE)
            for _ in range(CALLS - WINDOW):
                assert socket.recv() == MESSAGE
                socket.send(MESSAGE)
            for _ in range(WINDOW):
                assert socket.recv() == MESSAGE
            yield


def pipeline_multiprocessing(path: str) -> Iterator[None]:
    with multiprocessing_connection.Client(path, "AF_UNIX") as connection:
        while True:
            for _ in range(WINDOW):
                connection.send_bytes(MESSAGE)
            for _ in range(CALLS - WINDOW):
                assert connection.recv_bytes() == MESSAGE
                connection.send_bytes(MESSAGE)
            for _ in range(WINDOW):
                assert connection.recv_bytes() == MESSAGE
            yield


ROUND_TRIPS: tuple[tuple[str, Callable[[str], None], Callable[[str], Iterator[None]]], ...] = (
    ("samehost: a typed call, uvloop", serve_uvloop, call_samehost),
    ("samehost: a typed call, asyncio", serve_asyncio, call_samehost),
    ("multiprocessing.connection, bytes", serve_multiprocessing, call_multiprocessing),
    ("pyzmq REQ/REP, bytes", serve_zmq, call_zmq),
)

PIPELINES = (
    ("samehost: typed calls, map", serve_uvloop, pipeline_samehost),
    ("samehost: typed calls, asyncio, a task each", serve_uvloop, pipeline_samehost_asyncio),
    ("multiprocessing.connection, bytes", serve_multiprocessing, pipeline_multiprocessing),
    ("pyzmq DEALER/ROUTER, bytes", serve_zmq_router, pipeline_zmq),
)


@contextmanager
def round_trips(ours: set[int], theirs: set[int]) -> Iterator[list[tuple[str, Callable[[], float]]]]:
    """The median of so many round trips, for each row; C's first, as the limit."""
    with running(ours, theirs) as (stack, directory):
        program = f"{directory}/ping_pong"
        subprocess.run(["cc", "-O2", "-o", program, C_SOURCE], check=True)
        found: list[tuple[str, Callable[[], float]]] = [
            ("C, blocking send and recv", partial(_ping_pong, program, min(ours), min(theirs)))
        ]
        for number, (name, serve, client) in enumerate(ROUND_TRIPS):
            path = f"{directory}/{number}"
            start(stack, "bench.calls", serve.__name__, path, theirs)
            trips = connected(client, path)
            stack.callback(trips.close)
            found.append((name, partial(_median, trips)))
        yield found


@contextmanager
def pipelines(ours: set[int], theirs: set[int]) -> Iterator[list[tuple[str, Callable[[], float]]]]:
    """The time for each of so many calls, with a window of them under way."""
    with running(ours, theirs) as (stack, directory):
        found = []
        for number, (name, serve, client) in enumerate(PIPELINES):
            path = f"{directory}/{number}"
            start(stack, "bench.calls", serve.__name__, path, theirs)
            runs = connected(client, path)
            stack.callback(runs.close)
            found.append((name, partial(_each, runs)))
        yield found


def _ping_pong(program: str, ours: int, theirs: int) -> float:
    done = subprocess.run([program, str(ours), str(theirs), str(TRIPS)], check=True, capture_output=True, text=True)
    return float(done.stdout)


def _median(trips: Iterator[None]) -> float:
    times = []
    for _ in range(TRIPS):
        begin = time.perf_counter()
        next(trips)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _each(runs: Iterator[None]) -> float:
    begin = time.perf_counter()
    next(runs)
    return (time.perf_counter() - begin) / CALLS


if __name__ == "__main__":
    with suppress(EOFError, KeyboardInterrupt):
        globals()[sys.argv[1]](sys.argv[2])
