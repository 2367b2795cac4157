"""samehost's payloads: as bytes, as a stream of bytes, and as blobs.

In place: the memory was written where it lies, as a producer does that fills it, and is passed. With one copy: the
payload lies elsewhere and is copied first.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING

import samehost
from bench.own.service import Bench
from bench.payload import BATCH_BYTES, payload
from bench.side import each, timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[[float], list[float]]


@contextmanager
def send_bytes(path: str, size: str) -> Iterator[Run]:
    data = payload(int(size))
    with samehost.connect(path, Bench, wait=10) as client:

        def trip() -> None:
            assert client.take_bytes(data) == len(data)

        trip()
        yield partial(timed, trip)


@contextmanager
def send_one_way(path: str, size: str) -> Iterator[Run]:
    data = payload(int(size))
    with samehost.connect(path, Bench, wait=10) as client:

        def batch() -> int:
            count = BATCH_BYTES // len(data)
            assert client.take_all(repeat(data, count)) == count * len(data)
            return count

        batch()
        yield partial(each, batch)


@contextmanager
def send_in_place(path: str, size: str) -> Iterator[Run]:
    with samehost.connect(path, Bench, wait=10) as client:

        def trip() -> None:
            with client.allocate(int(size)) as blob:
                assert client.take(blob) == int(size)

        trip()
        yield partial(timed, trip)


@contextmanager
def send_copied(path: str, size: str) -> Iterator[Run]:
    data = payload(int(size))
    with samehost.connect(path, Bench, wait=10) as client:

        def trip() -> None:
            with client.allocate(len(data)) as blob:
                blob.view[:] = data
                assert client.take(blob) == len(data)

        trip()
        yield partial(timed, trip)
