"""Calling a service from an event loop: an object with its methods, that connects again when the connection is lost."""

from __future__ import annotations

import asyncio
import math
import warnings
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

from samehost import limits
from samehost.address import Address, DescriptorAddress, parse
from samehost.aio.attachments import encode_arguments_plainly
from samehost.aio.dial import dial
from samehost.aio.link import Link
from samehost.aio.stream import Calling, Deferred, OpenCall, Stream, source_of
from samehost.aio.wire import SocketWire
from samehost.codec import MSGPACK
from samehost.errors import ArenaFull, DeadlineExceeded, Error, OutcomeUnknown, Unavailable, Unsent, UsageError
from samehost.kernel.blob import Blob, allocate
from samehost.kernel.closing import AsyncClosable
from samehost.kernel.deadline import Deadline
from samehost.kernel.spinning import check_busy_wait
from samehost.protocol import ITEMS_FOLLOW
from samehost.service.calling import (
    CLIENTS_TIMEOUT,
    ClientTimeout,
    RemoteFunction,
    context_to_hand_on,
    lost,
    remote_of,
    seconds_for,
    too_late,
)
from samehost.service.description import DESCRIBE, Description, MethodDescription, read_description
from samehost.service.remote import RemoteMethod, declare_methods, kinds_wanted

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
    from types import TracebackType

    from samehost.aio.wire import Wire
    from samehost.peer import Peer, Policy
    from samehost.protocol import Payload
    from samehost.service.call import Progress

T = TypeVar("T", bound="Client")
Answered = TypeVar("Answered")
Item = TypeVar("Item")

_TRIES_MAX = 5
"""How often a call is sent whose outcome is unknown each time, or to servers that end before they say a word."""

_MEMORY_PAUSE_SECONDS = 0.001

_CLOSED = "the client was closed"


