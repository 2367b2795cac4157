"""What large payloads cost: from one process to another, with a short answer back, beside peers and a plain memcpy.

samehost's rows are calls of a typed method whose argument is a blob. In place: the memory was written where it lies, as
a producer does that fills it, and is passed. With one copy: the payload lies elsewhere and is copied first.
`python -m bench.payloads SERVER PATH` is a row's server.
"""

from __future__ import annotations

import os
import socket
import statistics
import sys
import time
from contextlib import contextmanager, suppress
from functools import cache, partial
from multiprocessing import connection as multiprocessing_connection
from typing import TYPE_CHECKING

import samehost
import samehost.aio
from bench.round_trip import connected, running, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1024 * 1024
ANSWER = b"!"

sink = samehost.Service("sink")


@sink.method
async def take(data: samehost.Blob) -> int:
    return len(data)


@sink.method(name="take_bytes")
async def take_as_bytes(data: bytes) -> int:
    return len(data)


class Sink(samehost.Client):
    def take(self, data: samehost.Blob) -> int:
        raise NotImplementedError

    def take_bytes(self, data: bytes) -> int:
        raise NotImplementedError


def serve_samehost(path: str, size: int) -> None:
    import uvloop

    uvloop.run(samehost.aio.serve(sink, path))


def serve_plain(path: str, size: int) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        connection, _ = listener.accept()
    room = memoryview(bytearray(size))
    with connection:
        while True:
            received = 0
            while received < size:
                received += connection.recv_into(room[received:])
            connection.sendall(ANSWER)


def serve_multiprocessing(path: str, size: int) -> None:
    with multiprocessing_connection.Listener(path, "AF_UNIX") as listener, listener.accept() as connection:
        while True:
            assert len(connection.recv_bytes()) == size
            connection.send_bytes(ANSWER)


def serve_zmq(path: str, size: int) -> None:
    import zmq

    with zmq.Context() as context, context.socket(zmq.REP) as replier:
        replier.bind(f"ipc://{path}")
        while True:
            assert len(replier.recv(copy=False).buffer) == size
            replier.send(ANSWER)


@cache
def payload(size: int) -> bytes:
    """What every row sends that does not write in place: the same bytes at the same place, as where they lie counts."""
    return os.urandom(size)


def send_in_place(path: str, size: int) -> Iterator[None]:
    with samehost.connect(path, Sink) as client:
        while True:
            with client.allocate(size) as blob:
                assert client.take(blob) == size
            yield


def send_copied(path: str, size: int) -> Iterator[None]:
    data = payload(size)
    with samehost.connect(path, Sink) as client:
        while True:
            with client.allocate(size) as blob:
                blob.view[:] = data
                assert client.take(blob) == size
            yield


def send_bytes(path: str, size: int) -> Iterator[None]:
    data = payload(size)
    with samehost.connect(path, Sink) as client:
        while True:
            assert client.take_bytes(data) == size
            yield


def send_plain(path: str, size: int) -> Iterator[None]:
    data = payload(size)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        while True:
            connection.sendall(data)
            assert connection.recv(1) == ANSWER
            yield


def send_multiprocessing(path: str, size: int) -> Iterator[None]:
    data = payload(size)
    with multiprocessing_connection.Client(path, "AF_UNIX") as connection:
        while True:
            connection.send_bytes(data)
            assert connection.recv_bytes() == ANSWER
            yield


def send_zmq(path: str, size: int) -> Iterator[None]:
    import zmq

    if not os.path.exists(path):
        raise FileNotFoundError(path)
    data = payload(size)
    with zmq.Context() as context, context.socket(zmq.REQ) as requester:
        requester.connect(f"ipc://{path}")
        while True:
            requester.send(data, copy=False)
            assert requester.recv() == ANSWER
            yield


def copy_here(path: str, size: int) -> Iterator[None]:
    data, room = payload(size), memoryview(bytearray(size))
    while True:
        room[:] = data
        yield


Serve = "Callable[[str, int], None] | None"
ROWS: tuple[tuple[str, Serve, Callable[[str, int], Iterator[None]]], ...] = (
    ("samehost: a blob, written in place", serve_samehost, send_in_place),
    ("samehost: a blob, with one copy", serve_samehost, send_copied),
    ("samehost: bytes to bytes", serve_samehost, send_bytes),
    ("memcpy within a process", None, copy_here),
    ("plain sockets: sendall and recv_into", serve_plain, send_plain),
    ("multiprocessing.connection, bytes", serve_multiprocessing, send_multiprocessing),
    ("pyzmq REQ/REP, copy=False", serve_zmq, send_zmq),
)


@contextmanager
def rows(ours: set[int], theirs: set[int], size: int, times: int) -> Iterator[list[tuple[str, Callable[[], float]]]]:
    """The median of so many payloads of this size, for each row."""
    with running(ours, theirs) as (stack, directory):
        found = []
        for number, (name, serve, send) in enumerate(ROWS):
            path = f"{directory}/{number}"
            if serve is not None:
                start(stack, "bench.payloads", serve.__name__, path, theirs, str(size))
            sent = connected(partial(send, size=size), path)
            stack.callback(sent.close)
            found.append((name, partial(_median, sent, times)))
        yield found


def _median(sent: Iterator[None], times: int) -> float:
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        next(sent)
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


if __name__ == "__main__":
    with suppress(EOFError, KeyboardInterrupt):
        globals()[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
