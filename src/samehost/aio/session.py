"""One client of a service: from what its connection says to calls of methods, and back.

Nothing here waits. A read brings frames, each call among them is begun at once, and the answers that are there by then
go out together. While a client does not read its answers, or too many of its notifications are at work, no further call
of its is begun, and nothing more is read from it.
"""

from __future__ import annotations

import logging
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

from samehost import limits, protocol
from samehost.aio.beginning import Beginning
from samehost.aio.streaming import StreamWork
from samehost.codec import CODECS
from samehost.errors import RemoteProtocolError
from samehost.kernel.messages import close_all
from samehost.protocol import codes, events

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from samehost.aio.runner import Account, Runner
    from samehost.aio.wire import Wire
    from samehost.kernel.files import File
    from samehost.peer import Peer

logger = logging.getLogger("samehost")

_OF_CALLS = frozenset({events.Cancel, events.Item, events.End, events.Credit})
_OF_MEMORY = frozenset({events.ArenaPassed, events.ArenaRetired, events.Released, events.Discarded})
_Held = events.Call | events.Notification | events.Item | events.End


class Session(Beginning):
    """One connection to a service.

    Args:
        runner, account, peer, new_wire: as of `Answering`.
    """

    __slots__ = ("_held", "_is_holding", "_kept_bytes", "_timer", "_watched_frame")

    def __init__(self, runner: Runner, account: Account, peer: Peer, new_wire: Callable[[Session, bool], Wire]) -> None:
        super().__init__(runner, account, peer, new_wire)
        self._held: deque[tuple[_Held, float]] | None = None  # made for the first that is held back
        self._is_holding = False
        self._kept_bytes = 0  # of frames that have not come whole, as on the account
        self._watched_frame = 0
        self._timer: asyncio.TimerHandle | None = None
        runner.sessions.add(self)

    def start(self) -> None:
        """Begin to read."""
        self._wire.read()

    # What the wire says.

    def received(self, data: bytes, files: tuple[File, ...] = ()) -> None:
        """Take what one read has brought."""
        found = self._protocol or self._greet(data[0])
        if found is None:
            close_all(files)
            return
        if not files and not self._is_holding and (call := found.receive_call_alone(data)) is not None:
            self._is_alone = True
            began = monotonic()
            self._begin(call, began)
            if self._is_alone:
                self._is_alone = False
                self.flush()
            self.settle(began)
            return
        self._handle(found.receive_data(data, files))
        if found.kept_bytes != self._kept_bytes or found.partial_frames != self._watched_frame:
            self._account_input(found)
            is_new = found.is_mid_frame and found.partial_frames != self._watched_frame
            if is_new and not self._is_holding and not self.closed.done():
                self._watch_frame(found)

    def ended(self) -> None:
        """Take the end of the client's output: the answers still due are sent, if the client still reads."""
        if self._protocol is None:
            self.close()
            return
        self._is_leaving = True
        self._handle(self._protocol.receive_eof())
        self._look_for_client()

    def lost(self, error: Exception) -> None:
        """Take the end of the connection."""
        if not isinstance(error, OSError):
            logger.warning("%s: %s: %s", self.runner.service.name, self.peer, error)
        self.close()

    def drained(self) -> None:
        """Go on, now that the client has read."""
        self._account_output()
        self._go_on()
        if self._outflow is not None:
            self._outflow.go_on()
        self._close_if_over()

    def stalled(self) -> None:
        """Cut off a client that does not read, unless it is only the items of its streams that it leaves unread."""
        if self._wire.sent_bytes >= self._owed_until:
            return
        logger.warning(
            "%s: %s is cut off: it has read none of %d pending bytes for %g s",
            self.runner.service.name,
            self.peer,
            self._wire.pending_bytes,
            limits.OUTPUT_STALL_SECONDS,
        )
        self.close()

    # From bytes to events.

    def _greet(self, first_byte: int) -> protocol.Connection | None:
        try:
            found = protocol.accept(first_byte, features=self._features)
        except RemoteProtocolError as error:
            self.lost(error)
            return None
        self._protocol = found
        self._codec = CODECS[found.codec]
        self._table = self.runner.tables[found.codec]
        return found

    def _handle(self, happened: list[events.Event]) -> None:
        if happened and type(happened[-1]) is events.Failed:
            self._fail(happened[-1], happened)
            return
        began = monotonic()
        self._is_flush_due = True  # below, and not once more
        for event in happened:
            kind = type(event)
            if kind is events.Call or kind is events.Notification:
                if self._is_holding:
                    self._hold(event, began)  # type: ignore[arg-type]
                else:
                    self._begin(event, began)  # type: ignore[arg-type]
            elif kind in _OF_CALLS:
                self._handle_call(event, kind, began)
            elif kind in _OF_MEMORY:
                self._handle_memory(event)
            elif kind is events.GoingAway:
                self._is_leaving = True
        self.flush()
        self.settle(began)

    def _handle_memory(self, event: events.Event) -> None:
        """Take what is about files and memory."""
        assert self._protocol is not None
        try:
            self.enclosures.take(event)
            self.has_arenas = self.has_arenas or self.enclosures.has_arenas
        except RemoteProtocolError as error:
            self._handle(self._protocol.fail(error.code, str(error)))
        if type(event) is events.Released and self._outflow is not None:
            self._outflow.released(event.shares)
            for work in list(self._works.values()):
                work.released()

    def _handle_call(self, event: Any, kind: type, began: float) -> None:
        """Take what is for a call that was begun, or is held back."""
        work = self._works.get(event.call_id)
        if work is None:
            if self._held and (kind is events.Item or kind is events.End):
                self._hold(event, began)
            elif kind is events.Item:
                self.let_go(event)
        elif kind is events.Cancel:
            work.cancel()
        elif kind is events.Credit:
            work.credited()
        elif isinstance(work, StreamWork):
            if kind is events.Item:
                work.add(event)
            elif kind is events.End:
                work.complete()

    def _fail(self, failed: events.Failed, happened: list[events.Event]) -> None:
        """Say why, and end: what the client had called before it broke the rules is of no use to it any more."""
        for event in happened:
            self.let_go(event)
        logger.warning("%s: %s is cut off: %s", self.runner.service.name, self.peer, failed.error)
        self._wire.pause()
        self._abandon()
        self._is_leaving = True
        self.flush()

    def _watch_frame(self, found: protocol.Connection) -> None:
        """Give the frame that has just begun so much time, however its bytes trickle in."""
        if self._timer is not None:
            self._timer.cancel()
        self._watched_frame = found.partial_frames
        seconds = limits.FRAME_SECONDS if found.is_greeted else limits.PREFACE_SECONDS
        self._timer = self.runner.loop.call_later(seconds, self._check_frame, found, seconds)

    def _check_frame(self, found: protocol.Connection, seconds: float) -> None:
        if found.is_mid_frame and found.partial_frames == self._watched_frame and not self._is_holding:
            self._handle(found.fail(codes.TOO_SLOW, f"what was begun {seconds:g} s ago is still not complete"))

    def _look_for_client(self) -> None:
        """See whether a client that is not read from any more is still there; nothing announces that it is not."""
        if self.closed.done() or self._close_if_over() or not (self._is_holding or self._is_leaving):
            return
        if self._wire.is_hung_up:
            if not self._is_holding:
                self.close()
                return
            self._abandon_calls()  # what it has notified us of is still to be done
        self._look_for_client_soon()

    def _look_for_client_soon(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.runner.loop.call_later(limits.HANGUP_SECONDS, self._look_for_client)

    def _account_input(self, found: protocol.Connection) -> None:
        """Count what has come of a frame, and give up if its user holds too much memory in such."""
        if self.closed.done():
            return
        kept = found.kept_bytes
        self.account.kept_bytes += kept - self._kept_bytes
        self._kept_bytes = kept
        if kept and self.account.kept_bytes > limits.UID_BYTES_MAX:
            kept = self.account.kept_bytes
            why = (
                f"uid {self.peer.uid} has begun frames of {kept} bytes in all, at most {limits.UID_BYTES_MAX} are kept"
            )
            self._handle(found.fail(codes.BUSY, why))

    # Holding back, and ending.

    @property
    def _has_enough(self) -> bool:
        return self._wire.pending_bytes > limits.OUTPUT_BYTES_MAX or self._notifications >= limits.CALLS_MAX

    def _hold_if_needed(self) -> None:
        if not self._is_holding and self._has_enough:
            self._is_holding = True
            self._wire.pause()
            self._look_for_client_soon()

    def _hold(self, event: _Held, began: float) -> None:
        """Keep what came while nothing is begun."""
        if self._held is None:
            self._held = deque()
        self._held.append((event, began))
        self.account.used_bytes += _bytes_of(event)

    def _go_on(self) -> None:
        """Begin the calls that were held back, as far as they go, and then read on."""
        if not self._is_holding or self._has_enough or self._protocol is None or self.closed.done():
            return
        self._is_holding = False
        while self._held and not self._is_holding:
            event, began = self._held.popleft()
            self.account.used_bytes -= _bytes_of(event)
            if isinstance(event, events.Item | events.End):
                self._handle_call(event, type(event), began)
            else:
                self._begin_held(self._protocol, event, began)
        self.flush_soon()
        if not self._is_holding and not self._protocol.is_finished:
            self._wire.read()
            if self._protocol.is_mid_frame:
                self._watch_frame(self._protocol)  # anew, as it was not for the client to go on

    def _begin_held(self, found: protocol.Connection, event: events.Call | events.Notification, began: float) -> None:
        """Begin a call that was held back, if somebody still waits for it."""
        if type(event) is events.Call:
            if not found.is_open(event.call_id):
                self.let_go(event)
                return
            if found.is_cancelled(event.call_id):
                self._unsent_bytes += 1
                self.let_go(event)
                found.send_error(event.call_id, codes.CANCELLED, "the call was cancelled")
                return
        now = monotonic()
        if event.milliseconds_left:
            left = event.milliseconds_left - int((now - began) * 1000)
            if left <= 0:
                self.let_go(event)
                self._refuse(
                    event.call_id, event.method, codes.DEADLINE_EXCEEDED, "the deadline of the call has passed"
                )
                return
            event.milliseconds_left = left
        self._begin(event, now)

    def drain(self) -> None:
        """Take no further calls; close once those that have come are answered."""
        if self._is_leaving or self.closed.done():
            return
        if not self._is_holding:
            self._wire.read_now()  # what was sent before the client could know
        if self.closed.done():
            return
        if self._protocol is None or not self._protocol.is_greeted:
            self.close()
            return
        self._is_leaving = True
        if not self._protocol.is_finished:
            self._protocol.send_going_away(codes.DRAINING, "the server is ending")
        for work in list(self._works.values()):
            work.leave()
        self.flush()

    def _close_if_over(self) -> bool:
        """Close if there is nothing more to be said in either direction."""
        found = self._protocol
        if found is None or self._is_flush_due or self._wire.pending_bytes or self._held:
            return False
        if found.is_finished or (self._is_leaving and found.is_idle):
            self.close()
            return True
        return False

    def _abandon(self) -> None:
        """Stop what is at work for this client, and begin nothing more, but let the notifications at work go on."""
        self._abandon_calls()
        held, self._held = self._held or (), None
        for event, _ in held:
            self.account.used_bytes -= _bytes_of(event)
            self.let_go(event)

    def _abandon_calls(self) -> None:
        for work in list(self._works.values()):
            work.abandon()

    @property
    def refused(self) -> int:
        """Calls that were answered `busy` or `draining` before anybody saw them."""
        return self._protocol.refused_calls if self._protocol else 0

    @property
    def late(self) -> int:
        """Frames for calls that had ended."""
        return self._protocol.late_frames if self._protocol else 0

    def close(self) -> None:
        """End the connection at once; a second time does nothing."""
        if self.closed.done():
            return
        if self._timer is not None:
            self._timer.cancel()
        self._wire.close()
        self.account.used_bytes -= self._pending_bytes
        self.account.kept_bytes -= self._kept_bytes
        self._pending_bytes = self._kept_bytes = 0
        self._abandon()
        if self._enclosures is not None:
            self._enclosures.close()
        self.peer.close()
        self.runner.forget_session(self)
        self.closed.set_result(None)


def _bytes_of(event: _Held) -> int:
    """How much memory what is held back takes."""
    if isinstance(event, events.End):
        return 0
    return len(event.value if isinstance(event, events.Item) else event.arguments)
