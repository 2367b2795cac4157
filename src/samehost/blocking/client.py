"""A client of a service, for threads: methods as attributes, over a connection that is made again when it is lost.

What users call is here, and how their arguments become a call. Connecting, and making a call again, is the `caller`'s.
"""

from __future__ import annotations

import math
import time
from collections import deque
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

from samehost import limits
from samehost.address import parse
from samehost.blocking.attachments import holds_large
from samehost.blocking.caller import Caller
from samehost.blocking.calls import Waiting
from samehost.codec import MSGPACK
from samehost.errors import ArenaFull, DeadlineExceeded, Error, UsageError
from samehost.kernel.deadline import Deadline, Until
from samehost.protocol import ITEMS_FOLLOW
from samehost.protocol.events import Reply
from samehost.service.call import current_call
from samehost.service.calling import (
    CLIENTS_TIMEOUT,
    ClientTimeout,
    RemoteFunction,
    context_to_hand_on,
    no_stream,
    remote_of,
    seconds_for,
)
from samehost.service.remote import RemoteMethod, declare_methods

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator

    from samehost.address import Address
    from samehost.blocking.link import Link
    from samehost.blocking.stream import Stream
    from samehost.kernel.blob import Blob
    from samehost.peer import Peer, Policy
    from samehost.service.call import Progress
    from samehost.service.description import Description, MethodDescription

_ASK_SECONDS = 1.0
"""How long `repr`, `dir` and `help` wait for what the server says of itself."""

_TOGETHER = 32
"""How many calls of `map` are sent at once: few enough that both ends are at work at the same time."""

_MEMORY_PAUSE_SECONDS = 0.001
"""How often memory for a blob is asked for anew, as it may come back from anywhere."""

_encode = MSGPACK.encode_raw