class Client(AsyncClosable):
    """A connection to a service, whose methods are called as if they were here: `samehost.Client` in coroutines.

    Made by `samehost.aio.connect`. A class made from this one declares methods, by `async def` with annotations and a
    body that never runs; those that stream by a plain `def` which gives an `AsyncIterator`, and get a `Stream` at once.
    Any number of tasks may call at a time.

    Attributes:
        address: what was connected to.
    """

    remote_methods: ClassVar[dict[str, RemoteMethod]] = {}
    """What a class made from this one declares, by the name it is called by."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        declared = declare_methods(cls, dir(Client), is_async=True, call=Client._call_declared)
        cls.remote_methods = {**cls.remote_methods, **declared}

    def __init__(
        self,
        address: Address,
        *,
        wait: float = 0.0,
        timeout: float | None = None,
        trust: Policy | None = None,
        busy_wait: float = 0.0,
    ) -> None:
        check_busy_wait(busy_wait)
        self._busy_wait = busy_wait
        self._parsed = address
        self._wait = wait
        self._timeout = timeout
        self._trust = trust
        self._link: Link | None = None
        self._left: list[Link] = []  # those before it, which take no more calls and may still have some
        self._connecting: asyncio.Task[Link] | None = None
        self._description: tuple[Link, Description] | None = None
        self._is_closed = False

    @property
    def address(self) -> str:
        """What was connected to."""
        return str(self._parsed)

    @property
    def peer(self) -> Peer | None:
        """The server as the kernel reports it; None while there is no connection."""
        return self._link.peer if self._link is not None and self._link.is_open else None

    def call(
        self,
        method: str,
        /,
        *arguments: Any,
        timeout: float | ClientTimeout | None = CLIENTS_TIMEOUT,
        progress: Callable[[Progress], object] | None = None,
        **named: Any,
    ) -> Calling:
        """Call a method by its name; see `samehost.Client.call`.

        Await it for its result, or for its `Stream` if it streams, or go through the items with `async for`.
        """
        remote = self.remote_methods.get(method) or RemoteMethod(method)
        return Calling(remote, self._call(remote, arguments, named, timeout, progress))

    @overload
    def subscribe(self, topic: str, *, timeout: float | ClientTimeout | None = ...) -> Stream[Any]: ...

    @overload
    def subscribe(
        self, topic: str, type: type[Item], *, timeout: float | ClientTimeout | None = ...
    ) -> Stream[Item]: ...

    def subscribe(
        self, topic: str, type: Any = Any, *, timeout: float | ClientTimeout | None = CLIENTS_TIMEOUT
    ) -> Stream[Any]:
        """Subscribe to a topic, with the first item that is asked for; see `samehost.Client.subscribe`.

        Nothing is missed that is published once `async with` has begun, which waits for the server's word.
        """
        remote = RemoteMethod(topic, is_idempotent=True, decode_item=MSGPACK.decode_to(type))
        remote.is_stream = True
        return Stream(remote, begin=partial(self._call, remote, (), {}, timeout))

    async def notify(
        self, method: str, /, *arguments: Any, timeout: float | ClientTimeout | None = CLIENTS_TIMEOUT, **named: Any
    ) -> None:
        """Call a method and want no answer; see `samehost.Client.notify`."""
        remote = self.remote_methods.get(method) or RemoteMethod(method)
        deadline = self._deadline(method, timeout)
        encoded = None if arguments and named else encode_arguments_plainly(remote, arguments, named)
        if encoded is not None:
            await self._exchange(remote, encoded, deadline, Link.notify)
        else:
            values = await self._arguments(remote, arguments, named, deadline)
            await self._exchange(remote, values, deadline, _notify_anew)

    async def map(
        self,
        method: str,
        /,
        *iterables: Iterable[Any],
        window: int = limits.MAP_WINDOW,
        timeout: float | ClientTimeout | None = CLIENTS_TIMEOUT,
    ) -> AsyncIterator[Any]:
        """Call a method for each item, many at a time; see `samehost.Client.map`."""
        if window < 1:
            raise UsageError(f"window={window}: at least one call has to be under way")
        remote = self.remote_methods.get(method) or RemoteMethod(method)
        under_way: deque[asyncio.Task[Any]] = deque()
        create_task = asyncio.get_running_loop().create_task  # once, as to ask for the loop takes a system call
        try:
            for arguments in zip(*iterables, strict=False):
                if len(under_way) >= window:
                    yield await under_way.popleft()
                under_way.append(create_task(self._call(remote, arguments, {}, timeout)))
            while under_way:
                yield await under_way.popleft()
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def allocate(self, size: int, *, timeout: float | ClientTimeout | None = CLIENTS_TIMEOUT) -> Blob:
        """A blob to write into; see `samehost.allocate`. Waits until there is memory for it.

        Raises:
            DeadlineExceeded: there was none in time.
            UsageError: the size is negative, or more than a blob can have.
        """
        deadline = _deadline_in(seconds_for(self._timeout if isinstance(timeout, ClientTimeout) else timeout))
        while True:
            try:
                return allocate(size)
            except ArenaFull as error:
                if not deadline.left():
                    raise DeadlineExceeded(f"no memory for a blob within {deadline.timeout:g} s: {error}") from error
            await asyncio.sleep(min(_MEMORY_PAUSE_SECONDS, deadline.left()))  # it may come back from anywhere

    async def describe(self) -> Description:
        """What the service tells of itself; asked once a connection."""
        return await self._describe(self._deadline(DESCRIBE, CLIENTS_TIMEOUT))

    # Calling.

    def _call_declared(self, remote: RemoteMethod, positional: tuple[Any, ...], by_name: dict[str, Any]) -> Any:
        if remote.is_stream:
            return Stream(remote, begin=partial(self._call, remote, positional, by_name, CLIENTS_TIMEOUT))
        calling = self._call(remote, positional, by_name, CLIENTS_TIMEOUT)
        return calling if remote.is_stream is not None else Calling(remote, calling)

    async def _call(
        self,
        remote: RemoteMethod,
        positional: tuple[Any, ...],
        by_name: dict[str, Any],
        timeout: float | ClientTimeout | None,
        progress: Callable[[Progress], object] | None = None,
    ) -> Any:
        deadline = self._deadline(remote.name, timeout)
        encoded = None
        if progress is None and not remote.flags & ITEMS_FOLLOW and not (positional and by_name):
            encoded = encode_arguments_plainly(remote, positional, by_name)
        if encoded is None:
            return await self._call_at_length(remote, positional, by_name, timeout, deadline, progress)
        found = await self._exchange(remote, encoded, deadline, Link.call)
        return self._stream_of(remote, found, timeout, deadline) if type(found) is OpenCall else found

    async def _call_at_length(
        self,
        remote: RemoteMethod,
        positional: tuple[Any, ...],
        by_name: dict[str, Any],
        timeout: float | ClientTimeout | None,
        deadline: Deadline,
        progress: Callable[[Progress], object] | None,
    ) -> Any:
        """Make a call that sends items, files or blobs, or wants to know how far it has come."""
        positional, by_name, items = remote.take_items(positional, by_name)
        source = None if items is None else source_of(items, remote.name)
        values = await self._arguments(remote, positional, by_name, deadline)
        greeting = deadline
        answer_seconds = math.inf
        if source is not None and isinstance(timeout, ClientTimeout):  # which counts from the last item on
            answer_seconds = math.inf if self._timeout is None else self._timeout
            deadline = self._deadline(remote.name, None)
        opened = OpenCall(remote, source, progress, answer_seconds)
        send = partial(_call_anew, greeting=greeting, opened=opened)
        found = None
        try:
            found = await self._exchange(remote, values, deadline, send, opened)
        finally:
            if found is not opened:
                await opened.settled()
        return self._stream_of(remote, opened, timeout, deadline) if found is opened else found

    def _stream_of(
        self, remote: RemoteMethod, opened: OpenCall, timeout: float | ClientTimeout | None, deadline: Deadline
    ) -> Stream[Any]:
        """The stream that a call is answered with, bounded by a timeout that was given for it, and for no other."""
        if isinstance(timeout, ClientTimeout):
            deadline = _deadline_in(seconds_for(None))
        opened.expire_at(deadline)
        return Stream(remote, call=opened)

    def _deadline(self, method: str, timeout: float | ClientTimeout | None) -> Deadline:
        seconds = seconds_for(self._timeout if isinstance(timeout, ClientTimeout) else timeout)
        deadline = Deadline(None if seconds == math.inf else seconds)
        if not seconds:
            raise too_late(method, self.address, 0.0)
        return deadline

    async def _arguments(
        self, remote: RemoteMethod, positional: tuple[Any, ...], by_name: dict[str, Any], deadline: Deadline
    ) -> Any:
        """What to encode for arguments; where some are by position and some by name, the names have to be known."""
        if positional and by_name and remote.signature is None:
            described = (await self._describe(deadline)).methods.get(remote.name)
            if described is not None:
                remote = remote_of(described)
        return remote.arguments(positional, by_name)

    async def _exchange(
        self,
        remote: RemoteMethod,
        arguments: Any,
        deadline: Deadline,
        send: Callable[[Link, RemoteMethod, Any, Deadline, Payload], Awaitable[Answered]],
        opened: OpenCall | None = None,
    ) -> Answered:
        """Send a call or a notification, again where that does no harm.

        Args:
            arguments: encoded, or as `send` takes them.
            send: `Link.call` or `Link.notify`, or what does the same.
            opened: what goes on until the call is over; it can be begun anew as long as no item was taken for it.
        """
        method = remote.name
        context = context_to_hand_on()
        was_sent = False
        tries = 0
        pause = 0.0
        while True:
            link = self._link
            if link is None or not link.is_open:
                link = await self._connected(method, deadline, was_sent=was_sent)
            try:
                return await send(link, remote, arguments, deadline, context)
            except (Unsent, OutcomeUnknown) as error:
                was_sent = was_sent or isinstance(error, OutcomeUnknown)
                tries += isinstance(error, OutcomeUnknown) or not link.is_greeted
                is_last = tries >= _TRIES_MAX or (opened is not None and opened.was_begun)
                if self._is_closed or link.is_open or link.fault is not None or is_last:
                    raise self._final(method, error, was_sent=was_sent) from link.fault
                if was_sent and not await self._is_idempotent(remote, deadline):
                    raise self._final(method, error, was_sent=was_sent) from None
            await asyncio.sleep(min(pause, deadline.left()))
            pause = min(max(2 * pause, limits.DIAL_PAUSE_SECONDS_MIN), limits.DIAL_PAUSE_SECONDS_MAX)

    def _final(self, method: str, error: Unsent | OutcomeUnknown, *, was_sent: bool) -> Unsent | OutcomeUnknown:
        """What to raise for a call that is not made again, of which the last try has ended like this.

        Args:
            was_sent: one of its tries went out.
        """
        if was_sent and isinstance(error, Unsent):
            return lost(method, self.address, "the connection had ended", was_sent=True)
        return error

    async def _is_idempotent(self, remote: RemoteMethod, deadline: Deadline) -> bool:
        """Whether a method may be called again: as the client's class says, or else the server that is there now."""
        if remote.is_idempotent is not None:
            return remote.is_idempotent
        try:
            described = (await self._describe(deadline)).methods.get(remote.name)
        except Error:
            return False
        return described is not None and described.idempotent

    async def _describe(self, deadline: Deadline) -> Description:
        link, known = self._link, self._description
        if known is not None and known[0] is link and link.is_open:
            return known[1]
        description: Description = await self._exchange(_DESCRIBE, MSGPACK.encode({}), deadline, Link.call)
        if self._link is not None:
            self._description = self._link, description
        return description

    # Connecting.

    async def _connected(self, method: str, deadline: Deadline, *, was_sent: bool) -> Link:
        """A connection that takes calls, which is made by the first who needs it.

        Args:
            was_sent: the call went out on a connection before.

        Raises:
            Unsent, OutcomeUnknown: nobody is there.
            DeadlineExceeded: not in time.
            Others: as `dial`.
        """
        if self._is_closed:
            raise lost(method, self.address, _CLOSED, was_sent=was_sent)
        if isinstance(self._parsed, DescriptorAddress):
            raise lost(method, self.address, "the connection had ended", was_sent=was_sent)
        if self._connecting is None:
            self._connecting = asyncio.ensure_future(self._connect())
            self._connecting.add_done_callback(self._connected_now)
        connecting = self._connecting
        left = deadline.left()
        try:
            async with asyncio.timeout(None if left == math.inf else left):
                return await asyncio.shield(connecting)
        except TimeoutError as error:
            if isinstance(error, Error):
                raise
            raise too_late(method, self.address, deadline.timeout or 0.0) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if connecting.cancelled() and not (task and task.cancelling()):
                raise lost(method, self.address, _CLOSED, was_sent=was_sent) from None
            raise
        except Unavailable as error:
            raise lost(method, self.address, str(error), was_sent=was_sent) from error

    def _connected_now(self, connecting: asyncio.Task[Link]) -> None:
        self._connecting = None
        if not connecting.cancelled():
            connecting.exception()  # whoever waits for it has it; nobody may be left who does

    async def _connect(self) -> Link:
        connection = await dial(self._parsed, wait=self._wait, timeout=self._timeout, trust=self._trust)
        loop = asyncio.get_running_loop()
        if self._link is not None:
            self._left = [known for known in (*self._left, self._link) if not known.is_closed]
        new_wire: Callable[[Link, bool], Wire] = partial(SocketWire, loop, connection.socket)
        if self._busy_wait:
            from samehost.aio.spinning import new_caller_wire

            new_wire = partial(new_caller_wire, loop, connection.socket, self._busy_wait)
        self._link = Link(self.address, connection.peer, new_wire, kinds_wanted(self.remote_methods))
        return self._link

    def _described(self, name: str) -> MethodDescription | None:
        return self._description[1].methods.get(name) if self._description else None

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    def close(self) -> None:
        """End the connection; calls in progress raise ConnectionClosed. A second time does nothing."""
        self._is_closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        for link in (*self._left, self._link):
            if link is not None:
                link.close()

    def __del__(self) -> None:
        if not getattr(self, "_is_closed", True):
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"server {self.peer}" if self.peer else "not connected"
        return f"<{type(self).__qualname__} of {self.address}, {state}>"


