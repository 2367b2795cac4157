"""The items of streams in a loop, without a connection: one reader, one sender, and whoever ends them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from samehost.aio.items import Carrier, Incoming, send_items
from samehost.errors import UsageError
from samehost.protocol import events


class Room(Carrier):
    """A connection that takes items as it is told."""

    def __init__(self, room: int = 0) -> None:
        self.room = room
        self.sent: list[Any] = []
        self.dropped: list[Any] = []
        self.taken: list[bytes] = []
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

    def took_item(self, call_id: int, item: events.Item) -> None:
        self.taken.append(bytes(item.value))


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
    assert room.taken == [b"a", b"bad", b"c"]


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
