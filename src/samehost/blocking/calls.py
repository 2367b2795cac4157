"""One call of a client's: what goes out with it, and what has come for it so far.

Whoever reads from the connection writes here, and the thread that made the call looks here once it is woken.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from samehost.errors import Error, MessageTooLarge
from samehost.protocol.events import Failure, Item, Reply, Stream
from samehost.service.calling import read_progress

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from samehost.blocking.attachments import Attachments
    from samehost.blocking.upload import Upload
    from samehost.kernel.attaching import Encoded
    from samehost.kernel.deadline import Deadline, Until
    from samehost.protocol import Payload
    from samehost.service.call import Progress

_NOTES_KEPT = 16
"""Notes that are kept until somebody looks; the oldest give way."""


class AttachedReply(Reply, gc=False):
    """A reply that came with files, or whose result may be in memory that was passed before."""


class Outcome(enum.Enum):
    """What became of a call that got no answer, or of a notification."""

    SENT = enum.auto()
    """All of it is with the kernel."""

    UNSENT = enum.auto()
    """Nothing of it went out, or the server says that it has not looked at it."""

    UNKNOWN = enum.auto()
    """It went out, and no answer will come."""

    DROPPED = enum.auto()
    """This end wants no more of it."""


End = Reply | Failure | Outcome | Error


class Waiting(msgspec.Struct, eq=False, gc=False):
    """One call or notification, and the thread that waits for it.

    It is in no cycle for longer than it is open: its upload may lead back to the client, which then knows it.

    Attributes:
        flags: those of the call, PROTOCOL.md section 4.3.
        values: the arguments, where they are encoded for each connection anew; None where that was done already.
        encoded: the same, encoded for the connection that it is about to be sent on, if there is more than bytes to it.
        upload: the items that it sends.
        listener: called with what the server notes of its progress.
        answer: the first frame of it, or what came instead; set by whoever leads.
        items: those that have come and were not taken yet; there once STREAM has come.
        end: what ended the call after STREAM.
        notes: the latest of them that were not looked at.
        has_news: set by whoever leads, with anything that the thread waits for. The thread takes it back before it
            looks, so that nothing is missed.
        wants_room: the thread has items to send, and waits until they may be sent; or it has to know first what the
            server takes.
        call_id: 0 until it is written, and for a notification.
        begins: where in the connection's output its first byte is, or a little before.
        ends: where its last byte is.
        wake: what the thread sleeps on, locked; None as long as it does not.
        attachments: what came for it may be in memory that these know; None if that is not so.
    """

    method: str
    arguments: bytes
    context: bytes
    deadline: Deadline | Until
    flags: int = 0
    values: Any = None
    encoded: Encoded | None = None
    upload: Upload | None = None
    listener: Callable[[Progress], object] | None = None
    is_answered: bool = True
    answer: End | Stream | None = None
    items: deque[Item] | None = None
    end: End | None = None
    notes: deque[Payload] | None = None
    has_news: bool = False
    wants_room: bool = False
    call_id: int = 0
    begins: int = 0
    ends: int = 0
    wake: threading.Lock | None = None
    attachments: Attachments | None = None

    def again(self) -> Waiting:
        """The same call, to be made once more."""
        return Waiting(
            self.method,
            self.arguments,
            self.context,
            self.deadline,
            self.flags,
            self.values,
            None,
            self.upload,
            self.listener,
            self.is_answered,
        )

    def add_note(self, value: Payload) -> None:
        """Keep what the server notes of its progress."""
        if self.notes is None:
            self.notes = deque(maxlen=_NOTES_KEPT)
        self.notes.append(value)
        if self.listener is not None:
            self.tell()

    def hear(self) -> Progress | None:
        """Call the listener with what was noted, in the thread that waits and with no lock held; gives the last."""
        progress = None
        while self.listener is not None and self.notes:
            progress = read_progress(self.notes.popleft()) or progress
            if progress is not None:
                self.listener(progress)
        return progress

    def finish(self, end: End) -> None:
        """Set what the call ends with, and wake its thread."""
        if self.items is None:
            self.answer = end
        else:
            self.end = end
        self.has_news = True
        if self.wake is not None:
            self.rouse()

    def tell(self) -> None:
        """Wake the thread, if it sleeps and nobody has woken it yet: there is news."""
        self.has_news = True
        self.rouse()

    def rouse(self) -> None:
        """Wake the thread, if it sleeps and nobody has woken it yet."""
        if self.wake is not None and self.wake.locked():
            self.wake.release()

    def not_sent(self, error: OSError) -> Error:
        """What to raise where the kernel has refused what it takes to send it."""
        return Error(f"{self.method} cannot be sent with its files: {error}")

    def too_large(self, error: MessageTooLarge) -> MessageTooLarge:
        """The error of a call that cannot be sent, with the name of its method."""
        return MessageTooLarge(f"{self.method}: {error}")
