"""The items that a call sends: pulled from the caller's iterable by the thread that waits for the call.

No thread is started for it. An item is pulled when the server takes one and nothing else waits to be sent, so that
nothing piles up, and no lock is held meanwhile: the iterable may take its time, and make calls of its own. So each item
is sent by itself, before the next one is asked for; but those of a list, or of what is like one, are there already, and
many of them go together.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Generator, Iterable
from itertools import repeat
from typing import TYPE_CHECKING, Any

from samehost import limits
from samehost.errors import UsageError
from samehost.kernel.deadline import Deadline, Until

if TYPE_CHECKING:
    from samehost.blocking.calls import Waiting
    from samehost.blocking.link import Link
    from samehost.kernel.attaching import Encoded

_PATIENCE_SECONDS_MAX = 0.010
_PATIENCE_SECONDS_MIN = 0.001
"""How long the answer to an item is waited for before the next one is pulled: half as long after each time that was in
vain, and then no longer at all, and twice as long after each that was not."""

_LIKE_LISTS: list[Iterable[Any]] = [[], (), range(1), range(1 << 64), set(), {}, deque(), repeat(0), "", b""]
_LIKE_LISTS += [{}.values(), {}.items()]
_AT_HAND = frozenset(type(iter(one)) for one in _LIKE_LISTS)
"""Iterators whose next item is never waited for, and that run nothing of the program's."""

_LOOK_SECONDS = 0.001
"""How often it is looked whether the call has been answered, while there is room for one item after the other."""


class Upload:
    """The items of one call.

    Args:
        method: which is called.
        items: what to send. If it raises BlockingIOError, there is nothing just now, and it is asked again once what
            has come was looked at.
        seconds: how long the server may take to answer once all of them are sent; infinite if nothing new begins then.
        is_answered_by_stream: the method is known to stream as well.

    Raises:
        UsageError: it cannot be iterated.

    Attributes:
        was_pulled: some of it is gone, so the call cannot be made a second time.
    """

    def __init__(self, method: str, items: Iterable[Any], seconds: float, *, is_answered_by_stream: bool) -> None:
        if not isinstance(items, Iterable):
            raise UsageError(f"{method}: its items cannot come from {type(items).__name__}, which is no iterable")
        self.was_pulled = False
        self._is_answered_by_stream = is_answered_by_stream
        self._source = iter(items)
        self._seconds = seconds
        self._is_over = False
        self._awaits_answer = False
        self._patience = _PATIENCE_SECONDS_MAX
        self._next_look = 0.0

    def step(self, link: Link, waiting: Waiting) -> None:
        """Send an item if there is room, and otherwise wait until there is, or there is news of the call.

        Raises:
            UsageError: the item cannot travel.
            MessageTooLarge: it is longer than the server takes.
            DeadlineExceeded: the time for the call is over.
            Others: what the iterable raises.
        """
        link.check_time(waiting)  # as there may be room, or news, each time it is looked
        has_room = not self._is_over and link.may_send_item(waiting)
        waiting.wants_room = not has_room and not self._is_over
        if not has_room:
            if not link.is_greeted:  # what it takes has to be known
                link.ask_for_greeting()
            link.wait_for_news(waiting)
        elif not self._is_answered(link, waiting):
            if type(self._source) in _AT_HAND and not self._is_streamed(waiting):
                self._send_some(link, waiting)
            else:
                self._send_next(link, waiting)

    def close(self) -> None:
        """Pull nothing more, and end a generator."""
        self._is_over = True
        if isinstance(self._source, Generator):
            with contextlib.suppress(ValueError):  # it is what closes the stream
                self._source.close()

    def _is_answered(self, link: Link, waiting: Waiting) -> bool:
        """Look whether there is news; with patience, if the server streams and may have something to say to the last.

        A program that shows the answer to each item, or makes the next item of it, is served like this.
        """
        seconds = self._patience if self._awaits_answer and self._is_streamed(waiting) else 0.0
        now = time.monotonic()
        if not seconds and now < self._next_look:
            return waiting.has_news
        link.wait_for_news(waiting, Until(seconds, now + seconds))
        self._next_look = time.monotonic() + _LOOK_SECONDS
        if waiting.items:
            self._awaits_answer = False
            self._patience = min(max(2 * self._patience, _PATIENCE_SECONDS_MIN), _PATIENCE_SECONDS_MAX)
        elif seconds and not waiting.has_news:
            self._patience = seconds / 2 if seconds > _PATIENCE_SECONDS_MIN else 0.0
        return waiting.has_news

    def _is_streamed(self, waiting: Waiting) -> bool:
        return self._is_answered_by_stream or waiting.items is not None

    def _send_next(self, link: Link, waiting: Waiting) -> None:
        self.was_pulled = True
        try:
            item = next(self._source)
        except BlockingIOError:  # it watches the connection as well, and gives way to what has come there
            if isinstance(self._source, Generator):  # which is over with that
                raise
            return
        except StopIteration:
            self._end(link, waiting)
            return
        link.send_item(waiting, link.encode_item(waiting, item))
        self._awaits_answer = True

    def _send_some(self, link: Link, waiting: Waiting) -> None:
        """Send as many of the items at hand as there is room for."""
        self.was_pulled = True
        items_left, bytes_left = link.room_for_items(waiting)
        together: list[bytes] = []
        another: bytes | Encoded | None = None  # which goes by itself
        is_exhausted = False
        try:
            while len(together) < items_left and bytes_left > 0:
                another = link.encode_item(waiting, next(self._source))
                if not isinstance(another, bytes) or len(another) > limits.JOIN_BYTES_MAX:
                    break
                together.append(another)
                bytes_left -= len(another) + limits.ITEM_OVERHEAD_BYTES
                another = None
        except StopIteration:
            is_exhausted = True
        finally:
            link.send_items(waiting, together)
        if another is not None:
            link.send_item(waiting, another)
        elif is_exhausted:
            self._end(link, waiting)

    def _end(self, link: Link, waiting: Waiting) -> None:
        self._is_over = True
        waiting.wants_room = False
        link.send_end(waiting)
        if waiting.items is None:
            waiting.deadline = Deadline(min(self._seconds, waiting.deadline.left()))
