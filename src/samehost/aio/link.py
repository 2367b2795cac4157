"""A client's connection to a service: calls go out, answers come back to the tasks that wait for them.

One of these lives as long as its socket. What to do when it ends is for the client to decide; here it is only said, of
each call, whether it was sent. What is called within one turn of the loop goes out together.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakSet

from samehost.aio.attachments import Attachments
from samehost.aio.itemflow import ItemFlow
from samehost.aio.stream import OpenCall
from samehost.codec import CannotEncode
from samehost.errors import MessageTooLarge, RemoteProtocolError, UsageError
from samehost.kernel.attaching import Encoded, FilesNotTaken
from samehost.protocol import ITEMS_FOLLOW, events
from samehost.service.calling import answered_error, closed_by_server, lost, milliseconds_of, no_stream, too_late

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from samehost.aio.wire import Wire
    from samehost.kernel.deadline import Deadline
    from samehost.kernel.files import File
    from samehost.peer import Peer
    from samehost.protocol import Descriptors, Payload
    from samehost.service.remote import RemoteMethod

Answer: TypeAlias = "events.Reply | events.Failure | OpenCall | Exception"


class Link:
    """One connection of a client.

    Args:
        address: for messages.
        peer: the server.
        new_wire: makes the wire to the server, whose owner this is, and takes files, or not.
        kinds: what is wanted of the server may hold these, as `extensions.kinds_in` says.

    Attributes:
        peer: as above.
        loop: that it lives in.
        attachments: the files and blobs that it carries.
        items: those of its calls, in both directions.
        is_open: whether calls can be made on it.
        fault: what the server did that it may not; None if nothing.
    """

    def __init__(self, address: str, peer: Peer, new_wire: Callable[[Link, bool], Wire], kinds: int) -> None:
        self.peer = peer
        self.is_open = True
        self.fault: Exception | None = None
        self._address = address
        self.loop = asyncio.get_running_loop()
        self.attachments = Attachments(self, kinds)
        self._protocol = self.attachments.protocol
        self._wire = new_wire(self, self.attachments.are_taken)
        self.items = ItemFlow(self, self._wire)
        # Of each call, until it is over: what it calls; until the first frame of its answer: who waits; if it streams,
        # or tells how far it has come: the rest of it.
        self._remotes: dict[int, RemoteMethod] = {}
        self._answers: dict[int, asyncio.Future[Answer]] = {}
        self._open_calls: dict[int, OpenCall] = {}
        self._streaming: WeakSet[OpenCall] = WeakSet()  # and those that are over, and may have items to be read
        self._places: deque[asyncio.Future[None]] = deque()
        self._room: deque[asyncio.Future[None]] = deque()
        self._greetings: deque[asyncio.Future[None]] = deque()
        self._has_asked = False  # for a greeting
        self._is_flush_due = False
        self._written_bytes = 0
        # Calls that may not have been sent yet: where their output began, and their ids.
        self._fresh: list[int] = []
        self._in_doubt: list[tuple[int, list[int]]] = []
        self._wire.read()
        self.flush()

    @property
    def is_greeted(self) -> bool:
        """Whether the server has said anything."""
        return self._protocol.is_greeted

    @property
    def is_closed(self) -> bool:
        """Whether the connection has ended."""
        return self._wire.is_closed

    @property
    def is_alive(self) -> bool:
        """Whether anything can still be sent."""
        return not self._wire.is_closed and not self._protocol.is_finished

    # Calling.

    async def call(
        self,
        remote: RemoteMethod,
        arguments: bytes | Encoded,
        deadline: Deadline,
        context: Payload,
        opened: OpenCall | None = None,
    ) -> Any:
        """Call a method, and wait for its result, or for its word that items will come.

        Args:
            arguments: encoded for any server, or for this one.
            opened: what goes on until the call is over, if something does.

        Returns:
            The result; or `opened`, or a new OpenCall, if the call streams.

        Raises:
            DeadlineExceeded: no answer was there in time; the call is cancelled.
            Unsent, OutcomeUnknown: the connection ended first.
            InvalidResult: the result is not of its declared type.
            WrongShape: a stream was wanted, and a result came.
            Others: what the method answered; what the source of the items raised.
        """
        method = remote.name
        if self._places or self._protocol.calls_made >= self._protocol.peer_calls_max:
            await self._wait_for_place(method, deadline)
        left = deadline.left()
        if not left or not self.is_open:
            raise self._no_call(method, deadline)
        try:
            if isinstance(arguments, bytes):
                call_id = self._protocol.send_call(
                    method, arguments, milliseconds_of(left), context=context, flags=remote.flags
                )
            else:
                call_id = self._send_attached(remote, arguments, milliseconds_of(left), context, opened)
                arguments = b""  # or the files in it would be kept by whoever keeps the traceback of what this raises
        except MessageTooLarge as error:
            raise MessageTooLarge(f"{method}: {error}") from None
        answer: asyncio.Future[Answer] = self.loop.create_future()
        self._answers[call_id] = answer
        self._remotes[call_id] = remote
        if opened is not None:
            self._open_calls[call_id] = opened
            opened.begin(self, call_id)
        self._fresh.append(call_id)
        if not self._is_flush_due:
            self._is_flush_due = True
            self.loop.call_soon(self.flush)
        timer = None if left == math.inf else self.loop.call_later(left, self._expire, call_id, deadline)
        try:
            found = await answer
        except asyncio.CancelledError:
            self.cancel(call_id)
            if answer.done() and not answer.cancelled():
                self._drop(answer.result())  # which has come in this very turn of the loop
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if type(found) is not events.Reply or found.descriptors or self.attachments.has_arenas or remote.is_stream:
            return self._outcome(remote, found)
        return remote.result(found.result)

    def _no_call(self, method: str, deadline: Deadline) -> Exception:
        if not self.is_open:
            return lost(method, self._address, "the connection had ended", was_sent=False)
        return too_late(method, self._address, deadline.timeout or 0.0)

    def _send_attached(
        self,
        remote: RemoteMethod,
        arguments: Encoded,
        milliseconds_left: int,
        context: Payload,
        opened: OpenCall | None,
    ) -> int:
        flags = remote.flags | ITEMS_FOLLOW * (opened is not None and opened.source is not None)

        def write(payload: Payload, descriptors: Descriptors) -> int:
            return self._protocol.send_call(
                remote.name, payload, milliseconds_left, context=context, flags=flags, descriptors=descriptors
            )

        return self.attachments.write(arguments, write)

    def _outcome(self, remote: RemoteMethod, answer: Answer) -> Any:
        """What `call` returns or raises for an answer that is not the commonest."""
        if isinstance(answer, events.Reply):
            if remote.is_stream:
                self.attachments.discard(answer)
                raise no_stream(remote.name)
            return self.attachments.read(remote.result, answer)
        if isinstance(answer, OpenCall):
            return answer
        if isinstance(answer, events.Failure):
            raise answered_error(remote.name, answer)
        try:
            raise answer
        finally:
            del answer  # which has this frame in its traceback from now on

    def _drop(self, answer: Answer) -> None:
        """Let go of an answer that nobody waits for any more."""
        if isinstance(answer, events.Reply):
            self.attachments.discard(answer)
        elif isinstance(answer, OpenCall):
            answer.close()

    async def encode(self, remote: RemoteMethod, arguments: Any, deadline: Deadline) -> Encoded:
        """Encode arguments for this server, once it has said what it takes if they have anything for which it matters.

        Raises:
            UsageError: they cannot travel, or not to this server.
            DeadlineExceeded: it did not say so in time.
            Unsent: the connection ended first.
        """
        while True:
            was_greeted = self.is_greeted
            try:
                encoded = self.attachments.encode(arguments)
                if was_greeted or not encoded.missing:
                    return encoded
            except CannotEncode as error:
                if was_greeted or not isinstance(error, FilesNotTaken):
                    raise UsageError(f"{remote.name}: an argument cannot travel: {error}") from error
            while not self.is_greeted:
                if not self.is_open:
                    raise lost(remote.name, self._address, "the connection had ended", was_sent=False)
                self.ask_for_greeting()
                await self._wait(self._greetings, deadline, remote.name)

    def ask_for_greeting(self) -> None:
        """Have the server say something, as it need not before it has to."""
        if not self._has_asked:
            self._has_asked = True
            self._protocol.send_ping(0)
            self.flush_soon()

    async def notify(
        self, remote: RemoteMethod, arguments: bytes | Encoded, deadline: Deadline, context: Payload
    ) -> None:
        """Call a method that is not answered, and wait until the kernel has taken it.

        Raises:
            DeadlineExceeded: the server does not read, so it may or may not get it yet.
            Unsent: the connection has ended.
        """
        method = remote.name
        left = deadline.left()
        if not left:
            raise too_late(method, self._address, deadline.timeout or 0.0)
        if self.is_open:
            send = partial(
                self._protocol.send_notification, method, milliseconds_left=milliseconds_of(left), context=context
            )
            try:
                if isinstance(arguments, bytes):
                    send(arguments)
                else:
                    self.attachments.write(arguments, lambda payload, files: send(payload, descriptors=files))
            except MessageTooLarge as error:
                raise MessageTooLarge(f"{method}: {error}") from None
            self.flush()
            end = self._written_bytes
            if self._wire.pending_bytes:
                await self._wait(self._room, deadline, method)
            if self._wire.sent_bytes >= end:
                return
            self.is_open = False  # as the wire will say in a moment
        raise lost(method, self._address, "the connection had ended", was_sent=False)

    async def _wait_for_place(self, method: str, deadline: Deadline) -> None:
        """Wait until the server takes one call more, in the order in which callers have come."""
        is_there = False
        try:
            while self.is_open and not is_there:
                await self._wait(self._places, deadline, method)
                is_there = self._protocol.calls_made < self._protocol.peer_calls_max
        finally:
            if not is_there or not deadline.left():  # then it is for the next one
                self._give_places()

    async def _wait(self, waiting: deque[asyncio.Future[None]], deadline: Deadline, method: str) -> None:
        left = deadline.left()
        future: asyncio.Future[None] = self.loop.create_future()
        waiting.append(future)
        self._give_places()
        try:
            async with asyncio.timeout(None if left == math.inf else left):
                await future
        except TimeoutError:
            raise too_late(method, self._address, deadline.timeout or 0.0) from None
        finally:
            waiting.remove(future)

    def _expire(self, call_id: int, deadline: Deadline) -> None:
        if call_id in self._answers:  # the answer has not come in this very turn of the loop
            self.give_up(call_id, too_late(self._remotes[call_id].name, self._address, deadline.timeout or 0.0))

    def expire_at(self, call_id: int, deadline: Deadline, what: str = "no answer") -> asyncio.TimerHandle:
        """End a call at its deadline, which it has, unless the timer is cancelled; `what` is for the message."""
        error = too_late(self._remotes[call_id].name, self._address, deadline.timeout or 0.0, what)
        return self.loop.call_later(deadline.left(), self.give_up, call_id, error)

    def has_calls(self) -> bool:
        """Whether somebody here waits for an answer, or for items."""
        return bool(self._remotes)

    def is_wanted(self, call_id: int) -> bool:
        """Whether somebody here waits for a call to end, or for its items."""
        return call_id in self._remotes

    def give_up(self, call_id: int, error: Exception) -> None:
        """End a call, for its caller with this error, unless it is over."""
        if call_id in self._remotes:
            self._answer(call_id, error)
            self._send_cancel(call_id)

    def cancel(self, call_id: int) -> None:
        """End a call that nobody wants an answer of any more."""
        self._answers.pop(call_id, None)
        self._remotes.pop(call_id, None)
        opened = self._open_calls.pop(call_id, None)
        if opened is not None:
            opened.end(None)
        self._send_cancel(call_id)

    def _send_cancel(self, call_id: int) -> None:
        if self._protocol.is_open(call_id) and not self._protocol.is_cancelled(call_id):
            self._protocol.send_cancel(call_id)
            self.flush()

    # Sending.

    def flush_soon(self) -> None:
        """Send what has come together by the loop's next turn."""
        if not self._is_flush_due:
            self._is_flush_due = True
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what has come together."""
        self._is_flush_due = False
        if self.items.is_sending:
            self.items.write()
        chunks = self._protocol.data_to_send()
        if not chunks:
            return
        began = self._written_bytes
        self._written_bytes += sum(len(data) for data, _ in chunks)
        self._wire.send(chunks)
        if self._wire.sent_bytes < self._written_bytes:
            self._in_doubt.append((began, self._fresh))
            self._fresh = []
        else:
            self._fresh.clear()
        if self.items.is_sending:
            self.items.flushed()

    # What the wire says.

    def received(self, data: bytes, files: tuple[File, ...] = ()) -> None:
        """Take what one read has brought."""
        for event in self._protocol.receive_data(data, files):
            if type(event) is events.Reply or type(event) is events.Failure:
                self._answer(event.call_id, event)
            else:
                self._take(event)
        if self._places:
            self._give_places()
        if self._has_asked and self.is_greeted:
            self._has_asked = False
            _wake(self._greetings)
            self.items.go_on()
        if not self._is_flush_due:
            self.flush()  # a PONG, it may be
        if not self.is_open and self._protocol.is_idle:
            self.close()

    def _take(self, event: events.Event) -> None:
        if type(event) is events.Item:
            opened = self._open_calls.get(event.call_id)
            if opened is not None:
                opened.items.add(event, may_hold_blob=bool(event.descriptors) or self.attachments.has_arenas)
            else:  # the call was ended here, by something else that has come with this read
                self.attachments.discard(event)
        elif type(event) is events.Credit:
            self.items.got_credit(event.call_id)
        elif type(event) is events.Stream:
            self._begin_stream(event.call_id)
        elif type(event) is events.Note:
            if event.call_id in self._remotes:
                self._opened(event.call_id).note(event.value)
        else:
            self._take_end(event)

    def _begin_stream(self, call_id: int) -> None:
        if call_id not in self._remotes:  # as above
            return
        opened = self._opened(call_id)
        opened.streams()
        self._streaming.add(opened)
        answer = self._answers.pop(call_id)
        if answer.done():  # its caller was cancelled in this very turn of the loop
            self.cancel(call_id)
        else:
            answer.set_result(opened)

    def _opened(self, call_id: int) -> OpenCall:
        """The rest of a call of which more is known to come than one answer."""
        opened = self._open_calls.get(call_id)
        if opened is None:
            opened = self._open_calls[call_id] = OpenCall(self._remotes[call_id])
            opened.begin(self, call_id)
        return opened

    def _take_end(self, event: events.Event) -> None:
        if type(event) is events.GoingAway:
            self.is_open = False
            for call_id in event.unsent:
                self._lose(call_id, f"the server is going away ({event.message or event.code})", was_sent=False)
            self._wake_all()
        elif type(event) is events.Failed:
            self.fault = event.error
            self.flush()
            self._end(str(event.error), event.lost)
        elif type(event) is events.InputEnded:
            self._end(closed_by_server(self.is_greeted), event.lost)
        else:
            try:
                self.attachments.take(event)
            except RemoteProtocolError as error:
                for event in self._protocol.fail(error.code, str(error)):
                    self._take(event)

    def ended(self) -> None:
        """Take the end of the server's output."""
        for event in self._protocol.receive_eof():
            if type(event) is events.Failed:  # within a frame, as the output of a server that is killed may end
                self._end(closed_by_server(self.is_greeted), event.lost)
            else:
                self._take(event)
        self.close()

    def lost(self, error: Exception) -> None:
        """Take the end of the connection."""
        if isinstance(error, OSError):
            self._end(closed_by_server(self.is_greeted), tuple(self._remotes))
        else:
            self.fault = error
            self._end(str(error), tuple(self._remotes))

    def drained(self) -> None:
        """Wake those who wait for room."""
        self._in_doubt.clear()
        _wake(self._room)
        self.items.go_on()

    def stalled(self) -> None:
        """Go on: each call has a deadline of its own."""

    # Ending.

    def _answer(self, call_id: int, answer: events.Reply | events.Failure | Exception) -> None:
        future = self._answers.pop(call_id, None)
        self._remotes.pop(call_id, None)
        if self._open_calls and (opened := self._open_calls.pop(call_id, None)) is not None:
            opened.end(answer)
            if opened.is_streaming:
                return
        if future is not None and not future.done():
            future.set_result(answer)
        else:
            self._drop(answer)

    def _lose(self, call_id: int, why: str, *, was_sent: bool) -> None:
        remote = self._remotes.get(call_id)
        if remote is not None:
            self._answer(call_id, lost(remote.name, self._address, why, was_sent=was_sent))

    def _end(self, why: str, lost_calls: tuple[int, ...]) -> None:
        """Answer everybody, since nothing more will come."""
        unsent = set(self._fresh)
        for began, call_ids in self._in_doubt:
            if began >= self._wire.sent_bytes:
                unsent.update(call_ids)
        for call_id in lost_calls:
            self._lose(call_id, why, was_sent=call_id not in unsent)
        self.close()

    def _give_places(self) -> None:
        free = self._protocol.peer_calls_max - self._protocol.calls_made
        for future in islice(self._places, max(0, free)):
            if not future.done():  # he was woken before, and has not come to make his call yet
                future.set_result(None)

    def _wake_all(self) -> None:
        _wake(self._places)
        _wake(self._room)
        _wake(self._greetings)

    def close(self) -> None:
        """End the connection; a second time does nothing. Whoever still waits is told that it was closed here."""
        self.is_open = False
        if self._wire.is_closed:
            return
        if self._remotes:
            self._end("the client was closed", tuple(self._remotes))
            return
        self._wire.close()
        if self.attachments.has_arenas:
            for opened in self._streaming:
                opened.read_ahead()
        self.attachments.close()
        self.peer.close()
        self._wake_all()


def _wake(waiting: Iterable[asyncio.Future[None]]) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(None)
