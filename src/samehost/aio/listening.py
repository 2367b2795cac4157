"""What every listener for asyncio has: a claimed address, a way to wait for it, and an end that wakes who waits."""

from __future__ import annotations

import asyncio
import warnings
from typing import TYPE_CHECKING, Generic

from samehost import limits
from samehost.aio.waiting import Readable, Waiters
from samehost.errors import DeadlineExceeded, ListenerClosed
from samehost.kernel.closing import AsyncClosable
from samehost.kernel.deadline import Deadline
from samehost.kernel.keeper import Taken

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

    from samehost.kernel.keeper import Keeper


class Listening(AsyncClosable, Generic[Taken]):
    """A claimed address that tasks wait on. Everything but waiting happens at once, so nothing needs a lock."""

    _is_needed_for_replies = False
    """Whether what was taken is answered through this very socket, which then has to stay open for the handlers."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._readable = Readable(keeper.socket)
        self._changed = Waiters()
        self._is_closed = False
        self._is_stopping = False
        self._next_check = Deadline(limits.PATH_CHECK_SECONDS)

    @property
    def address(self) -> str:
        """The address that was claimed."""
        return self._keeper.address

    @property
    def socket(self) -> socket:
        """The plain socket, for a server of another kind; the listener goes on owning it."""
        return self._keeper.socket

    def check_path(self) -> None:
        """Look whether the path still leads here; see `samehost.Listener.check_path`."""
        self._check_open()
        self._keeper.check_path()
        if self._readable.socket is not self.socket:  # the path was bound again: every task that waits moves over
            self._readable.stop()
            self._readable = Readable(self.socket)

    def _look_after_path(self) -> float:
        """Check the path when it is time to; the seconds until the next time."""
        if self._next_check.left() == 0:
            self._next_check = Deadline(limits.PATH_CHECK_SECONDS)
            self.check_path()
        return self._next_check.left()

    def close(self) -> None:
        """Remove the path, stop listening, and wake every task that waits; a second time does nothing."""
        self._is_closed = True
        self._readable.stop()
        self._changed.wake()
        self._keeper.release()

    def stop(self) -> None:
        """Tell `serve` to end: no new clients, those that are there get served, then it returns.

        Without `serve`, a task that waits for a client gets ListenerClosed, as from `close`.
        """
        self._is_stopping = True
        self._readable.wake()
        self._changed.wake()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ListenerClosed(f"the listener on {self.address} is closed")

    @property
    def _pause(self) -> float:
        """Seconds to rest when there was nobody to take for another reason than that nobody came."""
        return 0.0

    async def _take(self, take: Callable[[], Taken | None], deadline: Deadline) -> Taken:
        """Wait for one client or message.

        Args:
            take: takes one at once. Raises BlockingIOError when none is there; None means to rest and look again.
            deadline: the end of it.
        """
        await asyncio.sleep(0)  # let others run, however many come; before, as to be cancelled after would lose one
        while not self._is_closed and not self._is_stopping:
            seconds = self._look_after_path()
            try:
                taken = take()
            except BlockingIOError:
                self._check_deadline(deadline)
                await self._readable.wait(min(seconds, deadline.left()))
            else:
                if taken is not None:
                    return taken
                self._check_deadline(deadline)
                await self._changed.wait(min(self._pause, seconds, deadline.left()))  # 0 lets other tasks run
        raise ListenerClosed(f"the listener on {self.address} was closed")

    def _check_deadline(self, deadline: Deadline) -> None:
        if deadline.left() == 0:
            raise DeadlineExceeded(f"nobody came to {self.address} within {deadline.timeout:g} s")

    def __del__(self) -> None:
        if not getattr(self, "_is_closed", True):
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)
            self._keeper.release()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self.address}{', closed' if self._is_closed else ''}>"
