"""The items of streams in a loop, without a connection: one reader, one sender, and whoever ends them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from protocol.joined import EMPTY, flow, greeted

from samehost import limits, protocol
from samehost.aio.items import Batches, Carrier, Incoming, send_items
from samehost.errors import UsageError
from samehost.kernel.attaching import may_refer
from samehost.protocol import ITEMS_FOLLOW, events


class Room(Carrier):
    """A connection that takes items as it is told."""

    def __init__(self, room: int = 0) -> None:
        self.room = room
        self.sent: list[Any] = []
        self.dropped: list[Any] = []
        self.taken: list[tuple[int, int, bool]] = []
        self.starved_at: list[int] = []
        self.is_over = False
        self.changed = asyncio.Event()

    def may_send_item(self, call_id: int) -> bool:
        return self.room > 0 and not self.is_over

    async def room_for_item(self, call_id: int) -> bool:
        while not self.room and not self.is_over:
            self.changed.clear()
            await self.changed.wait()
        return not self.is_over

    def send_item(self, call_id: int, value: Any) -> None:
        self.room -= 1
        self.sent.append(value)

    def took_items(self, call_id: int, items: int, byte_count: int, *, at_once: bool) -> tuple[int, int]:
        self.taken.append((items, byte_count, at_once))
        return 3, 100

    def starved(self, call_id: int) -> None:
        self.starved_at.append(sum(items for items, _, _ in self.taken))


def read(item: events.Item) -> str:
    if item.value == b"bad":
        raise ValueError("bad")
    return bytes(item.value).decode()


def item(text: str) -> events.Item:
    return events.Item(1, text.encode(), ())


async def later(values: list[int]) -> AsyncIterator[int]:
    for value in values:
        await asyncio.sleep(0)
        yield value


async def until_idle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_items_are_read_in_their_order_and_each_is_taken_once() -> None:
    room = Room()
    incoming = Incoming(room, 1, read)
    reader = asyncio.ensure_future(anext(incoming))
    await until_idle()
    for text in ("a", "bad", "c"):
        incoming.add(item(text))
    incoming.end()
    assert await reader == "a"
    with pytest.raises(ValueError, match="bad"):
        await anext(incoming)
    assert [text async for text in incoming] == ["c"]
    assert room.taken == [(1, 1, False)]
    assert room.starved_at == [0]


async def test_what_was_taken_is_told_when_it_is_due_and_before_the_reader_waits() -> None:
    room = Room()
    incoming = Incoming(room, 1, read)
    for text in ("a", "bb", "c", "d", "e" * 100, "f"):
        incoming.add(item(text))
    for _ in range(6):
        await anext(incoming)
    assert room.taken == [(1, 1, False), (3, 4, False), (1, 100, False)]
    reader = asyncio.ensure_future(anext(incoming))
    await until_idle()
    assert room.taken[3:] == [(1, 1, False)]
    assert room.starved_at == [6]
    incoming.add(item("g"))
    assert await reader == "g"


async def test_what_may_hold_blobs_is_told_one_by_one_and_makes_no_window_grow() -> None:
    room = Room()
    incoming = Incoming(room, 1, lambda found: found.value)
    blob = b"\xd8\x03" + bytes(16)
    incoming.add(item("a"))
    incoming.add(events.Item(1, blob, ()), may_hold_blob=True)
    incoming.add(item("b"))
    assert [await anext(incoming) for _ in range(3)] == [b"a", blob, b"b"]
    reader = asyncio.ensure_future(anext(incoming))
    await until_idle()
    assert sum(items for items, _, _ in room.taken) == 3
    assert room.taken[1][2] == (may_refer(blob))
    assert room.starved_at == []
    reader.cancel()
    await asyncio.wait([reader])


async def test_an_error_comes_once_behind_the_items() -> None:
    incoming = Incoming(Room(), 1, read)
    incoming.add(item("a"))
    incoming.end(KeyError("over"))
    incoming.end()
    assert await anext(incoming) == "a"
    with pytest.raises(KeyError):
        await anext(incoming)
    with pytest.raises(StopAsyncIteration):
        await anext(incoming)


async def test_one_reader_at_a_time_who_may_be_cancelled() -> None:
    incoming = Incoming(Room(), 1, read)
    reader = asyncio.ensure_future(anext(incoming))
    await until_idle()
    with pytest.raises(UsageError, match="another task"):
        await anext(incoming)
    reader.cancel()
    await asyncio.wait([reader])
    incoming.add(item("a"))
    assert await anext(incoming) == "a"


async def test_what_nobody_reads_can_be_had_back() -> None:
    room = Room()
    incoming = Incoming(room, 1, read)
    incoming.add(item("a"))
    assert [found.value for found in incoming.take_unread()] == [b"a"]
    incoming.end()
    assert [text async for text in incoming] == []
    assert room.taken == []


def source(kind: str) -> AsyncIterator[int] | Iterator[int]:
    return later([1, 2, 3]) if kind == "async" else iter([1, 2, 3])


both_kinds = pytest.mark.parametrize("kind", ["async", "plain"])


@both_kinds
async def test_sending_waits_for_room(kind: str) -> None:
    room = Room(1)
    sending = asyncio.ensure_future(send_items(room, 1, source(kind), room.dropped.append))
    await until_idle()
    assert room.sent == [1]
    room.room = 5
    room.changed.set()
    await sending
    assert (room.sent, room.dropped) == ([1, 2, 3], [])


@both_kinds
@pytest.mark.parametrize("how", ["over", "cancelled", "over, and nobody minds"])
async def test_an_item_for_which_there_is_no_room_any_more_is_dropped(kind: str, how: str) -> None:
    room = Room(1)
    drop = room.dropped.append if "minds" not in how else None
    sending = asyncio.ensure_future(send_items(room, 1, source(kind), drop))
    await until_idle()
    if how == "cancelled":
        sending.cancel()
    else:
        room.is_over = True
        room.changed.set()
    await asyncio.wait([sending])
    assert sending.cancelled() == (how == "cancelled")
    assert room.sent == [1]
    assert room.dropped == ([2] if drop else [])


def streaming(codec: str = "msgpack") -> tuple[protocol.Connection, protocol.Connection, int]:
    client, server = greeted(codec)
    call_id = client.send_call("m", EMPTY[codec], flags=ITEMS_FOLLOW)
    flow(client, server)
    return client, server, call_id


def values_of(found: list[Any]) -> list[bytes]:
    return [bytes(event.value) for event in found]


def test_a_batch_is_as_long_as_there_is_credit_and_room() -> None:
    client, server, call_id = streaming()
    batches = Batches(client)
    batch = batches.begin(call_id)
    for _ in range(limits.WINDOW_ITEMS):
        assert batch.items_left
        batch.add(b"1")
    assert not batch.items_left
    assert flow(client, server) == []
    batches.write()
    assert values_of(flow(client, server)) == [b"1"] * limits.WINDOW_ITEMS
    assert batches.unsent_bytes == limits.WINDOW_ITEMS * (1 + limits.ITEM_OVERHEAD_BYTES)
    assert not batches.begin(call_id).items_left


def test_a_batch_ends_with_the_room_that_all_streams_share() -> None:
    client, server, first = streaming()
    second = client.send_call("m", EMPTY["msgpack"], flags=ITEMS_FOLLOW)
    flow(client, server)
    batches = Batches(client)
    half = limits.ITEMS_BYTES_AT_ONCE // 2
    one = batches.begin(first)
    one.add(b"1" * half)
    assert one.items_left
    other = batches.begin(second)  # which writes the first one's
    assert not one.items_left
    other.add(b"2" * half)
    assert not other.items_left
    assert not batches.begin(first).items_left
    assert values_of(flow(client, server)) == [b"1" * half, b"2" * half]
    batches.unsent_bytes = 0
    assert batches.begin(first).items_left


def test_what_a_call_that_was_cancelled_has_in_a_batch_is_dropped() -> None:
    client, server, call_id = streaming()
    batches = Batches(client)
    batches.begin(call_id).add(b"1")
    client.send_cancel(call_id)
    batches.write()
    assert [type(event) for event in flow(client, server)] == [events.Cancel]
    assert batches.unsent_bytes == 0
