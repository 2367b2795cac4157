"""Streams that are opened and broken off at random: the service, and its clients in threads and in asyncio.

A program, as each of them is a process whose leftovers are counted: `stream_load.py serve PATH LIMITS`, or `threads
PATH STREAMS` or `asyncio PATH STREAMS`, which run a tenth of that first, and say what they hold before and after.
Each item says which stream it is of and where in it, and whoever gets it checks that.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import random
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from support import DEADLINE, until

import samehost
from samehost import aio, limits
from samehost.aio import client as aio_client
from samehost.aio.runner import Account
from samehost.aio.session import Session
from samehost.blocking.client import AnyClient
from samehost.errors import ConnectionClosed, DeadlineExceeded, OutcomeUnknown, Unsent
from samehost.kernel.arena import the_arena
from samehost.kernel.files import File

CLIENTS = 25
AT_A_TIME = 4
ITEMS_MAX = 100
ITEMS_WITH_MORE_MAX = 6
PLENTY = 1_000_000
BLOB_BYTES = 300_000

Item = tuple[str, int]

# The service.

service = samehost.Service("streams")
news = service.topic("news", int, queue=8)
happened = itertools.count()
open_now: set[str] = set()
"""The names of the streams that methods work on."""


class counted:  # noqa: N801 - reads as a statement
    """Count a generator for as long as it is open."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        open_now.add(self.name)

    def __exit__(self, *_: object) -> None:
        open_now.remove(self.name)


@service.method
async def tell(name: str, count: int) -> AsyncIterator[Item]:
    with counted(name):
        for number in range(count):
            if number % 16 == 5:
                await asyncio.sleep(0)
            yield name, number


@service.method
def tell_in_thread(name: str, count: int) -> Iterator[Item]:
    with counted(name):
        for number in range(count):
            yield name, number


@service.method(inline=True)
def tell_inline(name: str, count: int) -> Iterator[Item]:
    with counted(name):
        for number in range(count):
            yield name, number


@service.method
async def take(name: str, items: AsyncIterator[Item]) -> Item:
    with counted(name):
        count = 0
        async for item in items:
            assert item == (name, count)
            count += 1
        return name, count


@service.method
def take_in_thread(name: str, items: Iterator[Item]) -> Item:
    with counted(name):
        count = 0
        for item in items:
            assert item == (name, count)
            count += 1
        return name, count


@service.method
async def echo(name: str, items: AsyncIterator[Item]) -> AsyncIterator[Item]:
    with counted(name):
        number = 0
        async for item in items:
            assert item == (name, number)
            number += 1
            yield item


@service.method
def echo_in_thread(name: str, items: Iterator[Item]) -> Iterator[Item]:
    with counted(name):
        for number, item in enumerate(items):
            assert item == (name, number)
            yield item


def content_of(name: str, number: int) -> bytes:
    return f"{name} {number} ".encode() * 3


def blob_of(name: str, number: int) -> samehost.Blob:
    blob = samehost.allocate(BLOB_BYTES)
    content = content_of(name, number)
    blob.view[: len(content)] = content
    blob.view[-len(content) :] = content
    return blob


@service.method
async def show(name: str, count: int) -> AsyncIterator[samehost.Blob]:
    with counted(name):
        for number in range(count):
            yield blob_of(name, number)


@service.method
def show_in_thread(name: str, count: int) -> Iterator[samehost.Blob]:
    with counted(name):
        for number in range(count):
            yield blob_of(name, number)


@service.method
async def hand_out(name: str, count: int) -> AsyncIterator[File]:
    with counted(name):
        for number in range(count):
            yield file_of(name, number)


def file_of(name: str, number: int) -> File:
    descriptor = os.memfd_create("told")
    os.write(descriptor, content_of(name, number))
    return File(descriptor)


@service.method(inline=True)
def tell_the_news() -> None:
    for number in itertools.islice(happened, ITEMS_MAX):
        news.publish(number)


bulletin = service.topic("bulletin", tuple[int, str])
announced = itertools.count()


@service.method(inline=True)
def announce(count: int, size: int) -> int:
    """Publish so many, without a turn of the loop in between; how many are not to be had by some subscriber so far."""
    for number in itertools.islice(announced, count):
        bulletin.publish((number, "x" * size))
    return bulletin.dropped


@service.method(inline=True)
def flood(size: int) -> Iterator[tuple[int, str]]:
    for number in itertools.count():
        yield number, "x" * size


@service.method
async def double(number: int) -> int:
    return 2 * number


@service.method
def rest(seconds: float) -> None:
    time.sleep(seconds)


@service.method(inline=True)
def big(size: int) -> str:
    return "x" * size


