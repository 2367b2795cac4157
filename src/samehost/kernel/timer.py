"""A clock that ticks at fixed times, whatever happens meanwhile: timerfd_create(2), for a loop to wait on.

Loops have timers of their own, which are late by up to a millisecond, as epoll_wait(2) counts in these.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time

from samehost.kernel.closing import Closable

_ABSOLUTE = 1
_SECOND = 1_000_000_000


class _Spec(ctypes.Structure):
    _fields_ = (("every", ctypes.c_long * 2), ("first", ctypes.c_long * 2))


class Timer(Closable):
    """Readable from each tick on, until `heed` is called.

    Args:
        first: when it ticks first, in nanoseconds of `time.monotonic_ns`.
        every: nanoseconds between two ticks, 1 or more.
    """

    def __init__(self, first: int, every: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor: int = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise _last_error()
        spec = _Spec(divmod(every, _SECOND), divmod(first, _SECOND))
        if libc.timerfd_settime(self._descriptor, _ABSOLUTE, ctypes.byref(spec), None):
            error = _last_error()
            self.close()
            raise error

    def fileno(self) -> int:
        """The descriptor, which is readable once it has ticked."""
        return self._descriptor

    def heed(self) -> None:
        """Be readable no more until the next tick."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._descriptor, 8)

    def close(self) -> None:
        """Stop; a second time does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