class Client(Caller):
    """A connection to a service, to call its methods from any number of threads.

    Made by `samehost.connect`. A subclass declares methods, whose bodies never run; calling one makes the call, and the
    answer is checked against the declared type::

        class Clock(samehost.Client):
            @samehost.idempotent
            def now(self, zone: str = "UTC") -> datetime:
                raise NotImplementedError

        with samehost.connect("clock", Clock) as clock:
            clock.now(zone="Europe/Paris")

    A lost connection is made again by the next call. A call of which nothing went out is then sent again by itself; one
    whose outcome is unknown only if its method is idempotent, as the class or the server says.

    A child made by fork gets a connection of its own with its first call. `close` may come from any thread or signal
    handler; calls may not come from signal handlers.

    Attributes:
        remote_methods: the declared methods, by name.
    """

    remote_methods: ClassVar[dict[str, RemoteMethod]] = {}

    def __init__(
        self,
        address: str | os.PathLike[str] | Address,
        *,
        wait: float = 0.0,
        timeout: float | None = limits.CALL_SECONDS,
        trust: Policy | None = None,
        busy_wait: float = 0.0,
    ) -> None:
        super().__init__(parse(address), wait=wait, timeout=timeout, trust=trust, busy_wait=busy_wait)
        self._seconds = math.inf if timeout is None else timeout
        self._names: dict[str, RemoteMethod] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        reserved = [name for name in dir(Client) if not name.startswith("_")]
        declared = declare_methods(cls, reserved, is_async=False, call=Client._call)
        cls.remote_methods = {**cls.remote_methods, **declared}

    # What users call.

    @property
    def peer(self) -> Peer | None:
        """The server as the kernel reports it; None while there is no connection."""
        link = self._link
        return link.peer if link is not None and link.takes_calls else None

    def call(
        self,
        method: str,
        /,
        *arguments: Any,
        timeout: float | ClientTimeout | None = CLIENTS_TIMEOUT,
        progress: Callable[[Progress], object] | None = None,
        **named: Any,
    ) -> Any:
        """Call a method and wait for its answer: its result, or a `Stream` if that is what it answers with.

        An iterator among the arguments is a stream to send: its items are pulled here, while this call waits.

        Args:
            method: its name.
            arguments: by position.
            timeout: seconds that all of the call may take, with its items; None for as long as it takes. What the
                client was made with is for the answer alone: a stream that has begun has all the time, and so has
                sending one. While another call is being served, it gets no more than that one has left.
            progress: called with what the method reports of its progress, in this thread.
            named: arguments by name.

        Raises:
            CallError: the method says no, or there is none of this name; `ServiceError` and others are kinds of it.
            DeadlineExceeded: the time is over; the method is cancelled.
            Unsent: the server cannot be reached, and nothing was done.
            OutcomeUnknown: the connection ended before the answer came.
            ConnectionClosed: the client was closed.
            NotPermitted: the policy of the method, or the socket's mode, says no.
            UntrustedServer: somebody else serves there now.
            MessageTooLarge: arguments, items or result are longer than a message may be.
            InvalidResult: the answer is not of the declared type.
            UsageError: an argument or an item cannot travel, or an argument is there twice.
        """
        remote = self._remote(method)
        if progress is None:
            return self._call(remote, arguments, named, timeout)
        waiting = self._waiting(remote, arguments, named, timeout)
        waiting.listener = progress
        return self._answered(remote, timeout, *self._exchange(remote, waiting))

    @overload
    def subscribe(self, topic: str, *, timeout: float | ClientTimeout | None = ...) -> Stream[Any]: ...

    @overload
    def subscribe(
        self, topic: str, type: type[Item], *, timeout: float | ClientTimeout | None = ...
    ) -> Stream[Item]: ...

    def subscribe(
        self, topic: str, type: Any = Any, *, timeout: float | ClientTimeout | None = CLIENTS_TIMEOUT
    ) -> Stream[Any]:
        """Subscribe to a topic; nothing that is published once this has returned is missed.

        Whoever takes the items too slowly does not get all of them, and `Stream.dropped` says how many not, or is cut
        off with a CallError `too_slow`: as the topic declares.

        Args:
            topic: its name.
            type: what its items have to be.
            timeout: as for `call`: seconds for the whole subscription, if given.

        Raises:
            WrongShape: there is a method of this name, and it does not stream.
            Others: as `call`.
        """
        remote = RemoteMethod(topic, is_idempotent=True, decode_item=MSGPACK.decode_to(type))
        remote.is_stream = True
        stream: Stream[Any] = self._call(remote, (), {}, timeout)
        return stream

    def notify(
        self, method: str, /, *arguments: Any, timeout: float | ClientTimeout | None = CLIENTS_TIMEOUT, **named: Any
    ) -> None:
        """Call a method and want no answer; returns once the kernel has all of it. Otherwise as `call`.

        Whether the method did anything, or is there at all, will not be known.
        """
        remote = self._remote(method)
        waiting = self._waiting(remote, arguments, named, timeout)
        waiting.is_answered = False
        self._make_plain(waiting)
        self._exchange(remote, waiting)

    def map(
        self,
        method: str,
        /,
        *iterables: Iterable[Any],
        window: int = limits.MAP_WINDOW,
        timeout: float | ClientTimeout | None = CLIENTS_TIMEOUT,
    ) -> Iterator[Any]:
        """Call a method for each item, many at a time, and give the results in the order of the items.

        That is much faster than one call after the other, since each end works on many of them at once. Like the
        built-in `map`: with several iterables each call gets one item of each, by position. Answers are read while the
        next result is asked for; a server cuts off who leaves many of them unread for 10 s.

        Args:
            method: its name.
            iterables: the arguments; read only as far as calls are begun.
            window: how many calls may be under way.
            timeout: seconds that each of them may take.

        Raises:
            UsageError: the window is less than 1.
            Others: as `call`, in the place of the result; the calls that are still under way are cancelled.
        """
        if window < 1:
            raise UsageError(f"window={window}: at least one call has to be under way")
        return self._map(self._remote(method), iterables, window, timeout)

    def _map(
        self,
        remote: RemoteMethod,
        iterables: tuple[Iterable[Any], ...],
        window: int,
        timeout: float | ClientTimeout | None,
    ) -> Iterator[Any]:
        under_way: deque[tuple[Link, Waiting]] = deque()
        items = zip(*iterables, strict=False)
        is_more = True
        try:
            while is_more or under_way:
                while is_more and len(under_way) <= window - min(window, _TOGETHER):
                    together = self._next_calls(remote, items, min(window, _TOGETHER), timeout)
                    is_more = bool(together)
                    if together:
                        link = self._link
                        if link is None or not link.takes_calls:
                            link = self._connect_again(together[0], was_sent=False)
                        for waiting in together:
                            if waiting.values is not None:
                                link.prepare(waiting)
                        link.begin(together)
                        under_way.extend((link, waiting) for waiting in together)
                if under_way:
                    yield self._finish(remote, *under_way.popleft())
        finally:
            for link, waiting in under_way:
                link.abandon(waiting)

    def _next_calls(
        self,
        remote: RemoteMethod,
        items: Iterator[tuple[Any, ...]],
        count: int,
        timeout: float | ClientTimeout | None,
    ) -> list[Waiting]:
        """Calls for the next few items, ready to be sent."""
        together: list[Waiting] = []
        for arguments in islice(items, count):
            if together:
                together.append(self._waiting_beside(remote, arguments, timeout, together[0]))
            else:
                together.append(self._waiting(remote, arguments, {}, timeout))
                self._make_plain(together[0])
        return together

    def _waiting_beside(
        self, remote: RemoteMethod, arguments: tuple[Any, ...], timeout: float | ClientTimeout | None, first: Waiting
    ) -> Waiting:
        """A call like a first one that has the same deadline."""
        if not (remote.may_send_blobs and holds_large(arguments)):
            try:
                encoded = _encode(arguments)
            except Exception:
                encoded = b""
            if 0 < len(encoded) < limits.BLOB_BYTES_MIN:
                return Waiting(first.method, encoded, first.context, first.deadline)
        waiting = self._waiting_with_more(remote, arguments, {}, timeout, first.context)
        waiting.deadline = first.deadline
        self._make_plain(waiting)
        return waiting

    def _finish(self, remote: RemoteMethod, link: Link, waiting: Waiting) -> Any:
        if waiting.answer is None:
            link.wait_for_news(waiting)
        answer = waiting.answer
        if type(answer) is Reply:
            return remote.result(answer.result)
        return self._answered(remote, None, *self._exchange(remote, waiting, link))

    def allocate(self, size: int, *, timeout: float | ClientTimeout | None = CLIENTS_TIMEOUT) -> Blob:
        """A blob to write into; see `samehost.allocate`. Waits until there is memory for it.

        Raises:
            DeadlineExceeded: there was none in time.
            UsageError: the size is negative, or more than a blob can have.
        """
        from samehost.kernel.blob import allocate

        try:
            return allocate(size)
        except ArenaFull:
            return self._allocate_later(
                size, Deadline(seconds_for(self._timeout if timeout is CLIENTS_TIMEOUT else timeout))
            )

    def _allocate_later(self, size: int, deadline: Deadline) -> Blob:
        from samehost.kernel.blob import allocate

        while True:
            seconds = min(_MEMORY_PAUSE_SECONDS, deadline.left())
            link = self._link
            if link is not None and not link.is_over:
                link.wait_for_memory(seconds)
            else:
                time.sleep(seconds)
            try:
                return allocate(size)
            except ArenaFull as error:
                if not deadline.left():
                    raise DeadlineExceeded(f"no memory for a blob within {deadline.timeout:g} s: {error}") from error

    def describe(self) -> Description:
        """What the service tells of itself: its methods, their types and their documentation.

        It is asked once for each connection. Raises what `call` raises.
        """
        return self._describe(CLIENTS_TIMEOUT)

    # How a call is made.

    def _remote(self, name: str) -> RemoteMethod:
        """What is known here of a method."""
        remote = self.remote_methods.get(name) or self._names.get(name)
        if remote is None:
            if len(self._names) >= limits.METHOD_NAMES_KEPT:
                self._names.clear()
            remote = self._names[name] = RemoteMethod(name)
        return remote

    def _call(
        self,
        remote: RemoteMethod,
        positional: tuple[Any, ...],
        by_name: dict[str, Any],
        timeout: float | ClientTimeout | None = CLIENTS_TIMEOUT,
    ) -> Any:
        waiting = self._waiting(remote, positional, by_name, timeout)
        link = self._link
        if link is None or not link.takes_calls or not waiting.arguments or remote.is_stream:
            return self._answered(remote, timeout, *self._exchange(remote, waiting))
        try:
            result = link.call_alone(waiting)
            if result is None:
                link.make(waiting)
                return self._answered(remote, timeout, *self._exchange(remote, waiting, link))
        except BaseException:
            if link.is_led_by(waiting):  # a signal handler has raised between the two
                link.abandon(waiting)
            raise
        try:
            return remote.decode(result)
        except Exception:
            return remote.result(result)  # which says what it is the result of

    def _answered(
        self, remote: RemoteMethod, timeout: float | ClientTimeout | None, link: Link, waiting: Waiting
    ) -> Any:
        """What a call gives: its result, or its stream."""
        answer = waiting.answer
        if isinstance(answer, Reply):
            if not remote.is_stream:
                attachments = waiting.attachments or link.attachments
                return attachments.read(remote.result, answer.result, answer.descriptors)
            link.abandon(waiting)
            raise no_stream(remote.name)
        waiting.values = None  # which nobody needs any more, large as they may be
        if timeout is CLIENTS_TIMEOUT:
            waiting.deadline = Deadline(seconds_for(None))
        from samehost.blocking.stream import Stream

        return Stream[Any](remote, link, waiting, self.address)

    def _waiting(
        self,
        remote: RemoteMethod,
        positional: tuple[Any, ...],
        by_name: dict[str, Any],
        timeout: float | ClientTimeout | None,
    ) -> Waiting:
        """A call, ready to be sent."""
        context = b""
        if current_call.get() is not None:
            context = context_to_hand_on()
            deadline: Deadline | Until = Deadline(seconds_for(self._timeout if timeout is CLIENTS_TIMEOUT else timeout))
        elif timeout is CLIENTS_TIMEOUT:
            deadline = Until(self._seconds, monotonic() + self._seconds)
        else:
            deadline = Deadline(timeout)
        if not remote.is_plain or (positional and by_name):
            return self._waiting_with_more(remote, positional, by_name, timeout, context)
        if remote.may_send_blobs and holds_large(positional or by_name.values()):
            return self._waiting_with_more(remote, positional, by_name, timeout, context)
        try:
            encoded = _encode(positional or by_name)
        except Exception:
            encoded = b""  # there is more to them than bytes, or they cannot travel at all
        if not 0 < len(encoded) < limits.BLOB_BYTES_MIN:
            return self._waiting_with_more(remote, positional, by_name, timeout, context)
        return Waiting(remote.name, encoded, context, deadline, remote.flags)

    def _waiting_with_more(
        self,
        remote: RemoteMethod,
        positional: tuple[Any, ...],
        by_name: dict[str, Any],
        timeout: float | ClientTimeout | None,
        context: bytes,
    ) -> Waiting:
        """The same for arguments that are items to send, hold files or blobs, or need names that the server knows."""
        positional, by_name, items = remote.take_items(positional, by_name)
        contract = remote
        if positional and by_name and remote.signature is None:
            described = self._describe(timeout).methods.get(remote.name)
            contract = remote_of(described) if described else remote
        values = contract.arguments(positional, by_name)
        seconds = seconds_for(self._timeout if timeout is CLIENTS_TIMEOUT else timeout)
        if items is None:
            return Waiting(remote.name, b"", context, Deadline(seconds), remote.flags, values)
        from samehost.blocking.upload import Upload

        upload = Upload(
            remote.name,
            items,
            seconds if timeout is CLIENTS_TIMEOUT else math.inf,
            is_answered_by_stream=bool(remote.is_stream),
        )
        if timeout is CLIENTS_TIMEOUT:
            seconds = seconds_for(None)  # until all of them are sent
        flags = remote.flags | ITEMS_FOLLOW
        return Waiting(remote.name, b"", context, Deadline(seconds), flags, values, upload=upload)

    def _make_plain(self, waiting: Waiting) -> None:
        """Make a call one without streams.

        Raises:
            UsageError: it has items to send.
        """
        if waiting.upload is not None:
            raise UsageError(f"{waiting.method}: items are sent by a call of its own alone, not by notify or map")
        waiting.flags = 0

    # What the service says of itself.

    def _described(self, method: str) -> MethodDescription | None:
        """What the service says of a method; None if it says nothing, or nothing soon."""
        try:
            return self._describe(_ASK_SECONDS).methods.get(method)
        except Error:
            return None

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"server {self.peer}" if self.peer else "not connected"
        return f"<{type(self).__name__} of {self.address}, {state}>"


