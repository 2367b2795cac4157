"""What every listener for threads has: a claimed address, a way to wait for it, and an end that wakes who waits."""

from __future__ import annotations

import os
import threading
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic

from samehost import limits
from samehost.blocking.waiting import READ, wait_for
from samehost.errors import ClaimError, DeadlineExceeded, ListenerClosed
from samehost.kernel.closing import Closable
from samehost.kernel.keeper import Taken
from samehost.kernel.wake import Wake

if TYPE_CHECKING:
    from collections.abc import Iterator
    from socket import socket

    from samehost.kernel.deadline import Deadline
    from samehost.kernel.keeper import Keeper


class Listening(Closable, Generic[Taken]):
    """A claimed address that threads wait on.

    `close` may come from any thread or signal handler. The descriptors are closed by the last thread that leaves, so
    that none of them is left waiting on a number that already means another file.
    """

    _is_needed_for_replies = False
    """Whether what was taken is answered through this very socket, which then has to stay open for the handlers."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        try:
            self._wake = Wake()
        except OSError as error:
            keeper.release()
            raise ClaimError(f"cannot listen on {keeper.address}: {os.strerror(error.errno or 0)}") from error
        self._lock = threading.RLock()  # re-entered when a signal handler closes the listener
        self._waiting = 0
        self._is_closed = False
        self._is_released = False
        self._is_stopping = False

    @property
    def address(self) -> str:
        """The address that was claimed."""
        return self._keeper.address

    @property
    def socket(self) -> socket:
        """The plain socket, for a server of another kind; the listener goes on owning it.

        It blocks, until this object is first used to take something from it; event loops switch that as they need.
        """
        return self._keeper.socket

    def check_path(self) -> None:
        """Look whether the path still leads here, log it if not, and make it again if it was removed.

        A listener that waits does this by itself every 2 seconds. Call it if you use only its socket.
        """
        with self._lock:  # several threads may wait, and one of them is enough to make the path again
            self._keeper.check_path()

    def close(self) -> None:
        """Remove the path, stop listening, and wake every thread that waits; a second time does nothing.

        Clients in the backlog are disconnected. A process that inherited the listener by fork closes only its copy.
        """
        with self._lock:
            self._is_closed = True
            self._wake.set()
            if not self._waiting:
                self._release()

    def _release(self) -> None:
        if not self._is_released:
            self._is_released = True
            self._keeper.release()
            self._wake.close()

    def stop(self) -> None:
        """Tell `serve` to end: no new clients, those that are there get served, then it returns.

        Without `serve`, a thread that waits for a client gets ListenerClosed, as from `close`.

        Safe in signal handlers and from any thread.
        """
        with self._lock:
            self._is_stopping = True
            self._wake.set()

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Keep the descriptors open while this thread uses them."""
        with self._lock:
            if self._is_closed:
                raise ListenerClosed(f"the listener on {self.address} is closed")
            self._waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1
                if self._is_closed and not self._waiting:
                    self._release()

    def _take_now(self) -> Taken | None:
        """Take one client or message. Raises BlockingIOError when none is there; None means to rest and look again."""
        with self._lock:  # by one thread at a time: one may be switching the socket to non-blocking, or letting it go
            return self._take_locked()

    def _take_locked(self) -> Taken | None:
        raise NotImplementedError

    @property
    def _pause(self) -> float:
        """Seconds to rest when `_take_now` gave None."""
        return 0.0

    def _take(self, deadline: Deadline) -> Taken:
        """Wait for one client or message."""
        with self._inside():
            while True:
                try:
                    taken = self._take_now()
                except BlockingIOError:
                    self._wait(deadline)
                else:
                    if taken is not None:
                        return taken
                    self._check_deadline(deadline)
                    if self._pause:
                        wait_for((self._wake, READ), seconds=min(self._pause, deadline.left()))
                if self._is_closed or self._is_stopping:
                    raise ListenerClosed(f"the listener on {self.address} was closed")

    def _wait(self, deadline: Deadline) -> None:
        """Wait until something may be there to take, looking after the path meanwhile."""
        self._check_deadline(deadline)
        seconds = min(limits.PATH_CHECK_SECONDS, deadline.left())
        if not wait_for((self.socket, READ), (self._wake, READ), seconds=seconds):
            self.check_path()

    def _check_deadline(self, deadline: Deadline) -> None:
        if deadline.left() == 0:
            raise DeadlineExceeded(f"nobody came to {self.address} within {deadline.timeout:g} s")

    def __del__(self) -> None:
        if not getattr(self, "_is_closed", True):
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self.address}{', closed' if self._is_closed else ''}>"
