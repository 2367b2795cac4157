"""Serving everybody who comes until a signal, and then draining.

`Server` is the run itself: taking, counting, signals and the end. What is done with what was taken is for its kinds to
say; `HandlerServer` is the one that gives each to a handler, in a task of its own.
"""

# ruff: noqa: SLF001 - this is the inside of `serve`: the listener's other half

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import threading
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Generic

from samehost import limits
from samehost.aio.connection import Connection
from samehost.errors import ConnectionClosed, Error, ListenerClosed
from samehost.kernel.deadline import Deadline
from samehost.kernel.keeper import Taken, handlers_that_fit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from types import FrameType

    from samehost.aio.listening import Listening

logger = logging.getLogger("samehost")


class Server(ABC, Generic[Taken]):
    """One run of a listener's `serve`.

    Args:
        listener: where clients or messages come from; closed at the end.
        take: takes one from it; see `Listening._take`.
        drain: seconds for those in progress once told to end.
        handlers_max: how many may be in progress at a time.
    """

    def __init__(
        self, listener: Listening[Any], take: Callable[[], Taken | None], drain: float, handlers_max: int
    ) -> None:
        Deadline(drain)  # says so if it is no number of seconds
        listener._check_open()
        self._listener = listener
        self._take = take
        self._drain_seconds = drain
        self._handlers_max = handlers_that_fit(handlers_max)
        self._running: dict[asyncio.Future[None], Taken] = {}
        self._is_full_reported = False
        self._signal: signal.Signals | None = None
        self._ending: Deadline | None = None

    @abstractmethod
    def _begin(self, taken: Taken) -> asyncio.Future[None]:
        """Begin to serve one; what is done once that is over, or cancelled to cut it off."""

    @abstractmethod
    def _end_soon(self, taken: Taken) -> None:
        """Tell one that the server drains."""

    async def run(self) -> None:
        """Serve until told to end, then drain."""
        with self.signals():
            await self.serve()

    def signals(self) -> AbstractContextManager[None]:
        """Have SIGINT and SIGTERM end `serve`, or the process if they come a second time."""
        return _signals.reaching(self)

    async def serve(self) -> None:
        """Serve until told to end, then drain; for who sees to the signals."""
        try:
            await self._serve()
            await self._serve_rest()
            if not self._listener._is_needed_for_replies:
                self._listener.close()
            await self._drain()
        finally:
            self._listener.close()
            await self._cut()  # nobody is left, unless we were cancelled ourselves

    async def _serve(self) -> None:
        while not self._listener._is_stopping and not self._listener._is_closed:
            seconds = self._listener._look_after_path()
            if len(self._running) >= self._handlers_max:
                self._report_full()
                await self._listener._changed.wait(seconds)
                continue
            try:
                taken = self._take()
            except BlockingIOError:
                self._is_full_reported = False
                await self._listener._readable.wait(seconds)
                continue
            except ListenerClosed:
                return
            if taken is not None:
                self._start(taken)
                await asyncio.sleep(0)  # let others run, however many come
            else:
                await self._listener._changed.wait(min(self._listener._pause, seconds))

    def _report_full(self) -> None:
        """Say it once, until nobody waits any more."""
        if not self._is_full_reported:
            self._is_full_reported = True
            address, count = self._listener.address, len(self._running)
            logger.warning("%s is full: %d in progress, further clients wait", address, count)

    def _begin_drain(self) -> Deadline:
        """Tell every connection, and count the drain time from the first call on."""
        if self._ending is None:
            self._ending = Deadline(self._drain_seconds)
            for taken in list(self._running.values()):
                self._end_soon(taken)
        return self._ending

    async def _serve_rest(self) -> None:
        """Serve those who had come before we were told to end."""
        logger.info(
            "%s: draining %s, %d in progress, at most %g s",
            self._signal.name if self._signal else "told to end",
            self._listener.address,
            len(self._running),
            self._drain_seconds,
        )
        deadline = self._begin_drain()
        if self._listener._is_closed or not self._listener._keeper.stop():
            return
        while deadline.left():
            if len(self._running) >= self._handlers_max:
                await self._listener._changed.wait(deadline.left())
                continue
            try:
                taken = self._take()
            except (BlockingIOError, ListenerClosed):
                return
            if taken is not None:
                self._start(taken)
            else:
                await self._listener._changed.wait(min(self._listener._pause, deadline.left()))

    def _start(self, taken: Taken) -> None:
        over = self._begin(taken)
        self._running[over] = taken
        over.add_done_callback(self._done)
        if self._ending is not None:
            self._end_soon(taken)

    def _done(self, over: asyncio.Future[None]) -> None:
        self._running.pop(over).close()  # a task that is cancelled before its first step never gets to close it
        self._listener._changed.wake()

    async def _drain(self) -> None:
        deadline = self._begin_drain()
        if self._running:
            left = deadline.left()
            await asyncio.wait(self._running, timeout=None if left == math.inf else left)

    async def _cut(self) -> None:
        if not self._running:
            return
        logger.warning("%s: %d still in progress are cut off", self._listener.address, len(self._running))
        for over in list(self._running):
            over.cancel()
        _, stuck = await asyncio.wait(self._running, timeout=limits.DRAIN_CUT_SECONDS)
        if stuck:
            logger.error("%s: %d handlers swallow their cancellation", self._listener.address, len(stuck))


