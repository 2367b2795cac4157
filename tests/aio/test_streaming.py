"""Methods that stream, and take streams: in a task, on the loop and in threads, in both formats and both loops."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from loops import LOOPS
from stream_clients import BOTH_STREAMS, ITEMS_FOLLOW, ITEMS_WANTED, Caller, serving_in
from support import DEADLINE, until

import samehost
from samehost import limits
from samehost.protocol import events


class Seen:
    """What methods have noted, for tests in another thread."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.made = 0
        self.go = threading.Event()

    def wait_for(self, line: str) -> None:
        until(lambda: line in self.lines, f"{line} in {self.lines}", 3.0)


def new_service(seen: Seen) -> samehost.Service:  # noqa: C901 - a list of methods
    service = samehost.Service("streams")

    @service.method
    async def count(to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number

    @service.method
    async def slowly(to: int) -> AsyncIterator[int]:
        for number in range(to):
            await asyncio.sleep(0.001)
            yield number

    @service.method(name="count_in_thread")
    def count_in_thread(to: int) -> Iterator[int]:
        yield from range(to)

    @service.method(inline=True)
    def count_inline(to: int) -> Iterator[int]:
        yield from range(to)

    @service.method
    async def given(to: int) -> AsyncIterator[int]:
        await asyncio.sleep(0)
        return count(to)

    @service.method
    def given_in_thread(to: int) -> Iterator[int]:
        return iter(range(to))

    @service.method
    async def for_ever() -> AsyncIterator[int]:
        try:
            while True:
                seen.made += 1
                yield seen.made
        finally:
            seen.lines.append("closing")
            await asyncio.sleep(0.005)
            seen.lines.append("closed")

    @service.method
    def for_ever_in_thread() -> Iterator[int]:
        try:
            while True:
                seen.made += 1
                yield seen.made
        finally:
            seen.lines.append("closed")

    @service.method(inline=True)
    def for_ever_inline() -> Iterator[int]:
        try:
            while True:
                seen.made += 1
                yield seen.made
        finally:
            seen.lines.append("closed")

    @service.method
    async def waits() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.sleep(DEADLINE)
        finally:
            seen.lines.append("closed")

    @service.method
    def sums(numbers: int) -> Generator[int, None, str]:
        total = 0
        for number in range(numbers):
            total += number
            yield number
        return f"{total} in all"

    @service.method(inline=True)
    def sums_inline(numbers: int) -> Generator[int, None, str]:
        return (yield from sums(numbers))

    @service.method
    async def total(items: AsyncIterator[int], start: int = 0) -> int:
        async for item in items:
            start += item
        seen.lines.append("totalled")
        return start

    @service.method
    def total_in_thread(items: Iterator[int], start: int = 0) -> int:
        seen.lines.append("began")
        try:
            return sum(items, start)
        except samehost.errors.Cancelled:
            seen.lines.append("cancelled")
            raise

    @service.method
    async def double(items: AsyncIterator[int]) -> AsyncIterator[int]:
        async for item in items:
            yield 2 * item

    @service.method
    def double_in_thread(items: Iterator[int]) -> Iterator[int]:
        for item in items:
            yield 2 * item

    @service.method
    async def ignores(items: AsyncIterator[int]) -> str:
        return "ignored"

    @service.method
    async def holds(items: AsyncIterator[bytes]) -> str:
        await asyncio.to_thread(seen.go.wait, DEADLINE)
        return "held"

    @service.method
    async def fails(after: int) -> AsyncIterator[int]:
        for number in range(after):
            yield number
        raise samehost.ServiceError("no more", code="streams.no_more")

    @service.method
    def fails_in_thread(after: int) -> Iterator[int]:
        yield from range(after)
        raise samehost.ServiceError("no more", code="streams.no_more")

    @service.method
    async def unsendable() -> AsyncIterator[Any]:
        try:
            yield 1
            yield object()
            yield 2
        finally:
            seen.lines.append("closed")

    @service.method
    def unsendable_in_thread() -> Iterator[Any]:
        try:
            yield 1
            yield object()
            yield 2
        finally:
            seen.lines.append("closed")

    @service.method
    async def large(size: int) -> AsyncIterator[bytes]:
        try:
            yield b"x"
            yield bytes(size)
        finally:
            seen.lines.append("closed")

    @service.method
    def large_in_thread(size: int, number: int = 1) -> Iterator[bytes]:
        try:
            for _ in range(number):
                seen.made += 1
                yield bytes(size)
        finally:
            seen.lines.append("closed")

    @service.method(timeout=0.2)
    async def bounded() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0.02)
        finally:
            seen.lines.append("closed")

    @service.method
    async def ask() -> int:
        return 5

    @service.method
    def ask_thread() -> int:
        return 6

    @service.method
    async def until_drained(call: samehost.Call) -> AsyncIterator[str]:
        yield "first"
        while not call.is_draining:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        yield "last"

    return service


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def path(seen: Seen, loop: str, place: Path) -> Iterator[Path]:
    with serving_in(loop, new_service(seen), place / "s", before_end=lambda: assert_nothing_runs(place / "s")):
        yield place / "s"