@service.method(inline=True)
def open_of(client: str) -> list[str]:
    """The streams of one client that are not over."""
    return [name for name in open_now.copy() if name.startswith(client)]


@service.method
async def figures() -> dict[str, Any]:
    held = here()  # which leaves no garbage
    accounts = [found for found in gc.get_objects() if type(found) is Account]
    return {
        **held,
        "generators": sorted(open_now),
        "subscribers": news.subscribers,
        "queued_bytes": sum(found._wire.pending_bytes for found in gc.get_objects() if type(found) is Session),
        "account_bytes": [(account.used_bytes, account.kept_bytes) for account in accounts],
    }


# What is left over.


def memfds() -> int:
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}").startswith("/memfd:")
        except FileNotFoundError:  # what lists them
            continue
    return found


def here() -> dict[str, Any]:
    """What this process holds."""
    gc.collect()
    the_arena().give_back()
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    with open("/proc/self/maps") as file:
        mapped = sum("/memfd:" in line for line in file)
    try:
        tasks = len(asyncio.all_tasks())
    except RuntimeError:
        tasks = 0
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "memfds": memfds(),
        "mapped": mapped,
        "arena_bytes": the_arena().used_bytes,
        "tasks": tasks,
        "threads": threading.active_count(),
        "objects": len(gc.get_objects()),
        "blocks": sys.getallocatedblocks(),
        "kib": int(status["RssAnon"].split()[0]),
    }


# Its clients.


class InThreads(samehost.Client):
    def tell(self, name: str, count: int) -> Iterator[Item]:
        raise NotImplementedError

    def tell_in_thread(self, name: str, count: int) -> Iterator[Item]:
        raise NotImplementedError

    def tell_inline(self, name: str, count: int) -> Iterator[Item]:
        raise NotImplementedError

    def take(self, name: str, items: Iterator[Item]) -> Item:
        raise NotImplementedError

    def take_in_thread(self, name: str, items: Iterator[Item]) -> Item:
        raise NotImplementedError

    def echo(self, name: str, items: Iterator[Item]) -> Iterator[Item]:
        raise NotImplementedError

    def echo_in_thread(self, name: str, items: Iterator[Item]) -> Iterator[Item]:
        raise NotImplementedError

    def show(self, name: str, count: int) -> Iterator[samehost.Blob]:
        raise NotImplementedError

    def show_in_thread(self, name: str, count: int) -> Iterator[samehost.Blob]:
        raise NotImplementedError

    def hand_out(self, name: str, count: int) -> Iterator[File]:
        raise NotImplementedError


class InAsyncio(aio.Client):
    def tell(self, name: str, count: int) -> AsyncIterator[Item]:
        raise NotImplementedError

    def tell_in_thread(self, name: str, count: int) -> AsyncIterator[Item]:
        raise NotImplementedError

    def tell_inline(self, name: str, count: int) -> AsyncIterator[Item]:
        raise NotImplementedError

    async def take(self, name: str, items: AsyncIterator[Item]) -> Item:
        raise NotImplementedError

    async def take_in_thread(self, name: str, items: AsyncIterator[Item]) -> Item:
        raise NotImplementedError

    def echo(self, name: str, items: AsyncIterator[Item]) -> AsyncIterator[Item]:
        raise NotImplementedError

    def echo_in_thread(self, name: str, items: AsyncIterator[Item]) -> AsyncIterator[Item]:
        raise NotImplementedError

    def show(self, name: str, count: int) -> AsyncIterator[samehost.Blob]:
        raise NotImplementedError

    def show_in_thread(self, name: str, count: int) -> AsyncIterator[samehost.Blob]:
        raise NotImplementedError

    def hand_out(self, name: str, count: int) -> AsyncIterator[File]:
        raise NotImplementedError


TELLING = ["tell", "tell_in_thread", "tell_inline"]
TAKING = ["take", "take_in_thread"]
ECHOING = ["echo", "echo_in_thread"]
WITH_MORE = ["show", "show_in_thread", "hand_out"]
METHODS = TELLING * 4 + TAKING * 3 + ECHOING * 3 + WITH_MORE + ["news"]
ENDS = ["all"] * 3 + ["break"] * 4 + ["close"] * 3 + ["cancel"] * 3 + ["deadline"]


class BrokenOff(Exception):
    """What a source of items raises that ends too soon."""


