"""Latencies of a measurement, kept to three significant digits however many and however long they are.

The layout is that of HdrHistogram: buckets that grow with what is in them, here 1024 for each power of two, so that one
is never wider than a thousandth of its values. Its Python package would bring pbr and setuptools into every
installation of samehost, for a page of arithmetic. Pure: whoever measures has the clock.
"""

from __future__ import annotations

import math
from typing import NamedTuple

_SUB_BITS = 10
"""Buckets for each power of two: 2^10."""

_RATIOS = (2**0.25, 2**0.5, 2.0, 4.0, 16.0)
"""What a row may be wider than the one before it by, the finest that gives few enough rows."""


class Row(NamedTuple):
    """A part of a histogram as people look at it.

    Attributes:
        above: nanoseconds that all of it are longer than.
        up_to: the longest that it may have.
        number: how many there are.
    """

    above: int
    up_to: int
    number: int


class Histogram:
    """Whole numbers of nanoseconds, counted.

    Attributes:
        count: how many were added.
        shortest, longest: of those, exactly; 0 without any.
    """

    __slots__ = ("_counts", "_sum", "count", "longest", "shortest")

    def __init__(self) -> None:
        self.count = self.shortest = self.longest = self._sum = 0
        self._counts: dict[int, int] = {}

    def add(self, nanoseconds: int) -> None:
        """Count one, 0 or more."""
        shift = nanoseconds.bit_length() - _SUB_BITS - 1
        bucket = (shift << _SUB_BITS) + (nanoseconds >> shift) if shift > 0 else nanoseconds
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self._sum += nanoseconds
        if nanoseconds > self.longest:
            self.longest = nanoseconds
        if nanoseconds < self.shortest or not self.count:
            self.shortest = nanoseconds
        self.count += 1

    def mean(self) -> float:
        """The mean, exactly; 0.0 without any."""
        return self._sum / self.count if self.count else 0.0

    def deviation(self) -> float:
        """The standard deviation, as near as the buckets tell; 0.0 without any."""
        mean = self.mean()
        squares = sum(count * (_last_of(bucket) - mean) ** 2 for bucket, count in self._counts.items())
        return math.sqrt(squares / self.count) if self.count else 0.0

    def quantile(self, share: float) -> int:
        """What this share of all stayed below or at, as 0.5 for the median, within a thousandth; 0 without any."""
        wanted = min(math.ceil(share * self.count), self.count)
        counted = 0
        for bucket in sorted(self._counts):
            counted += self._counts[bucket]
            if counted >= wanted:
                return min(_last_of(bucket), self.longest)
        return 0

    def rows(self, rows_max: int) -> list[Row]:
        """All of it in few rows, each wider than the one before by the same factor."""
        if not self.count:
            return []
        spread = math.log(max(self.longest, 1) / max(self.shortest, 1))
        ratio = next((one for one in _RATIOS if spread / math.log(one) < rows_max), _RATIOS[-1])
        rows = [Row(0, self._first_edge(ratio), 0)]
        for bucket in sorted(self._counts):
            last = min(_last_of(bucket), self.longest)
            while last > rows[-1].up_to:
                rows.append(Row(rows[-1].up_to, math.ceil(rows[-1].up_to * ratio), 0))
            rows[-1] = rows[-1]._replace(number=rows[-1].number + self._counts[bucket])
        return rows

    def _first_edge(self, ratio: float) -> int:
        """The end of the row that the shortest is in: a power of the ratio, the same for any two measurements."""
        return math.ceil(ratio ** math.ceil(math.log(max(self.shortest, 1), ratio)))


def _last_of(bucket: int) -> int:
    """The longest that is counted in a bucket."""
    shift = max((bucket >> _SUB_BITS) - 1, 0)
    return ((bucket - (shift << _SUB_BITS) + 1) << shift) - 1
