"""Streams under load: many that are broken off at random, a topic with a subscriber who sleeps, a reader who stops.

A hundred thousand are opened where SAMEHOST_TEST_STREAMS asks for it (CONTRIBUTING.md); some thousand otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stream_clients import Caller
from support import Program, until

import samehost
from samehost import aio, limits
from samehost.protocol import events

STREAMS = int(os.environ.get("SAMEHOST_TEST_STREAMS", "3000"))

LOAD = str(Path(__file__).with_name("stream_load.py"))
COUNTED = ("descriptors", "memfds", "mapped", "arena_bytes", "tasks", "threads")


def assert_no_growth(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Nothing is held that was not before, and no more memory than what caches and the allocator do."""
    print(before, after, sep="\n")
    for name in COUNTED:
        assert after[name] <= before[name], (name, before, after)
    assert after["objects"] < before["objects"] + 200, (before, after)
    assert after["blocks"] < before["blocks"] + 1000, (before, after)
    assert after["kib"] < before["kib"] + 8 * 1024, (before, after)


@contextlib.contextmanager
def loaded_service(place: Path, **limits: float) -> Iterator[Program]:
    with Program([sys.executable, LOAD, "serve", str(place / "s"), json.dumps(limits)]) as server:
        assert server.line() == "ready"
        yield server


def quiet_figures(path: Path) -> dict[str, Any]:
    """What the server holds, once nobody else is connected to it and no call is in progress."""
    with samehost.connect(path) as client:

        def is_quiet() -> bool:
            health = client.call("samehost.health")
            return bool(health["connections"] == 1 and health["in_flight"] == 1)

        until(is_quiet, "every stream has ended in the server")
        found: dict[str, Any] = client.figures()
    assert (found["generators"], found["subscribers"]) == ([], 0)
    assert found["account_bytes"] == [[0, 0]]
    return found


@pytest.mark.timeout(60 + STREAMS // 200)
def test_streams_that_are_broken_off_at_random_leave_nothing(place: Path) -> None:
    with loaded_service(place) as server, contextlib.ExitStack() as stack:
        with samehost.connect(place / "s") as client:
            for _ in client.map("rest", [0.05] * 2 * limits.THREADS_MAX):  # all threads that there ever are
                pass
        clients = [
            stack.enter_context(Program([sys.executable, LOAD, kind, str(place / "s"), str(STREAMS // 2)], stderr=None))
            for kind in ("threads", "asyncio")
        ]
        before = [json.loads(client.line()) for client in clients]
        before_there = quiet_figures(place / "s")
        for client in clients:
            client.tell("")
        for client in clients:
            until(lambda client=client: client.process.poll() is not None, "all streams", 30 + STREAMS // 200)
            assert client.end() == 0
        for client, found in zip(clients, before, strict=True):
            assert_no_growth(found, json.loads(client.line()))
        assert_no_growth(before_there, quiet_figures(place / "s"))
        server.signal(15)
        assert server.end() == 0
        assert server.errors() == ""


# A subscriber who sleeps

AWAKE = 99
BATCH = 16
BATCHES = 80
TEXT = 8000


async def take_batch(stream: Any, first: int) -> None:
    for number in range(first, first + BATCH):
        assert await anext(stream) == (number, "x" * TEXT)


async def test_a_subscriber_who_sleeps_costs_the_others_nothing(place: Path) -> None:
    with loaded_service(place), contextlib.closing(Caller(place / "s")) as sleeper:
        clients = [await aio.connect(place / "s") for _ in range(AWAKE)]
        streams = [await client.subscribe("bulletin", tuple[int, str]).__aenter__() for client in clients]
        subscribed = sleeper.call("bulletin")
        dropped = []
        for number in range(BATCHES):
            dropped.append(await clients[0].announce(BATCH, TEXT))  # which does not wait for anybody
            await asyncio.gather(*(take_batch(stream, number * BATCH) for stream in streams))
            if number == BATCHES // 4:
                before = await clients[1].figures()
        after = await clients[1].figures()
        assert [stream.dropped for stream in streams] == [0] * AWAKE

        # What it was sent is no more than its credit, and what waits for it the latest; the rest is counted.
        count = BATCHES * BATCH
        given = count - dropped[-1] - limits.TOPIC_ITEMS
        assert 1 < given <= -(-limits.WINDOW_BYTES // TEXT)
        assert (await clients[1].call("samehost.stats"))["topics"]["bulletin"]["dropped"] == dropped[-1]
        assert after["blocks"] < before["blocks"] + 1000, (before, after)
        assert after["kib"] < before["kib"] + TEXT * count // 4 // 1024, (before, after)
        for client in clients:
            client.close()

        # Once it wakes up, it has all of that, and is told how many it has not.
        sleeper.expect(events.Stream)
        found, noted = [], 0
        while len(found) < given + limits.TOPIC_ITEMS or noted < dropped[-1]:
            event = sleeper.event()
            if type(event) is events.Note:
                noted = sleeper.value(event)["dropped"]
            else:
                found.append(sleeper.value(event)[0])
                sleeper.credit(subscribed, 1, len(event.value))
        assert found == [*range(given), *range(count - limits.TOPIC_ITEMS, count)]
        assert noted == dropped[-1]
        assert sleeper.is_silent()


# A reader who stops

STALL_SECONDS = 0.3
ITEM_TEXT = 4000
STREAMS_UNREAD = 8


def test_a_client_that_stops_reading_a_stream_is_not_cut_off(place: Path) -> None:
    with loaded_service(place, OUTPUT_STALL_SECONDS=STALL_SECONDS) as server:
        with samehost.connect(place / "s") as client, samehost.connect(place / "s") as watching:
            streams = [client.flood(ITEM_TEXT) for _ in range(STREAMS_UNREAD)]
            # It reads on while it waits for any of them. What it takes of what it has is sent anew, and not read.
            for number in range(48):
                for stream in streams:
                    assert next(stream) == [number, "x" * ITEM_TEXT]
            time.sleep(4 * STALL_SECONDS)  # which is what this is about
            until(lambda: watching.figures()["queued_bytes"] > 0, "more is pending for it than the kernel takes")
            assert [client.double(number) for number in range(10)] == list(range(0, 20, 2))  # while it reads no stream
            for number in range(48, 200):
                for stream in streams:
                    assert next(stream) == [number, "x" * ITEM_TEXT]
            # The others stop, and calls and one of the streams go on.
            for number in range(200, 300):
                assert next(streams[0]) == [number, "x" * ITEM_TEXT]
                assert client.double(number) == 2 * number
            streams.clear()
        quiet_figures(place / "s")
        assert server.process.poll() is None


def test_13_a_client_that_reads_no_replies_is_cut_off_whatever_else_it_leaves_unread(place: Path) -> None:
    with loaded_service(place, OUTPUT_STALL_SECONDS=STALL_SECONDS), Caller(place / "s") as caller:
        stream = caller.call("flood", {"size": ITEM_TEXT})
        assert caller.expect(events.Stream).call_id == stream
        for _ in range(10):
            caller.call("big", {"size": 100_000}, flags=0)
        with samehost.connect(place / "s") as watching:
            until(lambda: watching.call("samehost.health")["connections"] == 1, "it is cut off", 10 * STALL_SECONDS)
        quiet_figures(place / "s")