def assert_nothing_runs(path: Path) -> None:
    """Wait until only the asker is left, and no memory is held for anybody."""

    def runs() -> bool:
        with Caller(path) as caller:
            return any(found["in_flight"] for found in caller.stats()["methods"].values())

    until(lambda: not runs(), "no call is in progress")


in_both_formats = pytest.mark.parametrize("kind", ["frames", "lines"])
KINDS = ["count", "slowly", "count_in_thread", "count_inline", "given", "given_in_thread"]
ENDLESS = ["for_ever", "for_ever_in_thread", "for_ever_inline"]


@in_both_formats
@pytest.mark.parametrize("method", KINDS)
def test_all_items_come_in_order_and_then_the_end(path: Path, kind: str, method: str) -> None:
    with Caller(path, kind) as caller:
        for number in (0, 1, 63, 64, 65, 1000):
            assert caller.all(method, {"to": number}) == (list(range(number)), None)


@in_both_formats
@pytest.mark.parametrize("method", ["sums", "sums_inline"])
def test_what_a_generator_returns_is_the_reply(path: Path, kind: str, method: str) -> None:
    with Caller(path, kind) as caller:
        assert caller.all(method, {"numbers": 200}) == (list(range(200)), f"{sum(range(200))} in all")


@in_both_formats
@pytest.mark.parametrize("method", ["count", "count_inline"])
def test_a_stream_that_never_waits_is_one_piece(path: Path, kind: str, method: str) -> None:
    with Caller(path, kind) as caller:
        caller.value_of("ask")  # which brings the preface
        caller.call(method, {"to": 3})
        whole = caller.socket.recv(1 << 16)
        for what in (b"\x06", b"\x07", b"\x03") if kind == "frames" else (b"$/stream", b"$/item", b"result"):
            assert what in whole


@in_both_formats
@pytest.mark.parametrize("method", ENDLESS)
def test_a_reader_that_stops_holds_up_its_own_stream_only(path: Path, kind: str, method: str, seen: Seen) -> None:
    with Caller(path, kind) as caller:
        call_id = caller.call(method)
        caller.expect(events.Stream)
        assert caller.items_until_silent() == list(range(1, limits.WINDOW_ITEMS + 1))
        assert seen.made <= limits.WINDOW_ITEMS + 2  # and no further than one item ahead
        assert caller.value_of("ask") == 5
        assert caller.value_of("ask_thread") == 6
        assert caller.all("count", {"to": 100}) == (list(range(100)), None)
        caller.credit(call_id, 10, 1000)
        assert caller.items_until_silent() == list(range(65, 75))
        caller.cancel(call_id)
        assert caller.event() == events.Freed(call_id)
        assert seen.lines[-1] == "closed"


@in_both_formats
@pytest.mark.parametrize("method", ENDLESS)
@pytest.mark.parametrize("how", ["cancel", "close", "end"])
def test_a_generator_is_closed_at_once_when_its_reader_leaves(
    path: Path, kind: str, method: str, how: str, seen: Seen
) -> None:
    with Caller(path, kind) as caller:
        call_id = caller.call(method)
        caller.expect(events.Stream)
        caller.take(500)
        began = time.monotonic()
        if how == "cancel":
            caller.cancel(call_id)
        elif how == "close":
            caller.close()
        else:
            caller.socket.shutdown(1)
            left = 200_000  # and it goes on without credit, which nobody can give any more
            while left > 0:
                left -= len(caller.socket.recv(1 << 16))
            caller.close()
        seen.wait_for("closed")
        assert time.monotonic() - began < 1


