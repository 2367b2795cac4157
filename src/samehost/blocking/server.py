"""Serving everybody who comes, each in a thread of its own, until a signal; then draining.

What comes is a connection or a datagram: something with `close`, handed to the user's handler. All waiting is one
poll(2) on the listener, its switch, and a switch that finishing handlers set.
"""

# ruff: noqa: SLF001 - this is the inside of `serve`: the listener's other half

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections import deque
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Generic

from samehost import limits
from samehost.blocking.connection import Connection
from samehost.blocking.waiting import READ, wait_for
from samehost.errors import ConnectionClosed, Error, ListenerClosed
from samehost.kernel.deadline import Deadline
from samehost.kernel.keeper import Taken, handlers_that_fit
from samehost.kernel.wake import Wake

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from samehost.blocking.listening import Listening

logger = logging.getLogger("samehost")


class Server(Generic[Taken]):
    """One run of a listener's `serve`.

    Args:
        listener: where clients or messages come from; closed at the end.
        take: takes one from it; see `Listening._take_now`.
        handler: called with each, in its own thread.
        drain: seconds that handlers get once told to end.
        handlers_max: handlers that run at a time.
    """

    def __init__(
        self,
        listener: Listening[Taken],
        take: Callable[[], Taken | None],
        handler: Callable[[Taken], object],
        drain: float,
        handlers_max: int,
    ) -> None:
        Deadline(drain)  # says so if it is no number of seconds
        listener._check_open()
        self._listener = listener
        self._take = take
        self._handler = handler
        self._drain_seconds = drain
        self._handlers_max = handlers_that_fit(handlers_max)
        self._running: dict[threading.Thread, Taken] = {}
        self._ended: deque[threading.Thread] = deque()
        self._is_full_reported = False
        self._finished = Wake()
        self._signal: signal.Signals | None = None
        self._second_signal: signal.Signals | None = None
        self._is_undisturbed = False
        self._ending: Deadline | None = None
        self._turns: dict[Connection, int] = {}
        self._next_look = Deadline(0)

    def run(self) -> None:
        """Serve until told to end, then drain."""
        with self._signals():
            try:
                with self._listener._inside():
                    self._serve()
                    self._serve_rest()
            except ListenerClosed:
                pass  # told to end by closing the listener
            finally:
                self._end()

    def _end(self) -> None:
        try:
            if not self._listener._is_needed_for_replies:
                self._close()
            if self._second_signal is None:
                self._drain()
        finally:
            self._close()

    def _close(self) -> None:
        with self._undisturbed():
            self._listener.close()

    def _serve(self) -> None:
        while not self._listener._is_stopping and not self._listener._is_closed:
            seconds = self._listener._look_after_path()
            if self._is_full():
                self._report_full()
                wait_for((self._finished, READ), (self._listener._wake, READ), seconds=seconds)
                continue
            try:
                taken = self._listener._take_now(self._take)
            except BlockingIOError:
                self._is_full_reported = False
                self._listener._wait(seconds)
                continue
            if taken is not None:
                self._start(taken)
            else:
                self._listener._rest(seconds)

    def _report_full(self) -> None:
        """Say it once, until nobody waits any more."""
        if not self._is_full_reported:
            self._is_full_reported = True
            address, count = self._listener.address, len(self._running)
            logger.warning("%s is full: %d in progress, further clients wait", address, count)

    def _drain_deadline(self) -> Deadline:
        """The end of the drain time, which runs from the first call on."""
        if self._ending is None:
            self._ending = Deadline(self._drain_seconds)
        return self._ending

    def _serve_rest(self) -> None:
        """Serve those who had come before we were told to end."""
        logger.info(
            "%s: draining %s, %d in progress, at most %g s",
            self._signal.name if self._signal else "told to end",
            self._listener.address,
            len(self._running),
            self._drain_seconds,
        )
        deadline = self._drain_deadline()
        if self._listener._is_closed:
            return
        with self._undisturbed():
            if not self._listener._keeper.stop():
                return
        while deadline.left():
            if self._is_full():
                wait_for((self._finished, READ), seconds=min(self._end_quiet_ones(), deadline.left()))
                continue
            try:
                taken = self._listener._take_now(self._take)
            except BlockingIOError:
                return
            if taken is not None:
                self._start(taken)
            else:
                wait_for((self._finished, READ), seconds=min(self._listener._pause, deadline.left()))

    def _is_full(self) -> bool:
        self._reap()
        return len(self._running) >= self._handlers_max

    def _reap(self) -> None:
        """Forget the threads that have ended; joined, so that none still uses our switches when those are closed."""
        self._finished.clear()
        while self._ended:
            thread = self._ended.popleft()
            thread.join()
            del self._running[thread]

    def _start(self, taken: Taken) -> None:
        if isinstance(taken, Connection):
            taken._is_served = True
        # A daemon, so that a handler that never ends cannot keep the process from ending after its drain time.
        thread = threading.Thread(target=self._handle, args=(taken,), name="samehost-handler", daemon=True)
        self._running[thread] = taken
        try:
            thread.start()
        except RuntimeError as error:
            del self._running[thread]
            taken.close()
            logger.error("%s turned a client away: %s", self._listener.address, error)

    def _handle(self, taken: Taken) -> None:
        try:
            with closing(taken):
                self._handler(taken)
        except ConnectionClosed as error:
            logger.info("%s: a client left: %s", self._listener.address, error)
        except Error as error:
            logger.warning("%s: %s: %s", self._listener.address, type(error).__name__, error)
        except Exception:
            logger.exception("%s: a handler failed", self._listener.address)
        finally:
            self._ended.append(threading.current_thread())
            self._finished.set()

    def _drain(self) -> None:
        if self._drain_quietly():
            self._finished.close()
            return
        logger.warning(
            "%s: %d still in progress after %g s are cut off",
            self._listener.address,
            len(self._running),
            self._drain_seconds,
        )
        for connection in self._connections():
            connection.shutdown()
        if self._wait_until_idle(Deadline(limits.DRAIN_CUT_SECONDS)):
            self._finished.close()
        else:  # they will set the switch when they end, so it stays open
            logger.error("%s: %d handlers do not end", self._listener.address, len(self._running))

    def _drain_quietly(self) -> bool:
        """Let handlers finish, and end each connection on which one has waited for a while in vain."""
        deadline = self._drain_deadline()
        while not self._wait_until_idle(Deadline(min(self._end_quiet_ones(), deadline.left()))):
            if deadline.left() == 0:
                return False
        return True

    def _end_quiet_ones(self) -> float:
        """End each connection whose handler waits in vain since the last look; the seconds until the next look."""
        if self._next_look.left() == 0:
            before, self._turns = self._turns, {connection: connection._turns for connection in self._connections()}
            for connection, turn in self._turns.items():
                if turn % 2 and before.get(connection) == turn:
                    connection.shutdown(socket.SHUT_RD)  # what has come meanwhile can still be read, then the end
            self._next_look = Deadline(limits.DRAIN_QUIET_SECONDS)
        return self._next_look.left()

    def _connections(self) -> list[Connection]:
        return [taken for taken in list(self._running.values()) if isinstance(taken, Connection)]

    def _wait_until_idle(self, deadline: Deadline) -> bool:
        while True:
            self._reap()
            if not self._running:
                return True
            if not wait_for((self._finished, READ), seconds=deadline.left()):
                return False

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Have SIGINT and SIGTERM stop the listener, if this is the thread that signals reach."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal is None:
            self._signal = signal.Signals(number)
            self._listener.stop()
            return
        self._second_signal = signal.Signals(number)
        if not self._is_undisturbed:
            raise SystemExit(128 + number)

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Put a second signal off while the listener's files are removed, so that none of them is left."""
        self._is_undisturbed = True
        try:
            yield
        finally:
            self._is_undisturbed = False
            if self._second_signal is not None:
                raise SystemExit(128 + self._second_signal)
