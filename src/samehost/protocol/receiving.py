"""What frames that came in do, whatever format they were in: steps in the book, and events.

Each method takes what a format has read of one frame, and appends at most one event. A frame that came too late, or for
a call that we cancelled, appends none, and gives back the descriptors and the payload that came with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from samehost import limits as bounds
from samehost.errors import RemoteProtocolError
from samehost.protocol import codes
from samehost.protocol.book import CallBook
from samehost.protocol.events import (
    Call,
    Cancel,
    Credit,
    Discarded,
    End,
    Failure,
    Freed,
    GoingAway,
    Item,
    Note,
    Notification,
    Reply,
    Stream,
)
from samehost.protocol.states import (
    BOTH_STREAMS,
    CALL,
    CANCEL,
    CANCELLED_FROM,
    CREDIT,
    END,
    END_NAMES,
    END_STEPS,
    ERROR,
    FIRST_STATES,
    FRAME_NAMES,
    GOAWAY,
    GREETING,
    ITEM,
    LEAVING,
    NOTE,
    NOTIFY,
    PREFACE,
    REPLY,
    STREAM,
)

if TYPE_CHECKING:
    from samehost.protocol.events import Descriptors, Event, Payload
    from samehost.protocol.settings import Limits


class Receiver(CallBook, ABC):
    """The receiving half of a connection.

    Attributes:
        peer_payload_bytes_max: the longest payload that the peer takes.
        peer_calls_max: how many calls it takes at a time.
        peer_features: bits of PROTOCOL.md section 3.3.
        is_greeted: whether the peer has opened the connection as its format wants it.
    """

    __slots__ = (
        "_events",
        "_has_come_arena",
        "_ours",
        "_theirs",
        "is_greeted",
        "peer_calls_max",
        "peer_features",
        "peer_payload_bytes_max",
    )

    def __init__(self, is_client: bool, limits: Limits) -> None:
        super().__init__(is_client, limits)
        # Until the peer has said otherwise, PROTOCOL.md section 3.2.
        self.peer_payload_bytes_max = bounds.PAYLOAD_BYTES_MAX
        self.peer_calls_max = bounds.CALLS_MAX if is_client else 0
        self.peer_features = 0
        self.is_greeted = False
        self._ours = GREETING
        self._theirs = GREETING
        self._events: list[Event] = []
        self._has_come_arena = False

    @abstractmethod
    def _write_refusal(self, call_id: int, code: str, message: str) -> None: ...

    def _peer_steps(self, step: int) -> None:
        """Take a step of the peer's end of the connection, which it has in its state."""
        self._theirs = END_STEPS[self._theirs][step]
        self.is_greeted |= step == PREFACE

    def _received_call(self, call: Call) -> None:
        call_id = call.call_id
        self._check_may_call(CALL)
        self._last_taken = call_id
        if self._ours == LEAVING:
            refusal = codes.DRAINING, "this end is going away, and takes no more calls; make it on a new connection"
        elif len(self._taken) >= self.limits.calls_max:
            refusal = codes.BUSY, f"{self.limits.calls_max} calls of this connection are open, which is the limit"
        else:
            self._taken[call_id] = FIRST_STATES[call.flags & BOTH_STREAMS]
            self._events.append(call)
            return
        self.refused_calls += 1
        self._write_refusal(call_id, *refusal)
        self._discard(call.descriptors, call.arguments)

    def _received_notification(self, notification: Notification) -> None:
        self._check_may_call(NOTIFY)
        if self._ours == LEAVING:
            self.late_frames += 1
            self._discard(notification.descriptors, notification.arguments)
        else:
            self._events.append(notification)

    def _check_may_call(self, frame: int) -> None:
        if frame not in END_STEPS[self._theirs]:
            raise RemoteProtocolError(f"{FRAME_NAMES[frame]} from a peer that is {END_NAMES[self._theirs]}")
        if not self.limits.calls_max:
            raise RemoteProtocolError(f"{FRAME_NAMES[frame]} to an end that announced to take no calls")

    def _received_reply(self, call_id: int, result: Payload, descriptors: Descriptors) -> None:
        state = self._step_in(call_id, REPLY)
        if state is not None and state < CANCELLED_FROM:
            self._events.append(Reply(call_id, result, descriptors))
        else:
            self._ended_unseen(call_id, state, descriptors, result)

    def _received_failure(self, failure: Failure) -> None:
        state = self._step_in(failure.call_id, ERROR)
        if state is not None and state < CANCELLED_FROM:
            self._events.append(failure)
        else:
            self._ended_unseen(failure.call_id, state, (), b"")

    def _ended_unseen(self, call_id: int, state: int | None, descriptors: Descriptors, result: Payload) -> None:
        self._discard(descriptors, result)
        if state is not None:
            self._events.append(Freed(call_id))

    def _received_cancel(self, call_id: int) -> None:
        if self._step_in(call_id, CANCEL) is not None:
            self._events.append(Cancel(call_id))

    def _received_end(self, call_id: int) -> None:
        if self._step_in(call_id, END) is not None:
            self._events.append(End(call_id))

    def _received_stream(self, call_id: int) -> None:
        state = self._step_in(call_id, STREAM)
        if state is not None and state < CANCELLED_FROM:
            self._events.append(Stream(call_id))

    def _received_item(self, call_id: int, value: Payload, descriptors: Descriptors) -> None:
        state = self._step_in(call_id, ITEM)
        if state is not None and not self._credit_of(call_id).received(len(value)):
            raise RemoteProtocolError(f"ITEM of call {call_id} without credit for it")
        if state is not None and state < CANCELLED_FROM:
            self._events.append(Item(call_id, value, descriptors))
        else:
            self._discard(descriptors, value)

    def _received_credit(self, call_id: int, items: int, byte_count: int) -> None:
        state = self._step_in(call_id, CREDIT)
        if state is None:
            return
        if not self._credit_of(call_id).gained(items, byte_count):
            raise RemoteProtocolError(f"CREDIT of call {call_id} beyond what a balance may be")
        if state < CANCELLED_FROM:
            self._events.append(Credit(call_id))

    def _received_note(self, call_id: int, value: Payload) -> None:
        state = self._step_in(call_id, NOTE)
        if state is not None and state < CANCELLED_FROM:
            self._events.append(Note(call_id, value))

    def _received_going_away(self, unsent: tuple[int, ...], code: str, message: str) -> None:
        self._peer_steps(GOAWAY)
        untold = tuple(call_id for call_id in unsent if self._made[call_id] < CANCELLED_FROM)
        for call_id in unsent:
            del self._made[call_id]
            self._streams.pop(call_id, None)
        self._events.append(GoingAway(code, message, untold))

    def _discard(self, descriptors: Descriptors, payload: Payload = b"") -> None:
        if descriptors or (payload and self._has_come_arena):
            self._events.append(Discarded(descriptors, payload))
