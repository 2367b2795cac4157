"""What a connection reports to whoever pumps bytes into it.

Events are made by the hundred thousand a second, so each is a bare record of msgspec's, which costs half of a tuple
with names. Payloads are handed up encoded (`Connection.codec` says how), as they lay in the bytes received: `bytes`, or
a read-only `memoryview` when a long frame came in several reads. Descriptors are whatever the pump passed in, and
belong to whoever holds the event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import msgspec

from samehost.protocol.states import ITEMS_FOLLOW, ITEMS_WANTED

if TYPE_CHECKING:
    from samehost.errors import RemoteProtocolError

Payload: TypeAlias = bytes | memoryview
Descriptors: TypeAlias = tuple[Any, ...]


class Call(msgspec.Struct, gc=False):
    """The peer calls a method of ours, PROTOCOL.md section 5.2.

    Attributes:
        milliseconds_left: until the deadline; 0 for none.
        context: an encoded map; empty for none.
        flags: ITEMS_FOLLOW and ITEMS_WANTED.
    """

    call_id: int
    method: str
    arguments: Payload
    milliseconds_left: int
    context: Payload
    flags: int
    descriptors: Descriptors

    @property
    def items_follow(self) -> bool:
        """Whether the caller sends a stream."""
        return self.flags & ITEMS_FOLLOW != 0

    @property
    def items_wanted(self) -> bool:
        """Whether the caller takes a stream."""
        return self.flags & ITEMS_WANTED != 0


class Notification(msgspec.Struct, gc=False):
    """The peer calls a method of ours and wants no answer, PROTOCOL.md section 5.3.

    Attributes:
        call_id, flags: 0, so that it reads as a call does.
    """

    call_id: ClassVar[int] = 0
    flags: ClassVar[int] = 0
    method: str
    arguments: Payload
    milliseconds_left: int
    context: Payload
    descriptors: Descriptors


class Reply(msgspec.Struct, gc=False):
    """A call of ours ended well, PROTOCOL.md section 5.4."""

    call_id: int
    result: Payload
    descriptors: Descriptors


class Failure(msgspec.Struct, gc=False):
    """A call of ours failed, PROTOCOL.md section 5.5.

    Attributes:
        error_id: under which the callee logged it; empty for none.
        data: an encoded value; empty for none.
    """

    call_id: int
    code: str
    message: str
    error_id: str
    data: Payload


class Freed(msgspec.Struct, gc=False):
    """A call that we cancelled has ended at the other end as well, and counts no more, PROTOCOL.md section 5.7."""

    call_id: int


class Cancel(msgspec.Struct, gc=False):
    """The caller wants no answer any more; one is still due, and frees the call, PROTOCOL.md section 5.7."""

    call_id: int


class Stream(msgspec.Struct, gc=False):
    """The callee accepted our call and answers with a stream, PROTOCOL.md section 6.2."""

    call_id: int


class Item(msgspec.Struct, gc=False):
    """One element of a stream, PROTOCOL.md section 6.3."""

    call_id: int
    value: Payload
    descriptors: Descriptors


class End(msgspec.Struct, gc=False):
    """The caller's stream is complete, PROTOCOL.md section 6.4."""

    call_id: int


class Credit(msgspec.Struct, gc=False):
    """The peer takes more items of this call, PROTOCOL.md section 6.5."""

    call_id: int


class Note(msgspec.Struct, gc=False):
    """Progress of a call of ours, PROTOCOL.md section 5.6."""

    call_id: int
    value: Payload


class Pong(msgspec.Struct, gc=False):
    """The peer's answer to a ping of ours, PROTOCOL.md section 8.1."""

    token: int


class GoingAway(msgspec.Struct, gc=False):
    """The peer takes and makes no further calls, PROTOCOL.md section 8.2.

    Attributes:
        unsent: calls of ours that the peer did not look at; they are over, and may be made elsewhere.
    """

    code: str
    message: str
    unsent: tuple[int, ...]


class ArenaPassed(msgspec.Struct, gc=False):
    """The peer passes memory that its blobs will lie in, PROTOCOL.md section 9.3.

    Attributes:
        arena: its number, which those blobs name.
        byte_count: how large the peer says it is.
        descriptors: the memory and its lease.
    """

    arena: int
    byte_count: int
    descriptors: Descriptors


class ArenaRetired(msgspec.Struct, gc=False):
    """No further blob of the peer's lies in this arena, PROTOCOL.md section 9.3."""

    arena: int


class Released(msgspec.Struct, gc=False):
    """The peer looks no more at these shares of arenas that we passed, PROTOCOL.md section 9.3."""

    shares: tuple[int, ...]


class Discarded(msgspec.Struct, gc=False):
    """What came with a frame that nobody will get: close the descriptors, and release the shares.

    Attributes:
        payload: the arguments, the result or the item that refers to them, if the frame was good so far, and there were
            descriptors or the peer has passed an arena; empty otherwise.
    """

    descriptors: Descriptors
    payload: Payload = b""


class InputEnded(msgspec.Struct, gc=False):
    """The peer sends nothing more, PROTOCOL.md section 8.3.

    Attributes:
        lost: calls of ours whose outcome will not be known.
    """

    lost: tuple[int, ...]


class Failed(msgspec.Struct):  # raising its error gives that a traceback, and so a way back to this event
    """The connection is over: send what is pending, then close it, PROTOCOL.md section 8.4.

    Attributes:
        lost: calls of ours whose outcome will not be known.
        abandoned: calls of the peer's that cannot be answered any more.
    """

    error: RemoteProtocolError
    lost: tuple[int, ...]
    abandoned: tuple[int, ...]


Event: TypeAlias = (
    Call
    | Notification
    | Reply
    | Failure
    | Freed
    | Cancel
    | Stream
    | Item
    | End
    | Credit
    | Note
    | Pong
    | GoingAway
    | ArenaPassed
    | ArenaRetired
    | Released
    | Discarded
    | InputEnded
    | Failed
)