class HandlerServer(Server[Taken]):
    """Gives each to a handler, in a task of its own.

    Args:
        handler: called with each.
        Others: as `Server`.
    """

    def __init__(
        self,
        listener: Listening[Taken],
        take: Callable[[], Taken | None],
        handler: Callable[[Taken], Awaitable[object]],
        drain: float,
        handlers_max: int,
    ) -> None:
        super().__init__(listener, take, drain, handlers_max)
        self._handler = handler

    def _begin(self, taken: Taken) -> asyncio.Future[None]:
        return asyncio.ensure_future(self._handle(taken))

    def _end_soon(self, taken: Taken) -> None:
        if isinstance(taken, Connection):
            taken._end_when_quiet()

    async def _handle(self, taken: Taken) -> None:
        with closing(taken):
            try:
                await self._handler(taken)
            except ConnectionClosed as error:
                logger.info("%s: a client left: %s", self._listener.address, error)
            except Error as error:
                logger.warning("%s: %s: %s", self._listener.address, type(error).__name__, error)
            except Exception:
                logger.exception("%s: a handler failed", self._listener.address)


class _Signals:
    """SIGINT and SIGTERM for all servers of the main thread's loop.

    A signal has one handler in a process, so the servers share it: the first one in sets it, and the last one out puts
    back what was there before. Set by signal(2) and not by `loop.add_signal_handler`, which does not tell what it
    replaces. `call_soon_threadsafe` wakes the loop; should a signal come in just before the loop goes to sleep, it is
    noticed when a server next looks after its path.
    """

    def __init__(self) -> None:
        self._servers: list[Server[Any]] = []
        self._before: dict[signal.Signals, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextmanager
    def reaching(self, server: Server[Any]) -> Iterator[None]:
        """Have a signal stop the server, if this is the thread that signals reach."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._servers.append(server)
        if len(self._servers) == 1:
            self._set()
        try:
            yield
        finally:
            if len(self._servers) == 1:
                self._put_back()
            self._servers.remove(server)

    def _set(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._on_signal:  # and nobody has set another one meanwhile
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        found = signal.Signals(number)
        if any(server._signal for server in self._servers):
            self._end_process(found)  # right here, as it may be that the loop is held up
        for server in self._servers:
            server._signal = found
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        for server in self._servers:
            if server._signal:
                server._listener.stop()

    def _end_process(self, number: signal.Signals) -> None:
        """End at once. An exception would not do: `asyncio.run` then waits for every task, however long it takes."""
        for server in self._servers:
            with suppress(Exception):  # the signal may have come in the middle of anything
                server._listener.close()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        os._exit(128 + number)  # the first process of a container, which no signal ends by default


_signals = _Signals()
