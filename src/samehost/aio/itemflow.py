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
from samehost.aio.items import Carrier
from samehost.codec import CannotEncode
from samehost.errors import MessageTooLarge, UsageError
from samehost.kernel.attaching import may_refer

if TYPE_CHECKING:
    import asyncio

    from samehost.aio.link import Link
    from samehost.aio.wire import Wire
    from samehost.protocol import events


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
        self._unsent_bytes = 0  # since the last flush
        self._waiting: dict[int, asyncio.Future[None]] = {}

    def may_send_item(self, call_id: int) -> bool:
        """See `Carrier.may_send_item`; what the server takes has to be known as well."""
        return (
            not self._wire.pending_bytes
            and self._unsent_bytes < limits.ITEMS_BYTES_AT_ONCE
            and self._protocol.is_greeted
            and self._protocol.may_send_item(call_id)
        )

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
        self.is_sending = True
        self._unsent_bytes += len(payload) + limits.ITEM_OVERHEAD_BYTES
        self._link.flush_soon()

    def send_end(self, call_id: int) -> None:
        """Say that all items of a call were sent, unless it is over."""
        if self._link.is_wanted(call_id):
            self._protocol.send_end(call_id)
            self._link.flush_soon()

    def took_item(self, call_id: int, item: events.Item) -> None:
        """See `Carrier.took_item`."""
        may_have_blob = bool(item.descriptors) or self._link.attachments.has_arenas
        self._protocol.took_item(call_id, len(item.value), at_once=may_have_blob and may_refer(item.value))
        self._link.flush_soon()

    # What the link tells.

    def got_credit(self, call_id: int) -> None:
        """Go on with a call, for which the server takes more."""
        waiting = self._waiting.get(call_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def flushed(self) -> None:
        """Go on, if the connection has taken what was written."""
        self._unsent_bytes = 0
        self.is_sending = bool(self._waiting)
        if self._waiting and not self._wire.pending_bytes:
            self.go_on()

    def go_on(self) -> None:
        """Let all that wait look again."""
        for call_id in self._waiting:
            self.got_credit(call_id)
