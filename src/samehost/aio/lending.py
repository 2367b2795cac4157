"""The memory that one stream lends to its caller, so that a slow reader has a few large blobs out and not sixty-four.

Credit counts items, and not the memory that they refer to. So a stream waits as well while too much of its memory is
with its caller, and goes on when some is released. A reader who keeps what he got is not to wait for ever: while he has
taken all that was sent, he gets the next one, and so never has more waiting than one. One who saves up the credit that
he returns, so that this cannot be seen, gets another one every now and then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from samehost import limits

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from samehost.kernel.attaching import Encoded

_BYTES_MAX = limits.STREAM_BLOBS_BYTES_MAX
_BLOBS_MIN = limits.STREAM_BLOBS_MIN
_SAVED_ITEMS_MAX = limits.WINDOW_ITEMS // 2


class Loan:
    """What one stream has sent in shared memory and its caller has not released.

    Args:
        loop: where the stream is served.
        go_on: is called when the stream may go on.

    Attributes:
        blobs: how many parts of the arena the caller has.
        byte_count: how much memory these are, and sealed copies that it has not taken.
    """

    __slots__ = (
        "_go_on",
        "_is_exact",
        "_is_next_free",
        "_loop",
        "_pause",
        "_sealed",
        "_sent",
        "_timer",
        "blobs",
        "byte_count",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, go_on: Callable[[], object]) -> None:
        self.blobs = self.byte_count = 0
        self._loop = loop
        self._go_on = go_on
        self._sent = 0
        self._sealed: list[tuple[int, int]] = []  # which items these were, and how long their copies
        self._is_exact = False  # whether the caller is known not to save up credit
        self._is_next_free = True
        self._pause = limits.STREAM_BLOBS_SECONDS
        self._timer: asyncio.TimerHandle | None = None

    def is_within(self, more_bytes: int, more_blobs: int) -> bool:
        """Whether another one may be lent, beside so much that is ready to be sent."""
        return self.byte_count + more_bytes < _BYTES_MAX or self.blobs + len(self._sealed) + more_blobs < _BLOBS_MIN

    @property
    def may_grow(self) -> bool:
        """Whether an item may be sent."""
        return self.byte_count < _BYTES_MAX or self._is_next_free or self.is_within(0, 0)

    def lend(self, encoded: Encoded) -> None:
        """Take note that an item with this was sent."""
        self._is_next_free = False
        self.blobs += len(encoded.shares)
        self.byte_count += blob_bytes(encoded)
        if encoded.sealed_bytes:
            self._sealed.append((self._sent, encoded.sealed_bytes))

    def sent(self, items: int = 1) -> None:
        """Take note that items were sent, whatever they were."""
        self._sent += items

    def taken(self, items_left: int) -> None:
        """Take note that the caller has returned credit.

        Args:
            items_left: how many items it takes now, without those that its window has grown by.
        """
        taken = self._sent - limits.WINDOW_ITEMS + items_left
        self._is_exact = self._is_exact or taken % _SAVED_ITEMS_MAX != 0
        self._is_next_free = taken >= self._sent
        while self._sealed and self._sealed[0][0] < taken:
            self.byte_count -= self._sealed.pop(0)[1]
        self._wait_no_more()

    def returned(self, byte_count: int) -> None:
        """Take note that the caller has released a part of the arena."""
        self.blobs -= 1
        self.byte_count -= byte_count
        self._wait_no_more()

    def wait(self) -> None:
        """Have the stream go on after a while, if nothing comes from a caller who may be keeping what he got."""
        if self._timer is None and not self._is_exact:
            self._timer = self._loop.call_later(self._pause, self._free_next)

    def _free_next(self) -> None:
        self._timer = None
        self._pause *= 2  # as he may not be reading at all
        self._is_next_free = True
        self._go_on()

    def _wait_no_more(self) -> None:
        self._pause = limits.STREAM_BLOBS_SECONDS
        self.close()

    def close(self) -> None:
        """Wait for nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def blob_bytes(encoded: bytes | Encoded) -> int:
    """How much memory is beside the bytes of an item."""
    if isinstance(encoded, bytes):
        return 0
    return encoded.sealed_bytes + sum(block.byte_count for block in encoded.shares.values())
