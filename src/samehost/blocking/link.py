"""One connection to a service, and the threads that wait on it for their answers.

There is no thread of its own. Of those that wait, one leads: it reads for all of them, with no lock held, and gives
everybody what came for them; when its own answer is there, another one leads. The lock guards the protocol and the
books, and nobody waits while holding it. A caller that is alone makes one system call to send and one to receive.

What to do about a call that was not answered is left to the client, which knows whether it may be made again.
"""

from __future__ import annotations

import contextlib
import enum
import math
import socket
import struct
import threading
from collections import deque
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec

from samehost import limits, protocol
from samehost.blocking.outbox import Outbox
from samehost.blocking.waiting import READ, WRITE, wait_for
from samehost.errors import DeadlineExceeded, Error, LocalProtocolError, MessageTooLarge
from samehost.kernel.handed import pass_no_files
from samehost.protocol import codes
from samehost.protocol.events import Failed, Failure, GoingAway, Reply
from samehost.service.calling import closed_by_server, milliseconds_of, too_late

if TYPE_CHECKING:
    from collections.abc import Callable

    from samehost.blocking.connection import Connection
    from samehost.kernel.deadline import Deadline
    from samehost.protocol import Event

# Plain numbers: `|` on the enumerations of the socket module costs more than half a system call.
_DONT_WAIT = int(socket.MSG_DONTWAIT)
_CUT_SHORT = int(socket.MSG_CTRUNC)

_KERNEL_WAIT_SECONDS = 0.010
"""How long recvmsg(2) itself waits, which is one system call less than poll(2), but knows no deadline, and begins anew
when a signal has interrupted it. What takes longer is waited for in poll(2)."""

_SHORT_SECONDS = 0.030
"""With less time left than this, only poll(2) waits: the kernel rounds its own wait up to its clock's ticks."""

_LOOK_SECONDS = 0.020
"""How often a thread that waits to send looks whether somebody still reads, or has sent it."""

_LEADER_LOOK_SECONDS = 1.0
"""How often whoever reads looks whether there is output that nobody sends any more."""

_TORN = "the connection was given up, because an exception interrupted its use"

_FORKED = "the connection is that of the process that this one was forked from"

_ROOM_AT_FIRST = (limits.RECEIVE_BYTES_AT_FIRST,)
_ROOM = (limits.RECEIVE_BYTES,)
_ROOM_FOR_LONG = (4 * limits.RECEIVE_BYTES,)  # as much as a socket holds; too much to be had for every short answer
_NO_FILES = (0,)
_AT_ONCE = (_DONT_WAIT,)
_THE_END = b""


class Outcome(enum.Enum):
    """What became of a call that got no answer, or of a notification."""

    SENT = enum.auto()
    """All of it is with the kernel."""

    UNSENT = enum.auto()
    """Nothing of it went out, or the server says that it has not looked at it."""

    UNKNOWN = enum.auto()
    """It went out, and no answer will come."""


class Waiting(msgspec.Struct, eq=False, gc=False):
    """One call or notification, and the thread that waits for it.

    Attributes:
        answer: set by whoever leads, once there is something to tell.
        call_id: 0 until it is written, and for a notification.
        begins: where in the connection's output its first byte is, or a little before.
        ends: where its last byte is.
        wake: what the thread sleeps on, locked; None as long as it does not.
    """

    method: str
    arguments: bytes
    context: bytes
    deadline: Deadline
    is_answered: bool = True
    answer: Reply | Failure | Outcome | Error | None = None
    call_id: int = 0
    begins: int = 0
    ends: int = 0
    wake: threading.Lock | None = None


