"""Python's sockets, blocking; and with epoll where there are many connections."""

from __future__ import annotations

import select
import socket
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from bench.payload import BATCH_BYTES, payload
from bench.side import MESSAGE, each, timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[[float], list[float]]

ANSWER = b"!"


def listening(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(socket.SOMAXCONN)
    return listener


def dialled(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    return connection


def serve(path: str) -> None:
    with listening(path) as listener:
        connection, _ = listener.accept()
    with connection:
        while data := connection.recv(65536):
            connection.sendall(data)


@contextmanager
def call(path: str) -> Iterator[Run]:
    with dialled(path) as connection:

        def trip() -> None:
            connection.sendall(MESSAGE)
            assert connection.recv(65536) == MESSAGE

        trip()
        yield partial(timed, trip)


def serve_many(path: str, _connections: str) -> None:
    with listening(path) as listener, select.epoll() as poll:
        poll.register(listener, select.EPOLLIN)
        connections: dict[int, socket.socket] = {}
        while True:
            for number, _ in poll.poll():
                if number == listener.fileno():
                    connection, _ = listener.accept()
                    connections[connection.fileno()] = connection
                    poll.register(connection, select.EPOLLIN)
                elif data := connections[number].recv(65536):
                    connections[number].sendall(data)
                else:
                    connections.pop(number).close()


@contextmanager
def call_many(path: str, connections: str) -> Iterator[Run]:
    with ExitStack() as stack, select.epoll() as poll:
        dials = [stack.enter_context(dialled(path)) for _ in range(int(connections))]
        by_number = {connection.fileno(): connection for connection in dials}
        for connection in dials:
            poll.register(connection, select.EPOLLIN)

        def run(seconds: float) -> list[float]:
            begin, count, under_way = time.perf_counter(), 0, len(dials)
            for connection in dials:
                connection.sendall(MESSAGE)
            while under_way:
                is_over = time.perf_counter() > begin + seconds
                for number, _ in poll.poll():
                    assert by_number[number].recv(65536) == MESSAGE
                    count += 1
                    if is_over:
                        under_way -= 1
                    else:
                        by_number[number].sendall(MESSAGE)
            return [(time.perf_counter() - begin) / count]

        yield run


def serve_sink(path: str, size: str) -> None:
    """Take payloads and answer each with a byte."""
    _take(path, int(size), int(size))


def serve_one_way(path: str, size: str) -> None:
    """Take payloads and answer a batch of them with a byte."""
    _take(path, int(size), BATCH_BYTES)


def _take(path: str, size: int, until_answer: int) -> None:
    with listening(path) as listener:
        connection, _ = listener.accept()
    room = memoryview(bytearray(size))
    with connection:
        while True:
            for _ in range(until_answer // size):
                received = 0
                while received < size:
                    count = connection.recv_into(room[received:])
                    if not count:
                        return
                    received += count
            connection.sendall(ANSWER)


@contextmanager
def send(path: str, size: str) -> Iterator[Run]:
    data = payload(int(size))
    with dialled(path) as connection:

        def trip() -> None:
            connection.sendall(data)
            assert connection.recv(1) == ANSWER

        trip()
        yield partial(timed, trip)


@contextmanager
def send_one_way(path: str, size: str) -> Iterator[Run]:
    data = payload(int(size))
    with dialled(path) as connection:

        def batch() -> int:
            count = BATCH_BYTES // len(data)
            for _ in range(count):
                connection.sendall(data)
            assert connection.recv(1) == ANSWER
            return count

        batch()
        yield partial(each, batch)


@contextmanager
def copy_here(_path: str, size: str) -> Iterator[Run]:
    """No socket: a copy within this process."""
    data, room = payload(int(size)), memoryview(bytearray(int(size)))

    def trip() -> None:
        room[:] = data

    trip()
    yield partial(timed, trip)