class Plan(NamedTuple):
    """One stream.

    Attributes:
        count: its items, if all are taken; as many as anybody takes, otherwise.
        end: how it ends: "all", or once `after` items were taken or sent.
        seconds: its deadline; None without one.
    """

    name: str
    method: str
    count: int
    end: str
    after: int
    seconds: float | None

    def told(self) -> Iterator[Item]:
        """The items to send."""
        for number in range(self.count):
            if self.method in TAKING and self.end in ("break", "close") and number == self.after:
                raise BrokenOff
            yield self.name, number

    async def told_later(self) -> AsyncIterator[Item]:
        """The same, for those who wait."""
        for item in self.told():
            if item[1] % 16 == 7:
                await asyncio.sleep(0)
            yield item

    def check(self, number: int, item: Any) -> None:
        """See that an item is the right one."""
        content = content_of(self.name, number)
        if self.method.startswith("show"):
            with item:
                view = item.view
                assert len(view) == BLOB_BYTES
                assert (view[: len(content)], view[-len(content) :]) == (content, content)
        elif self.method == "hand_out":
            with item:
                assert not os.get_inheritable(item.fileno())
                assert os.pread(item.fileno(), 1000, 0) == content
        else:
            assert tuple(item) == (self.name, number), (self, number, item)


def planned(chance: random.Random, name: str) -> Plan:
    method = chance.choice(METHODS)
    end = chance.choice(ENDS)
    most = ITEMS_WITH_MORE_MAX if method in WITH_MORE else ITEMS_MAX
    after = chance.randrange(most)
    # One that nobody ends would end by itself.
    is_endless = end == "deadline" or (end != "all" and method in TELLING + ECHOING and chance.random() < 0.5)
    seconds = chance.random() / 50 + 0.001 if end == "deadline" else None
    return Plan(name, method, PLENTY if is_endless else chance.randrange(after, most + 1), end, after, seconds)


def some_planned(chance: random.Random, owner: str, made: int, count: int) -> list[Plan]:
    """The next few of so many."""
    return [planned(chance, f"{owner}.{number}") for number in range(made, min(made + AT_A_TIME, count))]


def assert_in_order(numbers: list[int]) -> None:
    """See that these are news, with none twice."""
    assert all(before < after for before, after in itertools.pairwise(numbers)), numbers


ENDED = (ConnectionClosed, OutcomeUnknown, Unsent)
"""What becomes of a stream whose client was closed."""


def arguments_of(plan: Plan, items: Any) -> tuple[Any, ...]:
    return (plan.name, plan.count if items is None else items)


def begin_in_thread(client: Any, plan: Plan) -> Any:
    """The stream, or None if it was one that only goes in."""
    if plan.method == "news":
        return client.subscribe("news", int, timeout=plan.seconds)
    items = plan.told() if plan.method in TAKING + ECHOING else None
    arguments = arguments_of(plan, items)
    if plan.method in TAKING:
        try:
            answer = client.call(plan.method, *arguments, timeout=plan.seconds)
        except BrokenOff:
            assert plan.end in ("break", "close")
        else:
            assert tuple(answer) == (plan.name, plan.count)
        return None
    if plan.seconds is None:
        return getattr(client, plan.method)(*arguments)
    return client.call(plan.method, *arguments, timeout=plan.seconds)


