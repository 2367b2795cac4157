"""The stream that a call was answered with, as an iterator for one thread at a time.

Items that have come are taken from their queue with no lock. For further ones the thread waits as it does for an
answer, so whoever stops reading holds up nothing but its own stream. One that is forgotten tells the server so by
itself, from wherever the interpreter lets go of it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from samehost import limits
from samehost.blocking.calls import AttachedReply, Outcome
from samehost.codec import CannotDecode
from samehost.errors import Error, UsageError
from samehost.kernel.closing import Closable
from samehost.protocol.events import Failure, Item, Reply
from samehost.service.calling import answered_error, lost, read_progress, too_late

if TYPE_CHECKING:
    from samehost.blocking.calls import Waiting
    from samehost.blocking.link import Link
    from samehost.service.call import Progress
    from samehost.service.remote import RemoteMethod

Element_co = TypeVar("Element_co", covariant=True)

# A receiver may save up less than this of what it gives back, PROTOCOL.md section 6.5.
_GRANT_ITEMS_AT_FIRST = limits.WINDOW_ITEMS // 2
_GRANT_BYTES = limits.WINDOW_BYTES // 2


class Stream(Closable, Iterator[Element_co], Generic[Element_co]):
    """The items that a method streams, or a topic publishes: made by calling the one, or subscribing to the other.

    Iterate over it, in one thread at a time. Leaving the loop is enough to end it: the method is cancelled as soon as
    nobody refers to the stream any more, or at the end of its `with`. Where the call sends items as well, they are
    pulled, in the same thread, while further ones of these are waited for.

    Items that came before an error are given first. Iterating raises what a call raises, and:

        OutcomeUnknown: the connection ended before the stream did.
        InvalidResult: an item is not of the declared type; the stream is closed.
        DeadlineExceeded: the `timeout` that was given with the call is over.
        UsageError: another thread waits for the next item.

    Attributes:
        result: the value that the method returns besides its items, once all of these were taken; None before.
    """

    def __init__(self, remote: RemoteMethod, link: Link, waiting: Waiting, address: str) -> None:
        self.result: Any = None
        self._remote = remote
        self._decode = remote.decode_item
        self._link = link
        self._attachments = waiting.attachments or link.attachments
        self._waiting = waiting
        self._address = address
        self._items: deque[Item] = waiting.items if waiting.items is not None else deque()
        self._is_closed = False
        self._is_timed = waiting.deadline.left() < math.inf
        self._is_waited_for = False
        self._taken_items = 0
        self._taken_bytes = 0
        self._grant_items = _GRANT_ITEMS_AT_FIRST
        self._progress: Progress | None = None

    def __next__(self) -> Element_co:
        if self._is_timed and self._items and self._waiting.deadline.left() == 0:
            self._end_late()
        try:
            item = self._items.popleft()
        except IndexError:
            item = self._wait_for_item()
        value = item.value
        self._taken_items += 1
        self._taken_bytes += len(value)
        if self._taken_items >= self._grant_items or self._taken_bytes >= _GRANT_BYTES:
            self._return_credit()
        if item.descriptors or self._attachments.has_arenas:
            return self._read_attached(item)
        try:
            return self._decode(value)  # type: ignore[no-any-return]
        except CannotDecode:
            self.close()
            return self._remote.item(value)  # type: ignore[no-any-return]  # which says what is wrong

    @property
    def closed(self) -> bool:
        """Whether there are no further items: it was closed, has failed, or all of them were taken."""
        return self._is_closed

    @property
    def progress(self) -> Progress | None:
        """What the method has said last of how far it has come; None if nothing."""
        notes = self._waiting.notes
        if notes and self._waiting.listener is None:
            self._progress = read_progress(notes[-1])
        return self._progress

    @property
    def dropped(self) -> int:
        """For a subscription: how many items were dropped so far because they were not taken soon enough."""
        return self.progress.dropped if self.progress is not None else 0

    def close(self) -> None:
        """Cancel the method, and give no further items; a second time does nothing. From any thread."""
        if self._is_closed:
            return
        self._is_closed = True
        self._items = deque()
        end = self._waiting.end
        if end is None or self._waiting.items or isinstance(end, AttachedReply):
            self._link.drop(self._waiting)
        if self._waiting.upload is not None:
            self._waiting.upload.close()

    def _read_attached(self, item: Item) -> Element_co:
        """The value of an item that came with files, or may be in memory that was passed before."""
        from samehost.kernel.attaching import may_refer

        if self._taken_items and may_refer(item.value):
            self._return_credit()  # at once, as the server may have memory for a few of them only
        try:
            value: Element_co = self._attachments.read(self._remote.item, item.value, item.descriptors)
            return value
        except BaseException:
            self.close()
            raise

    def _wait_for_item(self) -> Item:
        if self._is_closed:
            raise StopIteration
        if self._is_waited_for:
            raise UsageError(f"{self._waiting.method}: another thread waits for the next item of this stream")
        self._is_waited_for = True
        try:
            return self._next_item()
        except BaseException:
            self.close()
            raise
        finally:
            self._is_waited_for = False

    def _next_item(self) -> Item:
        """Wait for an item, sending others meanwhile if the call does; raises StopIteration at the end."""
        waiting = self._waiting
        while True:
            waiting.has_news = False
            self._progress = waiting.hear() or self._progress
            if waiting.end is not None and not self._items:
                self._end(waiting.end)
            if self._items:
                return self._items.popleft()
            if self._is_timed and waiting.deadline.left() == 0:  # however fast one item follows the other
                self._end_late()
            if not self._attachments.has_arenas:
                self._grant_items = self._link.starved(waiting, self._taken_items)
            if waiting.upload is not None:
                waiting.upload.step(self._link, waiting)
            else:
                self._link.wait_for_news(waiting)

    def _end(self, end: Reply | Failure | Outcome | Error) -> NoReturn:
        if isinstance(end, Reply):
            self._waiting.end = Outcome.DROPPED  # as what came with it belongs to the result from now on
            self.result = self._attachments.read(self._remote.result, end.result, end.descriptors)
            raise StopIteration(self.result)
        if end is Outcome.DROPPED:
            raise StopIteration
        if isinstance(end, Failure):
            raise answered_error(self._waiting.method, end)
        raise lost(self._waiting.method, self._address, self._link.why, was_sent=True) from self._link.fault

    def _end_late(self) -> NoReturn:
        self.close()
        raise too_late(self._waiting.method, self._address, self._waiting.deadline.timeout or 0.0, "no end")

    def _return_credit(self) -> None:
        items, byte_count = self._taken_items, self._taken_bytes
        self._taken_items = self._taken_bytes = 0
        self._link.return_credit(self._waiting, items, byte_count)

    def __del__(self) -> None:
        if not getattr(self, "_is_closed", True):
            self._link.drop(self._waiting)

    def __repr__(self) -> str:
        return f"<Stream of {self._waiting.method} on {self._address}{', closed' if self._is_closed else ''}>"
