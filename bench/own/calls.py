"""samehost's typed calls with a string of 64 bytes: one at a time, many under way, and from many connections."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any

import samehost
import samehost.aio
from bench.own.echo import BUSY_WAIT_SECONDS, AsyncEcho, Echo, loop_runner
from bench.own.service import Bench
from bench.side import TEXT, WINDOW, at_a_time, each, timed, timed_async

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[[float], list[float]]

BATCH = 20 * WINDOW


@contextmanager
def call(path: str, interface: type[Echo | Bench] = Echo, **options: Any) -> Iterator[Run]:
    with samehost.connect(path, interface, wait=10, **options) as client:

        def trip() -> None:
            assert client.echo(TEXT) == TEXT

        trip()
        yield partial(timed, trip)


def call_beside_blobs(path: str) -> Any:
    return call(path, Bench)


def call_busy(path: str) -> Any:
    return call(path, busy_wait=BUSY_WAIT_SECONDS)


@contextmanager
def call_asyncio(path: str) -> Iterator[Run]:
    with loop_runner() as runner, runner.run(samehost.aio.connect(path, AsyncEcho, wait=10)) as client:

        async def trip() -> None:
            assert await client.echo(TEXT) == TEXT

        runner.run(trip())
        yield lambda seconds: runner.run(timed_async(trip, seconds))


@contextmanager
def pipeline(path: str) -> Iterator[Run]:
    with samehost.connect(path, Echo, wait=10) as client:

        def batch() -> int:
            count = 0
            for text in client.map("echo", repeat(TEXT, BATCH), window=WINDOW):
                assert text == TEXT
                count += 1
            assert count == BATCH
            return count

        batch()
        yield partial(each, batch)


@contextmanager
def pipeline_asyncio(path: str) -> Iterator[Run]:
    """A task for each of the calls under way, as users write it."""
    with loop_runner() as runner, runner.run(samehost.aio.connect(path, AsyncEcho, wait=10)) as client:

        async def trip() -> None:
            assert await client.echo(TEXT) == TEXT

        yield lambda seconds: runner.run(at_a_time([trip] * WINDOW, seconds))


@contextmanager
def call_many(path: str, connections: str) -> Iterator[Run]:
    """A call under way on each of so many connections."""
    with ExitStack() as stack:
        runner = stack.enter_context(loop_runner())
        trips = []
        for _ in range(int(connections)):
            client = stack.enter_context(runner.run(samehost.aio.connect(path, AsyncEcho, wait=10)))
            trips.append(partial(_echo, client))
        yield lambda seconds: runner.run(at_a_time(trips, seconds))


async def _echo(client: AsyncEcho) -> None:
    assert await client.echo(TEXT) == TEXT
