"""Counting calls, and how long they took, in a few additions a call.

Latencies go into buckets whose width grows with them, eight for each power of two, so that a quantile is read off to
within an eighth of itself, whatever it is, from a list of a fixed size. They are put there many at a time, since that
takes longer than it takes a short call to do everything else but wait.
"""

from __future__ import annotations

_BITS_MAX = 45
"""Calls of up to 2^45 ns, ten hours; longer ones count as that."""

_PARTS_BITS = 3
_PARTS = 1 << _PARTS_BITS

_NOTED_MAX = 64
"""How many are only noted at a time."""


class Latencies:
    """How long things took, as a histogram."""

    __slots__ = ("_buckets", "_noted")

    def __init__(self) -> None:
        self._buckets = [0] * ((_BITS_MAX + 1) * _PARTS)
        self._noted: list[float] = []

    def note(self, seconds: float) -> None:
        """Count one, soon."""
        self._noted.append(seconds)
        if len(self._noted) >= _NOTED_MAX:
            self._count_noted()

    def _count_noted(self) -> None:
        for seconds in self._noted:
            self.add(int(seconds * 1e9))
        self._noted.clear()

    def add(self, nanoseconds: int, count: int = 1) -> None:
        """Count one, or several that took as long."""
        bits = nanoseconds.bit_length()
        if bits <= _PARTS_BITS:
            self._buckets[nanoseconds] += count
        elif bits <= _BITS_MAX:
            # The highest bit says which power of two, the three behind it which part of that.
            self._buckets[(bits << _PARTS_BITS) | (nanoseconds >> (bits - _PARTS_BITS - 1)) & (_PARTS - 1)] += count
        else:
            self._buckets[-1] += count

    def quantile(self, share: float) -> float:
        """The seconds that this share of all stayed below or at, as 0.5 for the median; 0.0 if there is none."""
        self._count_noted()
        wanted = share * sum(self._buckets)
        counted = 0
        for index, count in enumerate(self._buckets):
            counted += count
            if count and counted >= wanted:
                return _middle(index) / 1e9
        return 0.0


def _middle(index: int) -> float:
    """The nanoseconds in the middle of a bucket."""
    bits, part = divmod(index, _PARTS)
    if bits == 0:
        return float(part)
    width = 2.0 ** (bits - 1 - _PARTS_BITS)
    return 2.0 ** (bits - 1) + (part + 0.5) * width


class MethodStatistics:
    """The figures of one method.

    Attributes:
        calls: begun so far.
        errors: of those, answered with an error.
        in_flight: of those, not answered yet.
        latencies: of those answered, from the frame's arrival to the answer.
        unsettled: of those answered, not among the latencies yet.
    """

    __slots__ = ("calls", "errors", "in_flight", "latencies", "unsettled")

    def __init__(self) -> None:
        self.calls = self.errors = self.in_flight = self.unsettled = 0
        self.latencies = Latencies()
