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


class Progress(msgspec.Struct, omit_defaults=True):
    """How far a call has come, as a method reports it: PROTOCOL.md section 5.6.

    Attributes:
        done: how much is done, in whatever unit; None if that was not said.
        total: how much there is to do, in the same unit; None if that is not known.
        message: for people.
        dropped: items of a topic that this subscriber was too slow for, so far.
    """

    done: float | None = None
    total: float | None = None
    message: str = ""
    dropped: int = 0


class Origin(Protocol):
    """Where a call came from."""

    @property
    def is_draining(self) -> bool:
        """Whether the server was told to end."""

    def note(self, call_id: int, progress: Progress) -> None:
        """Tell the caller how far its call has come; from any thread, and for a call that is over as well."""


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
        items: what the caller streams, for the parameter that is annotated as an iterator; None without one.
        origin: the connection that it came by; None if it was made up, as tests do.
    """

    peer: Peer
    method: str
    id: int
    deadline: TimeLeft
    context: dict[str, Any]
    state: Any
    is_cancelled: bool = False
    items: Any = None
    origin: Origin | None = None

    @property
    def is_draining(self) -> bool:
        """Whether the server was told to end: a stream that has no end of its own should come to one now."""
        return self.origin is not None and self.origin.is_draining

    def progress(self, done: float | None = None, total: float | None = None, message: str = "") -> None:
        """Tell the caller how far this has come, as often as you like: from any thread, and never waiting.

        While the caller does not read, only the latest is kept. Does nothing once the call is over.

        Args:
            done: how much is done, in whatever unit.
            total: how much there is to do.
            message: for people.
        """
        if self.origin is not None:
            self.origin.note(self.id, Progress(done, total, message))

    def __repr__(self) -> str:
        return f"<Call {self.id} of {self.method} by {self.peer}>"


current_call: ContextVar[Call | None] = ContextVar("samehost_call", default=None)
"""The call that the running code belongs to, tasks and threads that it has started included."""