def read_in_thread(client: Any, plan: Plan, stream: Any) -> None:
    """Take what is to be taken of a stream, and leave it."""
    if plan.method == "news":
        client.notify("tell_the_news")
        assert_in_order(list(itertools.islice(stream, plan.after // 16)))
        stream.close()
        return
    number = 0
    for item in stream:
        plan.check(number, item)
        del item
        number += 1
        if number >= plan.after and plan.end not in ("all", "deadline"):
            break
    if plan.end == "all":
        assert (number, stream.closed, stream.result) == (plan.count, True, None)
    elif plan.end in ("close", "cancel"):
        stream.close()
        assert next(stream, None) is None


def begin_some(client: Any, plans: list[Plan]) -> list[tuple[Plan, Any]]:
    """Those of the streams that began within their deadlines."""
    streams = []
    for plan in plans:
        try:
            streams.append((plan, begin_in_thread(client, plan)))
        except DeadlineExceeded:
            assert plan.end == "deadline"
    return streams


def read_all(client: Any, streams: list[tuple[Plan, Any]], is_closed: bool) -> None:
    """Read one after the other, and drop each."""
    while streams:
        plan, stream = streams.pop()
        try:
            if stream is not None:
                read_in_thread(client, plan, stream)
        except DeadlineExceeded:
            assert plan.end == "deadline"
        except ENDED:
            assert is_closed
        stream = None


def work_in_thread(path: str, number: int, count: int) -> None:
    """One client, which begins a few streams, reads them in another order, and is made anew now and then."""
    chance = random.Random(number)
    made = 0
    while made < count:
        with samehost.connect(path, InThreads if chance.random() < 0.5 else AnyClient) as client:
            is_closed = False
            while made < count and not is_closed:
                plans = some_planned(chance, f"thread {number}", made, count)
                made += len(plans)
                streams = begin_some(client, plans)
                chance.shuffle(streams)
                is_closed = chance.random() < 0.05
                if is_closed:
                    client.close()
                read_all(client, streams, is_closed)
            if not is_closed:
                until(
                    lambda client=client: client.call("open_of", f"thread {number}.") == [],
                    "what was left ends at once",
                )


def run_threads(path: str, count: int) -> None:
    with ThreadPoolExecutor(CLIENTS) as pool:
        for done in [pool.submit(work_in_thread, path, number, count // CLIENTS) for number in range(CLIENTS)]:
            done.result()


async def take_in_asyncio(client: Any, plan: Plan, is_later: bool) -> None:
    items = plan.told_later() if is_later else plan.told()
    try:
        answer = await client.call(plan.method, plan.name, items, timeout=plan.seconds)
    except BrokenOff:
        assert plan.end in ("break", "close")
    else:
        assert tuple(answer) == (plan.name, plan.count)


def begin_in_asyncio(client: Any, plan: Plan, is_later: bool) -> Any:
    items = None
    if plan.method in ECHOING:
        items = plan.told_later() if is_later else plan.told()
    if plan.seconds is None:
        return getattr(client, plan.method)(*arguments_of(plan, items))
    return client.call(plan.method, *arguments_of(plan, items), timeout=plan.seconds)


async def stream_in_asyncio(client: Any, plan: Plan, is_later: bool) -> None:
    if plan.method == "news":
        async with client.subscribe("news", int, timeout=plan.seconds) as stream:
            await client.notify("tell_the_news")
            assert_in_order([await anext(stream) for _ in range(plan.after // 16)])
            if plan.end == "break":
                return
            await stream.aclose()
        assert [item async for item in stream] == []
        return
    if plan.method in TAKING:
        await take_in_asyncio(client, plan, is_later)
        return
    number = 0
    stream = begin_in_asyncio(client, plan, is_later)
    async for item in stream:
        plan.check(number, item)
        del item
        number += 1
        if number >= plan.after and plan.end in ("break", "close"):
            break
        if number >= plan.after and plan.end == "cancel":
            await asyncio.sleep(3600)
    if plan.end == "all":
        assert number == plan.count
    elif plan.end == "close" and isinstance(stream, aio.Stream):
        await stream.aclose()
        assert [item async for item in stream] == []


async def one_in_asyncio(client: Any, plan: Plan, chance: random.Random) -> None:
    task = asyncio.ensure_future(stream_in_asyncio(client, plan, chance.random() < 0.5))
    if plan.end == "cancel":
        await asyncio.wait([task], timeout=chance.random() / 50)
        task.cancel()
    try:
        await task
    except DeadlineExceeded:
        assert plan.end == "deadline"
    except ENDED:
        assert client.closed
    except asyncio.CancelledError:
        assert plan.end == "cancel"


async def work_in_asyncio(path: str, number: int, count: int) -> None:
    chance = random.Random(number)
    client: Any = None
    made = 0
    while made < count:
        if client is None or client.closed:
            interface = InAsyncio if chance.random() < 0.5 else aio_client.AnyClient
            client = await aio.connect(path, interface)
        plans = some_planned(chance, f"task {number}", made, count)
        made += len(plans)
        tasks = [asyncio.ensure_future(one_in_asyncio(client, plan, chance)) for plan in plans]
        if chance.random() < 0.05:
            await asyncio.sleep(chance.random() / 100)
            client.close()
        await asyncio.gather(*tasks)
    if not client.closed:
        async with asyncio.timeout(DEADLINE):
            while await client.call("open_of", f"task {number}."):  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.01)
        client.close()


async def run_asyncio(path: str, count: int) -> None:
    await asyncio.gather(*(work_in_asyncio(path, number, count // CLIENTS) for number in range(CLIENTS)))


def say(found: dict[str, Any]) -> None:
    print(json.dumps(found), flush=True)


async def main_asyncio(path: str, count: int) -> None:
    await run_asyncio(path, count // 10)
    await asyncio.sleep(0)
    say(here())
    sys.stdin.readline()
    await run_asyncio(path, count)
    await asyncio.sleep(0)
    say(here())


def main_threads(path: str, count: int) -> None:
    run_threads(path, count // 10)
    say(here())
    sys.stdin.readline()
    run_threads(path, count)
    say(here())


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        vars(limits).update(json.loads(sys.argv[3]))
        samehost.serve(service, sys.argv[2], ready=lambda: print("ready", flush=True))
    elif sys.argv[1] == "threads":
        main_threads(sys.argv[2], int(sys.argv[3]))
    else:
        asyncio.run(main_asyncio(sys.argv[2], int(sys.argv[3])))
