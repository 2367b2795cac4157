"""A connection: the steps that this end may ask for, and the two ends of its life.

No socket, clock or thread: bytes and descriptors go in, events come out, and what is to be sent is collected until
somebody asks for it. Formats, `binary` and `lines`, fill in `_receive` and the `_write` methods. A step that the tables
of `states` do not have is a LocalProtocolError when we ask for it, and ends the connection when the peer does it.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from samehost import limits as bounds
from samehost.errors import LocalProtocolError, MessageTooLarge, RemoteProtocolError
from samehost.protocol import codes
from samehost.protocol.book import ID_MAX
from samehost.protocol.events import Cancel, Credit, Discarded, Failed, InputEnded
from samehost.protocol.output import Chunk, Output
from samehost.protocol.receiving import Receiver
from samehost.protocol.states import (
    BOTH_STREAMS,
    CANCEL,
    CANCELLED,
    CREDIT,
    END,
    END_NAMES,
    END_STEPS,
    ERROR,
    FINISH,
    FINISHED,
    FIRST_STATES,
    FRAME,
    GOAWAY,
    ITEM,
    LEAVING,
    NOTE,
    OPEN,
    PING,
    SENDING,
    SINGLE,
    STREAM,
    STREAMING,
    halves_of,
    state_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from samehost.protocol.events import Call, Descriptors, Event, Payload
    from samehost.protocol.settings import Limits

MILLISECONDS_BITS = 32
NO_ARENAS = "no arenas are shared with this peer"


class Connection(Receiver):
    """One end of a connection; which one matters only for who greets and which ids are ours.

    Attributes:
        codec: how payloads are encoded, "msgpack" or "json".
        partial_frames: how many frames or lines, the preface among them, have come in more than one piece so far. While
            `is_mid_frame` holds and this stays the same, it is still the same one that the peer owes the rest of.
    """

    __slots__ = (
        "__weakref__",
        "_chunks",
        "_claimed",
        "_output",
        "_partial",
        "_pieces",
        "_unclaimed",
        "_waiting",
        "partial_frames",
    )

    codec: ClassVar[str]

    def __init__(self, is_client: bool, limits: Limits) -> None:
        super().__init__(is_client, limits)
        self.partial_frames = 0
        self._partial = bytearray()
        self._output = Output()
        self._pieces = self._output.pieces
        self._chunks = self._output.chunks
        # Descriptors that nobody got yet: they came with this read, with the first bytes of a header that is not whole,
        # or with the frame that is being read.
        self._unclaimed: Descriptors = ()
        self._waiting: Descriptors = ()
        self._claimed: Descriptors = ()

    # What came in.

    def receive_data(self, data: bytes, descriptors: Descriptors = ()) -> list[Event]:
        """Take what one recvmsg(2) brought.

        Args:
            data: its bytes, which the events' payloads are cut from.
            descriptors: what came with them; each is in an event afterwards, or waits for the rest of its frame.

        Returns:
            What happened, in order. A call may be cancelled or lost again by an event behind its own, so see `is_open`
            before answering one. After a `Failed` nothing more happens.
        """
        if self._theirs == FINISHED:
            return [Discarded(descriptors)] if descriptors else []
        try:
            self._receive(data, descriptors)
        except RemoteProtocolError as error:
            self._end(error)
        events, self._events = self._events, []
        return events

    def receive_call_alone(self, data: bytes) -> Call | None:
        """The call that a read without descriptors has brought, if that is all that it has.

        What is received like this is not given to `receive_data`; what is not, None tells, has yet to be.
        """
        return None

    def receive_eof(self) -> list[Event]:
        """Take the end of the peer's output, PROTOCOL.md section 8.3."""
        if self._theirs == FINISHED:
            return []
        try:
            self._receive_rest()
            self._peer_steps(FINISH)
            self._events.append(InputEnded(self._forget_calls(self._made)))
            self._take_no_more()
        except RemoteProtocolError as error:
            self._end(error)
        events, self._events = self._events, []
        return events

    def fail(self, code: str, message: str) -> list[Event]:
        """End the connection for a reason of our own, such as a frame that takes too long, and tell the peer why."""
        if self._ours == FINISHED:
            return []
        self._end(RemoteProtocolError(message, code))
        events, self._events = self._events, []
        return events

    # What goes out.

    def data_to_send(self) -> list[Chunk]:
        """Everything written since the last time."""
        return self._output.take()

    def send_call(
        self,
        method: str,
        arguments: Payload,
        milliseconds_left: int = 0,
        *,
        context: Payload = b"",
        flags: int = 0,
        descriptors: Descriptors = (),
    ) -> int:
        """Call a method of the peer's, PROTOCOL.md section 5.2.

        Args:
            arguments: an encoded map or array.
            milliseconds_left: until the deadline; 0 for none.
            context: an encoded map; empty for none.
            flags: ITEMS_FOLLOW and ITEMS_WANTED.

        Returns:
            The id of the call.

        Raises:
            LocalProtocolError: no call may be made now; nothing was sent.
            MessageTooLarge: nothing was sent.
        """
        if self._ours != OPEN or self._theirs >= LEAVING or len(self._made) >= self.peer_calls_max:
            raise self._no_call()
        if (flags and flags & ~BOTH_STREAMS) or milliseconds_left >> MILLISECONDS_BITS:
            raise LocalProtocolError(f"flags={flags} and milliseconds_left={milliseconds_left} cannot be written")
        call_id = self.last_call_made + 2
        if call_id > ID_MAX or call_id in self._made:
            call_id = self._free_id_after(self.last_call_made, self._made)
        self._write_call(call_id, method, arguments, milliseconds_left, context, flags, descriptors)
        self.last_call_made = call_id
        self._made[call_id] = FIRST_STATES[flags]
        return call_id

    def send_notification(
        self,
        method: str,
        arguments: Payload,
        milliseconds_left: int = 0,
        *,
        context: Payload = b"",
        descriptors: Descriptors = (),
    ) -> None:
        """Call a method of the peer's and want no answer, PROTOCOL.md section 5.3; otherwise as `send_call`."""
        if self._ours != OPEN or self._theirs >= LEAVING or not self.peer_calls_max:
            raise self._no_call()
        if milliseconds_left >> MILLISECONDS_BITS:
            raise LocalProtocolError(f"milliseconds_left={milliseconds_left} cannot be written")
        self._write_notification(method, arguments, milliseconds_left, context, descriptors)

    def send_reply(self, call_id: int, result: Payload, descriptors: Descriptors = ()) -> None:
        """Answer a call; it is over, PROTOCOL.md section 5.4.

        Raises:
            LocalProtocolError: the call is not open; see `is_open`.
            MessageTooLarge: nothing was sent, and the call is still open.
        """
        if call_id not in self._taken:
            raise LocalProtocolError(f"REPLY for call {call_id}, which is not open")
        self._write_reply(call_id, result, descriptors)
        del self._taken[call_id]  # as every state of it has this step
        if self._streams:
            self._streams.pop(call_id, None)

    def send_reply_alone(self, call_id: int, result: bytes) -> bytes:
        """The bytes of a reply, to be sent at once; empty if it has to be sent by `send_reply`."""
        return b""

    def send_error(self, call_id: int, code: str, message: str, error_id: str = "", data: Payload = b"") -> None:
        """Answer a call with an error; it is over, PROTOCOL.md section 5.5. Otherwise as `send_reply`.

        Args:
            message: cut if it is longer than the limit.
            error_id: under which the error is found in our log.
            data: an encoded value; empty for none.
        """
        calls, after = self._step_out(call_id, ERROR)
        _check_names(code, error_id)
        self._write_error(call_id, code, cut(message), error_id, data)
        self._move(calls, call_id, after)

    def send_cancel(self, call_id: int) -> None:
        """Say that no answer is wanted; no event of this call follows but `Freed`, PROTOCOL.md section 5.7."""
        calls, after = self._step_out(call_id, CANCEL)
        self._write_bare(CANCEL, call_id)
        self._move(calls, call_id, after)

    def send_stream(self, call_id: int) -> None:
        """Accept a call and say that items will come, PROTOCOL.md section 6.2."""
        calls, after = self._step_out(call_id, STREAM)
        self._write_bare(STREAM, call_id)
        self._move(calls, call_id, after)

    def send_end(self, call_id: int) -> None:
        """Complete the stream of a call of ours, PROTOCOL.md section 6.4."""
        calls, after = self._step_out(call_id, END)
        self._write_bare(END, call_id)
        self._move(calls, call_id, after)

    def send_item(self, call_id: int, value: Payload, descriptors: Descriptors = ()) -> None:
        """Send one element of a stream, PROTOCOL.md section 6.3.

        Raises:
            LocalProtocolError: the call does not stream in this direction, or has no credit: see `may_send_item`.
            MessageTooLarge: nothing was sent.
        """
        self._step_out(call_id, ITEM)
        credit = self._credit_of(call_id)
        if not credit.may_send():
            raise LocalProtocolError(f"ITEM of call {call_id}: no credit, wait for some")
        self._write_item(call_id, value, descriptors)
        credit.sent(len(value))

    def send_items(self, call_id: int, values: list[bytes]) -> None:
        """Send several elements of a stream, one or more; otherwise as `send_item`."""
        for value in values:
            self.send_item(call_id, value)

    def send_note(self, call_id: int, value: Payload) -> None:
        """Report progress of a call, PROTOCOL.md section 5.6."""
        self._step_out(call_id, NOTE)
        if len(value) > self.limits.note_bytes_max:
            raise MessageTooLarge(f"a note of {len(value)} bytes, at most {self.limits.note_bytes_max} travel")
        self._write_note(call_id, value)

    def send_credit(self, call_id: int, items: int, byte_count: int) -> None:
        """Take more items of a call than its window, PROTOCOL.md section 6.5."""
        self._step_out(call_id, CREDIT)
        if items < 0 or byte_count < 0 or not self._credit_of(call_id).granted(items, byte_count):
            raise LocalProtocolError(
                f"CREDIT of {items} items and {byte_count} bytes: a balance goes up to {bounds.CREDIT_MAX}"
            )
        self._write_credit(call_id, items, byte_count)

    def took_item(self, call_id: int, byte_count: int, *, items: int = 1, at_once: bool = False) -> bool:
        """Note that the reader is done with an item that had so many bytes, so that the peer gets its credit back.

        Args:
            items: how many it were that had so many bytes in all.
            at_once: rather than with that of further items.

        Returns:
            Whether there is something to send. Nothing is done for a call that has ended or was cancelled, whose last
            items may still be read.
        """
        credit = self._streams.get(call_id)
        if credit is None or self.is_cancelled(call_id):
            return False
        grant = credit.took(items, byte_count, at_once=at_once)
        if grant is None or not credit.granted(*grant):
            return False
        self._write_credit(call_id, *grant)
        return True

    def widen_window(self, call_id: int, untold_items: int = 0) -> bool:
        """Have more items under way from now on, PROTOCOL.md section 6.5, if the peer has used up what there may be.

        To be called when the reader begins to wait. Not for streams of blobs, whose memory is not in what is counted.

        Args:
            untold_items: that the reader is done with, and that `took_item` was not told of.

        Returns:
            Whether there is something to send, which is never so for a call that has ended or was cancelled.
        """
        credit = self._streams.get(call_id)
        if credit is None or self.is_cancelled(call_id):
            return False
        more = credit.widen(untold_items)
        if not more or not credit.granted(more, 0):
            return False
        self._write_credit(call_id, more, 0)
        return True

    def send_ping(self, token: int) -> None:
        """Ask for a `Pong` with the same token, of 32 bits, PROTOCOL.md section 8.1."""
        if token >> 32:
            raise LocalProtocolError(f"token={token}: it has 32 bits")
        self._we_step(FRAME)
        self._write_ping(PING, token)

    def send_going_away(self, code: str = codes.DRAINING, message: str = "") -> None:
        """Take and make no further calls; those in flight go on, PROTOCOL.md section 8.2."""
        _check_names(code, "")
        self._we_step(GOAWAY)
        self._write_going_away(code, cut(message))

    def send_arena(self, arena: int, byte_count: int, descriptors: Descriptors) -> None:
        """Pass memory that blobs will lie in, PROTOCOL.md section 9.3.

        Args:
            arena: a number of 32 bits, which no other has that was passed here and not retired.
            byte_count: how large it is.
            descriptors: the memory and its lease.

        Raises:
            LocalProtocolError: the peer takes none, or as many as there may be were passed; nothing was sent.
        """
        raise LocalProtocolError(NO_ARENAS)

    def send_retire(self, arena: int) -> None:
        """Say that no further blob lies in an arena that was passed, PROTOCOL.md section 9.3.

        Raises:
            LocalProtocolError: it was not passed here, or was retired before.
        """
        raise LocalProtocolError(NO_ARENAS)

    def send_release(self, shares: Sequence[int]) -> None:
        """Give back shares of arenas that the peer has passed, in as many frames as it takes, PROTOCOL.md section 9.3.

        Raises:
            LocalProtocolError: the peer has passed none.
        """
        raise LocalProtocolError(NO_ARENAS)

    # What the pump wants to know.

    @property
    def is_idle(self) -> bool:
        """Whether no call is open in either direction."""
        return not self._made and not self._taken

    @property
    def is_finished(self) -> bool:
        """Whether nothing can happen any more: close the socket once the output is sent."""
        return self._ours == FINISHED or (self._theirs == FINISHED and not self._taken)

    @property
    def is_mid_frame(self) -> bool:
        """Whether the peer has sent a part of a frame, of a line or of its preface, and owes the rest."""
        return bool(self._partial)

    @property
    def kept_bytes(self) -> int:
        """How much of it is kept here until the rest comes."""
        return len(self._partial)

    # What is common to the formats.

    def _we_step(self, step: int) -> None:
        after = END_STEPS[self._ours].get(step)
        if after is None:
            raise LocalProtocolError(f"this end of the connection is {END_NAMES[self._ours]}; nothing was sent")
        self._ours = after

    def _no_call(self) -> LocalProtocolError:
        if self._ours != OPEN:
            return LocalProtocolError(f"no call can be made: this end of the connection is {END_NAMES[self._ours]}")
        if self._theirs >= LEAVING:
            return LocalProtocolError(f"no call can be made: the peer is {END_NAMES[self._theirs]}")
        if not self.peer_calls_max:
            return LocalProtocolError("no call can be made: the peer takes none")
        return LocalProtocolError(f"no call can be made: {self.peer_calls_max} are open, which is the peer's limit")

    def _take_no_more(self) -> None:
        """Cancel the peer's calls whose streams will not be completed; the others need no credit from now on."""
        for call_id, state in self._taken.items():
            caller, callee = halves_of(state)
            if caller == SENDING:
                self._taken[call_id] = state_of(CANCELLED, callee)
                self._events.append(Cancel(call_id))
            elif caller != CANCELLED and callee != SINGLE:
                self._credit_of(call_id).needs_none()
                if callee == STREAMING:
                    self._events.append(Credit(call_id))

    def _end(self, error: RemoteProtocolError) -> None:
        """End the connection at once, telling the peer if that is still possible."""
        self._discard((*self._claimed, *self._waiting, *self._unclaimed))
        self._claimed = self._waiting = self._unclaimed = ()
        self._write_failure(error)
        self._ours = self._theirs = FINISHED
        # Their frames hold this connection and the event: all of them would keep each other alive.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        self._events.append(Failed(error, self._forget_calls(self._made), self._forget_calls(self._taken)))

    def _write_refusal(self, call_id: int, code: str, message: str) -> None:
        self._write_error(call_id, code, message, "", b"")

    @abstractmethod
    def _receive(self, data: bytes, descriptors: Descriptors) -> None: ...

    @abstractmethod
    def _receive_rest(self) -> None: ...

    @abstractmethod
    def _write_call(
        self,
        call_id: int,
        method: str,
        arguments: Payload,
        milliseconds_left: int,
        context: Payload,
        flags: int,
        descriptors: Descriptors,
    ) -> None: ...

    @abstractmethod
    def _write_notification(
        self, method: str, arguments: Payload, milliseconds_left: int, context: Payload, descriptors: Descriptors
    ) -> None: ...

    @abstractmethod
    def _write_reply(self, call_id: int, result: Payload, descriptors: Descriptors) -> None: ...

    @abstractmethod
    def _write_error(self, call_id: int, code: str, message: str, error_id: str, data: Payload) -> None: ...

    @abstractmethod
    def _write_bare(self, kind: int, call_id: int) -> None: ...

    @abstractmethod
    def _write_item(self, call_id: int, value: Payload, descriptors: Descriptors) -> None: ...

    @abstractmethod
    def _write_note(self, call_id: int, value: Payload) -> None: ...

    @abstractmethod
    def _write_credit(self, call_id: int, items: int, byte_count: int) -> None: ...

    @abstractmethod
    def _write_ping(self, kind: int, token: int) -> None: ...

    @abstractmethod
    def _write_going_away(self, code: str, message: str) -> None: ...

    @abstractmethod
    def _write_failure(self, error: RemoteProtocolError) -> None: ...


def cut(message: str) -> str:
    """A message that can be written in UTF-8, short enough to travel, cut at the border of a character."""
    encoded = message.encode(errors="replace")[: bounds.ERROR_MESSAGE_BYTES_MAX]
    return encoded.decode(errors="ignore")


def _check_names(code: str, error_id: str) -> None:
    """Raise LocalProtocolError if an error cannot be called so."""
    if not 0 < len(code) <= bounds.ERROR_CODE_BYTES_MAX or len(error_id) > bounds.ERROR_ID_BYTES_MAX:
        raise LocalProtocolError(
            f"a code has from 1 to {bounds.ERROR_CODE_BYTES_MAX} characters and an id up to "
            f"{bounds.ERROR_ID_BYTES_MAX}, not as {code!r} and {error_id!r}"
        )
    if not (code + error_id).isascii():
        raise LocalProtocolError(f"codes and ids of errors are ASCII, not as {code!r} and {error_id!r}")
