"""Looking for an answer again and again, rather than being woken for it: a client's busy waiting, for threads."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from samehost.kernel.spinning import Allowance, gave_way

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from samehost.blocking.attachments import Received
    from samehost.blocking.outbox import Outbox

_LOOKS = 8
"""How often to look before the time is looked at, and others on this core are given way."""

_HELD_UP_SECONDS = 0.001
"""What so many looks take only if somebody else has the core, or the interpreter (the GIL)."""


class Spinner:
    """Receives without waiting, until something has come or it is time to sleep.

    Each look is one call from the kernel's giving to our keeping, as in `Link`.

    Args:
        receive: the system call.
        how: its arguments behind the room, so that it does not wait.
        arrived: where to keep what has come.
        outbox: what is sent; nothing is looked for a second time until there was more of it.
        seconds: how long at most.
    """

    def __init__(
        self,
        receive: Callable[..., Received],
        how: tuple[tuple[int, ...], ...],
        arrived: list[Received],
        outbox: Outbox,
        seconds: float,
    ) -> None:
        self._receive = receive
        self._how = how
        self._keep = arrived.extend
        self._outbox = outbox
        self._allowance = Allowance(seconds)
        self._sent_in_vain = -1

    def next(self, room: tuple[int], asleep: Callable[[], Iterable[Any]]) -> Iterable[Any]:
        """Look, and if nothing came, give what waits in the kernel."""
        return () if self.look(room) else asleep()

    def look(self, room: tuple[int]) -> bool:
        """Look for what has come; whether there was something, which is kept.

        Raises:
            OSError: the connection is gone.
        """
        sent = self._outbox.written
        began = monotonic()
        if sent == self._sent_in_vain or began < self._allowance.rests_until:
            return False
        receive, how, keep = self._receive, self._how, self._keep
        end = began + self._allowance.seconds
        now = began
        while True:
            for look in range(_LOOKS):
                try:
                    keep(map(receive, room, *how))
                except BlockingIOError:
                    continue
                if look:  # what is there at once says nothing: it may have come from this very core
                    self._allowance.paid()
                return True
            is_alone = not gave_way()
            before, now = now, monotonic()
            if now >= end or not is_alone or now - before > _HELD_UP_SECONDS:
                break
        self._sent_in_vain = sent
        self._allowance.spent(now - began, now)
        return False
