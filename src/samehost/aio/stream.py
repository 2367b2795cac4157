"""What a caller holds of a call that is more than one answer, for asyncio.

A `Stream` is the caller's: forgetting it is enough to end the call, so nothing that lives as long as the call refers to
it. That is `OpenCall`, which the link keeps: the items that have come, the task that sends those of the caller, how far
the method says it is. How bytes come and go is the link's part.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, final

from samehost.aio.items import Incoming, send_items
from samehost.errors import PeerError, UsageError
from samehost.kernel.attaching import give_away
from samehost.kernel.deadline import Deadline
from samehost.protocol import events
from samehost.service.calling import answered_error, no_stream, read_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from types import TracebackType

    from samehost.aio.link import Link
    from samehost.protocol import Payload
    from samehost.service.call import Progress
    from samehost.service.remote import RemoteMethod

T = TypeVar("T")


@final
class OpenCall:
    """A call that streams, or tells how far it has come, for as long as it goes on.

    Args:
        remote: what is called.
        source: the items to send; None if there are none to be.
        on_progress: is called with each Progress.
        answer_seconds: how long the answer may take once all items were sent.

    Attributes:
        source: as above.
        was_begun: the source was asked for its first item.
        is_streaming: the server has said that items will come.
        is_over: nothing more will come.
        items: those that have come.
        reply: the answer behind them; None without one, and once it was read.
        progress: how far it has come; None if that was not said.
        dropped: items that the server has left out, as this subscriber was too slow for them.
    """

    def __init__(
        self,
        remote: RemoteMethod,
        source: AsyncIterator[Any] | Iterator[Any] | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        answer_seconds: float = math.inf,
    ) -> None:
        self.source = source
        self.was_begun = False
        self.is_streaming = False
        self.is_over = False
        self.reply: events.Reply | None = None
        self.progress: Progress | None = None
        self.dropped = 0
        self._remote = remote
        self._on_progress = on_progress
        self._answer_seconds = answer_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._upload: asyncio.Task[None] | None = None
        self._ahead: dict[int, Any] = {}  # values that were read ahead, or errors instead, by the id of their event

    def begin(self, link: Link, call_id: int) -> None:
        """Go on by a link, on which the call was just made; anew, if the first one was lost."""
        self._link = link
        self._call_id = call_id
        self.is_over = False
        self.items = Incoming(link.items, call_id, _as_it_came)
        if self.source is not None:
            self._upload = asyncio.ensure_future(self._send(self.source))

    async def _send(self, source: AsyncIterator[Any] | Iterator[Any]) -> None:
        self.was_begun = True
        try:
            try:
                await send_items(self._link.items, self._call_id, source)
            finally:
                self._link.items.forget(self._call_id)
                await _close(source)
        except asyncio.CancelledError:
            # The source was, or this task by somebody who cancels all: no answer would ever come.
            self._link.give_up(self._call_id, UsageError(f"{self._remote.name}: the items to send were cancelled"))
            raise
        except Exception as error:
            if self.is_over:
                raise
            self._link.give_up(self._call_id, error)
        else:
            self._link.items.send_end(self._call_id)
            if not self.is_over and not self.is_streaming and self._answer_seconds != math.inf:
                self._timer = self._link.expire_at(self._call_id, Deadline(self._answer_seconds))

    def streams(self) -> None:
        """Take note that items will come."""
        self.is_streaming = True
        self._stop_timer()

    def note(self, value: Payload) -> None:
        """Take what the server says of how far the call has come; not for a reader who is slow, but at once."""
        progress = read_progress(value)
        if progress is None:
            return
        self.dropped = max(self.dropped, progress.dropped)
        self.progress = progress
        if self._on_progress is not None:
            try:
                self._on_progress(progress)
            except Exception as error:
                self._link.give_up(self._call_id, error)

    def expire_at(self, deadline: Deadline) -> None:
        """End the call, if it goes on until then."""
        if deadline.left() != math.inf and not self.is_over:
            self._timer = self._link.expire_at(self._call_id, deadline, "no end")

    def end(self, answer: events.Reply | events.Failure | Exception | None) -> None:
        """Take the end of the call, and stop what goes on for it here; None if nobody wants to know how it ends."""
        self.is_over = True
        self._stop_timer()
        if self._upload is not None:
            self._upload.cancel()
        if not self.is_streaming:
            return  # whoever made the call is told
        if type(answer) is events.Reply:
            self.reply = answer
            self.items.end()
        elif type(answer) is events.Failure:
            self.items.end(answered_error(self._remote.name, answer))
        else:
            assert answer is None or isinstance(answer, Exception)
            self.items.end(answer)

    def close(self) -> None:
        """End the call here and at the server; what has come and was not read is let go."""
        if not self.is_over:
            self._link.cancel(self._call_id)
        for event in self._take_unread():
            if id(event) in self._ahead:
                give_away(self._ahead.pop(id(event)))
            else:
                self._link.attachments.discard(event)

    def read(self, event: events.Reply | events.Item) -> Any:
        """Decode the result, or an item.

        Raises:
            InvalidResult: it is not of its declared type.
            BadBlob: it refers to memory that is not what it should be.
        """
        is_plain = not self._ahead and not event.descriptors and not self._link.attachments.has_arenas
        if is_plain and type(event) is events.Item:
            return self._remote.item(event.value)
        found = self._ahead.pop(id(event), None) if id(event) in self._ahead else self._decoded(event)
        if isinstance(found, PeerError):
            raise found
        return found

    def read_ahead(self) -> None:
        """Decode what nobody has read yet, as long as the memory that it refers to can be had."""
        for event in self._take_unread():
            try:
                self._ahead[id(event)] = self._decoded(event)
            except PeerError as error:
                self._ahead[id(event)] = error
            if isinstance(event, events.Item):
                self.items.add(event)
            else:
                self.reply = event

    def _decoded(self, event: events.Reply | events.Item) -> Any:
        read = self._remote.result if isinstance(event, events.Reply) else self._remote.item
        return self._link.attachments.read(read, event)

    def _take_unread(self) -> list[events.Reply | events.Item]:
        reply, self.reply = self.reply, None
        return [*self.items.take_unread(), *([] if reply is None else [reply])]

    def close_soon(self) -> None:
        """The same from any thread, in the midst of anything, and when the loop was closed."""
        with suppress(RuntimeError):  # the loop was closed
            self._link.loop.call_soon_threadsafe(self.close)

    async def settled(self) -> None:
        """Wait until nothing is sent any more, once the call is over.

        Raises:
            Whatever the source does when it is closed.
        """
        upload, self._upload = self._upload, None
        if upload is not None:
            await asyncio.wait([upload])
            if not upload.cancelled() and (error := upload.exception()) is not None:
                raise error

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _as_it_came(item: events.Item) -> events.Item:
    return item


def source_of(items: Any, method: str) -> AsyncIterator[Any] | Iterator[Any]:
    """What is to be streamed, as an iterator.

    Raises:
        UsageError: it cannot be iterated.
    """
    try:
        source: AsyncIterator[Any] | Iterator[Any] = aiter(items) if hasattr(items, "__aiter__") else iter(items)
    except TypeError as error:
        raise UsageError(f"{method}: {items!r} is no stream of items to send: {error}") from error
    return source


async def _close(source: AsyncIterator[Any] | Iterator[Any]) -> None:
    """Run what a generator does at its end; other iterators are their owner's to close."""
    if inspect.isasyncgen(source):
        await source.aclose()
    elif inspect.isgenerator(source):
        source.close()


