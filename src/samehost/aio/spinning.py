"""Keeping an event loop from going to sleep while something is about to come: busy waiting, for both ends.

A loop that has something to run looks at all its sockets and timers without waiting. So a callback that calls for
itself anew keeps the loop turning, and everybody is served as ever. In each turn it also reads, a few times, from the
connection that was active last, which is quicker than to be told by the loop; unless the turn had brought something.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from samehost.aio.wire import SocketWire
from samehost.kernel.spinning import Allowance, gave_way

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable

    from samehost.aio.link import Link
    from samehost.aio.wire import Owner
    from samehost.protocol import Chunk

_LOOKS = 8
"""How often one connection is looked at in a turn of the loop."""

_HELD_UP_SECONDS = 0.001
"""What this takes only if somebody else has the core, or the interpreter (the GIL)."""


class Spinner:
    """Keeps a loop turning after each read and each send, as long as its allowance goes.

    Args:
        loop: the loop.
        seconds: how long at most.
        is_due: whether anything is to be looked for, or nobody else in this process is to have the core.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, is_due: Callable[[], bool]) -> None:
        self._loop = loop
        self._is_due = is_due
        self._allowance = Allowance(seconds)
        self._wire: SpinningWire | None = None
        self._until = 0.0
        self._is_turning = False
        self._was_active = False
        self._has_looked = False

    @property
    def is_turning(self) -> bool:
        """Whether it keeps the loop from sleeping."""
        return self._is_turning

    def came(self, wire: SpinningWire) -> None:
        """Take note that something was read."""
        self._was_active = True
        if self._has_looked:  # what is there at once says nothing: it may have come from this very core
            self._allowance.paid()
        self.went(wire)

    def went(self, wire: SpinningWire) -> None:
        """Take note that something was sent, which may be answered."""
        if self._is_turning:
            self._wire = wire
            self._has_looked = False
        elif monotonic() >= self._allowance.rests_until and self._is_due():
            self._wire = wire
            self._is_turning = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        if not self._is_due():
            self._end()
        elif self._was_active:
            self._was_active = False
            self._loop.call_soon(self._turn)
        else:
            self._look()

    def _look(self) -> None:
        """Look for what comes from one connection, and see whether it is time to sleep."""
        wire = self._wire
        assert wire is not None
        began = monotonic()
        if not self._has_looked:
            self._until = began + self._allowance.seconds
        for _ in range(_LOOKS):
            if wire.look():
                self._was_active = False  # as the others have had no turn, and so nothing to bring
                if self._is_due():
                    self._loop.call_soon(self._turn)
                else:
                    self._end()
                return
            self._has_looked = True
        is_alone = not gave_way()
        now = monotonic()
        if is_alone and now < self._until and now - began < _HELD_UP_SECONDS:
            self._loop.call_soon(self._turn)
            return
        self._allowance.spent(now - began, now)
        self._end()

    def _end(self) -> None:
        self._is_turning = self._has_looked = False
        self._wire = None


class SpinningWire(SocketWire):
    """A wire that tells a spinner when it was active."""

    __slots__ = ("_spinner",)

    def __init__(
        self,
        spinner: Spinner,
        loop: asyncio.AbstractEventLoop,
        connected: socket.socket,
        owner: Owner,
        takes_files: bool = False,
    ) -> None:
        super().__init__(loop, connected, owner, takes_files)
        self._spinner = spinner

    def read_now(self) -> bool:
        """Read once; whether there was something, and there may be more."""
        if super().read_now():
            self._spinner.came(self)
            return True
        return False

    def look(self) -> bool:
        """Read once, if what comes is wanted; whether there was something."""
        return self._is_reading and self.read_now()

    def send(self, chunks: list[Chunk]) -> None:
        """Send what the kernel has room for, and queue the rest."""
        super().send(chunks)
        self._spinner.went(self)


def new_caller_wire(
    loop: asyncio.AbstractEventLoop, connected: socket.socket, seconds: float, link: Link, takes_files: bool
) -> SpinningWire:
    """The wire of a client, who looks for answers while some are due."""
    return SpinningWire(Spinner(loop, seconds, link.has_calls), loop, connected, link, takes_files)
