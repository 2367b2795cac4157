"""A client's connection to a service: calls go out, answers come back to the tasks that wait for them.

One of these lives as long as its socket. What to do when it ends is for the client to decide; here it is only said, of
each call, whether it was sent. What is called within one turn of the loop goes out together.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

from samehost import protocol
from samehost.errors import Error, MessageTooLarge
from samehost.protocol import events
from samehost.service.calling import answered_error, closed_by_server, lost, milliseconds_of, too_late

if TYPE_CHECKING:
    from collections.abc import Callable

    from samehost.aio.wire import Wire
    from samehost.kernel.deadline import Deadline
    from samehost.peer import Peer
    from samehost.protocol import Payload

Answer: TypeAlias = "events.Reply | events.Failure | Error"


class Link:
    """One connection of a client.

    Args:
        address: for messages.
        peer: the server.
        new_wire: makes the wire to the server, whose owner this is.

    Attributes:
        peer: as above.
        is_open: whether calls can be made on it.
        fault: what the server did that it may not; None if nothing.
    """

    def __init__(self, address: str, peer: Peer, new_wire: Callable[[Link], Wire]) -> None:
        self.peer = peer
        self.is_open = True
        self.fault: Exception | None = None
        self._address = address
        self._loop = asyncio.get_running_loop()
        self._wire = new_wire(self)
        self._protocol = protocol.connect()
        self._answers: dict[int, asyncio.Future[Answer]] = {}
        self._methods: dict[int, str] = {}
        self._places: deque[asyncio.Future[None]] = deque()
        self._room: deque[asyncio.Future[None]] = deque()
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

    # Calling.

    async def call(self, method: str, arguments: Payload, deadline: Deadline, context: Payload) -> Payload:
        """Call a method, and wait for its result.

        Raises:
            DeadlineExceeded: it was not there in time; the call is cancelled.
            Unsent, OutcomeUnknown: the connection ended first.
            Others: what the method answered.
        """
        if self._places or self._protocol.calls_made >= self._protocol.peer_calls_max:
            await self._wait_for_place(method, deadline)
        if not self.is_open:
            raise lost(method, self._address, "the connection had ended", was_sent=False)
        left = deadline.left()
        if not left:
            raise too_late(method, self._address, deadline.timeout or 0.0)
        try:
            call_id = self._protocol.send_call(method, arguments, milliseconds_of(left), context=context)
        except MessageTooLarge as error:
            raise MessageTooLarge(f"{method}: {error}") from None
        answer: asyncio.Future[Answer] = self._loop.create_future()
        self._answers[call_id] = answer
        self._methods[call_id] = method
        self._fresh.append(call_id)
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self.flush)
        timer = None if left == math.inf else self._loop.call_later(left, self._expire, call_id, deadline)
        try:
            found = await answer
        except asyncio.CancelledError:
            self._cancel(call_id)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if type(found) is events.Reply:
            return found.result
        if type(found) is events.Failure:
            raise answered_error(method, found)
        assert isinstance(found, Error)
        try:
            raise found
        finally:
            del found  # which has this frame in its traceback from now on

    async def notify(self, method: str, arguments: Payload, deadline: Deadline, context: Payload) -> None:
        """Call a method that is not answered, and wait until the kernel has taken it.

        Raises:
            DeadlineExceeded: the server does not read, so it may or may not get it yet.
            Unsent: the connection has ended.
        """
        left = deadline.left()
        if not left:
            raise too_late(method, self._address, deadline.timeout or 0.0)
        if self.is_open:
            try:
                self._protocol.send_notification(method, arguments, milliseconds_of(left), context=context)
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
        future: asyncio.Future[None] = self._loop.create_future()
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
        method = self._methods.get(call_id)
        if method is not None:  # the answer has not come in this very turn of the loop
            self._answer(call_id, too_late(method, self._address, deadline.timeout or 0.0))
            self._send_cancel(call_id)

    def _cancel(self, call_id: int) -> None:
        """Tell the server that nobody waits for an answer any more."""
        self._answers.pop(call_id, None)
        self._methods.pop(call_id, None)
        self._send_cancel(call_id)

    def _send_cancel(self, call_id: int) -> None:
        if self._protocol.is_open(call_id) and not self._protocol.is_cancelled(call_id):
            self._protocol.send_cancel(call_id)
            self.flush()

    def flush(self) -> None:
        """Send what has come together."""
        self._is_flush_due = False
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

    # What the wire says.

    def received(self, data: bytes) -> None:
        """Take what one read has brought."""
        for event in self._protocol.receive_data(data):
            if type(event) is events.Reply or type(event) is events.Failure:
                self._answer(event.call_id, event)
            else:
                self._take(event)
        if self._places:
            self._give_places()
        if not self._is_flush_due:
            self.flush()  # a PONG, it may be
        if not self.is_open and self._protocol.is_idle:
            self.close()

    def _take(self, event: events.Event) -> None:
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
            self._end(closed_by_server(self.is_greeted), tuple(self._answers))
        else:
            self.fault = error
            self._end(str(error), tuple(self._answers))

    def drained(self) -> None:
        """Wake those who wait for room."""
        self._in_doubt.clear()
        _wake(self._room)

    def stalled(self) -> None:
        """Go on: each call has a deadline of its own."""

    # Ending.

    def _answer(self, call_id: int, answer: Answer) -> None:
        future = self._answers.pop(call_id, None)
        self._methods.pop(call_id, None)
        if future is not None and not future.done():
            future.set_result(answer)

    def _lose(self, call_id: int, why: str, *, was_sent: bool) -> None:
        method = self._methods.get(call_id)
        if method is not None:
            self._answer(call_id, lost(method, self._address, why, was_sent=was_sent))

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

    def close(self) -> None:
        """End the connection; a second time does nothing. Whoever still waits is told that it was closed here."""
        self.is_open = False
        if self._wire.is_closed:
            return
        if self._answers:
            self._end("the client was closed", tuple(self._answers))
            return
        self._wire.close()
        self.peer.close()
        self._wake_all()


def _wake(waiting: deque[asyncio.Future[None]]) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(None)