class Stream(AsyncIterator[T]):
    """The items that a method streams, from `async for`, and what can be known of them.

    A client makes it. The call is made when the first item is asked for, or by `async with`, which also ends it. To
    leave the loop and forget the stream ends it as well, at both ends. One task reads it at a time.
    """

    __slots__ = ("__weakref__", "_begin", "_call", "_is_closed", "_opening", "_remote", "_result")

    def __init__(
        self,
        remote: RemoteMethod,
        *,
        begin: Callable[[], Coroutine[Any, Any, Any]] | None = None,
        call: OpenCall | None = None,
    ) -> None:
        # Either the call, or a function that makes it and gives the stream which takes its place here.
        self._remote = remote
        self._begin = begin
        self._call = call
        self._opening: asyncio.Task[Any] | None = None
        self._is_closed = False
        self._result: Any = None

    @property
    def result(self) -> Any:
        """What the method has returned behind its items; None before the last of them was read."""
        return self._result

    @property
    def progress(self) -> Progress | None:
        """How far the call has come, by what the method said last; None if it has said nothing."""
        return self._call.progress if self._call is not None else None

    @property
    def dropped(self) -> int:
        """Items of a topic that this subscriber did not get so far, because it was too slow for them."""
        return self._call.dropped if self._call is not None else 0

    @property
    def closed(self) -> bool:
        """Whether nothing more comes from here: it is exhausted, has failed, or was closed."""
        return self._is_closed

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        """Wait for the next item. To be cancelled meanwhile, as by `asyncio.wait_for`, leaves the stream as it is.

        Raises:
            OutcomeUnknown: the connection ended first.
            DeadlineExceeded: the time that was given for all of it is over.
            InvalidResult: the item, or the result behind the last one, is not of the declared type.
            UsageError: another task waits for the next item.
            Others: what the method answered; and at first, whatever making the call raises.
        """
        if self._is_closed:
            raise StopAsyncIteration
        try:
            call = self._call or await self._opened()
            items = call.items
            item = items.take() if items.has_some else await items.__anext__()
        except BaseException as error:
            if isinstance(error, StopAsyncIteration):
                await self._finish()
            elif self._call is not None:
                self._is_closed = self._call.is_over and not isinstance(error, asyncio.CancelledError)
            del self  # or the error, which has this frame in its traceback, would keep the stream, and the call with it
            raise
        try:
            found: T = call.read(item)
        except BaseException:
            self.close()
            raise
        return found

    async def _opened(self) -> OpenCall:
        """The call, which is made by a task of its own, so that whoever waits for it may be cancelled."""
        if self._opening is None:
            assert self._begin is not None
            self._opening = asyncio.ensure_future(self._begin())
            self._opening.add_done_callback(_look_at)
            self._begin = None
        opening = self._opening
        try:
            await asyncio.wait([opening])
        except asyncio.CancelledError:
            del self, opening  # see above
            raise
        if self._is_closed:
            raise StopAsyncIteration
        if self._call is None:
            self._opening = None
            try:
                found = opening.result()
                if not isinstance(found, Stream):
                    raise no_stream(self._remote.name)
            except BaseException:
                self._is_closed = True
                del self, opening
                raise
            self._call, found._call = found._call, None  # noqa: SLF001 - of the same class
        assert self._call is not None
        return self._call

    async def _finish(self) -> None:
        self._is_closed = True
        call = self._call
        if call is not None:
            reply, call.reply = call.reply, None
            if reply is not None:
                self._result = call.read(reply)
            await call.settled()

    async def __aenter__(self) -> Self:
        """Wait until the server has accepted the call: no item of it is missed from now on."""
        if self._call is None and not self._is_closed:
            await self._opened()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def close(self) -> None:
        """End the call, if it is not over yet; a second time does nothing. Whoever waits for an item gets none."""
        self._is_closed = True
        opening = self._opening
        if self._call is not None:
            self._call.close()
        elif opening is not None and not opening.cancel() and not opening.cancelled() and not opening.exception():
            found = opening.result()  # whoever waits for it has not come to take it yet
            if isinstance(found, Stream):
                found.close()

    async def aclose(self) -> None:
        """The same, and wait until nothing is sent for it any more."""
        self.close()
        if self._opening is not None:
            await asyncio.wait([self._opening])
        if self._call is not None:
            await self._call.settled()

    def __del__(self) -> None:
        # The garbage collector may come here in any thread, and in the midst of what the loop does.
        call, opening = getattr(self, "_call", None), getattr(self, "_opening", None)
        if call is not None and not self._is_closed:
            call.close_soon()
        elif opening is not None and not opening.done():
            with suppress(RuntimeError):  # the loop was closed
                opening.get_loop().call_soon_threadsafe(opening.cancel)

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open" if self._call is not None else "not begun"
        return f"<Stream of {self._remote.name}, {state}>"


def _look_at(opening: asyncio.Task[Any]) -> None:
    """Have seen an error that nobody may be left to be told of."""
    if not opening.cancelled():
        opening.exception()


class Deferred(Coroutine[Any, Any, T], Generic[T]):
    """A coroutine that can do more than be awaited, or made a task."""

    __slots__ = ("_coroutine",)

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, T]:
        return self._coroutine.__await__()

    def send(self, value: Any) -> Any:
        """For `asyncio.create_task`, as `throw` and `close`, which takes nothing but coroutines."""
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        """See `send`."""
        return self._coroutine.throw(*error)

    def close(self) -> None:
        """See `send`."""
        self._coroutine.close()


class Calling(Deferred[Any]):
    """A call of a method that only the server knows.

    `await` gives its result, or its `Stream` if it streams; `async for` and `async with` are those of the stream.
    """

    __slots__ = ("_remote", "_stream")

    def __init__(self, remote: RemoteMethod, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine  # without the detour, as there is one of these for each call
        self._remote = remote

    def __aiter__(self) -> Stream[Any]:
        return Stream(self._remote, begin=lambda: self._coroutine)

    async def __aenter__(self) -> Stream[Any]:
        self._stream = aiter(self)
        return await self._stream.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stream.aclose()
