"""The faults of streams at the server, each driven for real, in both formats and both loops; a number is the row."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from loops import LOOPS
from stream_clients import ITEMS_FOLLOW, Caller, serving_in
from support import DEADLINE, until

import samehost
from samehost import limits
from samehost.protocol import events

in_both_formats = pytest.mark.parametrize("kind", ["frames", "lines"])
STREAMS = ["count", "count_in_thread", "count_inline"]


class Noted:
    """What methods have noted."""

    def __init__(self):
        self.closed = []
        self.open = 0
        self.is_released = threading.Event()


@pytest.fixture
def noted():
    return Noted()


@pytest.fixture
def service(noted):  # noqa: C901 - a list of methods
    service = samehost.Service("streams")

    @contextlib.contextmanager
    def noting():
        noted.open += 1
        try:
            yield
        finally:
            noted.open -= 1
            noted.closed.append(time.monotonic())

    @service.method
    async def count(first: int = 0):
        with noting():
            while True:
                yield first
                first += 1
                if first % 50 == 0:
                    await asyncio.sleep(0)

    @service.method
    def count_in_thread(first: int = 0):
        with noting():
            while True:
                yield first
                first += 1

    @service.method(inline=True)
    def count_inline(first: int = 0):
        with noting():
            while True:
                yield first
                first += 1

    @service.method
    async def hang():
        with noting():
            yield 1
            await asyncio.sleep(DEADLINE)

    @service.method
    async def stubborn():
        yield 1
        noted.open += 1
        while not noted.is_released.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        yield 2

    @service.method
    def stubborn_in_thread():
        yield 1
        noted.open += 1
        noted.is_released.wait(DEADLINE)
        yield 2

    @service.method
    async def holds(items: AsyncIterator[bytes]) -> int:
        await asyncio.to_thread(noted.is_released.wait, DEADLINE)
        return len([item async for item in items])

    @service.method
    def waits_in_thread(items: Iterator[int]) -> int:
        with noting():
            return len(list(items))

    @service.method
    async def ask() -> int:
        return 5

    @service.method
    def ask_thread() -> int:
        return 6

    @service.method(inline=True)
    def counts() -> list[int]:
        return [noted.open, len(noted.closed)]

    return service


@pytest.fixture(params=LOOPS)
def path(request, service, noted, place):
    descriptors = len(os.listdir("/proc/self/fd"))

    def settled():
        noted.is_released.set()
        with Caller(place / "s") as caller:
            stats = caller.stats()
        return not any(found["in_flight"] for found in stats["methods"].values())

    with serving_in(request.param, service, place / "s", lambda: until(settled, "no call is in progress")):
        yield place / "s"
    assert len(os.listdir("/proc/self/fd")) == descriptors


# 13, 14: a client that does not read


@in_both_formats
@pytest.mark.parametrize("method", STREAMS)
def test_13_14_one_who_leaves_the_items_of_a_stream_unread_is_cut_off_only_once_an_answer_is_due(
    path, kind, method, monkeypatch
):
    monkeypatch.setattr(limits, "OUTPUT_STALL_SECONDS", 0.2)
    with Caller(path, kind) as sleeper, Caller(path, kind) as other:
        call_id = sleeper.call(method)
        sleeper.credit(call_id, 2**31 - 65, 2**30)
        sleeper.expect(events.Stream)
        time.sleep(0.7)  # which is the fault itself
        for _ in range(10):
            assert other.value_of("ask") == 5
        assert sleeper.take(5000) == list(range(5000))  # it lives, and goes on
        time.sleep(0.1)  # until items are pending again
        sleeper.call("ask", {}, 0)
        until(lambda: gone(other), "it is cut off", 5.0)
        assert other.value_of("ask_thread") == 6


def gone(other):
    return sum(other.stats()["connections"].values()) == 1


# 15: dies mid-call


@in_both_formats
@pytest.mark.parametrize("method", [*STREAMS, "hang"])
def test_15_the_generators_of_one_who_dies_are_closed_within_100_ms(path, kind, method, noted):
    taken = []
    for _ in range(5):
        with Caller(path, kind) as caller:
            caller.call(method)
            caller.expect(events.Stream)
            caller.take(1)
            number = len(noted.closed)
            caller.close()
            began = time.monotonic()
            until(lambda number=number: len(noted.closed) > number, "it is closed")
            taken.append(noted.closed[-1] - began)
    assert sorted(taken)[2] < 0.1


# 16: a flood


@in_both_formats
def test_16_items_that_nobody_reads_are_counted_for_their_user(path, kind, noted, monkeypatch):
    monkeypatch.setattr(limits, "UID_BYTES_MAX", 1_000_000)
    with Caller(path, kind) as caller:
        ids = [caller.call("holds", {}, ITEMS_FOLLOW) for _ in range(20)]
        for call_id in ids:
            caller.protocol.send_item(call_id, caller.codec.encode(bytes(100_000)))
            with contextlib.suppress(BrokenPipeError):
                caller.flush()
        failures = [caller.expect(events.Failure) for _ in range(8)]
        assert {failure.code for failure in failures} == {"busy"}
        noted.is_released.set()
        left = set(ids) - {failure.call_id for failure in failures}
        for call_id in left:
            with contextlib.suppress(samehost.errors.LocalProtocolError):
                caller.end(call_id)
        for _ in left:
            answer = caller.event()
            assert type(answer) in (events.Reply, events.Failure)
        assert caller.value_of("ask") == 5


@in_both_formats
def test_16_no_more_streams_than_calls(path, kind):
    with Caller(path, kind) as caller:
        ids = [caller.call(STREAMS[number % 3], {"first": number}) for number in range(256)]
        caller.protocol.peer_calls_max = 300
        refused = caller.call("count")
        while type(event := caller.event()) is not events.Failure:
            pass
        assert (event.call_id, event.code) == (refused, "busy")
        for call_id in ids:
            caller.cancel(call_id)
        freed = set()
        while len(freed) < len(ids):
            event = caller.event()
            if type(event) is events.Freed:
                freed.add(event.call_id)
        assert caller.value_of("ask") == 5


def test_16_the_threads_that_one_user_holds_up_leave_some_for_others(path, noted):
    with Caller(path) as greedy:
        ids = [greedy.call("waits_in_thread", {}, ITEMS_FOLLOW) for _ in range(40)]
        until(lambda: noted.open == 24, "all that he may have are his")
        for call_id in ids[:20]:
            greedy.cancel(call_id)
        for _ in range(20):
            assert type(greedy.event()) is events.Freed
        until(lambda: noted.open == 20, "the others go on")


# 17: call and cancel


@in_both_formats
@pytest.mark.parametrize("method", [*STREAMS, "hang"])
def test_17_streams_that_are_cancelled_over_and_over_count_until_they_have_ended(path, kind, method, noted):
    with Caller(path, kind) as caller:
        for _ in range(100):
            ids = [caller.call(method) for _ in range(5)]
            for call_id in ids:
                caller.cancel(call_id)
            freed = 0
            while freed < len(ids):
                freed += type(caller.event()) is events.Freed
            assert noted.open <= 5
        until(lambda: noted.open == 0, "all are closed")


# 32: a method that does not end


@in_both_formats
@pytest.mark.parametrize("method", ["stubborn", "stubborn_in_thread"])
@pytest.mark.parametrize("how", ["cancel", "close"])
def test_32_a_generator_that_swallows_its_cancellation_is_reported(path, kind, method, how, noted, caplog, monkeypatch):
    monkeypatch.setattr(limits, "CANCEL_SECONDS", 0.1)
    caplog.set_level(logging.ERROR, "samehost")
    with Caller(path, kind) as caller, Caller(path) as other:
        call_id = caller.call(method)
        caller.expect(events.Stream)
        caller.take(1)
        until(lambda: noted.open == 1, "it hangs")
        if how == "cancel":
            caller.cancel(call_id)
        else:
            caller.close()
        until(lambda: other.stats()["uncancellable"] == 1, "it is reported")
        assert any(f"{method}, called by" in record.getMessage() for record in caplog.records)
        assert other.stats()["methods"][method]["in_flight"] == 1
        noted.is_released.set()
        until(lambda: other.stats()["uncancellable"] == 0, "it has ended")
        if how == "cancel":
            assert caller.event() == events.Freed(call_id)  # and no item
            assert caller.value_of("ask") == 5


# 40: cancel races


@in_both_formats
@pytest.mark.parametrize("seed", [1, 2])
def test_40_streams_broken_off_and_cancelled_at_random_each_get_their_own_items(path, kind, seed, noted):
    chance = random.Random(seed)
    for _ in range(6):
        with Caller(path, kind) as caller:
            wanted = {}
            cancelled = set()
            for number in range(60):
                call_id = caller.call(chance.choice(STREAMS), {"first": number * 10_000})
                wanted[call_id] = number * 10_000
                for _ in range(chance.randrange(40)):
                    if caller.is_silent(0):
                        break
                    event = caller.event()
                    if type(event) is events.Item:
                        assert caller.value(event) == wanted[event.call_id]
                        wanted[event.call_id] += 1
                        caller.protocol.took_item(event.call_id, len(event.value))
                        caller.flush()
                open_ids = list(set(wanted) - cancelled)
                if chance.random() < 0.5:
                    gone = chance.choice(open_ids)
                    cancelled.add(gone)
                    caller.cancel(gone)
    until(lambda: noted.open == 0, "all are closed")


@in_both_formats
@pytest.mark.parametrize("method", ["waits_in_thread", "holds"])
def test_40_items_for_a_call_that_has_ended_are_late_and_counted(path, kind, method, noted):
    noted.is_released.set()
    with Caller(path, kind) as caller:
        call_id = caller.call(method, {}, ITEMS_FOLLOW)
        item = caller.codec.encode(1 if method == "waits_in_thread" else b"x")
        caller.item(call_id, 1 if method == "waits_in_thread" else b"x")
        caller.end(call_id)
        assert caller.rest(call_id) == ([], 1)
        late = caller.stats()["late"]
        if kind == "frames":
            caller.socket.sendall(
                len(item).to_bytes(4, "little") + b"\x07\0\0\0" + call_id.to_bytes(4, "little") + item
            )
            assert caller.stats()["late"] == late + 1
        assert caller.value_of("ask") == 5
