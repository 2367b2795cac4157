"""The items of a stream that have come for a method in a thread, which waits for them there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from samehost.errors import Cancelled
from samehost.kernel.attaching import may_refer

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from samehost.aio.items import Giver
    from samehost.protocol import events


class BlockingItems(Iterator[Any]):
    """The items of one call that have come, for a method in a thread, which waits for them.

    Args:
        carrier: the call.
        call_id: its id.
        read: makes a value of what has come.
        loop: where they come.
    """

    def __init__(
        self, carrier: Giver, call_id: int, read: Callable[[events.Item], Any], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._carrier = carrier
        self._call_id = call_id
        self._read = read
        self._loop = loop
        self._items: SimpleQueue[events.Item | None] = SimpleQueue()
        self._is_cancelled = False
        self._may_hold_blobs = False
        # Taken since the carrier was told, and when it has to be told again.
        self._taken_items = self._taken_bytes = 0
        self._due_items = self._due_bytes = 0
        self._is_starved = True

    # On the loop.

    def add(self, item: events.Item, *, may_hold_blob: bool = False) -> None:
        """Take an item that has come; see `Incoming.add`."""
        if may_hold_blob:
            self._may_hold_blobs = True
        self._items.put(item)

    def end(self) -> None:
        """Take note that no further item comes."""
        self._items.put(None)

    def cancel(self) -> None:
        """Have the thread go on without any."""
        self._is_cancelled = True
        self._items.put(None)

    def take_unread(self) -> list[events.Item]:
        """The items that nobody will read, for what they have with them."""
        unread = []
        with contextlib.suppress(Empty):
            while True:
                item = self._items.get_nowait()
                unread += [item] if item is not None else []
        self._items.put(None)
        return unread

    def _told(self, items: int, byte_count: int, at_once: bool, is_starved: bool) -> None:
        self._due_items, self._due_bytes = self._carrier.took_items(self._call_id, items, byte_count, at_once=at_once)
        if is_starved:
            self._carrier.starved(self._call_id)

    # In the method's thread.

    def __next__(self) -> Any:
        """Wait for the next item.

        Raises:
            Cancelled: the call was cancelled, or its deadline has passed.
        """
        if not self._is_starved and self._items.empty() and not self._may_hold_blobs:
            self._is_starved = True
            self._tell()
        item = self._items.get()
        if self._is_cancelled or item is None:
            self._items.put(None)  # for whoever asks again
            if self._is_cancelled:
                raise Cancelled("the call was cancelled while its method waited for items")
            raise StopIteration
        try:
            return self._read(item)
        finally:
            self._is_starved = False
            self._taken_items += 1
            self._taken_bytes += len(item.value)
            if self._taken_items >= self._due_items or self._taken_bytes >= self._due_bytes or self._may_hold_blobs:
                self._tell(at_once=self._may_hold_blobs and may_refer(item.value))

    def _tell(self, *, at_once: bool = False) -> None:
        items, byte_count = self._taken_items, self._taken_bytes
        self._taken_items = self._taken_bytes = 0
        with contextlib.suppress(RuntimeError):  # the loop was closed
            self._loop.call_soon_threadsafe(self._told, items, byte_count, at_once, self._is_starved)
