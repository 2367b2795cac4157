"""Topics: what is published reaches everybody who listens, and whoever is slow holds up nobody."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loops import LOOPS
from stream_clients import ITEMS_FOLLOW, ITEMS_WANTED, Caller, callers, serving_in
from support import until

import samehost
from samehost import limits
from samehost.errors import MessageTooLarge, UsageError
from samehost.kernel.arena import the_arena
from samehost.protocol import events
from samehost.service.topic import Topic

in_both_formats = pytest.mark.parametrize("kind", ["frames", "lines"])


class Topics:
    """A service with topics, and a way to publish to them from its loop."""

    def __init__(self) -> None:
        self.service = samehost.Service("topics")
        self.ticks: Topic = self.service.topic("ticks", int)
        self.strict: Topic = self.service.topic("strict", int, slow="disconnect", queue=10)
        self.few: Topic = self.service.topic("few", Any, queue=3)
        self.secret: Topic = self.service.topic("secret", int, allow=samehost.allow(uid=54321))

        @self.service.method(inline=True)
        def publish(name: str, first: int, last: int) -> float:
            topic = self.service.topics[name]
            began = time.perf_counter()
            for number in range(first, last):
                topic.publish(number)
            return time.perf_counter() - began

        @self.service.method
        async def ask() -> int:
            return 5

    def subscribe(self, caller: Caller, name: str = "ticks") -> int:
        call_id = caller.call(name)
        assert caller.expect(events.Stream).call_id == call_id
        return call_id


@pytest.fixture
def topics() -> Topics:
    return Topics()


@pytest.fixture(params=LOOPS)
def path(request: pytest.FixtureRequest, topics: Topics, place: Path) -> Iterator[Path]:
    with serving_in(request.param, topics.service, place / "s"):
        yield place / "s"
        until(lambda: topics.ticks.subscribers == topics.strict.subscribers == topics.few.subscribers == 0, "all left")


def note_of(event: Any, caller: Caller) -> Any:
    assert type(event) is events.Note, event
    return caller.value(event)


def test_what_is_published_reaches_all_in_both_formats(path: Path, topics: Topics) -> None:
    listeners = [*callers(path, "frames", 3), *callers(path, "lines", 3)]
    for listener in listeners:
        topics.subscribe(listener)
    assert topics.ticks.subscribers == 6
    with Caller(path) as caller:
        caller.value_of("publish", {"name": "ticks", "first": 0, "last": 50})
        for number in range(50, 100):
            topics.ticks.publish(number)  # from another thread than the loop's
        for listener in listeners:
            assert listener.take(100) == list(range(100))
        stats = caller.stats()
        assert stats["topics"]["ticks"] == {"subscribers": 6, "published": 100, "dropped": 0}
        assert stats["methods"]["ticks"]["in_flight"] == 6
    for listener in listeners:
        listener.close()
    until(lambda: topics.ticks.subscribers == 0, "they have left")


@in_both_formats
def test_nothing_is_done_for_nobody(path: Path, topics: Topics, kind: str) -> None:
    topics.few.publish(object())  # which could not travel
    with Caller(path, kind) as caller:
        call_id = topics.subscribe(caller, "few")
        with pytest.raises(UsageError, match="few: what was published cannot travel"):
            topics.few.publish(object())
        with pytest.raises(MessageTooLarge, match="few: an item of"):
            topics.few.publish("x" * limits.PAYLOAD_BYTES_MAX)
        topics.few.publish({"x": [1]})
        assert caller.take(1) == [{"x": [1]}]
        caller.cancel(call_id)
        assert caller.event() == events.Freed(call_id)
    topics.few.publish(object())


@in_both_formats
def test_one_who_is_slow_loses_the_oldest_and_is_told_how_many(path: Path, topics: Topics, kind: str) -> None:
    with Caller(path, kind) as slow, Caller(path) as publisher:
        call_id = topics.subscribe(slow, "few")
        publisher.value_of("publish", {"name": "few", "first": 0, "last": limits.WINDOW_ITEMS + 3})
        assert topics.few.dropped == 0
        publisher.value_of("publish", {"name": "few", "first": 67, "last": 1000})
        assert topics.few.dropped == 933
        assert slow.take(limits.WINDOW_ITEMS, credit=False) == list(range(limits.WINDOW_ITEMS))
        assert note_of(slow.event(), slow) == {"dropped": 1}
        assert slow.is_silent()  # no note for each of them
        slow.credit(call_id, 10, 1000)
        assert note_of(slow.event(), slow) == {"dropped": 933}
        assert slow.take(3, credit=False) == [997, 998, 999]
        publisher.value_of("publish", {"name": "few", "first": 1000, "last": 1001})
        assert slow.take(1, credit=False) == [1000]
        assert publisher.stats()["topics"]["few"] == {"subscribers": 1, "published": 1001, "dropped": 933}


@in_both_formats
def test_one_who_is_slow_is_disconnected_where_that_was_declared(path: Path, topics: Topics, kind: str) -> None:
    with Caller(path, kind) as slow, Caller(path) as publisher:
        topics.subscribe(slow, "strict")
        publisher.value_of("publish", {"name": "strict", "first": 0, "last": limits.WINDOW_ITEMS + 10})
        assert topics.strict.subscribers == 1
        publisher.value_of("publish", {"name": "strict", "first": 0, "last": 1})
        assert topics.strict.subscribers == 0
        items = slow.take(limits.WINDOW_ITEMS, credit=False)
        failure = slow.event()
        assert (len(items), failure.code) == (limits.WINDOW_ITEMS, "too_slow")
        assert "10 items of strict" in failure.message
        assert slow.value_of("ask") == 5  # its connection lives


@in_both_formats
def test_only_who_may_subscribes_and_only_in_the_right_way(path: Path, topics: Topics, kind: str) -> None:
    with Caller(path, kind) as caller:
        for method, flags, code in (
            ("secret", ITEMS_WANTED, "not_permitted"),
            ("ticks", 0, "wrong_shape"),
            ("ticks", ITEMS_FOLLOW | ITEMS_WANTED, "wrong_shape"),
        ):
            assert caller.rest(caller.call(method, {}, flags))[1].code == code
        assert caller.rest(caller.call("ticks", {"x": 1}))[1].code == "invalid_arguments"
    assert topics.ticks.subscribers == 0


@in_both_formats
def test_a_subscription_has_no_deadline(path: Path, topics: Topics, kind: str) -> None:
    with Caller(path, kind) as caller:
        caller.call("ticks", {}, ITEMS_WANTED, 20)
        caller.expect(events.Stream)
        assert caller.is_silent(0.1)
        topics.ticks.publish(1)
        assert caller.take(1) == [1]


@pytest.mark.parametrize("loop", LOOPS)
@in_both_formats
def test_subscriptions_end_at_once_when_the_server_drains(loop: str, kind: str, topics: Topics, place: Path) -> None:
    began = time.monotonic()
    with serving_in(loop, topics.service, place / "s") as stop, Caller(place / "s", kind) as caller:
        call_id = topics.subscribe(caller)
        stop()
        assert type(caller.event()) is events.GoingAway
        assert caller.rest(call_id)[1].code == "unavailable"
    assert time.monotonic() - began < 5
    assert topics.ticks.subscribers == 0
    assert not topics.ticks._outlets  # and a later run begins anew


def test_many_threads_publish_each_in_its_order(path: Path, topics: Topics) -> None:
    with Caller(path) as caller:
        topics.subscribe(caller)

        def publish(thread: int) -> None:
            for number in range(50):
                topics.ticks.publish(1000 * thread + number)
                time.sleep(0.0005)  # so that nothing is dropped

        threads = [threading.Thread(target=publish, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        found = caller.take(200)
        for thread in threads:
            thread.join()
    for which in range(4):
        assert [number for number in found if number // 1000 == which] == list(range(1000 * which, 1000 * which + 50))


def test_a_burst_from_a_thread_is_bounded_and_counted(path: Path, topics: Topics) -> None:
    with Caller(path) as caller:
        topics.subscribe(caller)
        for number in range(5000):
            topics.ticks.publish(number)
        until(lambda: caller_done(topics.ticks), "all are delivered")
        found, notes = [], []
        while not caller.is_silent(0.2):
            event = caller.event()
            if type(event) is events.Note:
                notes.append(caller.value(event)["dropped"])
            else:
                found.append(caller.value(event))
                caller.protocol.took_item(event.call_id, len(event.value))
                caller.flush()
        assert found == sorted(found)
        assert found[-1] == 4999
        assert len(found) + topics.ticks.dropped == 5000
        assert not notes or notes[-1] <= topics.ticks.dropped


def caller_done(topic: Topic) -> bool:
    (outlet,) = topic._outlets
    return not outlet._posted  # type: ignore[attr-defined]


def test_a_hundred_who_sleep_do_not_delay_the_publisher_or_another(path: Path, topics: Topics) -> None:
    sleepers = callers(path, "frames", 99)
    for sleeper in sleepers:
        topics.subscribe(sleeper)
    with Caller(path) as listener, Caller(path) as publisher:
        topics.subscribe(listener)
        publisher.value_of("publish", {"name": "ticks", "first": 0, "last": 64})
        assert listener.take(64) == list(range(64))
        publisher.value_of("publish", {"name": "ticks", "first": 64, "last": 128})  # and now all queues are full
        assert listener.take(64) == list(range(64, 128))
        taken = publisher.value_of("publish", {"name": "ticks", "first": 128, "last": 192})
        assert listener.take(64) == list(range(128, 192))
        assert taken < 0.05 * 10  # 64 items for a hundred: some microseconds for each
        assert topics.ticks.dropped == 64 * 99
    for sleeper in sleepers:
        sleeper.close()


def test_progress_is_reported_from_the_loop_and_from_threads(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    service = samehost.Service("progress")
    kept: list[samehost.Call] = []

    @service.method
    async def on_loop(call: samehost.Call) -> str:
        kept.append(call)
        for done in range(3):
            call.progress(done, 3, "going on")
        return "done"

    @service.method
    def in_thread(call: samehost.Call) -> str:
        for done in range(3):
            call.progress(done)
        return "done"

    @service.method
    def flood(call: samehost.Call) -> str:
        for done in range(20_000):
            call.progress(done)
        return "done"

    @service.method
    async def wrong(call: samehost.Call) -> None:
        call.progress(object())  # type: ignore[arg-type]

    for loop in LOOPS:
        for kind in ("frames", "lines"):
            with serving_in(loop, service, place / "s"), Caller(place / "s", kind) as caller:
                caller.call("on_loop", {}, 0)
                for done in range(3):
                    note = caller.value(caller.expect(events.Note))
                    assert note == {"done": done, "total": 3, "message": "going on"}
                assert caller.value(caller.expect(events.Reply)) == "done"
                kept[-1].progress(1)  # it is over, and nothing happens
                caller.call("in_thread", {}, 0)
                assert [caller.value(caller.expect(events.Note)) for _ in range(3)] == [{"done": n} for n in range(3)]
                assert caller.value(caller.expect(events.Reply)) == "done"
                caller.call("flood", {}, 0)
                last = -1
                while type(event := caller.event()) is events.Note:
                    assert caller.value(event)["done"] > last
                    last = caller.value(event)["done"]
                assert caller.value(event) == "done"
                assert last == 19_999
                caller.call("wrong", {}, 0)
                assert caller.expect(events.Failure).code == "internal"
                caller.protocol.send_notification("on_loop", caller.codec.encode({}))
                caller.flush()
                assert caller.is_silent()


MIB = 1 << 20


@pytest.fixture
def frames(place: Path) -> Iterator[Topic]:
    """A topic of blobs, of which a subscriber may have four."""
    service = samehost.Service("frames")
    topic: Topic = service.topic("frames", samehost.Blob, queue=4)
    with serving_in("asyncio", service, place / "s"):
        yield topic
        until(lambda: topic.subscribers == 0, "all left")
    until(lambda: the_arena().used_bytes == 0, "all memory came back")


def publish_frames(topic: Topic, first: int, last: int) -> None:
    for number in range(first, last):
        frame = samehost.allocate(MIB)
        frame.view[0] = number
        topic.publish(frame)
    until(lambda: caller_done(topic), "all are delivered")


def test_one_who_reads_no_blobs_keeps_a_queue_of_them_and_as_many_again(frames: Topic, place: Path) -> None:
    with samehost.connect(place / "s") as client, client.subscribe("frames") as stream:
        until(lambda: frames.subscribers == 1, "it listens")
        for first in range(0, 200, 20):
            publish_frames(frames, first, first + 20)
            assert the_arena().used_bytes <= 8 * MIB  # what was dropped is free at once
        assert frames.dropped == 200 - 8
        found = [next(stream).view[0] for _ in range(8)]
        assert found == [0, 1, 2, 3, 196, 197, 198, 199]
        assert stream.dropped == 192


def test_one_who_keeps_its_blobs_gets_no_more_until_it_lets_go(frames: Topic, place: Path) -> None:
    async def keep() -> None:
        loop = asyncio.get_running_loop()
        async with (
            await samehost.aio.connect(place / "s") as client,
            client.subscribe("frames") as stream,
            client.subscribe("frames") as other,
        ):
            await loop.run_in_executor(None, until, lambda: frames.subscribers == 2, "both listen")
            await loop.run_in_executor(None, publish_frames, frames, 0, 1)
            kept = [await anext(stream)]
            assert (await anext(other)).view[0] == 0
            for first in range(1, 100):
                await loop.run_in_executor(None, publish_frames, frames, first, first + 1)
                assert (await anext(other)).view[0] == first  # whose count is its own
            kept += [await anext(stream) for _ in range(3)]
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(stream), 0.1)
            assert the_arena().used_bytes <= 9 * MIB
            assert [frame.view[0] for frame in kept] == [0, 1, 2, 3]
            kept.clear()
            assert [(await anext(stream)).view[0] for _ in range(4)] == [96, 97, 98, 99]

    asyncio.run(keep())


def test_one_publication_goes_to_two_subscriptions_of_a_connection(frames: Topic, place: Path) -> None:
    with samehost.connect(place / "s") as client:
        with client.subscribe("frames") as one, client.subscribe("frames") as other:
            until(lambda: frames.subscribers == 2, "both listen")
            for number in range(50):
                publish_frames(frames, number, number + 1)
                assert next(one).view[0] == next(other).view[0] == number
        assert frames.dropped == 0
