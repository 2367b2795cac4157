"""How long an end may keep its core busy while it waits, and when it is of use.

Who looks again and again for what is to come finds it before a sleeper could be woken, but only where it comes soon,
and the one who sends it has another core to run on. Both are found out by trying: what is spent in vain comes out of an
allowance, which one success fills up, and time does slowly. The time is told from outside, and so is how it went.
"""

from __future__ import annotations

import os
from time import monotonic

from samehost import limits
from samehost.errors import UsageError

_CROWDED_SECONDS = 0.000_005
"""What giving way takes if another has run on this core meanwhile; a tenth of that, if there was none."""


class Allowance:
    """What one end may spend on looking in vain.

    Whoever has nothing left sleeps at once, and gets to look for all of `seconds` again after a while, so that at most
    `limits.BUSY_WAIT_SHARE` of the time goes by like this.

    Args:
        seconds: the most that one wait may take.

    Attributes:
        seconds: as above.
        rests_until: the moment of the monotonic clock before which nothing is to be looked for.

    Raises:
        UsageError: that is no number of seconds, or more than `limits.BUSY_WAIT_SECONDS_MAX`.
    """

    __slots__ = ("_left", "_most", "_since", "rests_until", "seconds")

    def __init__(self, seconds: float) -> None:
        check_busy_wait(seconds)
        self.seconds = seconds
        self._left = self._most = seconds * limits.BUSY_WAITS_IN_VAIN
        self._since = self.rests_until = 0.0

    def paid(self) -> None:
        """Take note that looking has found something."""
        self._left = self._most

    def spent(self, seconds: float, now: float) -> None:
        """Take note that so much time went by in vain until now."""
        regained = (now - self._since) * limits.BUSY_WAIT_SHARE
        self._left = min(self._left + regained, self._most) - max(seconds, self.seconds)
        self._since = now
        if self._left < self.seconds:
            self.rests_until = now + (self.seconds - self._left) / limits.BUSY_WAIT_SHARE


def check_busy_wait(seconds: float) -> None:
    """Raise UsageError unless this is a time that may be spent on looking."""
    try:
        is_one = 0 <= seconds <= limits.BUSY_WAIT_SECONDS_MAX
    except TypeError:
        is_one = False
    if not is_one:
        most = limits.BUSY_WAIT_SECONDS_MAX
        raise UsageError(f"busy_wait is from 0 to {most:g} s, not {seconds!r}: to sleep costs less than to wait longer")


def gave_way() -> bool:
    """Let others run on this core, if any can (sched_yield(2)); whether some did."""
    before = monotonic()
    os.sched_yield()
    return monotonic() - before > _CROWDED_SECONDS
