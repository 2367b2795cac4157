"""What every listener for threads has: a claimed address, a way to wait for it, and an end that wakes who waits."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic

from samehost import limits
from samehost.blocking.waiting import READ, wait_for
from samehost.errors import ClaimError, DeadlineExceeded, ListenerClosed
from samehost.kernel.closing import Closable
from samehost.kernel.deadline import Deadline
from samehost.kernel.keeper import Taken
from samehost.kernel.wake import Wake

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from socket import socket

    from samehost.kernel.keeper import Keeper


class Listening(Closable, Generic[Taken]):
    """A claimed address that threads wait on.

    `close` and `stop` may come from any thread or signal handler. The descriptors are closed by the last thread that
    leaves, so that none of them is left waiting on a number that already means another file.

    Two locks: `_lock` guards the count of threads and the switch, and is held for nothing that could take time, because
    signal handlers want it; `_taking` lets one thread at a time take, check the path and log, and neither `close` nor
    `stop` wants it.
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
        self._is_closed = False
        self._is_released = False
        self._is_stopping = False
        self._next_check = Deadline(limits.PATH_CHECK_SECONDS)
        self._nobody_inside()
        _listeners.add(self)

    def _nobody_inside(self) -> None:
        self._lock = threading.RLock()  # re-entered when a signal handler closes or stops the listener
        self._taking = threading.RLock()  # re-entered when a handler of the log or of a signal checks the path
        self._waiting = 0

    def _after_fork(self) -> None:
        """In a child, forget the parent's threads, and have a switch of our own: setting theirs would wake them."""
        self._nobody_inside()
        if not self._is_released:
            self._wake.close()
            self._wake = Wake()

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

        A listener that is waited on or served does this by itself every 2 seconds. Call it if you use only its socket.

        Raises:
            ListenerClosed: the listener was closed.
        """
        with self._inside(), self._taking:  # several threads may wait, and one is enough to make the path again
            self._keeper.check_path()

    def _look_after_path(self) -> float:
        """Check the path when it is time to; the seconds until the next time."""
        if self._next_check.left() == 0:
            self._next_check = Deadline(limits.PATH_CHECK_SECONDS)
            self.check_path()
        return self._next_check.left()

    def close(self) -> None:
        """Remove the path, stop listening, and wake every thread that waits; a second time does nothing.

        Clients in the backlog are disconnected. A process that inherited the listener by fork closes only its copy.
        """
        with self._lock:
            self._is_closed = True
            self._wake.set()
            is_last = self._is_last()
        if is_last:
            self._release()

    def _is_last(self) -> bool:
        """Whether it is us who have to release, once; with the lock held."""
        is_last = self._is_closed and not self._waiting and not self._is_released
        self._is_released |= is_last
        return is_last

    def _release(self) -> None:
        self._keeper.release()
        with self._lock:
            self._wake.close()

    def stop(self) -> None:
        """Tell `serve` to end: no new clients, those that are there get served, then it returns.

        Without `serve`, a thread that waits for a client gets ListenerClosed, as from `close`.

        Safe in signal handlers and from any thread.
        """
        with self._lock:
            self._is_stopping = True
            self._wake.set()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ListenerClosed(f"the listener on {self.address} is closed")

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Keep the descriptors open while this thread uses them."""
        with self._lock:
            self._waiting += 1
        try:
            self._check_open()
            yield
        finally:
            with self._lock:
                self._waiting -= 1
                is_last = self._is_last()
            if is_last:
                self._release()

    @property
    def _pause(self) -> float:
        """Seconds to rest when there was nobody to take for another reason than that nobody came."""
        return 0.0

    def _take_now(self, take: Callable[[], Taken | None]) -> Taken | None:
        """Take one client or message. Raises BlockingIOError when none is there; None means to rest and look again."""
        with self._taking:  # by one thread at a time: one may be switching the socket to non-blocking, or letting it go
            return take()

    def _take(self, take: Callable[[], Taken | None], deadline: Deadline) -> Taken:
        """Wait for one client or message."""
        with self._inside():
            while not self._is_closed and not self._is_stopping:
                seconds = self._look_after_path()
                try:
                    taken = self._take_now(take)
                except BlockingIOError:
                    self._check_deadline(deadline)
                    self._wait(min(seconds, deadline.left()))
                else:
                    if taken is not None:
                        return taken
                    self._check_deadline(deadline)
                    self._rest(min(seconds, deadline.left()))
        raise ListenerClosed(f"the listener on {self.address} was closed")

    def _wait(self, seconds: float) -> None:
        """Wait until something may be there to take, or until told to end."""
        wait_for((self.socket, READ), (self._wake, READ), seconds=seconds)

    def _rest(self, seconds: float) -> None:
        """Wait as long as something has run out, or until told to end."""
        if self._pause:
            wait_for((self._wake, READ), seconds=min(self._pause, seconds))

    def _check_deadline(self, deadline: Deadline) -> None:
        if deadline.left() == 0:
            raise DeadlineExceeded(f"nobody came to {self.address} within {deadline.timeout:g} s")

    def __del__(self) -> None:
        if not getattr(self, "_is_closed", True):
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self.address}{', closed' if self._is_closed else ''}>"


_listeners: weakref.WeakSet[Listening[Any]] = weakref.WeakSet()


def _after_fork() -> None:
    for listener in list(_listeners):
        listener._after_fork()  # noqa: SLF001 - of this module


os.register_at_fork(after_in_child=_after_fork)