class AnyClient(Client):
    """A client that declares no methods: any name is one, and the server says whether it has it."""

    def __getattr__(self, name: str) -> RemoteFunction:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__qualname__!r} object has no attribute {name!r}")
        function = RemoteFunction(RemoteMethod(name), self._call_declared, self._described)
        self.__dict__[name] = function  # so that the next look-up is a plain one
        return function

    def __dir__(self) -> list[str]:
        """The names that every client has, and the methods, once `describe` was awaited."""
        return sorted({*super().__dir__(), *(self._description[1].methods if self._description else ())})


_DESCRIBE = RemoteMethod(DESCRIBE, None, read_description, is_idempotent=True)
_DESCRIBE.flags = 0  # as everybody knows that it does not stream


def _deadline_in(seconds: float) -> Deadline:
    return Deadline(None if seconds == math.inf else seconds)


async def _call_anew(
    link: Link,
    remote: RemoteMethod,
    values: Any,
    deadline: Deadline,
    context: Payload,
    *,
    greeting: Deadline,
    opened: OpenCall,
) -> Any:
    """Call with arguments that are encoded for this link, whose server has to have greeted until then."""
    return await link.call(remote, await link.encode(remote, values, greeting), deadline, context, opened)


async def _notify_anew(link: Link, remote: RemoteMethod, values: Any, deadline: Deadline, context: Payload) -> None:
    """The same for a notification."""
    await link.notify(remote, await link.encode(remote, values, deadline), deadline, context)


