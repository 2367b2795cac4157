"""The items of a stream that have come for a method in a thread, which waits for them there."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from samehost.errors import Cancelled

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
        self._taken: deque[events.Item] = deque()
        self._is_told = False

    # On the loop.

    def add(self, item: events.Item) -> None:
        """Take an item that has come."""
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

    def _give_credit(self) -> None:
        self._is_told = False
        while self._taken:
            self._carrier.took_item(self._call_id, self._taken.popleft())

    # In the method's thread.

    def __next__(self) -> Any:
        """Wait for the next item.

        Raises:
            Cancelled: the call was cancelled, or its deadline has passed.
        """
        item = self._items.get()
        if self._is_cancelled or item is None:
            self._items.put(None)  # for whoever asks again
            if self._is_cancelled:
                raise Cancelled("the call was cancelled while its method waited for items")
            raise StopIteration
        try:
            return self._read(item)
        finally:
            self._taken.append(item)
            if not self._is_told:
                self._is_told = True
                with contextlib.suppress(RuntimeError):  # the loop was closed
                    self._loop.call_soon_threadsafe(self._give_credit)
