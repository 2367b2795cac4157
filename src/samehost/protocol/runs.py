"""Items in frames, PROTOCOL.md section 6.3, of which there are often many of one stream one behind the other.

What holds for all of such a run is looked at once: the call, its state, its credit. One that is not that simple takes
the general way, item by item.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from samehost import limits as bounds
from samehost.errors import LocalProtocolError
from samehost.protocol import frames
from samehost.protocol.arenas import SharingConnection
from samehost.protocol.events import Item
from samehost.protocol.states import ITEM

if TYPE_CHECKING:
    from samehost.protocol.events import Descriptors, Payload

_NOTHING: Descriptors = ()
_HEADER_BYTES = frames.HEADER_BYTES
_JOIN_BYTES_MAX = bounds.JOIN_BYTES_MAX
_pack_header, _unpack_item = frames.HEADER.pack, frames.SHORT_HEADER.unpack_from


class StreamingConnection(SharingConnection):
    """The part of a connection that carries items."""

    __slots__ = ()

    def send_item(self, call_id: int, value: Payload, descriptors: Descriptors = ()) -> None:
        """See `Connection.send_item`; the common one takes fewer steps."""
        length = len(value)
        if descriptors or not 0 < length <= _JOIN_BYTES_MAX or not self.may_send_item(call_id):
            super().send_item(call_id, value, descriptors)
            return
        credit = self._streams.get(call_id) or self._credit_of(call_id)
        credit.items_out -= 1
        credit.bytes_out -= length
        self._pieces += (_pack_header(length, ITEM, 0, 0, call_id), value)

    def send_items(self, call_id: int, values: list[bytes]) -> None:
        """See `Connection.send_items`; short ones are written in one go."""
        lengths = list(map(len, values))
        if max(lengths) > _JOIN_BYTES_MAX or not min(lengths) or not self.may_send_item(call_id):
            super().send_items(call_id, values)
            return
        credit, byte_count = self._credit_of(call_id), sum(lengths)
        if len(values) > credit.items_out or byte_count - lengths[-1] >= credit.bytes_out:
            raise LocalProtocolError(f"{len(values)} ITEMs of call {call_id}: no credit for all of them")
        credit.sent(byte_count, len(values))
        heads = {length: _pack_header(length, ITEM, 0, 0, call_id) for length in set(lengths)}
        self._pieces += chain.from_iterable(zip(map(heads.__getitem__, lengths), values, strict=True))

    def _read_items(self, data: Payload, start: int, stop: int, call_id: int) -> int:
        """Read an item, and those of the same stream without descriptors that lie right behind it; where they end."""
        self._received_item(call_id, data[start:stop], self._claimed)
        credit = self._streams.get(call_id)
        if credit is None or self.is_cancelled(call_id):
            return stop
        events, end, longest = self._events, len(data), self.limits.payload_bytes_max
        items, byte_count = credit.items_in, credit.bytes_in
        while items > 0 and byte_count > 0:
            start = stop + _HEADER_BYTES
            if start > end:
                break
            length, mark, next_id = _unpack_item(data, stop)
            if mark != ITEM or next_id != call_id or not 0 < length <= longest or start + length > end:
                break
            stop = start + length
            items -= 1
            byte_count -= length
            events.append(Item(call_id, data[start:stop], _NOTHING))
        credit.paid(items, byte_count)
        return stop
