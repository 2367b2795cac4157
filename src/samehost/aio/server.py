"""Serving everybody who comes, each in a task of its own, until a signal; then draining."""

# ruff: noqa: SLF001 - this is the inside of `serve`: the listener's other half

from __future__ import annotations

import asyncio
import logging
import math
import signal
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Generic

from samehost import limits
from samehost.aio.connection import Connection
from samehost.errors import ConnectionClosed, Error, ListenerClosed
from samehost.kernel.deadline import Deadline
from samehost.kernel.keeper import Taken, handlers_that_fit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from samehost.aio.listening import Listening

logger = logging.getLogger("samehost")


class Server(Generic[Taken]):
    """One run of a listener's `serve`.

    Args:
        listener: where clients or messages come from; closed at the end.
        handler: called with each, in its own task.
        drain: seconds that handlers get once told to end.
        handlers_max: handlers that run at a time.
    """

    def __init__(
        self, listener: Listening[Taken], handler: Callable[[Taken], Awaitable[object]], drain: float, handlers_max: int
    ) -> None:
        self._listener = listener
        self._handler = handler
        self._drain_seconds = drain
        self._handlers_max = handlers_that_fit(handlers_max)
        self._running: dict[asyncio.Task[None], Taken] = {}
        self._signal: signal.Signals | None = None
        self._ending: Deadline | None = None
        Deadline(drain)  # says so if it is no number of seconds

    async def run(self) -> None:
        """Serve until told to end, then drain."""
        with self._signals(asyncio.get_running_loop()):
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
            if len(self._running) >= self._handlers_max:
                await self._listener._changed.wait()
                continue
            try:
                taken = self._listener._take_now()
            except BlockingIOError:
                await self._listener._wait(Deadline(None))
                continue
            except ListenerClosed:
                return
            if taken is not None:
                self._start(taken)
            else:
                await self._listener._changed.wait(self._listener._pause)

    def _begin_drain(self) -> Deadline:
        """Tell every connection, and count the drain time from the first call on."""
        if self._ending is None:
            self._ending = Deadline(self._drain_seconds)
            for taken in self._running.values():
                if isinstance(taken, Connection):
                    taken._end_when_quiet()
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
                taken = self._listener._take_now()
            except (BlockingIOError, ListenerClosed):
                return
            if taken is not None:
                self._start(taken)
            else:
                await self._listener._changed.wait(min(self._listener._pause, deadline.left()))

    def _start(self, taken: Taken) -> None:
        if self._ending is not None and isinstance(taken, Connection):
            taken._end_when_quiet()
        task = asyncio.ensure_future(self._handle(taken))
        self._running[task] = taken
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task).close()  # a task that is cancelled before its first step never gets to close it
        self._listener._changed.wake()

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

    async def _drain(self) -> None:
        deadline = self._begin_drain()
        if self._running:
            left = deadline.left()
            await asyncio.wait(self._running, timeout=None if left == math.inf else left)

    async def _cut(self) -> None:
        if not self._running:
            return
        logger.warning("%s: %d still in progress are cut off", self._listener.address, len(self._running))
        for task in self._running:
            task.cancel()
        _, stuck = await asyncio.wait(self._running, timeout=limits.DRAIN_CUT_SECONDS)
        if stuck:
            logger.error("%s: %d handlers swallow their cancellation", self._listener.address, len(stuck))

    @contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Have SIGINT and SIGTERM stop the listener, if this is the loop that signals reach."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.getsignal(number) for number in numbers}
        for number in numbers:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)
                signal.signal(number, previous[number] or signal.SIG_DFL)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._signal is not None:
            raise SystemExit(128 + number)
        self._signal = number
        self._listener.stop()
