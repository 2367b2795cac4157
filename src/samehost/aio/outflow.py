"""The way out of a session for what is not the answer to a call: items of streams and notes of progress.

Items are put into the output only while none is pending, a little at a time, and each stream in its turn, so that the
answers to other calls go in between, and whoever reads one stream slowly holds up nothing else. A stream without credit
waits by itself, and costs nothing meanwhile; one that has credit, but no room, stands in a queue here.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from samehost import limits
from samehost.aio.items import NO_BATCH, Batch, Batches
from samehost.aio.lending import blob_bytes
from samehost.codec import CannotEncode
from samehost.errors import MessageTooLarge, UsageError
from samehost.extensions import is_large

if TYPE_CHECKING:
    from collections.abc import Iterable

    from samehost import protocol
    from samehost.aio.answering import Answering
    from samehost.aio.lending import Loan
    from samehost.aio.wire import Wire
    from samehost.codec import Codec
    from samehost.kernel.attaching import Encoded
    from samehost.service.call import Progress

_BYTES_AT_ONCE = limits.ITEMS_BYTES_AT_ONCE
_OVERHEAD_BYTES = limits.ITEM_OVERHEAD_BYTES
_BYTES = frozenset((bytes, bytearray, memoryview))
_BLOB_BYTES_PER_BYTE = 64  # a blob counts for so much less in that, but does count, as it may have been copied
_NOTES_MAX = limits.CALLS_MAX  # that come from threads faster than the loop takes them


class Sender(Protocol):
    """A call that streams.

    Attributes:
        call_id: its id.
    """

    call_id: int

    def go_on(self) -> bool:
        """Send what there is room for; whether that is done in another turn of the loop."""


class Outflow:
    """What the streams of one session share.

    Args:
        session: whose it is.
        found: its end of the protocol.
        wire: its connection.
        codec: how values are written.

    Attributes:
        codec: as above.
        batches: items that are about to be written; what else is said of their calls is written behind them.
    """

    def __init__(self, session: Answering, found: protocol.Connection, wire: Wire, codec: Codec) -> None:
        self.codec = codec
        self._session = session
        self._enclosures = session.enclosures  # made here, on the loop, as threads encode as well
        self._protocol = found
        self._wire = wire
        self._encode_raw = codec.encode_raw
        self.batches = Batches(found)
        self._waiting: dict[int, Sender] = {}
        self._lent: dict[int, list[tuple[Loan, int]]] = {}  # by shares; each may be out for several streams
        self._notes: dict[int, bytes] = {}
        self._posted: deque[tuple[int, bytes]] = deque(maxlen=_NOTES_MAX)
        self._is_posting = False
        self._is_turn_due = False

    def begin_stream(self, call_id: int) -> None:
        """Say that items follow."""
        self._protocol.send_stream(call_id)
        self._session.flush_soon()

    @property
    def has_unsent(self) -> bool:
        """Whether items or notes were written since the last flush."""
        return self.batches.unsent_bytes > 0

    def begin_batch(self, call_id: int) -> Batch:
        """As many items of this call as may be sent now."""
        if self._wire.pending_bytes:
            return NO_BATCH
        batch = self.batches.begin(call_id)
        if batch.items_left:
            self._session.flush_soon()
        return batch

    @property
    def _is_clear(self) -> bool:
        return not self._wire.pending_bytes and self.batches.unsent_bytes < _BYTES_AT_ONCE

    def may_send(self, call_id: int) -> bool:
        """Whether an item of this call may be sent now."""
        self.batches.write()
        return (
            not self._wire.pending_bytes
            and self.batches.unsent_bytes < _BYTES_AT_ONCE
            and self._protocol.may_send_item(call_id)
        )

    def items_left(self, call_id: int) -> int:
        """How many items its caller takes."""
        return self._protocol.items_left(call_id)

    def items_widened(self, call_id: int) -> int:
        """How many items its caller takes beyond what every stream begins with."""
        return self._protocol.items_widened(call_id)

    def encode(self, value: Any) -> bytes | Encoded:
        """Encode an item, in any thread.

        Raises:
            CannotEncode: it cannot travel.
        """
        if type(value) not in _BYTES or not is_large(value):
            try:
                encoded = self._encode_raw(value)
            except Exception:  # whatever msgspec raises for what it cannot encode by itself
                return self._enclosures.encode(value)
            if len(encoded) < limits.BLOB_BYTES_MIN or not self._protocol.peer_features:
                return encoded
        return self._enclosures.encode(value)

    def send(self, call_id: int, encoded: bytes | Encoded, loan: Loan) -> None:
        """Send an item; only right after `may_send` has said so.

        Args:
            loan: the call's, for the memory that goes with the item.

        Raises:
            MessageTooLarge: it is longer than the peer takes.
            OSError: no more descriptors can be had.
        """
        if isinstance(encoded, bytes):
            self._protocol.send_item(call_id, encoded)
            self.batches.unsent_bytes += len(encoded) + _OVERHEAD_BYTES
        else:
            self._enclosures.write(encoded, self._protocol.send_item, call_id)
            loan.lend(encoded)
            for share, block in encoded.shares.items():
                self._lent.setdefault(share, []).append((loan, block.byte_count))
            self.batches.unsent_bytes += (
                len(encoded.payload) + _OVERHEAD_BYTES + blob_bytes(encoded) // _BLOB_BYTES_PER_BYTE
            )
        self._session.flush_soon()

    def released(self, shares: Iterable[int]) -> None:
        """Take note that the caller looks at these no more."""
        for share in shares:
            lent = self._lent.pop(share, [])
            if len(lent) > 1:  # two subscriptions to a topic, of which it was likely the one that keeps less
                lent.sort(key=lambda one: one[0].blobs, reverse=True)
                self._lent[share] = lent[:-1]
            if lent:
                loan, byte_count = lent[-1]
                loan.returned(byte_count)

    @property
    def offered(self) -> tuple[int, bool]:
        """What the client takes beside bytes, and whether it may be sent parts of the arena now."""
        return self._enclosures.offered

    def took(self, call_id: int, items: int, byte_count: int, *, at_once: bool) -> tuple[int, int]:
        """Return the credit for items of the caller's that were read; see `Giver.took_items`."""
        if self._protocol.took_item(call_id, byte_count, items=items, at_once=at_once):
            self._session.flush_soon()
        return self._protocol.may_save_up(call_id)

    def starved(self, call_id: int) -> None:
        """See `Giver.starved`."""
        if self._protocol.widen_window(call_id):
            self._session.flush_soon()

    def wait(self, sender: Sender) -> None:
        """Call it once there is room, if it has credit; without any, it hears of that first."""
        if self._protocol.may_send_item(sender.call_id):
            self._waiting[sender.call_id] = sender

    def report(self, call_id: int, progress: Progress) -> None:
        """Report progress, from any thread; from another than the loop's, soon.

        Raises:
            UsageError: it cannot travel.
        """
        try:
            encoded = self.codec.encode(progress)
        except CannotEncode as error:
            raise UsageError(f"this progress cannot travel: {error}") from error
        if len(encoded) > limits.NOTE_BYTES_MAX:
            raise MessageTooLarge(f"progress of {len(encoded)} bytes, at most {limits.NOTE_BYTES_MAX} travel")
        if self._session.runner.is_here:
            self.note(call_id, encoded)
            return
        self._posted.append((call_id, encoded))
        if not self._is_posting:
            self._is_posting = True
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits for this any more
                self._session.runner.loop.call_soon_threadsafe(self._take_posted)

    def _take_posted(self) -> None:
        self._is_posting = False
        for _ in range(len(self._posted)):
            self.note(*self._posted.popleft())

    def note(self, call_id: int, encoded: bytes) -> None:
        """Report progress, if the call is not over; the latest only, while output is held up."""
        if not self._is_clear:
            self._notes[call_id] = encoded
        elif self._protocol.is_open(call_id) and not self._protocol.is_cancelled(call_id):
            self._notes.pop(call_id, None)
            self.batches.write()
            self._protocol.send_note(call_id, encoded)
            self.batches.unsent_bytes += len(encoded) + _OVERHEAD_BYTES
            self._session.flush_soon()

    def flushed(self) -> None:
        """Go on, now that what was written has been handed to the connection."""
        self.batches.unsent_bytes = 0
        self.go_on()

    def go_on(self) -> None:
        """Let those who wait send, each in its turn."""
        self._is_turn_due = False
        if self._wire.pending_bytes:
            return
        if self._notes:
            notes, self._notes = self._notes, {}
            for call_id, encoded in notes.items():
                self.note(call_id, encoded)
        while self._waiting and self._is_clear:
            sender = self._waiting.pop(next(iter(self._waiting)))
            if sender.go_on():
                self._take_turns()
                return

    def _take_turns(self) -> None:
        """Go on with the next one after the one who was woken just now, whether or not that one sends anything."""
        if self._waiting and not self._is_turn_due:
            self._is_turn_due = True
            self._session.runner.loop.call_soon(self.go_on)