@in_both_formats
def test_a_generator_that_waits_for_something_else_is_closed_as_well(path: Path, kind: str, seen: Seen) -> None:
    with Caller(path, kind) as caller:
        caller.call("waits")
        caller.expect(events.Stream)
        caller.take(1)
        began = time.monotonic()
        caller.close()
        seen.wait_for("closed")
        assert time.monotonic() - began < 1


@pytest.mark.parametrize("method", ENDLESS)
def test_endless_streams_with_endless_credit_leave_room_for_others(path: Path, method: str) -> None:
    with Caller(path) as greedy, Caller(path) as other:
        call_id = greedy.call(method)
        greedy.credit(call_id, 2**31 - 65, 2**30)
        done = threading.Event()

        def read() -> None:
            while not done.is_set():
                greedy.socket.recv(1 << 20)

        thread = threading.Thread(target=read)
        thread.start()
        try:
            began = time.monotonic()
            for _ in range(20):
                assert other.value_of("ask") == 5
            assert time.monotonic() - began < 2
        finally:
            done.set()
            thread.join()


@in_both_formats
def test_many_streams_of_one_connection_get_their_turns(path: Path, kind: str) -> None:
    with Caller(path, kind) as caller:
        ids = [caller.call(method, {"to": 400}) for method in KINDS * 3]
        found: dict[int, list[int]] = {call_id: [] for call_id in ids}
        first_end = None
        while ids:
            event = caller.event()
            if type(event) is events.Item:
                found[event.call_id].append(caller.value(event))
                caller.protocol.took_item(event.call_id, len(event.value))
                caller.flush()
            elif type(event) is events.Reply:
                ids.remove(event.call_id)
                first_end = first_end or [len(items) for items in found.values()]
        assert all(items == list(range(400)) for items in found.values())


@in_both_formats
@pytest.mark.parametrize("method", ["total", "total_in_thread"])
def test_items_that_come_in_reach_the_method(path: Path, kind: str, method: str) -> None:
    with Caller(path, kind) as caller:
        for number in (0, 1, 64, 65, 1000):
            call_id = caller.call(method, {"start": 7}, ITEMS_FOLLOW)
            caller.item(call_id, *range(number))
            caller.end(call_id)
            assert caller.rest(call_id) == ([], 7 + sum(range(number)))


@in_both_formats
@pytest.mark.parametrize("method", ["double", "double_in_thread"])
def test_both_directions_at_once(path: Path, kind: str, method: str) -> None:
    with Caller(path, kind) as caller:
        call_id = caller.call(method, {}, BOTH_STREAMS)
        caller.expect(events.Stream)
        for number in range(200):
            caller.item(call_id, number)
            assert caller.take(1) == [2 * number]
        caller.end(call_id)
        assert caller.rest(call_id) == ([], None)


@in_both_formats
@pytest.mark.parametrize("method", ["total", "total_in_thread"])
def test_no_more_comes_in_than_is_read(path: Path, kind: str, method: str, seen: Seen) -> None:
    with Caller(path, kind) as caller:
        call_id = caller.call("holds", {}, ITEMS_FOLLOW)
        caller.item(call_id, *[b"x"] * limits.WINDOW_ITEMS)
        assert caller.value_of("ask") == 5
        assert not caller.protocol.may_send_item(call_id)
        seen.go.set()
        assert caller.rest(call_id) == ([], "held")


@in_both_formats
@pytest.mark.parametrize("method", ["total", "total_in_thread"])
def test_more_may_come_at_a_time_where_it_is_read_as_fast_as_it_comes(path: Path, kind: str, method: str) -> None:
    with Caller(path, kind) as caller:
        call_id = caller.call(method, {}, ITEMS_FOLLOW)
        count = 0
        while caller.protocol.items_widened(call_id) < 3 * limits.WINDOW_ITEMS:
            room = caller.protocol.items_left(call_id)
            caller.item(call_id, *[1] * (room or 1))  # which waits for credit if it has to
            count += room or 1
        caller.end(call_id)
        assert caller.rest(call_id) == ([], count)


