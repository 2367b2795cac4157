"""The credit of one call's streams, PROTOCOL.md section 6.5: how much this end may send, and how much the peer may.

Items are counted, and their bytes. A sender may send while it has one of each left; the last item may be longer than
the bytes left, so that an item longer than the window needs no rule of its own, and the balance of bytes may be below
zero.
"""

from __future__ import annotations

from samehost import limits

_GRANT_ITEMS = limits.WINDOW_ITEMS // 2
_UNBOUNDED = 2**62
_GRANT_BYTES = limits.WINDOW_BYTES // 2


class StreamCredit:
    """Both directions of one call; a direction that carries no stream keeps its first balance."""

    __slots__ = ("bytes_in", "bytes_out", "bytes_taken", "items_in", "items_out", "items_taken")

    def __init__(self) -> None:
        self.items_out = self.items_in = limits.WINDOW_ITEMS
        self.bytes_out = self.bytes_in = limits.WINDOW_BYTES
        self.items_taken = self.bytes_taken = 0

    def may_send(self) -> bool:
        """Whether the peer takes another item."""
        return self.items_out > 0 and self.bytes_out > 0

    def sent(self, byte_count: int) -> None:
        """Pay for an item that we send."""
        self.items_out -= 1
        self.bytes_out -= byte_count

    def received(self, byte_count: int) -> bool:
        """Let the peer pay for an item; False if it could not."""
        if self.items_in <= 0 or self.bytes_in <= 0:
            return False
        self.items_in -= 1
        self.bytes_in -= byte_count
        return True

    def gained(self, items: int, byte_count: int) -> bool:
        """Add what the peer granted; False if that is more than a balance may be."""
        self.items_out += items
        self.bytes_out += byte_count
        return self.items_out <= limits.CREDIT_MAX and self.bytes_out <= limits.CREDIT_MAX

    def needs_none(self) -> None:
        """Send without credit from now on, since the peer cannot give any more."""
        self.items_out = self.bytes_out = _UNBOUNDED

    def granted(self, items: int, byte_count: int) -> bool:
        """Add what we grant; False, and nothing done, if that is more than a balance may be."""
        if self.items_in + items > limits.CREDIT_MAX or self.bytes_in + byte_count > limits.CREDIT_MAX:
            return False
        self.items_in += items
        self.bytes_in += byte_count
        return True

    def took(self, byte_count: int, *, at_once: bool = False) -> tuple[int, int] | None:
        """Note that the reader is done with an item; the grant to send, once half of the window has come together."""
        self.items_taken += 1
        self.bytes_taken += byte_count
        if self.items_taken < _GRANT_ITEMS and self.bytes_taken < _GRANT_BYTES and not at_once:
            return None
        grant = self.items_taken, self.bytes_taken
        self.items_taken = self.bytes_taken = 0
        return grant
