"""Streams of the client for asyncio, both ways, against servers that go by a script and against real ones."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import random
import threading
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aio.scripting import Script, answer_all, scripted
from loops import Run, eventually
from support import DEADLINE

import samehost
from samehost import aio, limits
from samehost.aio import Stream
from samehost.codec import MSGPACK
from samehost.errors import (
    CallError,
    ConnectionClosed,
    DeadlineExceeded,
    InvalidResult,
    OutcomeUnknown,
    Unsent,
    UsageError,
    WrongShape,
)
from samehost.kernel.deadline import Deadline
from samehost.protocol import BOTH_STREAMS, ITEMS_FOLLOW, ITEMS_WANTED, events
from samehost.service.call import Call, current_call
from samehost.testing import connected, serving

READ = MSGPACK.decode_to(Any)


class Typed(aio.Client):
    def ticks(self, every: int = 1) -> AsyncIterator[int]:
        raise NotImplementedError

    async def written(self) -> AsyncIterator[int]:
        yield 0

    async def total(self, numbers: AsyncIterable[int], *, scale: int = 1) -> int:
        raise NotImplementedError

    def echo(self, items: AsyncIterator[Any]) -> AsyncIterator[Any]:
        raise NotImplementedError

    async def plain(self) -> int:
        raise NotImplementedError

    @samehost.idempotent
    def again(self) -> AsyncIterator[int]:
        raise NotImplementedError


class Source:
    """An asynchronous generator of numbers that tells what becomes of it."""

    def __init__(self, *numbers: int, error: BaseException | None = None, waits: bool = False) -> None:
        self.given = 0
        self.is_closed = False
        self._numbers = numbers
        self._error = error
        self._waits = waits

    async def items(self) -> AsyncIterator[int]:
        try:
            for number in self._numbers:
                self.given += 1
                yield number
            if self._waits:
                await asyncio.Event().wait()
            if self._error is not None:
                raise self._error
        finally:
            await asyncio.sleep(0)
            self.is_closed = True


async def cancelled(script: Script, call: events.Call) -> None:
    """Wait for the client to cancel a call, and end it."""
    while type(event := await script.next()) is not events.Cancel:
        assert type(event) in (events.Credit, events.Item, events.End)
    assert event.call_id == call.call_id
    script.protocol.send_error(call.call_id, "cancelled", "")
    with contextlib.suppress(ConnectionClosed):
        await script.flush()


async def counting(script: Script) -> None:
    """Answer a call with the items 0, 1 and 2."""
    call = await script.expect(events.Call)
    assert call.flags == ITEMS_WANTED
    await script.stream(call, 0, 1, 2)
    await script.reply(call, None)
    await script.until_end()


# What comes


def test_a_stream_of_an_untyped_client_can_be_iterated_awaited_and_entered(run: Run, place: Path) -> None:
    async def script(script: Script) -> None:
        for _ in range(4):
            call = await script.expect(events.Call, "ticks")
            assert READ(call.arguments) == {"every": 1}
            await script.stream(call, 0, 1, 2)
            await script.reply(call, "done")
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s") as client:
            assert [item async for item in client.ticks(every=1)] == [0, 1, 2]
            stream = await client.ticks(every=1)
            assert isinstance(stream, Stream)
            assert stream.result is None
            assert [item async for item in stream] == [0, 1, 2]
            assert stream.result == "done"
            assert stream.closed
            assert [item async for item in stream] == []
            async with client.ticks(every=1) as stream:
                assert await anext(stream) == 0
            assert [item async for item in client.call("ticks", every=1, timeout=DEADLINE)] == [0, 1, 2]

    run(main())


def test_a_declared_stream_is_there_at_once_and_called_with_its_first_item(run: Run, place: Path) -> None:
    async def script(script: Script) -> None:
        await script.reply(await script.expect(events.Call, "plain"), 5)
        call = await script.expect(events.Call, "ticks")
        assert call.flags == ITEMS_WANTED
        assert READ(call.arguments) in ([3], (3,))
        await script.stream(call, 1, 2)
        await script.reply(call, None)
        await script.stream(await script.expect(events.Call, "written"), 7)
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s", Typed) as client:
            forgotten = client.ticks()
            assert isinstance(forgotten, Stream)
            assert repr(forgotten) == "<Stream of ticks, not begun>"
            del forgotten  # nothing was begun, and nothing warns
            stream = client.ticks(3)
            assert await client.plain() == 5
            assert [item async for item in stream] == [1, 2]
            assert stream.result is None
            async with client.written() as written:
                assert await anext(written) == 7
                assert repr(written) == "<Stream of written, open>"

    run(main())


def test_items_that_come_with_the_answer_in_one_read_are_not_lost(run: Run, place: Path) -> None:
    async def script(script: Script) -> None:
        call = await script.expect(events.Call)
        script.protocol.send_stream(call.call_id)
        for number in range(10):
            script.protocol.send_item(call.call_id, MSGPACK.encode(number))
        await script.reply(call, "end")
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s") as client:
            stream = await client.ticks()
            await asyncio.sleep(0.01)
            assert [item async for item in stream] == list(range(10))
            assert stream.result == "end"

    run(main())


def test_the_window_grows_for_a_reader_who_waits(run: Run, place: Path) -> None:
    sent = 0

    async def script(script: Script) -> None:
        nonlocal sent
        call = await script.expect(events.Call, "many")
        script.protocol.send_stream(call.call_id)
        while script.protocol.items_widened(call.call_id) < limits.WINDOW_ITEMS_MAX - limits.WINDOW_ITEMS:
            while script.protocol.may_send_item(call.call_id):
                script.protocol.send_item(call.call_id, MSGPACK.encode(sent))
                sent += 1
            await script.flush()
            await script.expect(events.Credit)
        await script.reply(call, None)
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s") as client:
            assert [item async for item in await client.many()] == list(range(sent))

    run(main())


def test_a_reader_that_stops_gives_no_credit_and_one_that_reads_does(run: Run, place: Path) -> None:
    count = 500

    async def script(script: Script) -> None:
        call = await script.expect(events.Call, "many")
        script.protocol.send_stream(call.call_id)
        sent = 0
        while sent < count:
            while sent < count and script.protocol.may_send_item(call.call_id):
                script.protocol.send_item(call.call_id, MSGPACK.encode(sent))
                sent += 1
            await script.flush()
            if sent == limits.WINDOW_ITEMS:
                await script.reply(await script.expect(events.Call, "other"), "meanwhile")
            if sent < count:
                await script.expect(events.Credit)
        await script.reply(call, None)
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s") as client:
            stream = await client.many()
            assert await client.other() == "meanwhile"
            assert [item async for item in stream] == list(range(count))

    run(main())


def test_an_error_comes_behind_the_items_before_it_and_once(run: Run, place: Path) -> None:
    async def script(script: Script) -> None:
        call = await script.expect(events.Call)
        await script.stream(call, 0, 1)
        script.protocol.send_error(call.call_id, "kv.gone", "it is gone")
        await script.flush()
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s", Typed) as client:
            stream = client.ticks()
            assert [await anext(stream), await anext(stream)] == [0, 1]
            with pytest.raises(CallError, match="it is gone") as caught:
                await anext(stream)
            assert caught.value.code == "kv.gone"
            assert stream.closed
            assert [item async for item in stream] == []

    run(main())


def test_a_connection_that_is_lost_leaves_the_outcome_unknown(run: Run, place: Path) -> None:
    async def script(script: Script) -> None:
        await script.stream(await script.expect(events.Call), 0, 1)

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s", Typed) as client:
            stream = client.again()
            assert await anext(stream) == 0
            await eventually(lambda: client.peer is None)
            assert await anext(stream) == 1
            with pytest.raises(OutcomeUnknown, match=r"again on .*: the server closed the connection before the"):
                await anext(stream)  # although it is idempotent: items have come

    run(main())


def test_a_stream_that_was_not_begun_is_asked_for_again(run: Run, place: Path) -> None:
    async def end_after_call(script: Script) -> None:
        await script.expect(events.Call, "again")

    async def main() -> None:
        async with scripted(place / "s", end_after_call, counting), aio.connect(place / "s", Typed) as client:
            assert [item async for item in client.again()] == [0, 1, 2]

    run(main())


def test_an_item_of_another_type_closes_the_stream(run: Run, place: Path) -> None:
    async def script(script: Script) -> None:
        call = await script.expect(events.Call)
        await script.stream(call, 0, "one", 2)
        await cancelled(script, call)
        await script.until_end()

    class Strict(aio.Client):
        def ticks(self) -> AsyncIterator[int]:
            raise NotImplementedError

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s", Strict) as client:
            stream = client.ticks()
            assert await anext(stream) == 0
            with pytest.raises(InvalidResult, match=r"an item of ticks is not of its declared type: \$: expected int"):
                await anext(stream)
            assert stream.closed
            assert [item async for item in stream] == []

    run(main())


def test_one_value_where_a_stream_was_wanted(run: Run, place: Path) -> None:
    async def main() -> None:
        async with scripted(place / "s", answer_all), aio.connect(place / "s", Typed) as client:
            with pytest.raises(WrongShape, match=r"^ticks: it answers with a value, and not with a stream$"):
                await anext(client.ticks(3))
            with pytest.raises(WrongShape, match="not with a stream"):
                async for _ in client.call("other", 3):
                    pass
            assert await client.call("other", 3) == [3]

    run(main())


# What the reader does


def test_a_break_cancels_at_both_ends(run: Run, place: Path) -> None:
    async def script(script: Script) -> None:
        for _ in range(3):
            call = await script.expect(events.Call)
            await script.stream(call, 0, 1, 2)
            await cancelled(script, call)
        await script.reply(await script.expect(events.Call, "plain"), 5)
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s", Typed) as client:
            gc.disable()
            try:
                async for item in client.ticks():
                    assert item == 0
                    break
                await eventually(lambda: not client._link._protocol.calls_made)
                async for _ in client.call("ticks"):
                    break
                await eventually(lambda: not client._link._protocol.calls_made)
                async with client.ticks() as stream:
                    await anext(stream)
                assert stream.closed
                await eventually(lambda: not client._link._protocol.calls_made)
            finally:
                gc.enable()
            assert client._link._open_calls == client._link._remotes == {}
            assert await client.plain() == 5

    run(main())


def test_closing_wakes_the_task_that_waits_and_is_idempotent(run: Run, place: Path) -> None:
    async def script(script: Script) -> None:
        call = await script.expect(events.Call)
        await script.stream(call, 0)
        await cancelled(script, call)
        await cancelled(script, await script.expect(events.Call))
        call = await script.expect(events.Call)
        await script.stream(call)
        await cancelled(script, call)
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s", Typed) as client:
            stream = client.ticks()
            assert await anext(stream) == 0
            waiting = asyncio.ensure_future(anext(stream, "nothing"))
            await asyncio.sleep(0)
            stream.close()
            stream.close()
            assert await waiting == "nothing"
            await stream.aclose()
            stream = client.ticks()
            waiting = asyncio.ensure_future(anext(stream, "nothing"))  # the server has not answered yet
            await eventually(lambda: client._link._remotes)
            await stream.aclose()
            assert await waiting == "nothing"
            assert await anext(stream, "nothing") == "nothing"
            assert repr(stream) == "<Stream of ticks, closed>"
            answering = client.ticks()
            waiting = asyncio.ensure_future(anext(answering, "nothing"))
            await asyncio.sleep(0)
            answering._opening.add_done_callback(lambda _: answering.close())  # before the task that waits can look
            await eventually(lambda: not client._link._protocol.calls_made)
            assert await waiting == "nothing"
            never = client.ticks()
            await never.aclose()
            assert [item async for item in never] == []

    run(main())


def test_waiting_for_an_item_may_be_cancelled_and_done_again(run: Run, place: Path) -> None:
    go_on = asyncio.Event()

    async def script(script: Script) -> None:
        call = await script.expect(events.Call)
        await go_on.wait()
        go_on.clear()
        await script.stream(call, 0)
        await go_on.wait()
        await script.items(call, 1)
        await script.reply(call, None)
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s", Typed) as client:
            stream = client.ticks()
            for number in range(2):
                for _ in range(2):
                    with pytest.raises(TimeoutError):
                        await asyncio.wait_for(anext(stream), 0.005)
                go_on.set()
                assert await asyncio.wait_for(anext(stream), DEADLINE) == number
            assert await anext(stream, None) is None

    run(main())


def test_a_second_reader_is_told_so(run: Run, place: Path) -> None:
    async def script(script: Script) -> None:
        call = await script.expect(events.Call)
        await script.stream(call, 0)
        await script.expect(events.Call, "go")
        await script.items(call, 1)
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s", Typed) as client:
            stream = client.ticks()
            assert await anext(stream) == 0
            first = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            with pytest.raises(UsageError, match="another task waits"):
                await anext(stream)
            assert not stream.closed
            going = asyncio.ensure_future(client.call("go"))
            assert await first == 1
            going.cancel()

    run(main())


def test_a_task_that_is_cancelled_takes_its_stream_along(run: Run, place: Path) -> None:
    async def script(script: Script) -> None:
        call = await script.expect(events.Call)
        await script.stream(call, 0)
        await cancelled(script, call)
        await script.until_end()

    async def main() -> None:
        async def read() -> None:
            async for _ in client.ticks():
                got.set()

        got = asyncio.Event()
        async with scripted(place / "s", script), aio.connect(place / "s", Typed) as client:
            reading = asyncio.ensure_future(read())
            await got.wait()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            await eventually(lambda: not client._link._protocol.calls_made)

    run(main())


@pytest.mark.parametrize("is_begun", [False, True])
def test_a_stream_that_is_forgotten_in_another_thread(run: Run, place: Path, is_begun: bool) -> None:
    async def script(script: Script) -> None:
        call = await script.expect(events.Call)
        if is_begun:
            await script.stream(call, 0)
        await cancelled(script, call)
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s", Typed) as client:
            streams = [client.ticks()]
            if is_begun:
                assert await anext(streams[0]) == 0
            else:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(streams[0]), 0.005)
                gc.collect()  # what the error has in its traceback
            thread = threading.Thread(target=streams.clear)
            thread.start()
            await asyncio.to_thread(thread.join)
            await eventually(lambda: not client._link._protocol.calls_made)

    run(main())


def test_a_stream_that_is_forgotten_after_its_loop(place: Path) -> None:
    async def script(script: Script) -> None:
        await script.stream(await script.expect(events.Call), 0)
        await script.until_end()

    async def main() -> tuple[aio.Client, Stream[int], Stream[int]]:
        async with scripted(place / "s", script):
            client = await aio.connect(place / "s", Typed)
            stream = client.ticks()
            assert await anext(stream) == 0
            client.close()
            return client, stream, client.ticks()

    client, *streams = asyncio.run(main())
    del client, streams
    gc.collect()


def test_closing_the_client_ends_its_streams(run: Run, place: Path) -> None:
    async def script(script: Script) -> None:
        await script.stream(await script.expect(events.Call), 0, 1)
        await script.expect(events.Call)
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script):
            client = await aio.connect(place / "s", Typed)
            stream = client.ticks()
            assert await anext(stream) == 0
            opening = asyncio.ensure_future(anext(client.ticks()))
            await eventually(lambda: len(client._link._remotes) == 2 and not client._link._is_flush_due)
            client.close()
            assert await anext(stream) == 1
            with pytest.raises(OutcomeUnknown, match="the client was closed"):
                await anext(stream)
            with pytest.raises(OutcomeUnknown, match="the client was closed"):
                await opening
            with pytest.raises(Unsent, match="the client was closed"):
                await anext(client.ticks())

    run(main())


def test_a_connection_that_is_over_is_forgotten_at_once(run: Run, place: Path) -> None:
    async def main() -> None:
        async with scripted(place / "s", counting), aio.connect(place / "s", Typed) as client:
            assert [item async for item in client.ticks()] == [0, 1, 2]
            link = weakref.ref(client._link)
        del client
        await asyncio.sleep(0)
        assert link() is None

    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()


# Time


def test_the_clients_timeout_is_for_the_answer_alone(run: Run, place: Path) -> None:
    async def script(script: Script) -> None:
        call = await script.expect(events.Call, "ticks")
        assert 0 < call.milliseconds_left <= 50
        await script.stream(call)
        await asyncio.sleep(0.1)
        await script.items(call, "late enough")
        call = await script.expect(events.Call, "silent")
        await cancelled(script, call)
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s", timeout=0.05) as client:
            stream = await client.ticks()
            assert await anext(stream) == "late enough"
            with pytest.raises(DeadlineExceeded, match=r"silent on .*: no answer within 0\.05 s"):
                async for _ in client.silent():
                    pass
            assert not stream.closed

    run(main())


def test_a_timeout_of_the_call_bounds_all_of_its_stream(run: Run, place: Path) -> None:
    async def script(script: Script) -> None:
        call = await script.expect(events.Call, "ticks")
        assert 0 < call.milliseconds_left <= 50
        await script.stream(call, 0, 1)
        await cancelled(script, call)
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s") as client:
            stream = await client.call("ticks", timeout=0.05)
            assert await anext(stream) == 0
            await asyncio.sleep(0.06)
            assert await anext(stream) == 1
            with pytest.raises(DeadlineExceeded, match=r"ticks on .*: no end within 0\.05 s"):
                await anext(stream)

    run(main())


def test_a_stream_within_a_call_has_no_more_time_than_that(run: Run, place: Path) -> None:
    async def script(script: Script) -> None:
        for method in ("ticks", "ticks", "total"):
            call = await script.expect(events.Call, method)
            assert 0 < call.milliseconds_left <= 50
            if method == "ticks":
                await script.stream(call, 0)
            await cancelled(script, call)
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s") as client:
            for timeout in ({}, {"timeout": None}):
                with serving_a_call(0.05):
                    stream = await client.call("ticks", **timeout)
                    assert await anext(stream) == 0
                    with pytest.raises(DeadlineExceeded, match=r"ticks on .*: no end within 0\.0\d+ s"):
                        await anext(stream)
            with serving_a_call(0.05), pytest.raises(DeadlineExceeded, match="no answer within"):
                await client.total(Source(1, waits=True).items())

    run(main())


@contextlib.contextmanager
def serving_a_call(seconds: float) -> Iterator[None]:
    peer = samehost.Peer(os.geteuid(), os.getegid(), (), os.getpid())
    token = current_call.set(Call(peer, "outer", 1, Deadline(seconds), {}, None))
    try:
        yield
    finally:
        current_call.reset(token)


# What is sent


async def take_all(script: Script, call: events.Call) -> list[Any]:
    """All items that the client sends with a call."""
    found = []
    while type(event := await script.next()) is not events.End:
        assert type(event) is events.Item
        found.append(READ(event.value))
        script.protocol.took_item(call.call_id, len(event.value))
        await script.flush()
    return found


async def totalling(script: Script) -> None:
    """Add up what comes with each call."""
    while (call := await script.next()) is not None:
        assert type(call) is events.Call
        assert call.flags & ITEMS_FOLLOW
        await script.reply(call, [READ(call.arguments), sum(await take_all(script, call))])


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_all_kinds_of_iterables_are_sent(run: Run, place: Path, count: int) -> None:
    async def asynchronous() -> AsyncIterator[int]:
        for number in range(count):
            await asyncio.sleep(0)
            yield number

    async def main() -> None:
        class Totals(aio.Client):
            async def total(self, numbers: AsyncIterable[int], scale: int = 1) -> Any:
                raise NotImplementedError

        expected = sum(range(count))
        async with scripted(place / "s", totalling), aio.connect(place / "s") as client:
            assert await client.total(asynchronous()) == [{}, expected]
            assert await client.total(iter(range(count)), 5) == [[5], expected]
            assert await client.call("total", numbers=iter(range(count)), scale=3) == [{"scale": 3}, expected]
        async with scripted(place / "t", totalling), aio.connect(place / "t", Totals) as client:
            for numbers in (asynchronous(), range(count), list(range(count)), set(range(count))):
                assert await client.total(numbers, scale=2) == [{"scale": 2}, expected]
            assert await client.total(range(count), 7) == [[7], expected]
            assert await client.call("total", numbers=range(count)) == [{}, expected]

    run(main())


def test_what_cannot_be_sent_is_refused(run: Run, place: Path) -> None:
    async def main() -> None:
        async with scripted(place / "s", answer_all), aio.connect(place / "s", Typed) as client:
            with pytest.raises(UsageError, match=r"total: 5 is no stream of items to send: 'int' object is not iter"):
                await client.total(5)
            with pytest.raises(UsageError, match="numbers is missing"):
                await client.total(scale=3)
            with pytest.raises(UsageError, match="2 arguments are iterators"):
                await client.call("other", iter([]), iter([]))
            assert await client.call("other", 1) == [1]

    run(main())


def test_items_wait_for_credit_and_stop_at_an_answer(run: Run, place: Path) -> None:
    async def script(script: Script) -> None:
        call = await script.expect(events.Call)
        for _ in range(limits.WINDOW_ITEMS):
            await script.expect(events.Item)
        await script.reply(await script.expect(events.Call, "other"), "meanwhile")
        await script.reply(call, "enough")
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s") as client:
            source = Source(*range(1000))
            calling = asyncio.ensure_future(client.total(source.items()))
            await eventually(lambda: source.given > limits.WINDOW_ITEMS)
            assert await client.other() == "meanwhile"
            assert await calling == "enough"
            assert source.given == limits.WINDOW_ITEMS + 1
            assert source.is_closed

    run(main())


def test_items_wait_for_a_server_that_does_not_read(run: Run, place: Path) -> None:
    count, uploads = 10, 20  # more than a window for each, and far more than one for all of them
    read = asyncio.Event()

    async def script(script: Script) -> None:
        await script.reply(await script.expect(events.Call, "first"), None)
        await read.wait()
        calls = {}
        while len(calls) < uploads or any(calls.values()):
            event = await script.next()
            if type(event) is events.Call:
                calls[event.call_id] = count
            elif type(event) is events.Item:
                calls[event.call_id] -= 1
                script.protocol.took_item(event.call_id, len(event.value))
                await script.flush()
        for call_id in calls:
            script.protocol.send_reply(call_id, MSGPACK.encode("all"))
        await script.flush()
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s") as client:
            await client.first()
            calling = asyncio.gather(*(client.total(iter(["x" * 60_000] * count)) for _ in range(uploads)))
            await eventually(lambda: client._link._wire.pending_bytes)
            await asyncio.sleep(0.01)
            assert client._link._wire.pending_bytes < 200_000
            read.set()
            assert await calling == ["all"] * uploads

    run(main())


def test_an_error_of_the_source_cancels_the_call_and_is_raised(run: Run, place: Path) -> None:
    async def script(script: Script) -> None:
        for _ in range(3):
            await cancelled(script, await script.expect(events.Call))
        call = await script.expect(events.Call, "echo")
        await script.stream(call, "first")
        await cancelled(script, call)
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s", Typed) as client:
            source = Source(1, 2, error=KeyError("missing"))
            with pytest.raises(KeyError, match="missing"):
                await client.total(source.items())
            assert source.is_closed
            with pytest.raises(UsageError, match="an item cannot travel"):
                await client.total([1, object()])
            with pytest.raises(UsageError, match="total: the items to send were cancelled"):
                await client.total(Source(1, error=asyncio.CancelledError()).items())
            got: asyncio.Event = asyncio.Event()

            async def failing() -> AsyncIterator[int]:
                yield 1
                await got.wait()
                raise KeyError("late")

            stream = client.echo(failing())
            assert await anext(stream) == "first"
            got.set()
            with pytest.raises(KeyError, match="late"):
                await anext(stream)

    run(main())


def test_both_ways_at_once(run: Run, place: Path) -> None:
    async def script(script: Script) -> None:
        call = await script.expect(events.Call, "echo")
        assert call.flags == BOTH_STREAMS
        await script.stream(call)
        while type(event := await script.next()) is events.Item:
            await script.items(call, READ(event.value))
            script.protocol.took_item(call.call_id, len(event.value))
        assert type(event) is events.End
        await script.reply(call, None)
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s", Typed) as client:
            asked: asyncio.Queue[int | None] = asyncio.Queue()

            async def items() -> AsyncIterator[int]:
                while (item := await asked.get()) is not None:
                    yield item

            async with client.echo(items()) as stream:
                for number in range(10):
                    asked.put_nowait(number)
                    assert await anext(stream) == number
                asked.put_nowait(None)
                assert await anext(stream, "end") == "end"
                assert stream.closed

    run(main())


@pytest.mark.parametrize("how", ["break", "aclose", "cancel", "close client", "lose"])
def test_nothing_goes_on_sending_when_the_call_is_over(run: Run, place: Path, how: str) -> None:
    async def script(script: Script) -> None:
        call = await script.expect(events.Call)
        await script.stream(call, 0)
        if how != "lose":
            await script.until_end()

    async def main() -> None:
        source = Source(1, 2, waits=True)

        async def read() -> None:
            async for _ in client.echo(source.items()):
                if how == "break":
                    break
                got.set()

        got = asyncio.Event()
        async with scripted(place / "s", script), aio.connect(place / "s", Typed) as client:
            if how == "aclose":
                stream = client.echo(source.items())
                assert await anext(stream) == 0
                await eventually(lambda: source.given == 2)
                await stream.aclose()
                assert source.is_closed
            else:
                reading = asyncio.ensure_future(read())
                if how != "break":
                    await got.wait()
                if how == "cancel":
                    reading.cancel()
                elif how == "close client":
                    client.close()
                await asyncio.wait([reading])
                assert reading.cancelled() or type(reading.exception()) in (type(None), OutcomeUnknown)
            if source.given:
                await eventually(lambda: source.is_closed)

    run(main())


def test_a_caller_that_is_cancelled_waits_for_its_source_to_close(run: Run, place: Path) -> None:
    async def script(script: Script) -> None:
        await cancelled(script, await script.expect(events.Call))
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s", Typed) as client:
            source = Source(1, waits=True)
            calling = asyncio.ensure_future(client.total(source.items()))
            await eventually(lambda: source.given)
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
            assert source.is_closed

    run(main())


def test_an_upload_is_sent_again_only_if_nothing_was_taken_from_its_source(run: Run, place: Path) -> None:
    async def leave(script: Script) -> None:
        await script.flush()

    async def end_after_item(script: Script) -> None:
        await script.expect(events.Call)
        await script.expect(events.Item)

    class Again(aio.Client):
        @samehost.idempotent
        async def total(self, numbers: AsyncIterable[int]) -> Any:
            raise NotImplementedError

    async def main() -> None:
        scripts = (leave, end_after_item, totalling)
        async with scripted(place / "s", *scripts), aio.connect(place / "s", Again, wait=DEADLINE) as client:
            await eventually(lambda: client.peer is None)
            source = Source(1, waits=True)
            with pytest.raises(OutcomeUnknown):
                await client.total(source.items())
            assert source.given == 1
            assert source.is_closed
            assert await client.total([1, 2]) == [{}, 3]  # by the server that was there for another try

    run(main())


def test_the_clients_timeout_counts_from_the_last_item_on(run: Run, place: Path) -> None:
    async def script(script: Script) -> None:
        call = await script.expect(events.Call)
        assert call.milliseconds_left == 0
        assert await take_all(script, call) == [1, 2]
        await cancelled(script, call)
        call = await script.expect(events.Call)
        assert 0 < call.milliseconds_left <= 50
        await cancelled(script, call)
        await script.until_end()

    async def slowly() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(0.1)
        yield 2

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s", timeout=0.05) as client:
            with pytest.raises(DeadlineExceeded, match=r"total on .*: no answer within 0\.05 s"):
                await client.total(slowly())
            with pytest.raises(DeadlineExceeded):
                await client.call("total", slowly(), timeout=0.05)

    run(main())


# Progress and topics


def test_progress_is_reported_while_the_answer_is_waited_for(run: Run, place: Path) -> None:
    async def script(script: Script) -> None:
        call = await script.expect(events.Call, "pack")
        await script.note(call, done=1, total=4)
        await script.note(call, message="almost", unknown=5)
        script.protocol.send_note(call.call_id, b"\x05")  # which says nothing that is known
        await script.reply(call, "packed")
        call = await script.expect(events.Call, "unpack")
        await script.note(call, done=1)
        await cancelled(script, call)
        call = await script.expect(events.Call, "ticks")
        await script.note(call, done=1)
        await script.stream(call, 0)
        await script.expect(events.Call, "go")
        await script.note(call, done=2)
        await script.items(call, 1)
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s") as client:
            heard: list[Any] = []
            assert await client.call("pack", progress=heard.append) == "packed"
            assert [(one.done, one.total, one.message) for one in heard] == [(1, 4, ""), (None, None, "almost")]
            with pytest.raises(ZeroDivisionError):
                await client.call("unpack", progress=lambda progress: progress.done / 0)
            stream = await client.ticks()
            assert stream.progress.done == 1
            assert await anext(stream) == 0
            going = asyncio.ensure_future(client.go())
            assert await anext(stream) == 1
            assert stream.progress.done == 2
            going.cancel()

    run(main())


def test_a_subscription_says_when_it_began_and_what_it_missed(run: Run, place: Path) -> None:
    async def script(script: Script) -> None:
        call = await script.expect(events.Call, "ticks")
        assert call.flags == ITEMS_WANTED
        assert READ(call.arguments) == {}
        await script.stream(call)
        await script.expect(events.Call, "publish")
        await script.items(call, 1)
        await script.note(call, dropped=7)
        await script.items(call, 9)
        await script.items(call, "text")
        await script.until_end()

    async def main() -> None:
        async with scripted(place / "s", script), aio.connect(place / "s") as client:
            async with client.subscribe("ticks", int) as ticks:
                assert ticks.dropped == 0
                publishing = asyncio.ensure_future(client.publish())
                assert [await anext(ticks), await anext(ticks)] == [1, 9]
                assert ticks.dropped == 7
                with pytest.raises(InvalidResult):
                    await anext(ticks)
            publishing.cancel()

    run(main())


# Against services


def new_service(left: list[str]) -> samehost.Service:
    service = samehost.Service("streams")
    news = service.topic("news", str)

    @service.method
    async def ticks(count: int) -> AsyncIterator[int]:
        try:
            for number in range(count):
                yield number
        finally:
            left.append("ticks")

    @service.method
    def squares(numbers: Iterator[int]) -> Iterator[int]:
        for number in numbers:
            yield number**2

    @service.method
    async def total(numbers: AsyncIterator[int], *, scale: int = 1) -> int:
        return scale * sum([number async for number in numbers])

    @service.method
    async def pack(call: samehost.Call) -> str:
        call.progress(1, 2, "half")
        await asyncio.sleep(0)
        return "packed"

    @service.method
    async def publish(text: str) -> None:
        news.publish(text)

    return service


class Streams(aio.Client):
    def ticks(self, count: int) -> AsyncIterator[int]:
        raise NotImplementedError

    def squares(self, numbers: AsyncIterable[int]) -> AsyncIterator[int]:
        raise NotImplementedError

    async def total(self, numbers: AsyncIterable[int], *, scale: int = 1) -> int:
        raise NotImplementedError

    async def publish(self, text: str) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("interface", [aio.client.AnyClient, Streams])
@pytest.mark.parametrize("has_socket", [True, False])
def test_streams_of_a_service(run: Run, interface: type[aio.client.AnyClient], has_socket: bool) -> None:
    left: list[str] = []

    async def use(client: aio.client.AnyClient) -> None:
        assert [item async for item in client.ticks(500)] == list(range(500))
        left.clear()
        async for item in client.ticks(10**9):
            if item == 200:
                break
        await eventually(lambda: left == ["ticks"])
        assert await client.total(iter(range(500)), scale=2) == sum(range(500)) * 2
        assert [item async for item in client.squares(Source(*range(300)).items())] == [n**2 for n in range(300)]
        heard: list[Any] = []
        assert await client.call("pack", progress=heard.append) == "packed"
        assert [(one.done, one.total, one.message) for one in heard] == [(1, 2, "half")]
        async with client.subscribe("news", str) as news:
            await client.publish("first")
            assert await anext(news) == "first"
        with pytest.raises(WrongShape):
            await anext(client.subscribe("pack"))
        await eventually(lambda: client._link._protocol.is_idle)

    async def main() -> None:
        async with connected(service, interface) as client:
            await use(client)

    async def main_with_socket(address: str) -> None:
        async with aio.connect(address, interface) as client:
            await use(client)

    service = new_service(left)
    if has_socket:
        with serving(service) as address:
            run(main_with_socket(address))
    else:
        run(main())


def test_streams_that_are_opened_and_left_at_random_leave_nothing(run: Run) -> None:
    """By some tasks at a time, both ways, to the end, broken off and cancelled."""

    async def many(client: aio.client.AnyClient, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(40):
            await use_at_random(client, chance)

    async def main(address: str) -> None:
        async with aio.connect(address) as client:
            await asyncio.gather(*(many(client, seed) for seed in range(5)))
            link = client._link
            await eventually(lambda: link._protocol.is_idle)
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert link._remotes == link._answers == link._open_calls == link._protocol._streams == {}

    with serving(new_service([])) as address:
        run(main(address))


async def use_at_random(client: aio.client.AnyClient, chance: random.Random) -> None:
    count = chance.choice([0, 1, 5, 100])
    kind = chance.randrange(4)
    if kind == 0:
        assert [item async for item in client.ticks(count)] == list(range(count))
    elif kind == 1:
        async for item in client.squares(endless()):
            if item >= count:
                break
    else:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(chance.random() * 0.005):
                if kind == 2:
                    await client.total(endless())
                async for _ in client.ticks(10**9):
                    pass


async def endless() -> AsyncIterator[int]:
    for number in itertools.count():
        if number % 5 == 0:
            await asyncio.sleep(0)
        yield number