@in_both_formats
@pytest.mark.parametrize("method", ["total", "total_in_thread", "double", "double_in_thread"])
def test_an_item_of_the_wrong_type_ends_the_call(path: Path, kind: str, method: str) -> None:
    with Caller(path, kind) as caller:
        flags = BOTH_STREAMS if "double" in method else ITEMS_FOLLOW
        call_id = caller.call(method, {}, flags)
        caller.item(call_id, 1, 2, 3, "four")
        _, failure = caller.rest(call_id)
        assert (failure.code, failure.message) == ("invalid_arguments", "$.items[3]: expected int, got str")
        assert caller.value_of("ask") == 5


@in_both_formats
@pytest.mark.parametrize("method", ["total", "total_in_thread"])
@pytest.mark.parametrize("how", ["cancel", "deadline", "close", "half-close"])
def test_a_method_that_waits_for_items_is_woken(path: Path, kind: str, method: str, how: str, seen: Seen) -> None:
    with Caller(path, kind) as caller:
        call_id = caller.call(method, {}, ITEMS_FOLLOW, 200 if how == "deadline" else 0)
        caller.item(call_id, 1)
        if method == "total_in_thread":
            seen.wait_for("began")
        if how == "cancel":
            caller.cancel(call_id)
            assert caller.event() == events.Freed(call_id)
        elif how == "deadline":
            assert caller.rest(call_id)[1].code == "deadline_exceeded"
        elif how == "half-close":
            caller.socket.shutdown(1)
            assert caller.rest(call_id)[1].code == "cancelled"
        else:
            caller.close()
        if method == "total_in_thread":
            seen.wait_for("cancelled")


@in_both_formats
@pytest.mark.parametrize(
    ("method", "flags", "message"),
    [
        ("ask", ITEMS_FOLLOW, "ask takes no stream"),
        ("ask", BOTH_STREAMS, "ask takes no stream"),
        ("count", 0, "count gives a stream, and takes none"),
        ("count", BOTH_STREAMS, "count gives a stream, and takes none"),
        ("total", 0, "total takes a stream, its parameter items: pass an iterator"),
        ("total", ITEMS_WANTED, "total takes a stream, its parameter items: pass an iterator"),
        ("double", ITEMS_FOLLOW, "double takes a stream, its parameter items, and gives one: pass an iterator"),
        ("double", ITEMS_WANTED, "double takes a stream, its parameter items, and gives one: pass an iterator"),
    ],
)
def test_a_call_of_another_shape_is_refused(path: Path, kind: str, method: str, flags: int, message: str) -> None:
    with Caller(path, kind) as caller:
        call_id = caller.call(method, {"to": 1} if method == "count" else {}, flags)
        if flags & ITEMS_FOLLOW:
            caller.protocol.send_item(call_id, caller.codec.encode(1))  # it crosses the answer
            caller.flush()
        _, failure = caller.rest(call_id)
        assert failure.code == "wrong_shape"
        assert failure.message.startswith(message)
        assert caller.value_of("ask") == 5


@in_both_formats
def test_a_plain_method_answers_a_call_that_wants_items(path: Path, kind: str) -> None:
    with Caller(path, kind) as caller:
        assert caller.rest(caller.call("ask", {}, ITEMS_WANTED)) == ([], 5)
        call_id = caller.call("total", {}, BOTH_STREAMS)
        caller.end(call_id)
        assert caller.rest(call_id) == ([], 0)


@in_both_formats
def test_a_method_that_answers_before_the_stream_is_complete(path: Path, kind: str) -> None:
    with Caller(path, kind) as caller:
        call_id = caller.call("ignores", {}, ITEMS_FOLLOW)
        caller.protocol.send_item(call_id, caller.codec.encode(1))
        caller.flush()
        assert caller.rest(call_id) == ([], "ignored")
        assert caller.value_of("ask") == 5


@in_both_formats
@pytest.mark.parametrize("method", ["fails", "fails_in_thread"])
def test_an_exception_comes_behind_the_items(path: Path, kind: str, method: str) -> None:
    with Caller(path, kind) as caller:
        for number in (0, 1, 200):
            items, failure = caller.all(method, {"after": number})
            assert (items, failure.code) == (list(range(number)), "streams.no_more")


