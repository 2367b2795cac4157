"""One connection to a service, and the threads that wait on it for their answers.

There is no thread of its own. Of those that wait, one leads: it reads for all of them, with no lock held, and gives
everybody what came for them; when its own answer is there, another one leads. The lock guards the protocol and the
books, and nobody waits while holding it. A caller that is alone makes one system call to send and one to receive.

What to do about a call that was not answered is left to the client, which knows whether it may be made again.
"""

from __future__ import annotations

import contextlib
import math
import socket
import struct
import threading
import time
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

from samehost import limits
from samehost.blocking.attachments import FILES_ROOM
from samehost.blocking.books import TORN, Books
from samehost.blocking.calls import Outcome, Waiting
from samehost.blocking.waiting import READ, WRITE, wait_for
from samehost.codec import CannotEncode
from samehost.errors import DeadlineExceeded, Error, MessageTooLarge, UsageError
from samehost.kernel.deadline import Deadline, Until
from samehost.kernel.handed import pass_no_files
from samehost.kernel.heap import keep_memory_at_hand
from samehost.service.calling import milliseconds_of, too_late

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from samehost.blocking.connection import Connection
    from samehost.blocking.spinning import Spinner
    from samehost.kernel.attaching import Encoded
    from samehost.protocol import Payload
    from samehost.service.call import TimeLeft

Arguments: TypeAlias = tuple[tuple[int, ...], ...]

# Plain numbers: `|` on the enumerations of the socket module costs more than half a system call.
_DONT_WAIT = int(socket.MSG_DONTWAIT)
_CLOSE_ON_EXEC = int(socket.MSG_CMSG_CLOEXEC)
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

_FORKED = "the connection is that of the process that this one was forked from"

_ROOM_AT_FIRST = (limits.RECEIVE_BYTES_AT_FIRST,)
_ROOM = (limits.RECEIVE_BYTES,)  # as much as a socket holds
_NO_FILES = (0,)
_AT_ONCE = (_DONT_WAIT,)
_THE_END = b""


