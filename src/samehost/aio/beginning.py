"""Beginning the calls of a session: from what a client has sent to a method that runs.

Most methods end at once, and their calls are nothing but what is here; one that takes its time is left to a `Work`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from samehost import limits, protocol
from samehost.aio.answering import NOTIFICATION, Answering
from samehost.aio.enclosures import Kept, too_many_files
from samehost.aio.streaming import stream_work
from samehost.aio.topics import Subscription
from samehost.aio.work import NEVER, Work, invoke_in_call
from samehost.codec import CannotDecode
from samehost.errors import BadBlob
from samehost.kernel.attaching import decode_attached, may_refer
from samehost.kernel.deadline import Until
from samehost.protocol import codes, events
from samehost.service.call import Call
from samehost.service.failures import Failure

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from samehost.aio.runner import Account, Ready, Runner
    from samehost.aio.wire import Wire
    from samehost.peer import Peer
    from samehost.service.arguments import Arguments
    from samehost.service.method import Method

_NOTHING_KNOWN: dict[str, Any] = {}
_NO_METHODS: dict[str, Ready] = {}


class Beginning(Answering):
    """The part of a session that has methods called.

    Args:
        runner, account, peer, new_wire: as of `Answering`.
    """

    __slots__ = ("_kept", "_notifications", "_table", "_works")

    def __init__(self, runner: Runner, account: Account, peer: Peer, new_wire: Callable[[Self, bool], Wire]) -> None:
        super().__init__(runner, account, peer, new_wire)
        self._table = _NO_METHODS
        self._works: dict[int, Work] = {}
        self._notifications = 0
        self._kept: Kept | None = None  # what came with the call that is being begun

    @abstractmethod
    def _handle(self, happened: list[events.Event]) -> None:
        """Take what has happened on the connection."""

    @abstractmethod
    def _go_on(self) -> None:
        """Begin the calls that were held back, as far as they go."""

    def _begin(self, event: events.Call | events.Notification, began: float) -> None:
        call_id = event.call_id
        ready = self._table.get(event.method)
        if ready is None:
            self.let_go(event)
            self._refuse(call_id, event.method, codes.METHOD_NOT_FOUND, f"there is no method {event.method!r}")
            return
        ready.statistics.calls += 1
        if not ready.is_simple_for[event.flags] or self.account.used_bytes > limits.UID_BYTES_MAX:
            refusal = self._refusal(event, ready.method)
            if refusal is not None:
                self.let_go(event)
                self.fail(call_id, ready, refusal)
                return
        if event.descriptors:
            if ready.kinds_in:
                self._begin_enclosed(ready, event, began)
            else:
                self.refuse_files(event)
            return
        if self.has_arenas and ready.kinds_in and may_refer(event.arguments):
            self._begin_enclosed(ready, event, began)
            return
        try:
            arguments = ready.read(event.arguments)
        except CannotDecode as error:
            if self.has_arenas:  # another way to write what refers to them
                self._begin_enclosed(ready, event, began)
            else:
                self.fail(call_id, ready, Failure(codes.INVALID_ARGUMENTS, str(error)))
            return
        self._invoke(ready, arguments, event, began)

    def refuse_files(self, event: events.Call | events.Notification | events.Item) -> None:
        """End the connection of a client that sends files where none belong."""
        assert self._protocol is not None
        self.let_go(event)
        message = f"{len(event.descriptors)} descriptors came for a method that takes none"
        self._handle(self._protocol.fail(codes.UNEXPECTED_DESCRIPTORS, message))

    def _begin_enclosed(self, ready: Ready, event: events.Call | events.Notification, began: float) -> None:
        """Begin a call whose arguments have files or blobs; what the method does not take over is closed at its end."""
        was_alone, self._is_alone = self._is_alone, False
        self._is_flush_due |= was_alone  # below, and not once more
        call_id, incoming = event.call_id, self.enclosures.incoming(event.descriptors)
        self._kept = Kept(self.account)
        if event.descriptors and not self._kept.add(incoming):
            self.let_go(event)
            self.fail(call_id, ready, too_many_files(self.account))
        else:
            try:
                arguments = decode_attached(ready.read, event.arguments, incoming)
            except BadBlob as error:
                self.fail(call_id, ready, Failure(codes.BAD_BLOB, str(error)))
            except CannotDecode as error:
                self.fail(call_id, ready, Failure(codes.INVALID_ARGUMENTS, str(error)))
            else:
                self._kept.count_blobs(incoming)
                self._invoke(ready, arguments, event, began)
                del arguments  # so that its memory is released together with the answer
        kept = self.take_kept()
        if kept is not None:  # the call is over already
            kept.close()
        if was_alone:
            self.flush()

    def take_kept(self) -> Kept | None:
        """The files that came with the call that is being begun; they are its work's from now on."""
        kept, self._kept = self._kept, None
        return kept

    def _invoke(
        self, ready: Ready, arguments: Arguments, event: events.Call | events.Notification, began: float
    ) -> None:
        method, call_id, context = ready.method, event.call_id, _NOTHING_KNOWN
        if event.context:
            try:
                context = self._codec.read_context(event.context)
            except CannotDecode as error:
                self.fail(call_id, ready, Failure(codes.INVALID_ARGUMENTS, f"the context: {error}"))
                return
        seconds = event.milliseconds_left / 1000
        if method.timeout is not None:
            seconds = min(seconds or method.timeout, method.timeout)
        deadline = Until(seconds, began + seconds) if seconds else NEVER
        call = Call(self.peer, method.name, call_id, deadline, context, self.runner.state, False, None, self)
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
        elif ready.is_inline:
            try:
                result = starter.context.copy().run(invoke_in_call, ready.invoke, arguments, call)
            except BaseException as error:
                self.fail_with(call_id, ready, error)
            else:
                self.reply(call_id, ready, result)
        elif method.shape:
            self._begin_stream(ready, arguments, event, call, began)
        else:
            outflow = self._way_out()  # made here, on the loop, as threads report progress as well
            work = self._new_work(call_id, ready, call, began, event)
            work.in_thread(arguments, starter.context.copy(), outflow if call_id else None)

    def _begin_stream(
        self, ready: Ready, arguments: Arguments, event: events.Call | events.Notification, call: Call, began: float
    ) -> None:
        call_id, length = event.call_id, len(event.arguments)
        if ready.outlet is not None:
            listener = Subscription(self, call_id, ready, call, began, length, self._way_out(), ready.outlet)
            self._works[call_id] = listener
            listener.begin()
        else:
            work = stream_work(ready)(self, call_id, ready, call, began, length, self._way_out())
            self._works[call_id] = work
            work.start(arguments)

    def _refusal(self, event: events.Call | events.Notification, method: Method) -> Failure | None:
        """Why a call is not begun."""
        if method.allow is not None and not method.allow.admits(self.peer):
            return Failure(codes.NOT_PERMITTED, f"{self.peer} may not call {method.name}, which admits {method.allow}")
        if self.account.used_bytes > limits.UID_BYTES_MAX:
            return Failure(
                codes.BUSY,
                f"uid {self.peer.uid} has {self.account.used_bytes} bytes in calls and in answers that it does not "
                f"read, at most {limits.UID_BYTES_MAX} are kept",
            )
        if (event.flags ^ method.shape) & protocol.ITEMS_FOLLOW or method.shape & ~event.flags:
            return Failure(codes.WRONG_SHAPE, f"{method.name} {_shape_of(method)}")
        return None

    def _new_work(
        self, call_id: int, ready: Ready, call: Call, began: float, event: events.Call | events.Notification
    ) -> Work:
        work = Work(self, call_id, ready, call, began, len(event.arguments))
        if call_id == NOTIFICATION:
            self._notifications += 1
            self._hold_if_needed()
        else:
            self._works[call_id] = work
        return work

    def work_done(self, work: Work) -> None:
        """Take note that a method that took its time has ended."""
        if work.call_id == NOTIFICATION:
            self._notifications -= 1
            self._go_on()
        elif self._works.get(work.call_id) is work:  # and not a later call, as ids go round
            del self._works[work.call_id]

    @property
    def is_draining(self) -> bool:
        """Whether the server was told to end."""
        return self.runner.is_draining


def _shape_of(method: Method) -> str:
    """What a method does with streams, and what that asks of its callers, in Python and in any other language."""
    name = method.signature.stream_parameter
    if not method.shape:
        return "takes no stream: pass no iterator, and say nothing of items that follow (ITEMS_FOLLOW)"
    if method.shape == protocol.ITEMS_WANTED:
        return "gives a stream, and takes none: say that items are wanted (ITEMS_WANTED), and not that some follow"
    if method.shape == protocol.ITEMS_FOLLOW:
        return (
            f"takes a stream, its parameter {name}: pass an iterator, as in iter([...]), or say that items follow "
            "(ITEMS_FOLLOW) and send them"
        )
    return (
        f"takes a stream, its parameter {name}, and gives one: pass an iterator, as in iter([...]), or say that items "
        "follow and are wanted (ITEMS_FOLLOW, ITEMS_WANTED) and send them"
    )
