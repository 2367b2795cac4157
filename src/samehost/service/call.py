"""What a method may know of the call that it answers, and which call the running code belongs to."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Protocol

import msgspec

from samehost.peer import Peer  # noqa: TC001 - msgspec may look at the annotations


class TimeLeft(Protocol):
    """A deadline."""

    def left(self) -> float:
        """Seconds left, at least 0; infinite without an end."""


class Call(msgspec.Struct, eq=False):
    """One call, while its method runs. A parameter annotated with this type is filled in.

    Attributes:
        peer: who calls, as the kernel says.
        method: the name under which it was called.
        id: unlike that of any other call of the same connection; 0 for a notification.
        deadline: `deadline.left()` is the number of seconds until the caller gives up, infinite if it does not. Calls
            that the method makes to other services get no more than that.
        context: what the caller handed on, such as `trace`; goes along with the calls that the method makes.
        state: what the service's lifespan has yielded.
        is_cancelled: whether nobody waits for the answer any more, because the caller has cancelled or is gone, or the
            deadline has passed. An `async def` method is cancelled then; a `def` method that works for long looks here.
    """

    peer: Peer
    method: str
    id: int
    deadline: TimeLeft
    context: dict[str, Any]
    state: Any
    is_cancelled: bool = False

    def __repr__(self) -> str:
        return f"<Call {self.id} of {self.method} by {self.peer}>"


current_call: ContextVar[Call | None] = ContextVar("samehost_call", default=None)
"""The call that the running code belongs to, tasks and threads that it has started included."""
