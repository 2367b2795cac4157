"""The items of streams in an event loop, for both ends: those that have come and wait for their reader, and sending.

What it takes to send one, and to say that one was read, is left to the connection, a `Carrier`. Credit holds a sender
up, so nothing here has to bound anything: no more can come than was granted, and no more is sent than there is room
for. Between two items that are there, or may go, nothing waits: a stream costs no task and no future for each of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Protocol

from samehost.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from samehost.protocol import events


class Giver(Protocol):
    """What a connection offers to the readers of streams."""

    def took_item(self, call_id: int, item: events.Item) -> None:
        """Take note that the reader has this item, so that the peer may send another one."""


class Carrier(Giver, Protocol):
    """What a connection offers to the streams of its calls."""

    def may_send_item(self, call_id: int) -> bool:
        """Whether there is credit, and nothing waits to be sent before; false as well once the call is over."""

    async def room_for_item(self, call_id: int) -> bool:
        """Wait until `may_send_item`; false once the call is over."""

    def send_item(self, call_id: int, value: Any) -> None:
        """Encode an item and send it soon; only right after `may_send_item` has said so.

        Raises:
            CannotEncode: it cannot travel.
            MessageTooLarge: it is longer than the peer takes.
        """


class Incoming(AsyncIterator[Any]):
    """The items of one call that have come, in their order. One task reads it at a time.

    Args:
        carrier: the connection that they come by.
        call_id: of the call.
        read: makes a value of what has come; whatever it raises, the reader gets, and the next item after it.
    """

    __slots__ = ("_call_id", "_carrier", "_error", "_is_over", "_items", "_read", "_waiting")

    def __init__(self, carrier: Giver, call_id: int, read: Callable[[events.Item], Any]) -> None:
        self._carrier = carrier
        self._call_id = call_id
        self._read = read
        self._items: deque[events.Item] = deque()
        self._is_over = False
        self._error: BaseException | None = None
        self._waiting: asyncio.Future[None] | None = None

    def add(self, item: events.Item) -> None:
        """Take an item that has come."""
        self._items.append(item)
        self._wake()

    def end(self, error: BaseException | None = None) -> None:
        """Take note that no further item comes; a second time does nothing.

        Args:
            error: what the reader gets, once, behind the items that are there; None if the stream is complete.
        """
        if not self._is_over:
            self._is_over = True
            self._error = error
            self._wake()

    def take_unread(self) -> list[events.Item]:
        """The items that nobody will read, for what they have with them."""
        unread = list(self._items)
        self._items.clear()
        return unread

    def __aiter__(self) -> Incoming:
        return self

    async def __anext__(self) -> Any:
        while not self._items:
            if self._is_over:
                error, self._error = self._error, None
                try:
                    raise error or StopAsyncIteration
                finally:
                    del error  # which has this frame in its traceback from now on
            await self._wait()
        item = self._items.popleft()
        try:
            return self._read(item)
        finally:
            self._carrier.took_item(self._call_id, item)

    async def _wait(self) -> None:
        if self._waiting is not None:
            raise UsageError("another task waits for the next item of this stream")
        self._waiting = asyncio.get_running_loop().create_future()
        try:
            await self._waiting
        finally:
            self._waiting = None

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


async def send_items(
    carrier: Carrier,
    call_id: int,
    source: AsyncIterator[Any] | Iterator[Any],
    drop: Callable[[Any], None] | None = None,
) -> None:
    """Send what a source gives, until it is exhausted or the call is over; closing the source is for the caller.

    The source is one item ahead of what may be sent, as only then it can say in time that there is none.

    Args:
        drop: takes an item that came from the source and is not sent, as the call was over before.

    Raises:
        CannotEncode, MessageTooLarge: as `Carrier.send_item`.
        Others: whatever the source raises.
    """
    may_send, send = carrier.may_send_item, carrier.send_item
    if isinstance(source, AsyncIterator):
        async for value in source:
            if not may_send(call_id) and not await _has_room(carrier, call_id, value, drop):
                return
            send(call_id, value)
    else:
        for value in source:
            if not may_send(call_id) and not await _has_room(carrier, call_id, value, drop):
                return
            send(call_id, value)


async def _has_room(carrier: Carrier, call_id: int, value: Any, drop: Callable[[Any], None] | None) -> bool:
    """Wait for room for an item, and drop it if there will be none."""
    has_room = False
    try:
        has_room = await carrier.room_for_item(call_id)
    finally:
        if not has_room and drop is not None:
            drop(value)
    return has_room
