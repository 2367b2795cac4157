"""A moment by which something has to be done, made once from a timeout and handed through all the steps."""

from __future__ import annotations

import math
import time

from samehost.errors import UsageError


class Deadline:
    """The end of an operation on the monotonic clock.

    Args:
        timeout: seconds from now, zero or more; None means no end.

    Raises:
        UsageError: the timeout is negative or not a number.
    """

    __slots__ = ("_at", "timeout")

    def __init__(self, timeout: float | None) -> None:
        if timeout is not None and not (isinstance(timeout, int | float) and timeout >= 0):
            raise UsageError(f"a timeout is zero or more seconds, not {timeout!r}")
        self.timeout = timeout
        self._at = math.inf if timeout is None else time.monotonic() + timeout

    def left(self) -> float:
        """Seconds left, at least 0; infinite if there is no end."""
        return max(0.0, self._at - time.monotonic()) if self._at != math.inf else math.inf


def poll_milliseconds(seconds: float) -> int | None:
    """What poll(2) takes for a wait of so many seconds: rounded up, so that it never spins; None without an end."""
    return None if seconds == math.inf else min(math.ceil(seconds * 1000), 2**31 - 1)
