"""rpyc over a UNIX socket: a method of an object that lives in the other process, found once and called again."""

from __future__ import annotations

import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import rpyc
from rpyc.utils.factory import unix_connect
from rpyc.utils.server import OneShotServer

from bench.side import TEXT, WINDOW, timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[[float], list[float]]


class Echo(rpyc.Service):
    def exposed_echo(self, text: str) -> str:
        return text


def serve(path: str) -> None:
    OneShotServer(Echo, socket_path=path).start()


@contextmanager
def call(path: str) -> Iterator[Run]:
    with unix_connect(path) as connection:
        echo = connection.root.echo

        def trip() -> None:
            assert echo(TEXT) == TEXT

        trip()
        yield partial(timed, trip)


@contextmanager
def pipeline(path: str) -> Iterator[Run]:
    with unix_connect(path) as connection:
        echo = rpyc.async_(connection.root.echo)

        def run(seconds: float) -> list[float]:
            begin, count = time.perf_counter(), 0
            while time.perf_counter() < begin + seconds:
                for answer in [echo(TEXT) for _ in range(WINDOW)]:
                    assert answer.value == TEXT
                count += WINDOW
            return [(time.perf_counter() - begin) / count]

        yield run
