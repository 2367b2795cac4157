"""Handing what a topic publishes to its subscribers: no task for any of them, and no waiting for one who is slow.

A subscription is a call in progress with a queue. What is published is encoded once for each format that somebody
listens in, by whichever thread publishes, and then goes to each subscriber at once, or into his queue if he has given
no credit or his connection is busy; what a full queue means is declared with the topic.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator  # noqa: TC003 - read with the method's annotations
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from samehost import limits
from samehost.aio.lending import Loan
from samehost.aio.streaming import length_of
from samehost.aio.work import Work
from samehost.codec import CODECS, CannotEncode
from samehost.errors import MessageTooLarge, UsageError
from samehost.extensions import BLOBS, is_large, kinds_in
from samehost.kernel.attaching import Encoded, FilesNotTaken, encode_attached
from samehost.protocol import codes
from samehost.service.call import Progress
from samehost.service.description import TopicFigures
from samehost.service.failures import Failure, broken
from samehost.service.method import Method
from samehost.service.topic import DISCONNECT, Outlet

if TYPE_CHECKING:
    import asyncio

    from samehost.aio.beginning import Beginning
    from samehost.aio.outflow import Outflow
    from samehost.aio.runner import Ready
    from samehost.codec import Codec
    from samehost.service.call import Call
    from samehost.service.topic import Topic

Written: TypeAlias = bytes | Encoded | None
"""An item in one of these ways; None if it has files, which do not travel so."""

_NO_FILES = Failure(codes.FAILED, "what is published has files, which do not travel to this subscriber")
_DRAINING = Failure(codes.UNAVAILABLE, "the server is ending")


def method_of(topic: Topic) -> Method:
    """The method that subscribes to a topic; nothing of it is ever called."""

    def subscribe() -> AsyncIterator[Any]: ...  # type: ignore[empty-body]

    return Method(subscribe, topic.name, allow=topic.allow)


class Way(NamedTuple):
    """How somebody takes what is published.

    Attributes:
        codec: the name of his format.
        offered: the features in his preface.
        is_arena_allowed: whether he may be sent parts of the arena.
    """

    codec: str
    offered: int
    is_arena_allowed: bool


class TopicOutlet(Outlet):
    """The subscribers of a topic in one run of its service.

    Args:
        topic: what they subscribe to.
        loop: where they are served, which runs in the thread that makes this.

    Attributes:
        topic: as above.
        published: values, while somebody subscribed.
    """

    def __init__(self, topic: Topic, loop: asyncio.AbstractEventLoop) -> None:
        self.topic = topic
        self.subscribers = self.dropped = self.published = 0
        self._loop = loop
        self._thread = threading.get_ident()
        self._listeners: dict[Way, dict[Subscription, None]] = {}
        self._may_be_blob = kinds_in(topic.kind) & BLOBS != 0
        # What other threads have published, and the loop has not come to yet.
        self._posted: deque[dict[Way, Written]] = deque()
        self._posted_max = topic.queue + limits.WINDOW_ITEMS
        self._lost = 0
        self._is_due = False

    def publish(self, value: Any) -> None:
        """Hand a value to all subscribers; from any thread, and never waiting.

        Raises:
            UsageError: it cannot travel.
        """
        if not self.subscribers:
            return
        encoded = self._encode(value)
        if threading.get_ident() == self._thread:
            if self._posted:
                self._deliver_posted()
            self._deliver(encoded)
            return
        if len(self._posted) >= self._posted_max:
            with contextlib.suppress(IndexError):  # the loop has just come to it
                self._posted.popleft()
                self._lost += 1
        self._posted.append(encoded)
        if not self._is_due:
            self._is_due = True
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody listens any more
                self._loop.call_soon_threadsafe(self._deliver_posted)

    def _encode(self, value: Any) -> dict[Way, Written]:
        """What is published, in all the ways in which somebody takes it."""
        plain: dict[str, bytes | None] = {}
        found: dict[Way, Written] = {}
        for way in list(self._listeners):
            codec = CODECS[way.codec]
            if codec.name not in plain:
                plain[codec.name] = self._encode_plainly(codec, value)
            written: Written = plain[codec.name]
            if written is None:
                try:
                    written = encode_attached(codec, value, way.offered, arena_allowed=way.is_arena_allowed)
                except FilesNotTaken:
                    written = None
                except CannotEncode as error:
                    raise UsageError(f"{self.topic.name}: what was published cannot travel: {error}") from error
            length = 0 if written is None else length_of(written)
            if length > limits.PAYLOAD_BYTES_MAX:
                raise MessageTooLarge(
                    f"{self.topic.name}: an item of {length} bytes, at most {limits.PAYLOAD_BYTES_MAX} travel"
                )
            found[way] = written
        return found

    def _encode_plainly(self, codec: Codec, value: Any) -> bytes | None:
        """The bytes of a value that needs nothing beside them; None if it may."""
        if self._may_be_blob and is_large(value):
            return None
        try:
            encoded = codec.encode_raw(value)
        except Exception:  # whatever msgspec raises for what it cannot encode by itself
            return None
        return None if self._may_be_blob and len(encoded) >= limits.BLOB_BYTES_MIN else encoded

    def _deliver_posted(self) -> None:
        self._is_due = False
        lost, self._lost = self._lost, 0
        if lost:
            for subscription in self._all():
                subscription.lose(lost)
        for _ in range(len(self._posted)):
            self._deliver(self._posted.popleft())

    def _deliver(self, encoded: dict[Way, Written]) -> None:
        self.published += 1
        for way, written in encoded.items():
            for subscription in list(self._listeners.get(way, ())):  # as one who is too slow may go
                subscription.offer(written)

    def _all(self) -> list[Subscription]:
        return [subscription for listeners in self._listeners.values() for subscription in listeners]

    def add(self, subscription: Subscription, way: Way) -> None:
        """Publish to somebody from now on, in this way."""
        self._listeners.setdefault(way, {})[subscription] = None
        self.subscribers += 1

    def remove(self, subscription: Subscription, way: Way) -> None:
        """Publish to him no more."""
        listeners = self._listeners.get(way, {})
        if subscription in listeners:
            del listeners[subscription]
            self.subscribers -= 1
            if not listeners:
                del self._listeners[way]

    def figures(self) -> TopicFigures:
        """What there is to tell."""
        return TopicFigures(self.subscribers, self.published, self.dropped)


class Subscription(Work):
    """One subscriber's call.

    Args:
        session, call_id, ready, call, began, arguments_bytes: as of any call in progress.
        outflow: the way out of its connection.
        outlet: what it subscribes to.
    """

    __slots__ = ("_dropped", "_is_note_out", "_loan", "_outflow", "_outlet", "_queue", "_told", "_way")

    def __init__(
        self,
        session: Beginning,
        call_id: int,
        ready: Ready,
        call: Call,
        began: float,
        arguments_bytes: int,
        outflow: Outflow,
        outlet: TopicOutlet,
    ) -> None:
        super().__init__(session, call_id, ready, call, began, arguments_bytes)
        self._outflow = outflow
        self._outlet = outlet
        self._loan = Loan(session.runner.loop, self.go_on)
        self._queue: deque[bytes | Encoded] = deque()
        self._way = Way(outflow.codec.name, *(outflow.offered if ready.kinds_out else (0, False)))
        self._dropped = self._told = 0
        self._is_note_out = False

    def begin(self) -> None:
        """Listen."""
        if self._session.is_draining:
            self.leave()
            return
        self.begin_stream(self._outflow)
        self._outlet.add(self, self._way)

    def offer(self, written: Written) -> None:
        """Send an item, or keep it until that is possible."""
        queue = self._queue
        if written is None:
            self._end(_NO_FILES)
        elif not queue and self._may_send(written):
            self._send(written)
        elif len(queue) < self._outlet.topic.queue:
            queue.append(written)
            if len(queue) == 1:
                self._outflow.wait(self)
        elif self._outlet.topic.slow == DISCONNECT:
            self._be_too_slow()
        else:
            queue.popleft()
            queue.append(written)
            self._count_dropped(1)

    def _may_send(self, written: bytes | Encoded) -> bool:
        # The memory of an item that nobody has released is kept for all, so one who keeps many gets no more of it.
        if isinstance(written, Encoded) and written.shares and self._loan.blobs >= self._outlet.topic.queue:
            return False
        return self._outflow.may_send(self.call_id)

    def lose(self, count: int) -> None:
        """Take note that items are gone before they came here."""
        if self._outlet.topic.slow == DISCONNECT:
            self._be_too_slow()
        else:
            self._count_dropped(count)

    def _be_too_slow(self) -> None:
        queue = self._outlet.topic.queue
        self._end(Failure(codes.TOO_SLOW, f"the subscriber has read none of {queue} items of {self.ready.method.name}"))

    def _count_dropped(self, count: int) -> None:
        self._dropped += count
        self._outlet.dropped += count
        if not self._is_note_out:
            self._tell()

    def _tell(self) -> None:
        """Say how many items are gone, but not again before the subscriber has read."""
        self._told = self._dropped
        self._is_note_out = True
        self._outflow.note(self.call_id, self._outflow.codec.encode(Progress(dropped=self._dropped)))

    def credited(self) -> None:
        """Go on, as the subscriber has read."""
        self._is_note_out = False
        if self._dropped > self._told:
            self._tell()
        self.go_on()

    def go_on(self) -> bool:
        """Send what there is room for; nothing of it later."""
        queue = self._queue
        while queue and self._may_send(queue[0]):
            self._send(queue.popleft())
        if queue and not self._outflow.may_send(self.call_id):
            self._outflow.wait(self)
        return False

    def released(self) -> None:
        """Go on, as the subscriber has given back memory."""
        self.go_on()

    def _send(self, written: bytes | Encoded) -> None:
        try:
            self._outflow.send(self.call_id, written, self._loan)
        except MessageTooLarge as error:
            self._end(Failure(codes.TOO_LARGE, f"an item: {error}"))
        except OSError as error:
            failure = broken("an item cannot be sent")
            self._session.log_failure(self.ready, error, failure.error_id)
            self._end(failure)

    def leave(self) -> None:
        """End, as nothing is published by a server that drains."""
        self._end(_DRAINING)

    def _stop(self) -> None:
        self._outlet.remove(self, self._way)
        self._queue.clear()
        self._done(None, None)
