"""What the threads of a client share of one connection: its calls, what has come for them and what is to be sent.

Everything here is done with the lock held, and nothing waits; where that is not so, it is said. Who waits, and for
what, is `link`'s.
"""

from __future__ import annotations

import threading
from collections import deque
from itertools import chain
from typing import TYPE_CHECKING

from samehost import limits
from samehost.blocking.attachments import Attachments
from samehost.blocking.calls import AttachedReply, Outcome, Waiting
from samehost.blocking.outbox import Outbox
from samehost.errors import (
    Error,
    LocalProtocolError,
    MessageTooLarge,
    ReceiverFull,
    RemoteProtocolError,
    UnexpectedFiles,
)
from samehost.protocol import codes
from samehost.protocol.events import (
    Credit,
    Discarded,
    Failed,
    Failure,
    GoingAway,
    Item,
    Note,
    Pong,
    Reply,
    Stream,
)
from samehost.service.calling import closed_by_server, milliseconds_of

if TYPE_CHECKING:
    from samehost.blocking.attachments import Received
    from samehost.blocking.connection import Connection
    from samehost.protocol import Descriptors, Event

TORN = "the connection was given up, because an exception interrupted its use"


class Books:
    """The inside of a `Link`.

    Attributes:
        peer: the server, as the kernel says.
        takes_calls: whether calls may be made, as far as is known.
        why: what ended it.
        fault: what the server did wrong, or the kernel refused for too long, if that ended it.
        attachments: the files and blobs that travel here.
    """

    def __init__(self, connection: Connection, kinds: int) -> None:
        self.peer = connection.peer
        self.takes_calls = True
        self.why = ""
        self.fault: Error | None = None
        self._connection = connection
        self._socket = connection.socket
        self.attachments = Attachments(connection.peer.uid, kinds, self._release_soon)
        self._protocol = self.attachments.protocol
        # How many calls the server takes is not known until it has said so: only then there may be more than one.
        self._protocol.peer_calls_max = 1
        self._lock = threading.RLock()  # re-entered when a signal handler closes the client
        self._leader: Waiting | None = None
        self._calls: dict[int, Waiting] = {}
        self._held_back: deque[Waiting] = deque()
        self._asking: list[Waiting] = []
        self._dropped: deque[Waiting | None] = deque()
        self._arrived: list[Received] = []  # as it was received
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

    def is_led_by(self, waiting: Waiting) -> bool:
        """Whether it is the thread of this call that reads for all."""
        return self._leader is waiting

    def _forget_call(self, waiting: Waiting) -> None:
        try:
            if self._calls.pop(waiting.call_id, None) is not None and not self._is_over:
                self._protocol.send_cancel(waiting.call_id)
                self._flush()
            elif waiting in self._held_back:
                self._held_back.remove(waiting)
            if self.attachments.are_taken:
                self._discard_unread(waiting)
        except BaseException:
            self._end(TORN)
            raise

    def _discard_unread(self, waiting: Waiting) -> None:
        """Let go of the files and the memory that came for a call, and that nobody will look at."""
        for answer in (waiting.answer, waiting.end):
            if isinstance(answer, AttachedReply):
                self.attachments.discard(answer)
        while waiting.items:
            self.attachments.discard(waiting.items.popleft())

    def _submit(self, waiting: Waiting, left: float) -> None:
        """Write a call, or hold it back."""
        try:
            if not self.takes_calls:
                waiting.finish(Outcome.UNSENT)
            elif self._held_back or self._outbox.queue:
                self._held_back.append(waiting)
                self._push()
            else:
                self._write(waiting, left)
        except LocalProtocolError:
            if not self._is_full:
                raise
            self._held_back.append(waiting)
        except (MessageTooLarge, OSError):  # it has too much to say, or more files than may be open
            raise
        except BaseException:
            self._end(TORN)
            raise

    @property
    def _is_full(self) -> bool:
        """Whether the server takes no more calls at this time; one that takes none at all is not waited for."""
        return 0 < self._protocol.peer_calls_max <= self._protocol.calls_made

    def _write(self, waiting: Waiting, left: float) -> None:
        """Write a call, and send what the kernel takes."""
        waiting.begins = self._outbox.written
        milliseconds = milliseconds_of(left)
        encoded = waiting.encoded
        if encoded is not None:
            self.attachments.ship(encoded)
        try:
            call_id = self._write_one(waiting, milliseconds, encoded.descriptors if encoded else ())
        except BaseException:
            if encoded is not None:
                self.attachments.unship(encoded)
            raise
        waiting.encoded = None  # which is large memory that can come back soon
        if waiting.is_answered:
            waiting.call_id = call_id
            self._calls[call_id] = waiting
            self._flush()
            if waiting.wants_room:
                waiting.tell()
            return
        if self._flush():
            waiting.finish(Outcome.SENT)
        elif not self.takes_calls:
            waiting.finish(Outcome.UNSENT)
        else:
            waiting.ends = self._outbox.written
            self._notifications.append(waiting)

    def _write_one(self, waiting: Waiting, milliseconds: int, descriptors: Descriptors) -> int:
        if waiting.is_answered:
            return self._protocol.send_call(
                waiting.method,
                waiting.arguments,
                milliseconds,
                context=waiting.context,
                flags=waiting.flags,
                descriptors=descriptors,
            )
        self._protocol.send_notification(
            waiting.method, waiting.arguments, milliseconds, context=waiting.context, descriptors=descriptors
        )
        return 0

    def _flush(self) -> bool:
        """Send what the protocol has written; whether all is with the kernel."""
        if self.attachments.has_arenas:
            self.attachments.write_releases()
        chunks = self._protocol.data_to_send()
        if not chunks and not self._outbox.queue:
            return True
        try:
            return self._outbox.send(chunks)
        except OSError:
            self._cannot_send()
        except ReceiverFull as error:
            self.fault = error  # so that nobody tries again, as another connection would be refused as well
            self._end(str(error))
        return False

    def _push(self) -> None:
        """Send what is queued, and write what was held back as far as there is room for it."""
        try:
            self._outbox.push()
        except OSError:
            self._cannot_send()
        except ReceiverFull as error:
            self.fault = error  # so that nobody tries again, as another connection would be refused as well
            self._end(str(error))
        while self._notifications and self._notifications[0].ends <= self._outbox.sent:
            self._notifications.popleft().finish(Outcome.SENT)
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
                waiting.finish(waiting.too_large(error))
            except LocalProtocolError as error:
                waiting.finish(error)
            except OSError as error:
                waiting.finish(waiting.not_sent(error))

    def _digest(self) -> None:
        """Take in what has arrived, and send what there is to send."""
        try:
            while self._arrived:
                arrived = self._arrived.pop(0)
                if self._is_over:
                    self.attachments.drop(arrived)
                    continue
                events = self._events_in(arrived)
                if events is None:
                    self._protocol.receive_eof()
                    self._end(self.why or closed_by_server(self.is_greeted))  # in the middle of a frame or not
                else:
                    self._hand_out(events)
            if not self._is_over:
                is_all_out = self._flush()
                if not is_all_out or self._held_back or self._notifications:
                    self._push()
        except BaseException:
            self._end(TORN)
            raise

    def _events_in(self, arrived: Received) -> list[Event] | None:
        """What has arrived; None if that is the end."""
        if type(arrived) is bytes:
            return self._protocol.receive_data(arrived) if arrived else None
        try:
            data, files = self.attachments.received(arrived)
        except UnexpectedFiles as error:
            why = str(error) if self.attachments.are_taken else "files came, and no call has any to get"
            return self._protocol.fail(codes.UNEXPECTED_DESCRIPTORS, why)
        return self._protocol.receive_data(data, files) if data else None

    def _hand_out(self, events: list[Event]) -> None:
        """Give everybody what came for them."""
        for event in events:
            if type(event) is Reply or type(event) is Failure:
                if type(event) is Reply and (event.descriptors or self.attachments.has_arenas):
                    event = AttachedReply(event.call_id, event.result, event.descriptors)
                answered = self._calls.pop(event.call_id, None)
                if answered is not None:
                    answered.attachments = self.attachments
                    answered.finish(event)
                elif isinstance(event, AttachedReply):  # something else in this read has ended the call
                    self.attachments.discard(event)
            elif type(event) is Item:
                reading = self._calls.get(event.call_id)
                if reading is not None and reading.items is not None:
                    reading.items.append(event)
                    reading.has_news = True
                    if reading.wake is not None:
                        reading.rouse()
                else:
                    self.attachments.discard(event)
            else:
                self._heed(event)

    def _heed(self, event: Event) -> None:
        """Do what an event wants that neither answers nor belongs to an answer."""
        if isinstance(event, Stream | Credit | Note):
            self._heed_of_call(event)
        elif isinstance(event, Pong):
            for waiting in chain(self._calls.values(), self._asking):
                if waiting.wants_room:
                    waiting.tell()
        elif isinstance(event, GoingAway):
            self.why = f"the server is going away ({event.code}{event.message and ': '}{event.message})"
            self.takes_calls = False
            for call_id in event.unsent:
                if call_id in self._calls:
                    self._calls.pop(call_id).finish(Outcome.UNSENT)
            while self._held_back:
                self._held_back.popleft().finish(Outcome.UNSENT)
        elif isinstance(event, Failed):
            self._flush()
            self.fault = event.error
            if event.error.code == codes.VERSION_REFUSED:  # the server has looked at nothing else
                self._end(str(event.error), Outcome.UNSENT)
            else:
                self._end(f"the server broke the protocol ({event.error})")
        else:
            try:
                self.attachments.take(event)
            except RemoteProtocolError as error:
                self._hand_out(self._protocol.fail(error.code, str(error)))

    def _heed_of_call(self, event: Stream | Credit | Note) -> None:
        waiting = self._calls.get(event.call_id)
        if waiting is None:
            return
        if isinstance(event, Note):
            waiting.add_note(event.value)
            return
        if isinstance(event, Stream):
            waiting.answer = event
            waiting.items = deque()
            waiting.attachments = self.attachments
        waiting.tell()

    def _pass_on(self) -> None:
        """Give the lead to another thread that sleeps; those that push output see by themselves that nobody leads."""
        self._leader = None
        if self._is_over:
            self._connection.close()
        elif not self.takes_calls and not self._calls:
            self._end(self.why)
        elif self._calls or self._held_back or self._asking:
            for other in [
                *self._calls.values(),
                *self._held_back,
                *self._asking,
            ]:  # at once, as a signal handler may close the client
                if other.wake is not None and not other.has_news:
                    self._leader = other
                    other.rouse()
                    break

    def _cannot_send(self) -> None:
        """Nothing more can be sent; what the server has sent until now can still be read."""
        self.takes_calls = False
        self.why = self.why or closed_by_server(self.is_greeted)
        self._outbox.queue.clear()
        for call_id, waiting in list(self._calls.items()):
            if waiting.begins >= self._outbox.sent:
                del self._calls[call_id]
                waiting.finish(Outcome.UNSENT)
        for waiting in chain(self._held_back, self._notifications):
            waiting.finish(Outcome.UNSENT)
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
            waiting.finish(Outcome.UNSENT if waiting.begins >= self._outbox.sent else outcome)
        for waiting in chain(self._held_back, self._notifications):
            waiting.finish(Outcome.UNSENT)
        self._calls.clear()
        self._held_back.clear()
        self._notifications.clear()
        self._outbox.queue.clear()
        for waiting in self._asking:
            waiting.tell()
        for event in self._protocol.receive_eof():
            if isinstance(event, Discarded):  # the files of a frame that has not come whole
                self.attachments.discard(event)
        self.attachments.close()
        self.attachments = Attachments(self.peer.uid, 0, self._release_soon)  # others may still read what they have
        self._connection.shutdown()
        if self._leader is None:
            self._connection.close()

    def may_send_item(self, waiting: Waiting) -> bool:
        """Whether there is room for an item of this call: the server takes one, and all other output is out."""
        return (
            not self._outbox.queue
            and self._protocol.is_greeted
            and waiting.call_id in self._calls
            and self._protocol.may_send_item(waiting.call_id)
        )

    # What ends unseen, at any moment.

    def drop(self, waiting: Waiting) -> None:
        """The same for a call that ends unseen: at any moment, as from a finalizer, even while this thread is in here.

        If somebody has the lock, who may be this very thread, whatever they do comes first, and then this.
        """
        self._do_soon(waiting)

    def _release_soon(self) -> None:
        """Tell the server, in the same way, that memory of its is not looked at any more."""
        self._do_soon(None)

    def _do_soon(self, waiting: Waiting | None) -> None:
        self._dropped.append(waiting)
        if not self._lock._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001 - as threading.Condition does
            self._heed_dropped()

    def _release(self) -> None:
        try:
            if not self._is_over:
                self._flush()
        except BaseException:
            self._end(TORN)
            raise

    def _heed_dropped(self) -> None:
        """Forget what was dropped, unless another thread is in here, which does so before it leaves."""
        while self._dropped and self._lock.acquire(blocking=False):
            try:
                while self._dropped:
                    waiting = self._dropped.popleft()
                    if waiting is None:
                        self._release()
                        continue
                    self._forget_call(waiting)
                    waiting.finish(Outcome.DROPPED)
                    if self._leader is None:
                        self._pass_on()
            finally:
                self._lock.release()