class Link:
    """One connection.

    Attributes:
        peer: the server, as the kernel says.
        takes_calls: whether calls may be made, as far as is known.
        why: what ended it.
        fault: what the server did wrong, if that ended it.
    """

    def __init__(self, connection: Connection) -> None:
        self.peer = connection.peer
        self.takes_calls = True
        self.why = ""
        self.fault: Error | None = None
        self._connection = connection
        self._socket = connection.socket
        # recvmsg(2) alone tells that files came, where the kernel cannot be told to refuse them.
        self._may_bring_files = not pass_no_files(connection.socket)
        self._receive: Callable[..., Any] = (
            connection.socket.recvmsg if self._may_bring_files else connection.socket.recv
        )
        seconds = struct.pack("@ll", 0, int(_KERNEL_WAIT_SECONDS * 1_000_000))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds)
        self._protocol = protocol.connect()
        # How many calls the server takes is not known until it has said so: only then there may be more than one.
        self._protocol.peer_calls_max = 1
        self._lock = threading.RLock()  # re-entered when a signal handler closes the client
        self._leader: Waiting | None = None
        self._calls: dict[int, Waiting] = {}
        self._held_back: deque[Waiting] = deque()
        self._arrived: list[bytes | tuple[bytes, list[Any], int, Any]] = []  # as it was received
        self._outbox = Outbox(connection.socket)
        self._notifications: deque[Waiting] = deque()
        self._is_over = False

    @property
    def is_greeted(self) -> bool:
        """Whether the server has begun to speak."""
        return self._protocol.is_greeted

    @property
    def is_over(self) -> bool:
        """Whether nobody waits here any more, and nobody will."""
        return self._is_over

    # What the threads of the client do.

    def make(self, waiting: Waiting) -> None:
        """Send a call and wait until its `answer` is set, or send a notification.

        Raises:
            DeadlineExceeded: the time is over; the server was told to cancel.
            MessageTooLarge, LocalProtocolError: it cannot be sent.
        """
        left = waiting.deadline.left()
        if left == 0:
            raise self._too_late(waiting)
        try:
            if left > _SHORT_SECONDS and self._make_alone(waiting, left):
                return
            with self._lock:
                if not waiting.call_id:
                    self._submit(waiting, left)
                    if waiting.answer is None:
                        self._take_place(waiting)
            self._wait_for_answer(waiting, waiting.deadline.left())
        except BaseException:
            self.abandon(waiting)
            raise

    def _make_alone(self, waiting: Waiting, left: float) -> bool:
        """Make a call while there is no other, in the fewest steps; whether it was answered.

        If not, this thread leads for it if it was made, which its `call_id` tells, and otherwise nothing was done.
        """
        with self._lock:
            if self._leader is not None or self._calls or self._held_back or not self.takes_calls:
                return False
            if waiting.context or self._outbox.queue or not waiting.is_answered:
                return False
            try:
                milliseconds = 0 if left == math.inf else math.ceil(left * 1000)
                data = self._protocol.send_call_alone(waiting.method, waiting.arguments, milliseconds)
                if not data:
                    return False
                waiting.call_id = call_id = self._protocol.last_call_made
                waiting.begins = self._outbox.written
                self._calls[call_id] = waiting
                self._leader = waiting
                try:
                    self._outbox.send([(data, ())])
                except OSError:
                    self._cannot_send()
            except BaseException:
                self._end(_TORN)
                raise
        if waiting.answer is None and not self._outbox.queue:
            try:
                self._arrived.extend(map(self._receive, _ROOM_AT_FIRST))
            except OSError:  # which the general way meets again
                return False
        with self._lock:
            return self._digest_alone(waiting)

    def _digest_alone(self, waiting: Waiting) -> bool:
        """Take in what has arrived, if it is the answer to the only call; whether it was."""
        if len(self._arrived) != 1 or waiting.answer is not None:
            return False
        data = self._arrived[0]
        try:
            result = self._protocol.receive_reply_alone(data) if type(data) is bytes else None
            if result is None:
                return False
            self._arrived.clear()
            del self._calls[waiting.call_id]
            waiting.answer = Reply(waiting.call_id, result, ())
            if self._calls or self._held_back or not self.takes_calls:
                self._pass_on()
            else:
                self._leader = None
        except BaseException:
            self._end(_TORN)
            raise
        return True

    def begin(self, together: list[Waiting]) -> None:
        """Make calls that have one deadline and are waited for later, with `finish`.

        One that cannot be sent has the error for an `answer`.
        """
        left = together[0].deadline.left()
        if left == 0:
            for waiting in together:
                waiting.answer = self._too_late(waiting)
            return
        with self._lock:
            try:
                self._write_together(together, left)
            except BaseException:
                self._end(_TORN)
                raise

    def _write_together(self, together: list[Waiting], left: float) -> None:
        milliseconds = milliseconds_of(left)
        places = self._protocol.peer_calls_max - self._protocol.calls_made
        if self._held_back or self._outbox.queue or not self.takes_calls:
            places = 0
        for waiting in together:
            try:
                if places <= 0:
                    self._submit(waiting, left)
                    continue
                waiting.begins = self._outbox.written
                waiting.call_id = call_id = self._protocol.send_call(
                    waiting.method, waiting.arguments, milliseconds, context=waiting.context
                )
                self._calls[call_id] = waiting
                places -= 1
            except MessageTooLarge as error:
                waiting.answer = _named(waiting, error)
            except Error as error:
                waiting.answer = error
        self._flush()

    def finish(self, waiting: Waiting) -> None:
        """Wait until the `answer` of a call that was begun is set. Raises as `make`."""
        if waiting.answer is not None:
            return
        try:
            with self._lock:
                self._flush()
                if waiting.answer is None:
                    self._take_place(waiting)
            self._wait_for_answer(waiting, waiting.deadline.left())
        except BaseException:
            self.abandon(waiting)
            raise

    def _wait_for_answer(self, waiting: Waiting, left: float) -> None:
        if waiting.answer is None and self._leader is not waiting:
            self._follow(waiting)
            left = waiting.deadline.left()
        if self._leader is waiting:
            self._lead(waiting, left)

    def _take_place(self, waiting: Waiting) -> None:
        """Lead, if nobody does; otherwise sleep, unless there is output to push. With the lock held."""
        if self._leader is None:
            self._leader = waiting
        elif not self._outbox.queue:
            waiting.wake = threading.Lock()
            waiting.wake.acquire()

    def _follow(self, waiting: Waiting) -> None:
        """Wait to be woken: by the answer, or to lead."""
        while waiting.answer is None and self._leader is not waiting:
            left = waiting.deadline.left()
            if left == 0:
                raise self._too_late(waiting)
            if waiting.wake is not None:
                waiting.wake.acquire(timeout=-1 if left == math.inf else min(left, threading.TIMEOUT_MAX))
            else:
                wait_for((self._socket, WRITE), seconds=min(left, _LOOK_SECONDS))
                with self._lock:
                    self._push()
                    if waiting.answer is None:
                        self._take_place(waiting)

    def _lead(self, waiting: Waiting, left: float) -> None:
        """Read for everybody until there is an answer for this one.

        Args:
            left: the seconds it has left.
        """
        room = _ROOM
        while waiting.answer is None:
            if not self._arrived:
                self._wait(waiting, left, room)
            with self._lock:
                self._digest()
                if waiting.answer is not None:
                    self._pass_on()
                    return
            left = waiting.deadline.left()
            if left == 0:
                raise self._too_late(waiting)
            room = _ROOM if self._protocol.bytes_missing < limits.RECEIVE_BYTES else _ROOM_FOR_LONG
        with self._lock:  # another thread has ended the connection, or has sent what this one waited to send
            self._pass_on()

    def _wait(self, waiting: Waiting, left: float, room: tuple[int]) -> None:
        """Wait for bytes to arrive, or for room if there is output to push; not always as long as there is time.

        What arrives is added to a list within one call, as no exception of a signal handler's may come between the
        kernel's giving and our keeping.
        """
        try:
            if left > _SHORT_SECONDS and not self._outbox.queue:
                try:
                    self._arrived.extend(map(self._receive, room))
                    return
                except BlockingIOError:
                    pass
            # Others may leave output behind that nobody pushes, or push what this one waits for.
            seconds = min(waiting.deadline.left(), _LEADER_LOOK_SECONDS if waiting.is_answered else _LOOK_SECONDS)
            if wait_for((self._socket, READ | WRITE if self._outbox.queue else READ), seconds=seconds):
                with contextlib.suppress(BlockingIOError):
                    how = (_NO_FILES, _AT_ONCE) if self._may_bring_files else (_AT_ONCE,)
                    self._arrived.extend(map(self._receive, room, *how))
        except OSError:
            self._arrived.append(_THE_END)

    def abandon(self, waiting: Waiting) -> None:
        """Forget a call whose thread does not wait any more, and tell the server."""
        with self._lock:
            try:
                if self._calls.pop(waiting.call_id, None) is not None and not self._is_over:
                    self._protocol.send_cancel(waiting.call_id)
                    self._flush()
                elif waiting in self._held_back:
                    self._held_back.remove(waiting)
                if self._leader is waiting:
                    self._pass_on()
            except BaseException:
                self._end(_TORN)
                raise

    def close(self, why: str) -> None:
        """End the connection, and wake everybody; from any thread or signal handler."""
        with self._lock:
            self._end(why)

    def forget(self) -> None:
        """In a child made by fork, close the copy of the socket; the connection and the threads are the parent's."""
        self._lock = threading.RLock()
        self.takes_calls = False
        self._is_over = True
        self.why = self.why or _FORKED
        for waiting in chain(self._calls.values(), self._held_back):  # begun by `map`, which goes on in both
            waiting.answer = Outcome.UNKNOWN  # those that did not go out as well, as the parent sends them
        self._connection.close()

    # What is done with the lock held.

    def _submit(self, waiting: Waiting, left: float) -> None:
        """Write a call, or hold it back."""
        try:
            if not self.takes_calls:
                waiting.answer = Outcome.UNSENT
            elif self._held_back or self._outbox.queue:
                self._held_back.append(waiting)
                self._push()
            else:
                self._write(waiting, left)
        except LocalProtocolError:
            if not self._is_full:
                raise
            self._held_back.append(waiting)
        except MessageTooLarge as error:
            raise _named(waiting, error) from None
        except BaseException:
            self._end(_TORN)
            raise

    @property
    def _is_full(self) -> bool:
        """Whether the server takes no more calls at this time; one that takes none at all is not waited for."""
        return 0 < self._protocol.peer_calls_max <= self._protocol.calls_made

    def _write(self, waiting: Waiting, left: float) -> None:
        """Write a call, and send what the kernel takes."""
        waiting.begins = self._outbox.written
        milliseconds = milliseconds_of(left)
        if waiting.is_answered:
            waiting.call_id = call_id = self._protocol.send_call(
                waiting.method, waiting.arguments, milliseconds, context=waiting.context
            )
            self._calls[call_id] = waiting
            self._flush()
            return
        self._protocol.send_notification(waiting.method, waiting.arguments, milliseconds, context=waiting.context)
        if self._flush():
            self._tell(waiting, Outcome.SENT)
        elif not self.takes_calls:
            self._tell(waiting, Outcome.UNSENT)
        else:
            waiting.ends = self._outbox.written
            self._notifications.append(waiting)

    def _flush(self) -> bool:
        """Send what the protocol has written; whether all is with the kernel."""
        try:
            return self._outbox.send(self._protocol.data_to_send())
        except OSError:
            self._cannot_send()
            return False

    def _push(self) -> None:
        """Send what is queued, and write what was held back as far as there is room for it."""
        try:
            self._outbox.push()
        except OSError:
            self._cannot_send()
        while self._notifications and self._notifications[0].ends <= self._outbox.sent:
            self._tell(self._notifications.popleft(), Outcome.SENT)
        for waiting in list(self._held_back):
            if not self.takes_calls or self._outbox.pending > limits.OUTPUT_BYTES_MAX:
                return
            if waiting.is_answered and self._is_full:
                continue
            left = waiting.deadline.left()
            if left == 0:
                continue
            self._held_back.remove(waiting)
            try:
                self._write(waiting, left)
            except MessageTooLarge as error:
                self._tell(waiting, _named(waiting, error))
            except LocalProtocolError as error:
                self._tell(waiting, error)

    def _digest(self) -> None:
        """Take in what has arrived, and send what there is to send."""
        try:
            while self._arrived:
                data, found = self._arrived.pop(), 0
                if isinstance(data, tuple):
                    data, _, found, _ = data
                if self._is_over:
                    return
                if found & _CUT_SHORT:
                    events = self._protocol.fail(codes.UNEXPECTED_DESCRIPTORS, "files came, and no call has any to get")
                elif data:
                    events = self._protocol.receive_data(data)
                else:
                    self._protocol.receive_eof()
                    self._end(self.why or closed_by_server(self.is_greeted))  # in the middle of a frame or not
                    return
                for event in events:
                    if type(event) is Reply or type(event) is Failure:
                        answered = self._calls.pop(event.call_id, None)
                        if answered is not None:
                            self._tell(answered, event)
                    else:
                        self._heed(event)
            if not self._is_over:
                is_all_out = self._flush()
                if not is_all_out or self._held_back or self._notifications:
                    self._push()
        except BaseException:
            self._end(_TORN)
            raise

    def _heed(self, event: Event) -> None:
        """Do what an event wants that is no answer."""
        if isinstance(event, GoingAway):
            self.why = f"the server is going away ({event.code}{event.message and ': '}{event.message})"
            self.takes_calls = False
            for call_id in event.unsent:
                self._tell(self._calls.pop(call_id), Outcome.UNSENT)
            while self._held_back:
                self._tell(self._held_back.popleft(), Outcome.UNSENT)
        elif isinstance(event, Failed):
            self._flush()
            self.fault = event.error
            if event.error.code == codes.VERSION_REFUSED:  # the server has looked at nothing else
                self._end(str(event.error), Outcome.UNSENT)
            else:
                self._end(f"the server broke the protocol ({event.error})")

    def _tell(self, waiting: Waiting, answer: Reply | Failure | Outcome | Error) -> None:
        waiting.answer = answer
        self._wake(waiting)

    def _wake(self, waiting: Waiting) -> None:
        """Wake a thread, if it sleeps and nobody has woken it yet."""
        if waiting.wake is not None and waiting.wake.locked():
            waiting.wake.release()

    def _pass_on(self) -> None:
        """Give the lead to another thread that sleeps; those that push output see by themselves that nobody leads."""
        self._leader = None
        if self._is_over:
            self._connection.close()
        elif not self.takes_calls and not self._calls:
            self._end(self.why)
        elif self._calls or self._held_back:
            for other in [*self._calls.values(), *self._held_back]:  # at once, as a signal handler may close the client
                if other.wake is not None:
                    self._leader = other
                    self._wake(other)
                    break

    def _cannot_send(self) -> None:
        """Nothing more can be sent; what the server has sent until now can still be read."""
        self.takes_calls = False
        self.why = self.why or closed_by_server(self.is_greeted)
        self._outbox.queue.clear()
        for call_id, waiting in list(self._calls.items()):
            if waiting.begins >= self._outbox.sent:
                del self._calls[call_id]
                self._tell(waiting, Outcome.UNSENT)
        for waiting in chain(self._held_back, self._notifications):
            self._tell(waiting, Outcome.UNSENT)
        self._held_back.clear()
        self._notifications.clear()
        if not self._calls and self._leader is None:
            self._end(self.why)

    def _end(self, why: str, outcome: Outcome = Outcome.UNKNOWN) -> None:
        """The connection is over, for everybody.

        Args:
            outcome: of the calls that went out.
        """
        if self._is_over:
            return
        self.why = why
        self.takes_calls = False
        self._is_over = True
        for waiting in list(self._calls.values()):
            self._tell(waiting, Outcome.UNSENT if waiting.begins >= self._outbox.sent else outcome)
        for waiting in chain(self._held_back, self._notifications):
            self._tell(waiting, Outcome.UNSENT)
        self._calls.clear()
        self._held_back.clear()
        self._notifications.clear()
        self._outbox.queue.clear()
        self._connection.shutdown()
        if self._leader is None:
            self._connection.close()

    def _too_late(self, waiting: Waiting) -> Error:
        seconds = waiting.deadline.timeout or 0.0
        if waiting.is_answered:
            return too_late(waiting.method, self._connection.address, seconds)
        return DeadlineExceeded(f"{waiting.method} on {self._connection.address}: not sent within {seconds:g} s")


def _named(waiting: Waiting, error: MessageTooLarge) -> MessageTooLarge:
    """The error of a call that cannot be sent, with the name of its method."""
    return MessageTooLarge(f"{waiting.method}: {error}")