class AnyClient(Client):
    """A client that knows no methods beforehand: any attribute is one, and the server says whether there is such.

    `help(client.now)` and `dir(client)` tell what the server says.
    """

    def __getattr__(self, name: str) -> RemoteFunction:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}; call({name!r}) calls such a method")
        function = RemoteFunction(self._remote(name), self._call, self._described)
        self.__dict__[name] = function
        return function

    def __dir__(self) -> Iterable[str]:
        try:
            methods = list(self._describe(_ASK_SECONDS).methods)
        except Error:
            methods = []
        return sorted({*super().__dir__(), *methods})


Item = TypeVar("Item")
AClient = TypeVar("AClient", bound=Client)


@overload
def connect(
    address: str | os.PathLike[str] | Address,
    *,
    wait: float = ...,
    timeout: float | None = ...,
    trust: Policy | None = ...,
    busy_wait: float = ...,
) -> AnyClient: ...


@overload
def connect(
    address: str | os.PathLike[str] | Address,
    interface: type[AClient],
    *,
    wait: float = ...,
    timeout: float | None = ...,
    trust: Policy | None = ...,
    busy_wait: float = ...,
) -> AClient: ...


def connect(
    address: str | os.PathLike[str] | Address,
    interface: type[Client] = AnyClient,
    *,
    wait: float = 0.0,
    timeout: float | None = limits.CALL_SECONDS,
    trust: Policy | None = None,
    busy_wait: float = 0.0,
) -> Client:
    """Connect to a service, and make sure that it is the right one before anything is sent.

    Args:
        address: a path, `@abstract`, `fd:N` (a connected socket that was handed to this process) or a service name.
        interface: a class made from `samehost.Client` that declares the methods. Without it any attribute of the client
            is a method.
        wait: seconds to wait for a server that is not there yet, now and whenever the connection has to be made again.
        timeout: seconds that a call may take, and that a full backlog is waited for; None for as long as it takes.
        trust: who may be serving. By default this user and root, or whoever serves on a path where nobody but root,
            this user and that user could have put a socket.
        busy_wait: the most seconds, up to 0.02, that a core is kept busy looking for an answer before the thread that
            waits for it sleeps. Where answers usually take longer that is not done, but for one hundredth of the time.

    Raises:
        AddressError: the address is none, or leads to something that is not such a socket.
        Unavailable: nobody listens there.
        NotPermitted: the modes on the path keep this user out.
        UntrustedServer: somebody else serves there.
        DeadlineExceeded: the backlog stayed full.
        UsageError: the interface is no such class, or `busy_wait` too long.
    """
    if not (isinstance(interface, type) and issubclass(interface, Client)):
        raise UsageError(f"{interface!r} is not a class made from samehost.Client")
    return interface(address, wait=wait, timeout=timeout, trust=trust, busy_wait=busy_wait)
