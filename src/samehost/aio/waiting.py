"""Waiting in an event loop for a socket, or for being woken, by any number of tasks at a time."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket


class Waiters:
    """Tasks that wait to be woken."""

    def __init__(self) -> None:
        self._futures: set[asyncio.Future[bool]] = set()

    async def wait(self, seconds: float = math.inf) -> bool:
        """Wait until somebody calls `wake`; false if nobody did in time."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        timer = None if seconds == math.inf else loop.call_later(seconds, _resolve, future, False)
        self._futures.add(future)
        self._added(loop)
        try:
            return await future
        finally:
            if timer is not None:
                timer.cancel()
            self._futures.discard(future)
            self._removed(loop)

    def wake(self) -> None:
        """Wake every task that waits now."""
        for future in self._futures:
            _resolve(future, True)

    def _added(self, loop: asyncio.AbstractEventLoop) -> None:
        """A task waits."""

    def _removed(self, loop: asyncio.AbstractEventLoop) -> None:
        """A task waits no more."""


class Readable(Waiters):
    """Tasks that wait until something can be read from a socket."""

    def __init__(self, target: socket.socket) -> None:
        super().__init__()
        self.socket = target
        self._loop: asyncio.AbstractEventLoop | None = None

    def _added(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is None:
            self._loop = loop
            self._watch(loop)

    def _removed(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._futures:
            self.stop()

    def stop(self) -> None:
        """Watch the socket no more, which has to happen before it is closed, and wake every task."""
        loop, self._loop = self._loop, None
        if loop is not None:
            self._unwatch(loop)
            self.wake()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.add_reader(self.socket.fileno(), self.wake)

    def _unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(self.socket.fileno())


class Writable(Readable):
    """Tasks that wait until there is room to write."""

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.add_writer(self.socket.fileno(), self.wake)

    def _unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_writer(self.socket.fileno())


def _resolve(future: asyncio.Future[bool], result: bool) -> None:
    if not future.done():
        future.set_result(result)