@in_both_formats
@pytest.mark.parametrize("method", ["unsendable", "unsendable_in_thread"])
def test_an_item_that_cannot_travel_ends_the_call(path: Path, kind: str, method: str, seen: Seen) -> None:
    with Caller(path, kind) as caller:
        items, failure = caller.all(method)
        assert failure.code == "internal"
        assert failure.error_id
        assert items in ([1], [])
        assert seen.lines[-1:] == ["closed"]


@in_both_formats
@pytest.mark.parametrize("method", ["large", "large_in_thread"])
def test_an_item_that_is_too_long_ends_the_call(path: Path, kind: str, method: str, seen: Seen) -> None:
    with Caller(path, kind) as caller:
        _, failure = caller.all(method, {"size": limits.PAYLOAD_BYTES_MAX})
        assert failure.code == "too_large"
        seen.wait_for("closed")
        assert caller.value_of("ask") == 5


def test_a_thread_makes_no_more_than_some_bytes_ahead(path: Path, seen: Seen) -> None:
    with Caller(path) as caller:
        call_id = caller.call("large_in_thread", {"size": 50_000, "number": 1000})
        caller.expect(events.Stream)
        assert len(caller.items_until_silent()) == 6  # 5 of them are less than the window of bytes
        assert seen.made <= 8
        caller.cancel(call_id)
        caller.event()


@in_both_formats
def test_the_deadline_of_the_caller_is_for_the_answer_alone(path: Path, kind: str) -> None:
    with Caller(path, kind) as caller:
        call_id = caller.call("slowly", {"to": 300}, ITEMS_WANTED, 100)
        assert caller.rest(call_id) == (list(range(300)), None)


@in_both_formats
def test_the_methods_own_timeout_bounds_all_of_its_stream(path: Path, kind: str, seen: Seen) -> None:
    with Caller(path, kind) as caller:
        began = time.monotonic()
        items, failure = caller.rest(caller.call("bounded", {}, ITEMS_WANTED, 50))
        assert 0.15 < time.monotonic() - began < 1
        assert failure.code == "deadline_exceeded"
        assert 3 < len(items) < 12
        assert seen.lines == ["closed"]


@in_both_formats
def test_a_stream_may_look_whether_the_server_drains(loop: str, place: Path, kind: str, seen: Seen) -> None:
    with serving_in(loop, new_service(seen), place / "s") as stop, Caller(place / "s", kind) as caller:
        call_id = caller.call("until_drained")
        caller.expect(events.Stream)
        assert caller.take(1) == ["first"]
        stop()
        told = {type(caller.event()), type(caller.event())}  # in either order
        assert told == {events.GoingAway, events.Item}
        assert caller.rest(call_id) == ([], None)


@in_both_formats
@pytest.mark.parametrize("method", ENDLESS)
def test_what_streams_on_at_the_end_of_the_drain_time_is_cut_off(
    loop: str, place: Path, kind: str, method: str, seen: Seen
) -> None:
    with (
        serving_in(loop, new_service(seen), place / "s", drain=0.1) as stop,
        Caller(place / "s", kind) as caller,
    ):
        call_id = caller.call(method)
        caller.expect(events.Stream)
        caller.take(64, credit=False)
        stop()
        assert type(caller.event()) is events.GoingAway
        assert caller.rest(call_id)[1].code == "unavailable"
        seen.wait_for("closed")


@in_both_formats
@pytest.mark.parametrize("method", [*ENDLESS, "waits", "holds"])
def test_a_stream_that_its_caller_cancels_is_no_error(path: Path, kind: str, method: str, seen: Seen) -> None:
    with Caller(path, kind) as caller:
        call_id = caller.call(method, {}, ITEMS_FOLLOW if method == "holds" else ITEMS_WANTED)
        if method != "holds":
            caller.expect(events.Stream)
            caller.take(1)
        caller.cancel(call_id)
        seen.go.set()
        while type(event := caller.event()) is not events.Freed:
            assert type(event) is events.Item
        _, failure = caller.all("fails", {"after": 1})
        assert failure.code == "streams.no_more"
        figures = caller.stats()["methods"]
        assert (figures[method]["calls"], figures[method]["errors"]) == (1, 0)
        assert figures["fails"]["errors"] == 1
