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

from samehost import limits
from samehost.errors import UsageError
from samehost.kernel.attaching import may_refer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from samehost import protocol
    from samehost.protocol import events


class Giver(Protocol):
    """What a connection offers to the readers of streams."""

    def took_items(self, call_id: int, items: int, byte_count: int, *, at_once: bool) -> tuple[int, int]:
        """Take note that the reader has items of so many bytes, so that the peer may send further ones.

        Args:
            at_once: return their credit now, as one of them has a blob.

        Returns:
            After how many more items, and how many bytes of them, to be told again.
        """

    def starved(self, call_id: int) -> None:
        """Take note that the reader has all that has come, of which all was told, and waits."""


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

    __slots__ = (
        "_call_id",
        "_carrier",
        "_due_bytes",
        "_due_items",
        "_error",
        "_is_over",
        "_items",
        "_may_hold_blobs",
        "_read",
        "_taken_bytes",
        "_taken_items",
        "_waiting",
    )

    def __init__(self, carrier: Giver, call_id: int, read: Callable[[events.Item], Any]) -> None:
        self._carrier = carrier
        self._call_id = call_id
        self._read = read
        self._items: deque[events.Item] = deque()
        self._is_over = False
        self._error: BaseException | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._may_hold_blobs = False
        # Taken since the carrier was told, and when it has to be told again.
        self._taken_items = self._taken_bytes = 0
        self._due_items = self._due_bytes = 0

    def add(self, item: events.Item, *, may_hold_blob: bool = False) -> None:
        """Take an item that has come.

        Args:
            may_hold_blob: it came with descriptors, or after memory that it may refer to.
        """
        self._items.append(item)
        if may_hold_blob:
            self._may_hold_blobs = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

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

    @property
    def has_some(self) -> bool:
        """Whether there is an item to `take`."""
        return bool(self._items)

    async def __anext__(self) -> Any:
        while not self._items:
            if self._is_over:
                error, self._error = self._error, None
                try:
                    raise error or StopAsyncIteration
                finally:
                    del error  # which has this frame in its traceback from now on
            await self._wait()
        return self.take()

    def take(self) -> Any:
        """The next item, which is there."""
        item = self._items.popleft()
        try:
            return self._read(item)
        finally:
            self._taken_items += 1
            self._taken_bytes += len(item.value)
            if self._taken_items >= self._due_items or self._taken_bytes >= self._due_bytes or self._may_hold_blobs:
                self._tell(at_once=self._may_hold_blobs and may_refer(item.value))

    def _tell(self, *, at_once: bool = False) -> None:
        items, byte_count = self._taken_items, self._taken_bytes
        self._taken_items = self._taken_bytes = 0
        self._due_items, self._due_bytes = self._carrier.took_items(self._call_id, items, byte_count, at_once=at_once)

    async def _wait(self) -> None:
        if self._waiting is not None:
            raise UsageError("another task waits for the next item of this stream")
        if not self._may_hold_blobs:
            if self._taken_items:
                self._tell()
            self._carrier.starved(self._call_id)
        self._waiting = asyncio.get_running_loop().create_future()
        try:
            await self._waiting
        finally:
            self._waiting = None

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


class Batch:
    """Items of one stream for which there is credit and room, and that were not written yet.

    Args:
        items, byte_count: how many there may be, and how many bytes of them; the last one may be longer.

    Attributes:
        items_left: how many more may be added.
        payloads: those that were.
    """

    __slots__ = ("_bytes_left", "items_left", "payloads")

    def __init__(self, items: int, byte_count: int) -> None:
        self.items_left = items if byte_count > 0 else 0
        self.payloads: list[bytes] = []
        self._bytes_left = byte_count

    def add(self, payload: bytes) -> None:
        """Add an item, which is there to stay."""
        self.payloads.append(payload)
        self._bytes_left -= len(payload) + limits.ITEM_OVERHEAD_BYTES
        self.items_left = self.items_left - 1 if self._bytes_left > 0 else 0


NO_BATCH = Batch(0, 0)


class Batches:
    """The items of all streams of one connection that go into its output with the next flush, each stream's in one go.

    Args:
        found: this end of the protocol.

    Attributes:
        unsent_bytes: of items, and what else is counted here, that were written since the last flush.
    """

    def __init__(self, found: protocol.Connection) -> None:
        self.unsent_bytes = 0
        self._protocol = found
        self._open: dict[int, Batch] = {}

    def begin(self, call_id: int) -> Batch:
        """A batch for as much as may be sent now, which may be nothing."""
        self.write()
        room = min(self._protocol.bytes_left(call_id), limits.ITEMS_BYTES_AT_ONCE - self.unsent_bytes)
        batch = Batch(self._protocol.items_left(call_id), room)
        if batch.items_left:
            self._open[call_id] = batch
        return batch

    def write(self) -> None:
        """Write what there is; nothing can be added to it any more."""
        if not self._open:
            return
        batches, self._open = self._open, {}
        for call_id, batch in batches.items():
            batch.items_left = 0
            payloads = batch.payloads
            if payloads and self._protocol.may_send_item(call_id):  # the call may have ended meanwhile
                self._protocol.send_items(call_id, payloads)
                self.unsent_bytes += sum(map(len, payloads)) + len(payloads) * limits.ITEM_OVERHEAD_BYTES


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
