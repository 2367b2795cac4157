"""Calls whose method takes a stream, or gives one, or both, in a task or in threads.

A method that streams is run as far as there is credit and room, and one item further, as only then it can say in time
that there is none. On the loop a task does that, and waits. In threads there is one job after the other, which gives
its thread back when there is nothing to do: a reader who stops holds up no thread.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any

from samehost import limits
from samehost.aio.blocking_items import BlockingItems
from samehost.aio.enclosures import Kept, too_many_files
from samehost.aio.items import NO_BATCH, Incoming, send_items
from samehost.aio.lending import Loan, blob_bytes
from samehost.aio.work import Work
from samehost.codec import CannotDecode, CannotEncode
from samehost.errors import BadBlob, InvalidArguments, MessageTooLarge
from samehost.kernel.attaching import decode_attached
from samehost.protocol import ITEMS_FOLLOW, ITEMS_WANTED, codes, events
from samehost.service.call import current_call
from samehost.service.failures import Failure, broken

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Generator, Iterator
    from contextvars import Context

    from samehost.aio.beginning import Beginning
    from samehost.aio.outflow import Outflow
    from samehost.aio.runner import Ready
    from samehost.kernel.attaching import Encoded
    from samehost.kernel.attaching import Incoming as MessageFiles
    from samehost.service.arguments import Arguments
    from samehost.service.call import Call


class StreamWork(Work):
    """A call in progress with a stream; the `Carrier` of its items.

    Args:
        session, call_id, ready, call, began, arguments_bytes: as of any call in progress.
        outflow: the way out of its connection.
    """

    __slots__ = ("_count", "_enclosed", "_incoming", "_loan", "_outflow", "_read_item", "_unread_bytes")

    def __init__(
        self,
        session: Beginning,
        call_id: int,
        ready: Ready,
        call: Call,
        began: float,
        arguments_bytes: int,
        outflow: Outflow,
    ) -> None:
        super().__init__(session, call_id, ready, call, began, arguments_bytes)
        self._outflow = outflow
        self._loan = Loan(session.runner.loop, self.go_on)
        self._count = self._unread_bytes = 0
        self._incoming: Incoming | BlockingItems | None = None
        self._enclosed: deque[MessageFiles] = deque()  # of items that came with files, and were not read yet
        if ready.method.shape & ITEMS_FOLLOW:
            self._read_item = ready.method.read_item[outflow.codec.name]
            if ready.method.is_async:
                self._incoming = Incoming(self, call_id, self._read)
            else:
                self._incoming = BlockingItems(self, call_id, self._read, session.runner.loop)
            call.items = self._incoming

    def start(self, arguments: Arguments) -> None:
        """Begin."""
        self.in_thread(arguments, self._session.runner.starter.context.copy())

    @property
    def _is_over(self) -> bool:
        return self._ending is not None or self.is_answered

    # Items that come in.

    def add(self, item: events.Item) -> None:
        """Take an item of the caller's."""
        account, length = self._session.account, len(item.value) + limits.ITEM_OVERHEAD_BYTES
        if self._is_over or self._incoming is None:
            self._session.let_go(item)
            return
        if item.descriptors and not self._keep(item):
            return
        if account.used_bytes + length > limits.UID_BYTES_MAX:
            message = f"uid {account.uid} has {account.used_bytes} bytes in calls, at most {limits.UID_BYTES_MAX} fit"
            self._session.let_go(item)
            self._end(Failure(codes.BUSY, message))
            return
        account.used_bytes += length
        self._unread_bytes += length
        self._incoming.add(item, may_hold_blob=bool(item.descriptors) or self._session.has_arenas)

    def _keep(self, item: events.Item) -> bool:
        """Keep the files of an item until the call is over; false if it ends the call."""
        if not self.ready.kinds_in:
            self._session.refuse_files(item)
            return False
        if self.kept is None:
            self.kept = Kept(self._session.account)
        incoming = self._session.enclosures.incoming(item.descriptors)
        if not self.kept.add(incoming):
            self._end(too_many_files(self._session.account))
            return False
        self._enclosed.append(incoming)
        return True

    def complete(self) -> None:
        """Take note that the caller's stream is complete."""
        if self._incoming is not None:
            self._incoming.end()

    def took_items(self, call_id: int, items: int, byte_count: int, *, at_once: bool) -> tuple[int, int]:
        """See `Giver.took_items`."""
        if self._unread_bytes:
            counted = byte_count + items * limits.ITEM_OVERHEAD_BYTES
            self._unread_bytes -= counted
            self._session.account.used_bytes -= counted
        if self.kept is not None:
            self.kept.recount()
        return self._outflow.took(call_id, items, byte_count, at_once=at_once)

    def starved(self, call_id: int) -> None:
        """See `Giver.starved`."""
        self._outflow.starved(call_id)

    def _read(self, item: events.Item) -> Any:
        """Decode an item; on the loop, or in the method's thread."""
        self._count += 1
        try:
            if item.descriptors:
                return decode_attached(self._read_item, item.value, self._enclosed.popleft())
            if self._session.has_arenas:
                return decode_attached(self._read_item, item.value, self._session.enclosures.incoming(()))
            return self._read_item(item.value)
        except CannotDecode as error:
            failure = Failure(codes.INVALID_ARGUMENTS, self._place + str(error).removeprefix("$"))
        except BadBlob as error:
            failure = Failure(codes.BAD_BLOB, f"{self._place}: {error}")
        if self.ready.method.is_async:
            self._end(failure)
        else:
            self._post(self._end, failure)
        raise InvalidArguments(failure.message)

    @property
    def _place(self) -> str:
        """Of the item that was read last."""
        return f"$.{self.ready.method.signature.stream_parameter}[{self._count - 1}]"

    def _post(self, callback: Callable[..., None], *values: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits for this any more
            self._session.runner.loop.call_soon_threadsafe(callback, *values)

    # Items that go out.

    def may_send_item(self, call_id: int) -> bool:
        """See `Carrier.may_send_item`."""
        return self._ending is None and not self.is_answered and self._outflow.may_send(call_id) and self._loan.may_grow

    def credited(self) -> None:
        """Go on, as the caller takes more."""
        self._loan.taken(self._outflow.items_left(self.call_id) - self._outflow.items_widened(self.call_id))
        self.go_on()

    def released(self) -> None:
        """Go on, as the caller has given back memory."""
        self.go_on()

    def _wait_for_room(self) -> None:
        """Have `go_on` called once there may be room for an item."""
        if self._loan.may_grow:
            self._outflow.wait(self)
        else:
            self._loan.wait()

    def go_on(self) -> bool:
        """See `Sender.go_on`."""
        return False

    def _send_encoded(self, encoded: bytes | Encoded) -> None:
        try:
            self._outflow.send(self.call_id, encoded, self._loan)
            self._loan.sent()
        except MessageTooLarge as error:
            self._end(Failure(codes.TOO_LARGE, f"an item: {error}"))
        except OSError as error:
            self._cannot_encode(error)

    def _cannot_encode(self, error: Exception) -> None:
        failure = broken("an item of the method's cannot be sent")
        self._session.log_failure(self.ready, error, failure.error_id)
        self._end(failure)

    # Ending.

    def _stop(self) -> None:
        if isinstance(self._incoming, BlockingItems):
            self._incoming.cancel()
        super()._stop()

    def _done(self, result: Any, error: BaseException | None) -> None:
        self._session.account.used_bytes -= self._unread_bytes
        self._unread_bytes = 0
        self._loan.close()
        if self._incoming is not None and self._session.has_arenas:
            for item in self._incoming.take_unread():
                self._session.let_go(item)
        super()._done(result, error)


class LoopStream(StreamWork):
    """A call of a method that runs on the loop."""

    __slots__ = ("_batch", "_is_closing", "_result", "_room")

    def start(self, arguments: Arguments) -> None:
        """Begin: the first step is taken at once."""
        self._batch = NO_BATCH
        starter = self._session.runner.starter
        self._is_closing = False
        self._room: asyncio.Future[None] | None = None
        self._result: Any = None
        try:
            if self.ready.method.shape & ITEMS_WANTED:
                result = starter.start(self._stream(arguments), self.call)
            else:
                result = starter.start(self.ready.invoke(arguments, self.call), self.call)
        except BaseException as error:
            self._done(None, error)
            return
        if starter.waiting is None:
            self._done(result, None)
        else:
            self.in_task(starter.take_waiting())
            if self._ending is not None:  # by an item that could not be sent
                self._stop()

    def _stop(self) -> None:
        self._write_batch()
        self.go_on()
        self._session.runner.loop.call_soon(self._cancel)

    def _done(self, result: Any, error: BaseException | None) -> None:
        self._write_batch()
        super()._done(result, error)

    def _cancel(self) -> None:
        if self.task is not None and not self._is_closing:  # as a cancellation would hit its `finally`
            self.task.cancel()

    async def _stream(self, arguments: Arguments) -> Any:
        source = self.ready.invoke(arguments, self.call)
        if hasattr(source, "__await__"):
            source = await source
        if not self._is_over:
            self.begin_stream(self._outflow)
        items = aiter(source) if hasattr(source, "__aiter__") else self._noting_result(source)
        try:
            await send_items(self, self.call_id, items, self._drop)
        finally:
            self._is_closing = True
            if hasattr(items, "aclose"):
                await items.aclose()
            elif hasattr(items, "close"):
                items.close()
        return self._result

    def _drop(self, value: Any) -> None:
        self._session.drop(self.ready, value)

    def _noting_result(self, source: Any) -> Generator[Any, None, None]:
        self._result = yield from source

    def may_send_item(self, call_id: int) -> bool:
        """See `Carrier.may_send_item`."""
        return self._batch.items_left > 0 or self._begin_batch()

    def _begin_batch(self) -> bool:
        """See how much may be sent now; whether it is anything."""
        self._write_batch()
        if not self._is_over and self._loan.may_grow:
            self._batch = self._outflow.begin_batch(self.call_id)
        return self._batch.items_left > 0

    def _write_batch(self) -> None:
        """Write what may have come together, so that what is written from now on is behind it."""
        if self._batch is not NO_BATCH:
            self._outflow.batches.write()
            self._loan.sent(len(self._batch.payloads))
            self._batch = NO_BATCH

    def credited(self) -> None:
        """See `StreamWork.credited`."""
        self._write_batch()
        super().credited()

    async def room_for_item(self, call_id: int) -> bool:
        """See `Carrier.room_for_item`."""
        while not self._is_over:
            if self.may_send_item(call_id):
                return True
            self._room = self._session.runner.loop.create_future()
            self._wait_for_room()
            try:
                await self._room
            finally:
                self._room = None
        return False

    def send_item(self, call_id: int, value: Any) -> None:
        """See `Carrier.send_item`; what cannot be sent ends the call."""
        try:
            encoded = self._outflow.encode(value)
        except CannotEncode as error:
            self._cannot_encode(error)
            return
        if type(encoded) is bytes and len(encoded) <= limits.JOIN_BYTES_MAX:
            self._batch.add(encoded)
        else:
            self._write_batch()
            self._send_encoded(encoded)

    def go_on(self) -> bool:
        """Wake the task, if it waits for room."""
        if self._room is None or self._room.done():
            return False
        self._room.set_result(None)
        return True


class ThreadStream(StreamWork):
    """A call of a method that streams from threads."""

    __slots__ = (
        "_allowed_bytes",
        "_allowed_items",
        "_arguments",
        "_context",
        "_is_running",
        "_is_told",
        "_made",
        "_made_blob_bytes",
        "_made_bytes",
        "_made_items",
        "_outcome",
        "_sent_blob_bytes",
        "_sent_bytes",
        "_sent_items",
        "_source",
    )

    def start(self, arguments: Arguments) -> None:
        """Begin, once a thread is free."""
        self._arguments: Arguments | None = arguments
        self._context: Context = self._session.runner.starter.context.copy()
        self._source: Iterator[Any] | None = None
        # Made in a thread and not sent yet; how many there were so far, and how many there may be.
        self._made: deque[bytes | Encoded] = deque()
        self._made_items = self._made_bytes = self._made_blob_bytes = 0
        self._sent_items = self._sent_bytes = self._sent_blob_bytes = 0
        self._allowed_items, self._allowed_bytes = limits.WINDOW_ITEMS, limits.ITEMS_BYTES_AT_ONCE
        self._outcome: tuple[Any, BaseException | None] | None = None
        self._is_told = False
        self._submit()

    def _submit(self) -> None:
        self._is_running = True
        try:
            self._session.runner.threads.submit(self._job, self._session.account.uid)
        except RuntimeError as error:
            self._is_running = False
            self._outcome = None, error
            self._done(None, error)

    # In a thread.

    def _job(self) -> None:
        is_over, result, error = True, None, None
        try:
            is_over, result = self._context.run(self._pull)
        except BaseException as raised:  # SystemExit as well: it is the method's, not the server's
            error = raised
        self._post(self._job_done, is_over, result, error)
        error = None  # it leads to this frame, and the two would keep each other

    def _pull(self) -> tuple[bool, Any]:
        """Have items made as long as there may be more; whether there are none left, and the value at their end."""
        if self._source is None:
            if self.call.is_cancelled:  # while it waited for a thread
                return True, None
            current_call.set(self.call)
            self._source = iter(self.ready.invoke(self._arguments, self.call))  # type: ignore[arg-type]
            self._arguments = None
            self._post(self._begun)
        try:
            while not self.call.is_cancelled:
                if not self._may_make():
                    return False, None
                self._make(next(self._source))
        except StopIteration as end:
            return True, end.value
        if hasattr(self._source, "close"):
            self._source.close()
        return True, None

    def _make(self, value: Any) -> None:
        try:
            encoded = self._outflow.encode(value)
        except CannotEncode as error:
            self.call.is_cancelled = True
            self._post(self._cannot_encode, error)
            return
        self._made_items += 1
        self._made_bytes += length_of(encoded)
        self._made_blob_bytes += blob_bytes(encoded)
        self._made.append(encoded)
        if not self._is_told:
            self._is_told = True
            self._post(self._told)

    # On the loop.

    def _begun(self) -> None:
        if not self._is_over:
            self.begin_stream(self._outflow)
            self.go_on()

    def _told(self) -> None:
        self._is_told = False
        self.go_on()

    def _job_done(self, is_over: bool, result: Any, error: BaseException | None) -> None:
        self._session.runner.threads.done(self._session.account.uid)
        self._is_running = False
        if is_over:
            self._outcome = result, error
        self.go_on()

    def _may_make(self) -> bool:
        waiting = len(self._made)
        return (
            self._made_items <= self._allowed_items
            and self._made_bytes <= self._allowed_bytes
            and (not waiting or self._loan.is_within(self._made_blob_bytes - self._sent_blob_bytes, waiting))
        )

    def go_on(self) -> bool:
        """Send what was made, and have more made as far as the caller takes it."""
        made, call_id = self._made, self.call_id
        while made and self.may_send_item(call_id):
            if not self._send_batch():
                encoded = made.popleft()
                self._sent_items += 1
                self._sent_bytes += length_of(encoded)
                self._sent_blob_bytes += blob_bytes(encoded)
                self._send_encoded(encoded)
        if self._is_over:
            made.clear()
        elif made:
            self._wait_for_room()
        self._allowed_items = self._sent_items + self._outflow.items_left(call_id)
        self._allowed_bytes = self._sent_bytes + limits.ITEMS_BYTES_AT_ONCE
        if self._is_running:
            return False
        if self._outcome is None:
            if self._is_over or self._may_make():
                self._submit()
        elif not made and self in self._session.runner.works:
            self._done(*self._outcome)
        return False

    def _send_batch(self) -> bool:
        """Send the short ones among the first that were made; whether there were any."""
        made, batch = self._made, self._outflow.begin_batch(self.call_id)
        while made and batch.items_left and type(made[0]) is bytes and len(made[0]) <= limits.JOIN_BYTES_MAX:
            batch.add(made.popleft())  # type: ignore[arg-type]
        self._outflow.batches.write()
        count = len(batch.payloads)
        self._sent_items += count
        self._sent_bytes += sum(map(len, batch.payloads))
        self._loan.sent(count)
        return count > 0

    def _stop(self) -> None:
        super()._stop()
        self.go_on()


def stream_work(ready: Ready) -> type[StreamWork]:
    """The kind of work that a method with a stream is."""
    if ready.method.is_async or ready.method.is_inline:
        return LoopStream
    return ThreadStream if ready.method.shape & ITEMS_WANTED else StreamWork


def length_of(encoded: bytes | Encoded) -> int:
    """The bytes of an item's payload."""
    return len(encoded) if isinstance(encoded, bytes) else len(encoded.payload)
