"""What it costs to publish to a hundred subscribers, and how soon they have it, all awake or with one of them asleep.

The sleeper has subscribed and reads nothing, so what is published to it is dropped from the first hundred items on.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import samehost
import samehost.aio
from bench.own.echo import loop_runner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SUBSCRIBERS = 100
ITEMS = 20
PAUSE_SECONDS = 0.020
WARM_UP_ITEMS = 200

ticker = samehost.Service("ticker")
ticks = ticker.topic("ticks", int)


@ticker.method
async def publish(count: int) -> float:
    """Publish the time so often; seconds that it took each time."""
    taken = []
    for _ in range(count):
        await asyncio.sleep(PAUSE_SECONDS)
        begin = time.perf_counter()
        ticks.publish(time.monotonic_ns())
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def serve(path: str, *_: str) -> None:
    import uvloop

    uvloop.run(samehost.aio.serve(ticker, path, connections_per_uid_max=3 * SUBSCRIBERS))


async def _take(stream: samehost.aio.Stream[int], count: int) -> list[int]:
    """How many nanoseconds each item took to come here."""
    taken = []
    for _ in range(count):
        published = await anext(stream)
        taken.append(time.monotonic_ns() - published)
    return taken


async def _subscribed(path: str, count: int) -> list[tuple[Any, samehost.aio.Stream[int]]]:
    clients: list[Any] = [await samehost.aio.connect(path, wait=10) for _ in range(count)]
    return [(client, await client.subscribe("ticks", int).__aenter__()) for client in clients]


async def _burst(readers: list[tuple[Any, samehost.aio.Stream[int]]], count: int) -> tuple[float, float]:
    """Seconds that publishing an item takes, and seconds from there to its readers."""
    publishing = readers[0][0].publish(count)
    cost, *taken = await asyncio.gather(publishing, *(_take(stream, count) for _, stream in readers))
    return cost, statistics.median(nanoseconds for each in taken for nanoseconds in each) / 1e9


@contextmanager
def publishing(path: str, figure: str, sleepers: str) -> Iterator[Callable[[float], list[float]]]:
    """The medians of a burst: its cost or its latency."""
    with ExitStack() as stack:
        runner = stack.enter_context(loop_runner())
        sleeping = [
            stack.enter_context(stack.enter_context(samehost.connect(path, wait=10)).subscribe("ticks", int))
            for _ in range(int(sleepers))
        ]
        readers = runner.run(_subscribed(path, SUBSCRIBERS - len(sleeping)))
        for client, _ in readers:
            stack.callback(client.close)
        runner.run(_burst(readers, WARM_UP_ITEMS))
        assert not any(sleeper.closed for sleeper in sleeping)
        yield lambda _seconds: [runner.run(_burst(readers, ITEMS))[figure == "latency"]]
