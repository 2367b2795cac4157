"""The credit of one call's streams, PROTOCOL.md section 6.5: how much this end may send, and how much the peer may.

Items are counted, and their bytes. A sender may send while it has one of each left; the last item may be longer than
the bytes left, so that an item longer than the window needs no rule of its own, and the balance of bytes may be below
zero. Where the peer has run out of items while our reader had taken all that came, both wait for nothing but credit:
then the window gets more items, in no more bytes.
"""

from __future__ import annotations

from samehost import limits

_UNBOUNDED = 2**62
_GRANT_BYTES = limits.WINDOW_BYTES // 2


class StreamCredit:
    """Both directions of one call; a direction that carries no stream keeps its first balance.

    Attributes:
        widened_out: items that the peer has added to its window.
        window_in: items that may be under way to us, or wait here for their reader.
    """

    __slots__ = (
        "_is_used_up",
        "bytes_in",
        "bytes_out",
        "bytes_taken",
        "items_in",
        "items_out",
        "items_taken",
        "widened_out",
        "window_in",
    )

    def __init__(self) -> None:
        self.items_out = self.items_in = self.window_in = limits.WINDOW_ITEMS
        self.bytes_out = self.bytes_in = limits.WINDOW_BYTES
        self.items_taken = self.bytes_taken = self.widened_out = 0
        self._is_used_up = False

    def may_send(self) -> bool:
        """Whether the peer takes another item."""
        return self.items_out > 0 and self.bytes_out > 0

    def sent(self, byte_count: int, items: int = 1) -> None:
        """Pay for items that we send."""
        self.items_out -= items
        self.bytes_out -= byte_count

    def received(self, byte_count: int) -> bool:
        """Let the peer pay for an item; False if it could not."""
        if self.items_in <= 0 or self.bytes_in <= 0:
            return False
        self.paid(self.items_in - 1, self.bytes_in - byte_count)
        return True

    def paid(self, items_in: int, bytes_in: int) -> None:
        """Set what the peer has left, once it has paid for one item or more."""
        self.items_in = items_in
        self.bytes_in = bytes_in
        if 4 * items_in <= self.window_in:
            self._is_used_up = True

    def gained(self, items: int, byte_count: int) -> bool:
        """Add what the peer granted; False if that is more than a balance may be."""
        self.items_out += items
        self.bytes_out += byte_count
        if not byte_count:
            self.widened_out += items
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

    def took(self, items: int, byte_count: int, *, at_once: bool = False) -> tuple[int, int] | None:
        """Note that the reader is done with items; the grant to send, once half of the window has come together."""
        self.items_taken += items
        self.bytes_taken += byte_count
        if 2 * self.items_taken < self.window_in and self.bytes_taken < _GRANT_BYTES and not at_once:
            return None
        grant = self.items_taken, self.bytes_taken
        self.items_taken = self.bytes_taken = 0
        return grant

    def may_save_up(self) -> tuple[int, int]:
        """After how many more items, and bytes of them, a grant is due."""
        return self.window_in // 2 - self.items_taken, _GRANT_BYTES - self.bytes_taken

    def widen(self, untold_items: int) -> int:
        """How many items to add to the window, as the peer and our reader wait for each other; 0 if they do not.

        Args:
            untold_items: that the reader is done with, beside those that we `took`.
        """
        if not self._is_used_up or self.items_in + self.items_taken + untold_items < self.window_in:
            return 0
        self._is_used_up = False
        more = min(self.window_in, limits.WINDOW_ITEMS_MAX - self.window_in)
        self.window_in += more
        return more