class Connecting(Deferred[T]):
    """A client on its way, from `connect`: `await` gives it connected, and `async with` closes it at the end too."""

    __slots__ = ("_client",)

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        super().__init__(coroutine)
        self._client: T | None = None

    async def __aenter__(self) -> T:
        self._client = await self._coroutine
        return self._client

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._client is not None:
            self._client.close()


async def _connected(new_client: Callable[[], T]) -> T:
    client = new_client()
    try:
        await client._connect()  # noqa: SLF001 - of this module
    except BaseException:
        client.close()
        raise
    return client


@overload
def connect(
    address: str | os.PathLike[str] | Address,
    *,
    wait: float = 0.0,
    timeout: float | None = limits.CALL_SECONDS,
    trust: Policy | None = None,
    busy_wait: float = 0.0,
) -> Connecting[AnyClient]: ...


@overload
def connect(
    address: str | os.PathLike[str] | Address,
    interface: type[T],
    *,
    wait: float = 0.0,
    timeout: float | None = limits.CALL_SECONDS,
    trust: Policy | None = None,
    busy_wait: float = 0.0,
) -> Connecting[T]: ...


def connect(
    address: str | os.PathLike[str] | Address,
    interface: type[Client] = AnyClient,
    *,
    wait: float = 0.0,
    timeout: float | None = limits.CALL_SECONDS,
    trust: Policy | None = None,
    busy_wait: float = 0.0,
) -> Connecting[Any]:
    """Connect to a service as `samehost.connect` does; an `interface` is made from this module's `Client`.

    The client is connected, and its errors raised, by `await connect(…)` or `async with connect(…) as client`.
    """
    if not (isinstance(interface, type) and issubclass(interface, Client)):
        raise UsageError(f"{interface!r} is not a class made from samehost.aio.Client")
    new_client = partial(interface, parse(address), wait=wait, timeout=timeout, trust=trust, busy_wait=busy_wait)
    return Connecting(_connected(new_client))
