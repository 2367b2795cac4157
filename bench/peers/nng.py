"""pynng over ipc: Req0 to Rep0."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pynng

from bench.side import MESSAGE, timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def serve(path: str) -> None:
    with pynng.Rep0(listen=f"ipc://{path}") as socket:
        while True:
            socket.send(socket.recv())


@contextmanager
def call(path: str) -> Iterator[Callable[[float], list[float]]]:
    with pynng.Req0(dial=f"ipc://{path}") as socket:

        def trip() -> None:
            socket.send(MESSAGE)
            assert socket.recv() == MESSAGE

        trip()
        yield partial(timed, trip)
