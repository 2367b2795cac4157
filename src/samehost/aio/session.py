"""One client of a service: from what its connection says to calls of methods, and back.

Nothing here waits. A read brings frames, each call among them is begun at once, and the answers that are there by then
go out together. While a client does not read its answers, or too many of its notifications are at work, no further call
of its is begun, and nothing more is read from it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from samehost import limits, protocol
from samehost.aio.work import Work, invoke_in_call
from samehost.codec import CODECS, CannotDecode, CannotEncode
from samehost.errors import LocalProtocolError, MessageTooLarge, RemoteProtocolError
from samehost.kernel.closing import Closable
from samehost.kernel.deadline import Deadline, Until
from samehost.protocol import codes, events
from samehost.service.call import Call
from samehost.service.failures import Failure, broken, failure_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from samehost.aio.runner import Account, Ready, Runner
    from samehost.aio.wire import Wire
    from samehost.peer import Peer
    from samehost.service.arguments import Arguments
    from samehost.service.statistics import MethodStatistics

logger = logging.getLogger("samehost")

_NEVER = Deadline(None)
_NOTHING_KNOWN: dict[str, Any] = {}
_NOTIFICATION = 0


class Session(Closable):
    """One connection to a service.

    Args:
        runner: the run of the service.
        account: what the client's user has in use; this connection is counted there.
        peer: the client.
        new_wire: makes the wire to the client, whose owner this is.

    Attributes:
        runner, account, peer: as above.
        closed: done once the connection is closed.
    """

    def __init__(self, runner: Runner, account: Account, peer: Peer, new_wire: Callable[[Session], Wire]) -> None:
        self.runner = runner
        self.account = account
        self.peer = peer
        self.closed: asyncio.Future[None] = runner.loop.create_future()
        self._wire = new_wire(self)
        self._protocol: protocol.Connection | None = None
        self._table: dict[str, Ready] = {}
        self._codec = CODECS["msgpack"]
        self._works: dict[int, Work] = {}
        self._notifications = 0
        self._held: deque[tuple[events.Call | events.Notification, int]] = deque()
        self._is_holding = False
        self._is_leaving = False
        self._is_alone = False  # a call is being begun that is all that has come, and was not answered yet
        self._is_flush_due = False
        self._unsent_bytes = 0  # of results, since the last flush
        self._pending_bytes = self._kept_bytes = 0  # as they are on the account
        self._watched_frame = 0
        self._timer: asyncio.TimerHandle | None = None
        self._unsettled: list[MethodStatistics] = []
        runner.sessions.add(self)

    def start(self) -> None:
        """Begin to read."""
        self._wire.read()

    # What the wire says.

    def received(self, data: bytes) -> None:
        """Take what one read has brought."""
        found = self._protocol or self._greet(data[0])
        if found is None:
            return
        if not self._is_holding and (call := found.receive_call_alone(data)) is not None:
            self._is_alone = True
            began = perf_counter_ns()
            self._begin(call, began)
            if self._is_alone:
                self._is_alone = False
                self.flush()
            self.settle(began)
            return
        self._handle(found.receive_data(data))
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
        self._close_if_over()

    def stalled(self) -> None:
        """Cut off a client that does not read."""
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
            found = protocol.accept(first_byte)
        except RemoteProtocolError as error:
            self.lost(error)
            return None
        self._protocol = found
        self._codec = CODECS[found.codec]
        self._table = self.runner.tables[found.codec]
        return found

    def _handle(self, happened: list[events.Event]) -> None:
        if happened and type(happened[-1]) is events.Failed:
            self._fail(happened[-1])
            return
        began = perf_counter_ns()
        for event in happened:
            kind = type(event)
            if kind is events.Call or kind is events.Notification:
                if self._is_holding:
                    self._held.append((event, began))  # type: ignore[arg-type]
                    self.account.used_bytes += len(event.arguments)  # type: ignore[union-attr]
                else:
                    self._begin(event, began)  # type: ignore[arg-type]
            elif kind is events.Cancel:
                work = self._works.get(event.call_id)  # type: ignore[union-attr]
                if work is not None:
                    work.cancel()
            elif kind is events.GoingAway:
                self._is_leaving = True
        self.flush()
        self.settle(began)

    def _fail(self, failed: events.Failed) -> None:
        """Say why, and end: what the client had called before it broke the rules is of no use to it any more."""
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

    # From events to methods.

    def _begin(self, event: events.Call | events.Notification, began: int) -> None:
        call_id = event.call_id
        ready = self._table.get(event.method)
        if ready is None:
            self._refuse(call_id, event.method, codes.METHOD_NOT_FOUND, f"there is no method {event.method!r}")
            return
        ready.statistics.calls += 1
        if (
            ready.method.allow is not None
            or event.flags & protocol.ITEMS_FOLLOW
            or self.account.used_bytes > limits.UID_BYTES_MAX
        ):
            refusal = self._refusal(event, ready.method)
            if refusal is not None:
                self.fail(call_id, ready, refusal)
                return
        try:
            arguments = ready.read(event.arguments)
        except CannotDecode as error:
            self.fail(call_id, ready, Failure(codes.INVALID_ARGUMENTS, str(error)))
            return
        self._invoke(ready, arguments, event, began)

    def _invoke(self, ready: Ready, arguments: Arguments, event: events.Call | events.Notification, began: int) -> None:
        method, call_id, context = ready.method, event.call_id, _NOTHING_KNOWN
        if event.context:
            try:
                context = self._codec.read_context(event.context)
            except CannotDecode as error:
                self.fail(call_id, ready, Failure(codes.INVALID_ARGUMENTS, f"the context: {error}"))
                return
        seconds = event.milliseconds_left / 1000 or method.timeout
        if seconds and method.timeout:
            seconds = min(seconds, method.timeout)
        deadline = Until(seconds, began / 1e9 + seconds) if seconds else _NEVER
        call = Call(self.peer, method.name, call_id, deadline, context, self.runner.state)
        starter = self.runner.starter
        if ready.is_async:
            try:
                result = starter.start(ready.invoke(arguments, call), call)
            except BaseException as error:
                self.fail_with(call_id, ready, error)
                return
            if starter.waiting is None:
                self.reply(call_id, ready, result)
            else:
                self._new_work(call_id, ready, call, began, event).in_task(starter.take_waiting())
        elif method.is_inline:
            try:
                result = starter.context.copy().run(invoke_in_call, ready.invoke, arguments, call)
            except BaseException as error:
                self.fail_with(call_id, ready, error)
            else:
                self.reply(call_id, ready, result)
        else:
            self._new_work(call_id, ready, call, began, event).in_thread(arguments, starter.context.copy())

    def _refusal(self, event: events.Call | events.Notification, method: Any) -> Failure | None:
        """Why a call is not begun."""
        if method.allow is not None and not method.allow.admits(self.peer):
            return Failure(codes.NOT_PERMITTED, f"{self.peer} may not call {method.name}, which admits {method.allow}")
        if self.account.used_bytes > limits.UID_BYTES_MAX:
            return Failure(
                codes.BUSY,
                f"uid {self.peer.uid} has {self.account.used_bytes} bytes in calls and in answers that it does not "
                f"read, at most {limits.UID_BYTES_MAX} are kept",
            )
        if event.flags & protocol.ITEMS_FOLLOW:
            return Failure(codes.WRONG_SHAPE, f"{method.name} takes no stream")
        return None

    def _new_work(
        self, call_id: int, ready: Ready, call: Call, began: int, event: events.Call | events.Notification
    ) -> Work:
        work = Work(self, call_id, ready, call, began, len(event.arguments))
        if call_id == _NOTIFICATION:
            self._notifications += 1
            self._hold_if_needed()
        else:
            self._works[call_id] = work
        return work

    def work_done(self, work: Work) -> None:
        """Take note that a method that took its time has ended."""
        if work.call_id == _NOTIFICATION:
            self._notifications -= 1
            self._go_on()
        elif self._works.get(work.call_id) is work:  # and not a later call, as ids go round
            del self._works[work.call_id]

    # From results to bytes.

    def reply(self, call_id: int, ready: Ready, result: Any) -> None:
        """Answer a call with its result."""
        statistics = ready.statistics
        if not statistics.unsettled:
            self._unsettled.append(statistics)
        statistics.unsettled += 1
        if call_id == _NOTIFICATION:
            return
        assert self._protocol is not None
        try:
            encoded = self._codec.encode_raw(result)
            if self._is_alone and (frame := self._protocol.send_reply_alone(call_id, encoded)):
                self._is_alone = False
                self._wire.send([(frame, ())])
                if self._wire.pending_bytes:
                    self._account_output()
                return
            length = len(encoded)
            if self.account.used_bytes + length > limits.UID_BYTES_MAX:
                raise MessageTooLarge(f"uid {self.peer.uid} does not read its answers, so this one was dropped")
            self._protocol.send_reply(call_id, encoded)
            self._unsent_bytes += length
            if length > limits.JOIN_BYTES_MAX or self._unsent_bytes > limits.OUTPUT_BYTES_MAX:
                self.flush()
        except MessageTooLarge as error:
            self._send_failure(call_id, ready, Failure(codes.TOO_LARGE, f"the result: {error}"))
        except Exception as error:  # whatever msgspec raises for what it cannot encode
            failure = broken("the method's result cannot be sent")
            self.log_failure(ready, error, failure.error_id)
            self._send_failure(call_id, ready, failure)

    def settle(self, began: int) -> None:
        """Note how long what was answered just now has taken.

        Args:
            began: when it came, in nanoseconds.
        """
        if self._unsettled:
            nanoseconds = perf_counter_ns() - began
            for statistics in self._unsettled:
                statistics.latencies.add(nanoseconds, statistics.unsettled)
                statistics.unsettled = 0
            self._unsettled.clear()

    def fail_with(self, call_id: int, ready: Ready, error: BaseException) -> None:
        """Answer a call whose method raised this."""
        if isinstance(error, asyncio.CancelledError):
            failure = Failure(codes.CANCELLED, "the method was cancelled")
        else:
            try:
                failure = failure_of(error, ready.method.errors)
            except Exception:  # its own text cannot be had
                failure = broken("the method failed")
        if failure.error_id:
            self.log_failure(ready, error, failure.error_id)
        self.fail(call_id, ready, failure)

    def fail(self, call_id: int, ready: Ready, failure: Failure) -> None:
        """Answer a call with an error."""
        if not ready.statistics.unsettled:
            self._unsettled.append(ready.statistics)
        ready.statistics.unsettled += 1
        if call_id == _NOTIFICATION:
            ready.statistics.errors += 1
            logger.warning("%s: a notification failed: %s: %s", ready.method.name, failure.code, failure.message)
        else:
            self._send_failure(call_id, ready, failure)

    def _send_failure(self, call_id: int, ready: Ready, failure: Failure) -> None:
        assert self._protocol is not None
        ready.statistics.errors += 1
        data = b""
        if failure.data is not None:
            try:
                data = self._codec.encode(failure.data)
            except CannotEncode as error:
                self.log_failure(ready, error, failure.error_id)
        try:
            self._protocol.send_error(call_id, failure.code, failure.message, failure.error_id, data)
        except MessageTooLarge:
            self._protocol.send_error(call_id, failure.code, failure.message, failure.error_id)
        except (LocalProtocolError, AttributeError, TypeError) as error:  # a code or a message that is none
            failure = broken("the method's error cannot be sent")
            self.log_failure(ready, error, failure.error_id)
            self._protocol.send_error(call_id, failure.code, failure.message, failure.error_id)

    def _refuse(self, call_id: int, method: str, code: str, message: str) -> None:
        """Answer a call that is for no method."""
        if call_id == _NOTIFICATION:
            logger.info("%s: a notification for %r: %s", self.runner.service.name, method, message)
        else:
            assert self._protocol is not None
            self._protocol.send_error(call_id, code, message)

    def log_failure(self, ready: Ready, error: BaseException, error_id: str = "") -> None:
        """Log what the caller is not told."""
        logger.error(
            "%s: %s failed%s, called by %s",
            self.runner.service.name,
            ready.method.name,
            f" [{error_id}]" if error_id else "",
            self.peer,
            exc_info=error,
        )

    def flush_soon(self) -> None:
        """Send what has come together by the loop's next turn."""
        if not self._is_flush_due and not self.closed.done():
            self._is_flush_due = True
            self.runner.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what there is."""
        self._is_flush_due = False
        self._unsent_bytes = 0
        if self._protocol is None or self.closed.done():
            return
        chunks = self._protocol.data_to_send()
        if chunks:
            self._wire.send(chunks)
            if self._wire.pending_bytes:
                self._account_output()
                self._hold_if_needed()
        if self._is_leaving:
            self._close_if_over()

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

    def _account_output(self) -> None:
        pending = self._wire.pending_bytes
        self.account.used_bytes += pending - self._pending_bytes
        self._pending_bytes = pending

    # Holding back, and ending.

    @property
    def _has_enough(self) -> bool:
        return self._wire.pending_bytes > limits.OUTPUT_BYTES_MAX or self._notifications >= limits.CALLS_MAX

    def _hold_if_needed(self) -> None:
        if not self._is_holding and self._has_enough:
            self._is_holding = True
            self._wire.pause()
            self._look_for_client_soon()

    def _go_on(self) -> None:
        """Begin the calls that were held back, as far as they go, and then read on."""
        if not self._is_holding or self._has_enough or self._protocol is None or self.closed.done():
            return
        self._is_holding = False
        while self._held and not self._is_holding:
            event, began = self._held.popleft()
            self.account.used_bytes -= len(event.arguments)
            self._begin_held(self._protocol, event, began)
        self.flush_soon()
        if not self._is_holding and not self._protocol.is_finished:
            self._wire.read()
            if self._protocol.is_mid_frame:
                self._watch_frame(self._protocol)  # anew, as it was not for the client to go on

    def _begin_held(self, found: protocol.Connection, event: events.Call | events.Notification, began: int) -> None:
        """Begin a call that was held back, if somebody still waits for it."""
        if type(event) is events.Call:
            if not found.is_open(event.call_id):
                return
            if found.is_cancelled(event.call_id):
                found.send_error(event.call_id, codes.CANCELLED, "the call was cancelled")
                return
        now = perf_counter_ns()
        if event.milliseconds_left:
            left = event.milliseconds_left - (now - began) // 1_000_000
            if left <= 0:
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
        self.account.used_bytes -= sum(len(event.arguments) for event, _ in self._held)
        self._held.clear()

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
        self.peer.close()
        self.runner.forget_session(self)
        self.closed.set_result(None)
