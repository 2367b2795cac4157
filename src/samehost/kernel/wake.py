"""Waking a thread or a loop that waits in poll(2): an eventfd that stays readable for everybody once it is set."""

from __future__ import annotations

import contextlib
import os


class Wake:
    """A switch that can be polled.

    `set` is safe in signal handlers and from any thread. Who closes it from another one keeps the two apart, because
    the number of a closed descriptor may already mean another file.
    """

    __slots__ = ("_descriptor",)

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """The descriptor to poll for reading; -1, which poll(2) ignores, once closed."""
        return self._descriptor

    def set(self) -> None:
        """Make it readable, until it is cleared."""
        if self._descriptor >= 0:
            os.eventfd_write(self._descriptor, 1)

    def clear(self) -> None:
        """Make it unreadable again."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._descriptor)

    def close(self) -> None:
        """Close the descriptor; a second time does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
