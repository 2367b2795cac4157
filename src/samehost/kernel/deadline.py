"""A moment by which something has to be done, made once from a timeout and handed through all the steps."""

from __future__ import annotations

import math
import time

import msgspec

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
        self.timeout = timeout
        if timeout is None:
            self._at = math.inf
            return
        try:
            is_one = timeout >= 0
        except TypeError:
            is_one = False
        if not is_one:
            raise UsageError(f"a timeout is zero or more seconds, not {timeout!r}")
        self._at = time.monotonic() + timeout

    def left(self) -> float:
        """Seconds left, at least 0; infinite if there is no end."""
        left = self._at - time.monotonic()
        return left if left > 0.0 else 0.0  # noqa: FURB136 - half the price of max


class Until(msgspec.Struct, gc=False):
    """A deadline whose moment is known already, and need not be checked; made in a quarter of the time.

    Attributes:
        timeout: the seconds that there were.
        at: the moment on the monotonic clock.
    """

    timeout: float
    at: float

    def left(self) -> float:
        """Seconds left, at least 0."""
        left = self.at - time.monotonic()
        return left if left > 0.0 else 0.0  # noqa: FURB136 - as above


def poll_milliseconds(seconds: float) -> int | None:
    """What poll(2) takes for a wait of so many seconds: rounded up, so that it never spins; None without an end."""
    return None if seconds == math.inf else min(math.ceil(seconds * 1000), 2**31 - 1)
