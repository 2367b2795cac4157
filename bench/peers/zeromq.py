"""pyzmq over ipc: REQ to REP, DEALER to ROUTER, PAIR to PAIR."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import zmq

from bench.payload import payload
from bench.side import MESSAGE, each, pipelined, timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[[float], list[float]]

ANSWER = b"!"
ITEMS = 20_000


@contextmanager
def bound(path: str, kind: int) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(kind) as socket:
        socket.bind(f"ipc://{path}")
        yield socket


@contextmanager
def connected(path: str, kind: int) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(kind) as socket:
        socket.linger = 0
        socket.connect(f"ipc://{path}")
        yield socket


def serve(path: str, *_: str) -> None:
    with bound(path, zmq.REP) as socket:
        while True:
            socket.send(socket.recv())


@contextmanager
def call(path: str) -> Iterator[Run]:
    with connected(path, zmq.REQ) as socket:

        def trip() -> None:
            socket.send(MESSAGE)
            assert socket.recv() == MESSAGE

        trip()
        yield partial(timed, trip)


def serve_router(path: str) -> None:
    with bound(path, zmq.ROUTER) as socket:
        while True:
            socket.send_multipart(socket.recv_multipart())


@contextmanager
def pipeline(path: str) -> Iterator[Run]:
    with connected(path, zmq.DEALER) as socket:

        def receive() -> None:
            assert socket.recv() == MESSAGE

        yield partial(pipelined, partial(socket.send, MESSAGE), receive)


@contextmanager
def call_many(path: str, connections: str) -> Iterator[Run]:
    """So many sockets, each with a request under way."""
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        sockets, poller = [], zmq.Poller()
        for _ in range(int(connections)):
            socket = stack.enter_context(context.socket(zmq.REQ))
            socket.linger = 0
            socket.connect(f"ipc://{path}")
            poller.register(socket, zmq.POLLIN)
            sockets.append(socket)
        for socket in sockets:
            socket.send(MESSAGE)

        def batch() -> int:
            ready = poller.poll()
            for socket, _ in ready:
                assert socket.recv() == MESSAGE
                socket.send(MESSAGE)
            return len(ready)

        yield partial(each, batch)


def serve_sink(path: str, _size: str) -> None:
    with bound(path, zmq.REP) as socket:
        while True:
            socket.recv(copy=False)
            socket.send(ANSWER)


@contextmanager
def send(path: str, size: str) -> Iterator[Run]:
    data = payload(int(size))
    with connected(path, zmq.REQ) as socket:

        def trip() -> None:
            socket.send(data, copy=False)
            assert socket.recv() == ANSWER

        trip()
        yield partial(timed, trip)


def serve_stream(path: str) -> None:
    """Take items, and answer a batch of them."""
    with bound(path, zmq.PAIR) as socket:
        while True:
            for _ in range(ITEMS):
                socket.recv()
            socket.send(ANSWER)


@contextmanager
def stream(path: str) -> Iterator[Run]:
    with connected(path, zmq.PAIR) as socket:

        def batch() -> int:
            for _ in range(ITEMS):
                socket.send(MESSAGE)
            assert socket.recv() == ANSWER
            return ITEMS

        batch()
        yield partial(each, batch)
