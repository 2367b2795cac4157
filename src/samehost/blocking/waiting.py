"""Waiting in poll(2) for a socket, a switch, or the end of the time given."""

from __future__ import annotations

import select
from typing import Protocol

from samehost.kernel.deadline import poll_milliseconds


class Pollable(Protocol):
    """Anything with a descriptor; -1 is ignored."""

    def fileno(self) -> int:
        """Give the descriptor to poll."""


READ, WRITE = select.POLLIN, select.POLLOUT


def wait_for(*events: tuple[Pollable, int], seconds: float) -> set[int]:
    """Wait until one of the descriptors is ready, or closed at the other end.

    Args:
        events: pairs of what to wait for and READ or WRITE.
        seconds: how long at most; infinite for ever.

    Returns:
        The descriptors that are ready; none when the time is over.
    """
    poll = select.poll()
    for target, event in events:
        if target.fileno() >= 0:
            poll.register(target.fileno(), event)
    return {descriptor for descriptor, _ in poll.poll(poll_milliseconds(seconds))}
