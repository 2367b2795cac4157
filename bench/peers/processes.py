"""multiprocessing.connection, as a Pipe or a Manager uses it, with bytes and not with pickles."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Client, Listener
from typing import TYPE_CHECKING

from bench.payload import BATCH_BYTES, payload
from bench.side import MESSAGE, each, pipelined, timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[[float], list[float]]

ANSWER = b"!"


def serve(path: str) -> None:
    with Listener(path, "AF_UNIX") as listener, listener.accept() as connection:
        while True:
            connection.send_bytes(connection.recv_bytes())


@contextmanager
def call(path: str) -> Iterator[Run]:
    with Client(path, "AF_UNIX") as connection:

        def trip() -> None:
            connection.send_bytes(MESSAGE)
            assert connection.recv_bytes() == MESSAGE

        trip()
        yield partial(timed, trip)


@contextmanager
def pipeline(path: str) -> Iterator[Run]:
    with Client(path, "AF_UNIX") as connection:

        def receive() -> None:
            assert connection.recv_bytes() == MESSAGE

        yield partial(pipelined, partial(connection.send_bytes, MESSAGE), receive)


def serve_sink(path: str, _size: str) -> None:
    with Listener(path, "AF_UNIX") as listener, listener.accept() as connection:
        while True:
            connection.recv_bytes()
            connection.send_bytes(ANSWER)


@contextmanager
def send(path: str, size: str) -> Iterator[Run]:
    data = payload(int(size))
    with Client(path, "AF_UNIX") as connection:

        def trip() -> None:
            connection.send_bytes(data)
            assert connection.recv_bytes() == ANSWER

        trip()
        yield partial(timed, trip)


def serve_one_way(path: str, size: str) -> None:
    """Take payloads and answer a batch of them."""
    with Listener(path, "AF_UNIX") as listener, listener.accept() as connection:
        while True:
            for _ in range(BATCH_BYTES // int(size)):
                connection.recv_bytes()
            connection.send_bytes(ANSWER)


@contextmanager
def send_one_way(path: str, size: str) -> Iterator[Run]:
    data = payload(int(size))
    with Client(path, "AF_UNIX") as connection:

        def batch() -> int:
            count = BATCH_BYTES // len(data)
            for _ in range(count):
                connection.send_bytes(data)
            assert connection.recv_bytes() == ANSWER
            return count

        batch()
        yield partial(each, batch)
