"""What it costs to publish to a hundred subscribers, and how soon they have it, all awake or with one of them asleep.

The sleeper has subscribed and reads nothing, so what is published to it is dropped from the first hundred items on.
`python -m bench.topics serve PATH` is the publisher.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import samehost
import samehost.aio
from bench.round_trip import connected, running, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SUBSCRIBERS = 100
ITEMS = 20
PAUSE_SECONDS = 0.020
WARM_UP_ITEMS = 200

ticker = samehost.Service("ticker")
topics = {"awake": ticker.topic("awake", int), "sleeper": ticker.topic("sleeper", int)}


@ticker.method
async def publish(topic: str, count: int) -> float:
    """Publish the time so often; seconds that it took each time."""
    taken = []
    for _ in range(count):
        await asyncio.sleep(PAUSE_SECONDS)
        begin = time.perf_counter()
        topics[topic].publish(time.monotonic_ns())
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def serve(path: str) -> None:
    import uvloop

    uvloop.run(samehost.aio.serve(ticker, path, connections_per_uid_max=3 * SUBSCRIBERS))


def call(path: str) -> Iterator[samehost.Client]:
    with samehost.connect(path) as client:
        client.call("publish", "awake", 1)
        while True:
            yield client


async def take(stream: samehost.aio.Stream[int], count: int) -> list[int]:
    """How many nanoseconds each item took to come here."""
    taken = []
    for _ in range(count):
        published = await anext(stream)
        taken.append(time.monotonic_ns() - published)
    return taken


class Readers:
    """Those who read what is published to a topic, each on a connection of its own."""

    def __init__(self, runner: asyncio.Runner, path: str, topic: str, count: int) -> None:
        self._runner = runner
        self._topic = topic
        self._clients: list[Any] = []
        runner.run(self._connect(path, count))

    async def _connect(self, path: str, count: int) -> None:
        self._clients = [await samehost.aio.connect(path) for _ in range(count)]
        self._streams = [await client.subscribe(self._topic, int).__aenter__() for client in self._clients]

    async def _burst(self, count: int) -> tuple[float, float]:
        publishing = self._clients[0].publish(self._topic, count)
        cost, *taken = await asyncio.gather(publishing, *(take(stream, count) for stream in self._streams))
        return cost, statistics.median(nanoseconds for each in taken for nanoseconds in each) / 1e9

    def cost(self, count: int = ITEMS) -> float:
        """Seconds that publishing an item takes."""
        return self._runner.run(self._burst(count))[0]

    def latency(self, count: int = ITEMS) -> float:
        """Seconds from there to its readers."""
        return self._runner.run(self._burst(count))[1]

    def close(self) -> None:
        """Hang up."""
        for client in self._clients:
            client.close()


@contextmanager
def rows(ours: set[int], theirs: set[int]) -> Iterator[list[tuple[str, Callable[[], float]]]]:
    """The medians of a burst, with the publisher on a core of its own."""
    import uvloop

    with running(ours, theirs) as (stack, directory):
        path = f"{directory}/ticker"
        start(stack, "bench.topics", "serve", path, theirs)
        clients = connected(call, path)
        stack.callback(clients.close)
        runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        sleeper = stack.enter_context(next(clients).subscribe("sleeper", int))
        found: dict[str, Readers] = {}
        for topic in topics:
            found[topic] = Readers(runner, path, topic, SUBSCRIBERS - (topic == "sleeper"))
            stack.callback(found[topic].close)
            found[topic].cost(WARM_UP_ITEMS)
        assert not sleeper.closed
        yield [
            (f"{what}, {name}", getattr(found[topic], measure))
            for measure, what in (("cost", "to publish"), ("latency", "until it has come"))
            for topic, name in (("awake", "all awake"), ("sleeper", "one asleep"))
        ]


if __name__ == "__main__":
    with suppress(EOFError, KeyboardInterrupt):
        globals()[sys.argv[1]](sys.argv[2])
