"""How long a message of 64 bytes takes there and back between two processes, bytes only: no types, no framing.

`python -m bench.round_trip SERVER PATH` is the server's side of a row.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import connection as multiprocessing_connection
from typing import TYPE_CHECKING, Any

import samehost
import samehost.aio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MESSAGE = b"x" * 64
TRIPS = 2000


def serve_plain(path: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    connection, _ = listener.accept()
    while data := connection.recv(65536):
        connection.sendall(data)


def serve_samehost(path: str) -> None:
    def echo(connection: samehost.Connection) -> None:
        while data := connection.recv():
            connection.sendall(data)

    with samehost.listen(path) as listener:
        listener.serve(echo)


def serve_aio(path: str) -> None:
    async def echo(connection: samehost.aio.Connection) -> None:
        while data := await connection.recv():
            await connection.sendall(data)

    async def main() -> None:
        async with samehost.aio.listen(path) as listener:
            await listener.serve(echo)

    asyncio.run(main())


def serve_streams(path: str) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)

    async def main() -> None:
        server = await asyncio.start_unix_server(echo, path)
        await server.serve_forever()

    asyncio.run(main())


def serve_multiprocessing(path: str) -> None:
    with multiprocessing_connection.Listener(path, "AF_UNIX") as listener, listener.accept() as connection:
        while True:
            connection.send_bytes(connection.recv_bytes())


def client_plain(path: str) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        while True:
            connection.sendall(MESSAGE)
            yield assert_whole(connection.recv(65536))


def client_samehost(path: str) -> Iterator[None]:
    with samehost.dial(path) as connection:
        while True:
            connection.sendall(MESSAGE)
            yield assert_whole(connection.recv())


def client_multiprocessing(path: str) -> Iterator[None]:
    with multiprocessing_connection.Client(path, "AF_UNIX") as connection:
        while True:
            connection.send_bytes(MESSAGE)
            yield assert_whole(connection.recv_bytes())


def assert_whole(reply: bytes) -> None:
    assert reply == MESSAGE


ROWS: tuple[tuple[str, Callable[[str], None], Callable[[str], Iterator[None]]], ...] = (
    ("plain Python sockets, blocking", serve_plain, client_plain),
    ("samehost, serve with threads", serve_samehost, client_samehost),
    ("samehost.aio, serve", serve_aio, client_samehost),
    ("multiprocessing.connection, bytes", serve_multiprocessing, client_multiprocessing),
    ("asyncio streams, blocking client", serve_streams, client_plain),
)


@contextmanager
def rows(ours: set[int], theirs: set[int]) -> Iterator[list[tuple[str, Callable[[], float]]]]:
    """Servers and clients that are connected and wait.

    Args:
        ours: the cores that clients run on.
        theirs: the cores that servers run on.
    """
    with running(ours, theirs) as (stack, directory):
        found = []
        for name, serve, client in ROWS:
            path = f"{directory}/{serve.__name__}"
            start(stack, "bench.round_trip", serve.__name__, path, theirs)
            found.append((name, _trips(stack, client, path)))
        yield found


@contextmanager
def running(ours: set[int], theirs: set[int]) -> Iterator[tuple[ExitStack, str]]:
    """What ends with a table, and a directory for its sockets; with this process on its cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, ours)
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, before)
        yield stack, stack.enter_context(tempfile.TemporaryDirectory(prefix="samehost-"))


def start(stack: ExitStack, module: str, function: str, path: str, cores: set[int], *more: str) -> None:
    """Start the server's side of a row, on its cores."""
    server = subprocess.Popen([sys.executable, "-m", module, function, path, *more])
    os.sched_setaffinity(server.pid, cores)
    stack.callback(server.wait)
    stack.callback(server.terminate)


def connected(client: Callable[[str], Iterator[Any]], path: str) -> Iterator[Any]:
    """A client that has had its first answer."""
    end = time.monotonic() + 10
    while True:
        trips = client(path)
        try:
            next(trips)
            return trips
        except (OSError, samehost.errors.Unavailable):  # not listening yet
            assert time.monotonic() < end, f"nobody serves {path}"
            time.sleep(0.01)


def _trips(stack: ExitStack, client: Callable[[str], Iterator[None]], path: str) -> Callable[[], float]:
    trips = connected(client, path)
    stack.callback(trips.close)

    def measure() -> float:
        start = time.perf_counter()
        for _ in range(TRIPS):
            next(trips)
        return (time.perf_counter() - start) / TRIPS

    return measure


if __name__ == "__main__":
    with suppress(EOFError, KeyboardInterrupt):
        globals()[sys.argv[1]](sys.argv[2])