class Link(Books):
    """One connection.

    Args:
        kinds: what is wanted of the server may hold these, as `extensions.kinds_in` says.
        busy_wait: seconds to look for an answer before sleeping.
    """

    def __init__(self, connection: Connection, kinds: int, busy_wait: float = 0.0) -> None:
        super().__init__(connection, kinds)
        self._has_asked = False
        self._receive, self._how, self._how_at_once = self._ways_to_receive()
        # One call from here on until what the kernel has given is kept: see `_wait`.
        keep_memory_at_hand()
        self._next_answer: Callable[[], Iterable[Any]] = partial(map, self._receive, _ROOM_AT_FIRST, *self._how)
        self._long_answers = 0  # how many of those to come are to be had room for
        self._spinner: Spinner | None = None
        if busy_wait:
            from samehost.blocking.spinning import Spinner

            self._spinner = Spinner(self._receive, self._how_at_once, self._arrived, self._outbox, busy_wait)
            self._next_answer = partial(self._spinner.next, _ROOM_AT_FIRST, self._next_answer)
        self._next_short_answer = self._next_answer
        seconds = struct.pack("@ll", 0, int(_KERNEL_WAIT_SECONDS * 1_000_000))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds)

    def _ways_to_receive(self) -> tuple[Callable[..., Any], Arguments, Arguments]:
        """The system call by which to receive, and its arguments behind the room: to wait in it, and not to."""
        if self.attachments.are_taken:
            room = (FILES_ROOM,)
            return self._socket.recvmsg, (room, (_CLOSE_ON_EXEC,)), (room, (_CLOSE_ON_EXEC | _DONT_WAIT,))
        if not pass_no_files(self._socket):  # then recvmsg(2) alone tells that files came
            return self._socket.recvmsg, (), (_NO_FILES, _AT_ONCE)
        return self._socket.recv, (), (_AT_ONCE,)

    # What the threads of the client do.

    def make(self, waiting: Waiting) -> None:
        """Send a call and wait until there is news of it, or send a notification.

        Raises:
            DeadlineExceeded: the time is over; the server was told to cancel.
            MessageTooLarge, LocalProtocolError: it cannot be sent.
            Error: there can be no more open files to send it with.
        """
        try:
            left = waiting.deadline.left()
            if left == 0:
                raise self._too_late(waiting)
            with self._lock:
                if not waiting.call_id:
                    self._submit(waiting, left)
                    if not waiting.has_news:
                        self._take_place(waiting)
            self._wait_for_news(waiting, waiting.deadline)
        except MessageTooLarge as error:
            raise waiting.too_large(error) from None
        except BaseException as error:
            self.abandon(waiting)
            if isinstance(error, OSError) and not isinstance(error, Error):
                raise waiting.not_sent(error) from error
            raise

    def call_alone(self, waiting: Waiting) -> Payload | None:  # noqa: C901 - see below
        """Make a call that was prepared just now while there is no other, and wait for it, in the fewest steps.

        All of it is one function, as each further one would be felt in the time that a short call takes.

        Returns:
            Its result. None if there is more to it, and `make` has to be called: this thread leads for the call if it
            was made, which its `call_id` tells, and otherwise nothing was done.
        """
        seconds = waiting.deadline.timeout
        if seconds is None or seconds == math.inf:
            milliseconds = 0
        elif seconds > _SHORT_SECONDS:
            milliseconds = math.ceil(seconds * 1000)
        else:
            return None
        calls, arrived, outbox, protocol = self._calls, self._arrived, self._outbox, self._protocol
        try:
            with self._lock:
                if self._leader is not None or calls or self._held_back or outbox.queue or waiting.context:
                    return None
                try:
                    frame = self.takes_calls and protocol.send_call_alone(
                        waiting.method, waiting.arguments, milliseconds, waiting.flags
                    )
                    if not frame:
                        return None
                    waiting.call_id = call_id = protocol.last_call_made
                    waiting.begins = outbox.written
                    calls[call_id] = self._leader = waiting
                    try:
                        outbox.send_at_once(frame)
                    except OSError:
                        self._cannot_send()
                except BaseException:
                    self._end(TORN)
                    raise
            if waiting.answer is not None or outbox.queue:
                return None
            try:
                arrived.extend(self._next_answer())
            except OSError:  # which the general way meets again
                return None
            with self._lock:
                if len(arrived) != 1 or waiting.answer is not None:
                    return None
                data = arrived[0]
                if isinstance(data, tuple):
                    if data[1] or data[2] & _CUT_SHORT or self.attachments.has_arenas:
                        return None
                    data = data[0]
                try:
                    result = protocol.receive_reply_alone(data)
                    if result is None:
                        return None
                    arrived.clear()
                    calls.pop(call_id, None)  # a signal handler may have closed the client in the last moment
                    if calls or self._held_back or not self.takes_calls:
                        self._pass_on()
                    else:
                        self._leader = None
                except BaseException:
                    self._end(TORN)
                    raise
        except BaseException:
            self.abandon(waiting)
            raise
        if self._dropped:
            self._heed_dropped()
        return result

    def _next_long_answer(self) -> Iterable[Any]:
        """The same as `_next_answer` with room for a long one, after one that was, for so many of them."""
        self._long_answers -= 1
        if not self._long_answers:
            self._next_answer = self._next_short_answer
        asleep = partial(map, self._receive, _ROOM, *self._how)
        return self._spinner.next(_ROOM, asleep) if self._spinner is not None else asleep()

    def begin(self, together: list[Waiting]) -> None:
        """Make calls that have one deadline and are waited for later, with
        `wait_for_news`.

        One that cannot be sent has the error for an `answer`.
        """
        left = together[0].deadline.left()
        if left == 0:
            for waiting in together:
                waiting.finish(self._too_late(waiting))
            return
        with self._lock:
            try:
                self._write_together(together, left)
            except BaseException:
                self._end(TORN)
                raise
        if self._dropped:
            self._heed_dropped()

    def _write_together(self, together: list[Waiting], left: float) -> None:
        milliseconds = milliseconds_of(left)
        places = self._protocol.peer_calls_max - self._protocol.calls_made
        if self._held_back or self._outbox.queue or not self.takes_calls:
            places = 0
        for waiting in together:
            try:
                if places <= 0 or waiting.encoded is not None or not waiting.is_answered:
                    self._submit(waiting, left)
                    continue
                waiting.begins = self._outbox.written
                waiting.call_id = call_id = self._protocol.send_call(
                    waiting.method,
                    waiting.arguments,
                    milliseconds,
                    context=waiting.context,
                    flags=waiting.flags,
                )
                self._calls[call_id] = waiting
                places -= 1
            except MessageTooLarge as error:
                waiting.finish(waiting.too_large(error))
            except Error as error:
                waiting.finish(error)
            except OSError as error:
                waiting.finish(waiting.not_sent(error))
        self._flush()

    def wait_for_news(self, waiting: Waiting, limit: TimeLeft | None = None) -> None:
        """Wait until there is news of a call that was begun, or room for its items if it wants some.

        Args:
            limit: how long at most, if that is not to be an error; the call's deadline otherwise.

        Raises:
            DeadlineExceeded: the time of the call is over; the server was told to cancel.
        """
        try:
            with self._lock:
                self._flush()
                if not self._is_due(waiting):
                    self._take_place(waiting)
            self._wait_for_news(waiting, limit or waiting.deadline)
        except BaseException:
            self.abandon(waiting)
            raise

    def _is_due(self, waiting: Waiting) -> bool:
        """Whether its thread has something to do."""
        return waiting.has_news or (waiting.wants_room and self.may_send_item(waiting))

    def _wait_for_news(self, waiting: Waiting, limit: TimeLeft) -> None:
        """Lead or follow, until there is news; and nobody leads or sleeps for this call afterwards."""
        if not self._is_due(waiting) and self._leader is not waiting:
            self._follow(waiting, limit)
        if self._leader is waiting:
            self._lead(waiting, limit)
        if waiting.wake is not None:
            with self._lock:
                waiting.wake = None
                if self._leader is waiting:  # which it was made in the last moment
                    self._pass_on()
        if self._dropped:
            self._heed_dropped()

    def _take_place(self, waiting: Waiting) -> None:
        """Lead, if nobody does; otherwise sleep, unless there is output to push. With the lock held."""
        if self._leader is None:
            self._leader = waiting
        elif not self._outbox.queue:
            waiting.wake = threading.Lock()
            waiting.wake.acquire()

    def _follow(self, waiting: Waiting, limit: TimeLeft) -> None:
        """Wait to be woken: by news, or to lead."""
        while not waiting.has_news and self._leader is not waiting:
            if self._dropped:
                self._heed_dropped()
            left = limit.left()
            if left == 0:
                self.check_time(waiting)
                return
            if waiting.wake is not None:
                waiting.wake.acquire(timeout=-1 if left == math.inf else min(left, threading.TIMEOUT_MAX))
                continue
            self._wait_for_room(left)
            with self._lock:
                self._push()
                if self._is_due(waiting):
                    return
                self._take_place(waiting)

    def _wait_for_room(self, left: float) -> None:
        if self._outbox.refused_since is None:
            wait_for((self._socket, WRITE), seconds=min(left, _LOOK_SECONDS))
        else:
            wait_for(seconds=min(left, limits.FILES_PAUSE_SECONDS))

    def _lead(self, waiting: Waiting, limit: TimeLeft) -> None:
        """Read for everybody until there is news for this one."""
        room = _ROOM if self._long_answers else _ROOM_AT_FIRST
        left = limit.left()
        while not waiting.has_news:
            if self._dropped:
                self._heed_dropped()
            if not self._arrived:
                self._wait(waiting, left, limit, room)
            with self._lock:
                self._digest()
                if self._is_due(waiting):
                    self._pass_on()
                    return
            left = limit.left()
            if left == 0:
                self.check_time(waiting)
                break
            if self._protocol.bytes_missing:
                self._long_answers = limits.LONG_READS_KEPT
                self._next_answer = self._next_long_answer
                room = _ROOM
        with self._lock:  # the time is over, or another thread has ended the connection or sent what we waited to send
            self._pass_on()

    def check_time(self, waiting: Waiting) -> None:
        """Raise DeadlineExceeded if the time of a call is over."""
        if waiting.deadline.left() == 0:
            raise self._too_late(waiting)

    def _wait(self, waiting: Waiting, left: float, limit: TimeLeft, room: tuple[int]) -> None:
        """Wait for bytes to arrive, or for room if there is output to push; not always as long as there is time.

        What arrives is added to a list within one call, as no exception of a signal handler's may come between the
        kernel's giving and our keeping.
        """
        try:
            if left > _SHORT_SECONDS and not self._outbox.queue:
                if self._spinner is not None and self._spinner.look(room):
                    return
                try:
                    self._arrived.extend(map(self._receive, room, *self._how))
                    return
                except BlockingIOError:
                    pass
            # Others may leave output behind that nobody pushes, or push what this one waits for.
            seconds = min(limit.left(), _LEADER_LOOK_SECONDS if waiting.is_answered else _LOOK_SECONDS)
            events = READ | WRITE if self._outbox.queue else READ
            if self._outbox.refused_since is not None:  # there is room all the while, for other output
                events, seconds = READ, min(seconds, limits.FILES_PAUSE_SECONDS)
            if wait_for((self._socket, events), seconds=seconds):
                with contextlib.suppress(BlockingIOError):
                    self._arrived.extend(map(self._receive, room, *self._how_at_once))
        except OSError:
            self._arrived.append(_THE_END)

    def abandon(self, waiting: Waiting) -> None:
        """Forget a call whose thread does not wait any more, and tell the server."""
        with self._lock:
            self._forget_call(waiting)
            if self._leader is waiting:
                self._pass_on()
        if self._dropped:
            self._heed_dropped()

    # What is done for files and blobs.

    def prepare(self, waiting: Waiting) -> None:
        """Encode the arguments of a call for this server, once it has said what it takes, if that matters for them.

        Raises:
            UsageError: they cannot travel, or not to this server.
            DeadlineExceeded: it did not say so in time.
        """
        values = waiting.values
        while self.takes_calls:
            was_greeted = self.is_greeted
            try:
                encoded = self.attachments.encode(values, values.values() if isinstance(values, dict) else values)
                if isinstance(encoded, bytes):
                    waiting.arguments = encoded
                    return
                if was_greeted or not encoded.missing:
                    waiting.arguments, waiting.encoded = encoded.payload, encoded
                    return
            except CannotEncode as error:
                from samehost.kernel.attaching import FilesNotTaken

                if was_greeted or not isinstance(error, FilesNotTaken):
                    raise UsageError(f"{waiting.method}: an argument cannot travel: {error}") from error
            self._wait_for_greeting(waiting)

    def ask_for_greeting(self) -> None:
        """Have the server say something, as it need not before it has to."""
        with self._lock:
            if not self._has_asked and not self._is_over:
                self._has_asked = True
                self._protocol.send_ping(0)
                self._flush()

    def _wait_for_greeting(self, waiting: Waiting) -> None:
        self.ask_for_greeting()
        self._asking.append(waiting)
        waiting.wants_room = True
        try:
            while True:
                waiting.has_news = False
                if self.is_greeted or not self.takes_calls:
                    return
                self.wait_for_news(waiting)
        finally:
            waiting.wants_room = waiting.has_news = False
            self._asking.remove(waiting)

    def wait_for_memory(self, seconds: float) -> None:
        """Take in what comes within so many seconds, as the server may release some of what it was sent."""
        nobody = Waiting("", b"", b"", Deadline(None))
        self.wait_for_news(nobody, Until(seconds, time.monotonic() + seconds))

    # What is done for streams.

    def encode_item(self, waiting: Waiting, value: Any) -> bytes | Encoded:
        """Encode an item that is to be sent.

        Raises:
            UsageError: it cannot travel, or not to this server.
        """
        try:
            return self.attachments.encode(value, (value,))
        except CannotEncode as error:
            raise UsageError(f"{waiting.method}: an item cannot travel: {error}") from error

    def send_item(self, waiting: Waiting, item: bytes | Encoded) -> None:
        """Send an item for which there was room; it goes nowhere if the call has ended meanwhile.

        Raises:
            MessageTooLarge: nothing was sent.
        """
        with self._lock:
            if waiting.call_id in self._calls:
                self._write_item(waiting, item)
                self._flush()
        if self._dropped:
            self._heed_dropped()

    def room_for_items(self, waiting: Waiting) -> tuple[int, int]:
        """How many items of a call, and how many bytes of them, may be sent at once, where there is room for one."""
        call_id = waiting.call_id
        with self._lock:
            items = self._protocol.items_left(call_id) if call_id in self._calls else 0
            return items, min(self._protocol.bytes_left(call_id), limits.ITEMS_BYTES_AT_ONCE)

    def send_items(self, waiting: Waiting, items: list[bytes]) -> None:
        """Send as many short items as there was room for, perhaps none; nowhere if the call has ended meanwhile."""
        if not items:
            return
        with self._lock:
            if waiting.call_id in self._calls:
                self._protocol.send_items(waiting.call_id, items)
                self._flush()
        if self._dropped:
            self._heed_dropped()

    def _write_item(self, waiting: Waiting, item: bytes | Encoded) -> None:
        if isinstance(item, bytes):
            self._protocol.send_item(waiting.call_id, item)
            return
        self.attachments.ship(item)
        try:
            self._protocol.send_item(waiting.call_id, item.payload, item.descriptors)
        except BaseException:
            self.attachments.unship(item)
            raise

    def send_end(self, waiting: Waiting) -> None:
        """Say that all items of a call were sent, unless it has ended."""
        with self._lock:
            if waiting.call_id in self._calls:
                self._protocol.send_end(waiting.call_id)
                self._flush()
        if self._dropped:
            self._heed_dropped()

    def return_credit(self, waiting: Waiting, items: int, byte_count: int) -> None:
        """Let the server send as much more of a stream, unless that has ended."""
        with self._lock:
            if waiting.call_id in self._calls:
                self._protocol.send_credit(waiting.call_id, items, byte_count)
                self._flush()
        if self._dropped:
            self._heed_dropped()

    def starved(self, waiting: Waiting, untold_items: int) -> int:
        """Let the server send ahead further than it may, if that is what the reader of a stream waits for.

        Args:
            untold_items: that he has taken, and whose credit was not returned.

        Returns:
            How many items he may take until their credit is to be returned.
        """
        with self._lock:
            if waiting.call_id in self._calls:
                self._protocol.widen_window(waiting.call_id, untold_items)
            grant_items, _ = self._protocol.may_save_up(waiting.call_id)
        if self._dropped:
            self._heed_dropped()
        return grant_items

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
        for waiting in chain(self._calls.values(), self._held_back):  # begun by `map`, or streams, that go on in both
            if waiting.items is not None:
                waiting.items.clear()
            waiting.wake = None
            waiting.finish(Outcome.UNKNOWN)  # those that did not go out as well, as the parent sends them
        self.attachments.forget()
        while self._arrived:
            self.attachments.drop(self._arrived.pop())
        self._connection.close()

    def _too_late(self, waiting: Waiting) -> Error:
        seconds = waiting.deadline.timeout or 0.0
        if waiting.items is not None:
            return too_late(waiting.method, self._connection.address, seconds, "no end")
        if waiting.is_answered:
            return too_late(waiting.method, self._connection.address, seconds)
        return DeadlineExceeded(f"{waiting.method} on {self._connection.address}: not sent within {seconds:g} s")
