"""The items that an asyncio client's calls send and take, on the link that they share.

Those to be sent wait here for credit, and until the connection has taken what was sent before, so that other calls go
in between. How they are encoded and what goes beside them is `attachments`' part.
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from samehost import limits
from samehost.aio.attachments import encode_plainly
from samehost.aio.items import Batch, Batches, Carrier
from samehost.codec import CannotEncode
from samehost.errors import MessageTooLarge, UsageError

if TYPE_CHECKING:
    import asyncio

    from samehost.aio.link import Link
    from samehost.aio.wire import Wire


class ItemFlow(Carrier):
    """The items of one link.

    Args:
        link: whose they are.
        wire: the connection.

    Attributes:
        is_sending: whether to be told of `flushed`.
    """

    def __init__(self, link: Link, wire: Wire) -> None:
        self._link: Link = weakref.proxy(link)  # which refers to this, and is to be gone when it is forgotten
        self._wire = wire
        self._protocol = link.attachments.protocol
        self.is_sending = False
        self._batches = Batches(self._protocol)
        self._batch_of: dict[int, Batch] = {}  # the last one of each call that sends
        self._waiting: dict[int, asyncio.Future[None]] = {}

    def may_send_item(self, call_id: int) -> bool:
        """See `Carrier.may_send_item`; what the server takes has to be known as well."""
        batch = self._batch_of.get(call_id)
        if batch is not None and batch.items_left:
            return True
        if self._wire.pending_bytes or not self._protocol.is_greeted:
            return False
        batch = self._batch_of[call_id] = self._batches.begin(call_id)
        if not batch.items_left:
            return False
        self.is_sending = True
        self._link.flush_soon()
        return True

    async def room_for_item(self, call_id: int) -> bool:
        """See `Carrier.room_for_item`."""
        while self._link.is_wanted(call_id):
            if self.may_send_item(call_id):
                return True
            if not self._protocol.is_greeted:
                self._link.ask_for_greeting()
            self.is_sending = True
            self._waiting[call_id] = self._link.loop.create_future()
            try:
                await self._waiting[call_id]
            finally:
                del self._waiting[call_id]
        return False

    def send_item(self, call_id: int, value: Any) -> None:
        """Encode an item and send it soon.

        Raises:
            UsageError: it cannot travel.
        """
        payload = encode_plainly(value)
        if payload is not None and len(payload) <= limits.JOIN_BYTES_MAX:
            self._batch_of[call_id].add(payload)
            return
        self._batches.write()
        try:
            if payload is not None:
                self._protocol.send_item(call_id, payload)
            else:
                attachments = self._link.attachments
                encoded = attachments.encode(value)
                attachments.write(encoded, partial(self._protocol.send_item, call_id))
                payload = encoded.payload
        except (CannotEncode, MessageTooLarge) as error:
            raise UsageError(f"an item cannot travel: {error}") from error
        self._batches.unsent_bytes += len(payload) + limits.ITEM_OVERHEAD_BYTES

    def send_end(self, call_id: int) -> None:
        """Say that all items of a call were sent, unless it is over."""
        self._batches.write()
        if self._link.is_wanted(call_id):
            self._protocol.send_end(call_id)
            self._link.flush_soon()

    def forget(self, call_id: int) -> None:
        """Send no further items of a call."""
        self._batch_of.pop(call_id, None)

    def took_items(self, call_id: int, items: int, byte_count: int, *, at_once: bool) -> tuple[int, int]:
        """See `Giver.took_items`."""
        if self._protocol.took_item(call_id, byte_count, items=items, at_once=at_once):
            self._link.flush_soon()
        return self._protocol.may_save_up(call_id)

    def starved(self, call_id: int) -> None:
        """See `Giver.starved`."""
        if self._protocol.widen_window(call_id):
            self._link.flush_soon()

    # What the link tells.

    def got_credit(self, call_id: int) -> None:
        """Go on with a call, for which the server takes more."""
        waiting = self._waiting.get(call_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def write(self) -> None:
        """Write what is to be sent with the next flush."""
        self._batches.write()

    def flushed(self) -> None:
        """Go on, if the connection has taken what was written."""
        self._batches.unsent_bytes = 0
        self.is_sending = bool(self._waiting)
        if self._waiting and not self._wire.pending_bytes:
            self.go_on()

    def go_on(self) -> None:
        """Let all that wait look again."""
        for call_id in self._waiting:
            self.got_credit(call_id)
