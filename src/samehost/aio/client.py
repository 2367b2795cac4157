"""Calling a service from an event loop: an object with its methods, that connects again when the connection is lost."""

from __future__ import annotations

import asyncio
import math
import warnings
from collections import deque
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

from samehost import limits
from samehost.address import Address, DescriptorAddress, parse
from samehost.aio.dial import dial
from samehost.aio.link import Link
from samehost.aio.wire import SocketWire
from samehost.errors import Error, OutcomeUnknown, Unavailable, Unsent, UsageError
from samehost.kernel.closing import AsyncClosable
from samehost.kernel.deadline import Deadline
from samehost.service.calling import (
    CLIENTS_TIMEOUT,
    ClientTimeout,
    RemoteFunction,
    context_to_hand_on,
    encode_arguments,
    lost,
    remote_of,
    seconds_for,
    too_late,
)
from samehost.service.description import DESCRIBE, Description, MethodDescription, read_description
from samehost.service.remote import RemoteMethod, declare_methods

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable
    from types import TracebackType

    from samehost.peer import Peer, Policy
    from samehost.protocol import Payload

T = TypeVar("T", bound="Client")
Answered = TypeVar("Answered")

_TRIES_MAX = 5
"""How often a call is sent whose outcome is unknown each time, or to servers that end before they say a word."""

_CLOSED = "the client was closed"


class Client(AsyncClosable):
    """A connection to a service, whose methods are called as if they were here: `samehost.Client` in coroutines.

    Made by `samehost.aio.connect`. A class made from this one declares methods, by `async def` with annotations and a
    body that never runs. Any number of tasks may call at a time.

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
        self, address: Address, *, wait: float = 0.0, timeout: float | None = None, trust: Policy | None = None
    ) -> None:
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

    async def call(
        self, method: str, /, *arguments: Any, timeout: float | ClientTimeout | None = CLIENTS_TIMEOUT, **named: Any
    ) -> Any:
        """Call a method by its name; see `samehost.Client.call`."""
        remote = self.remote_methods.get(method) or RemoteMethod(method)
        return await self._call(remote, arguments, named, timeout)

    async def notify(
        self, method: str, /, *arguments: Any, timeout: float | ClientTimeout | None = CLIENTS_TIMEOUT, **named: Any
    ) -> None:
        """Call a method and want no answer; see `samehost.Client.notify`."""
        remote = self.remote_methods.get(method) or RemoteMethod(method)
        deadline = self._deadline(method, timeout)
        if arguments and named:
            encoded = await self._encode_mixed(remote, arguments, named, deadline)
        else:
            encoded = encode_arguments(remote, arguments, named)
        await self._exchange(remote, encoded, deadline, Link.notify)

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
        try:
            for arguments in zip(*iterables, strict=False):
                if len(under_way) >= window:
                    yield await under_way.popleft()
                under_way.append(asyncio.ensure_future(self._call(remote, arguments, {}, timeout)))
            while under_way:
                yield await under_way.popleft()
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def describe(self) -> Description:
        """What the service tells of itself; asked once a connection."""
        return await self._describe(self._deadline(DESCRIBE, CLIENTS_TIMEOUT))

    # Calling.

    def _call_declared(
        self, remote: RemoteMethod, positional: tuple[Any, ...], by_name: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        return self._call(remote, positional, by_name, CLIENTS_TIMEOUT)

    async def _call(
        self,
        remote: RemoteMethod,
        positional: tuple[Any, ...],
        by_name: dict[str, Any],
        timeout: float | ClientTimeout | None,
    ) -> Any:
        deadline = self._deadline(remote.name, timeout)
        if positional and by_name:
            encoded = await self._encode_mixed(remote, positional, by_name, deadline)
        else:
            encoded = encode_arguments(remote, positional, by_name)
        return remote.result(await self._exchange(remote, encoded, deadline, Link.call))

    def _deadline(self, method: str, timeout: float | ClientTimeout | None) -> Deadline:
        seconds = seconds_for(self._timeout if isinstance(timeout, ClientTimeout) else timeout)
        deadline = Deadline(None if seconds == math.inf else seconds)
        if not seconds:
            raise too_late(method, self.address, 0.0)
        return deadline

    async def _encode_mixed(
        self, remote: RemoteMethod, positional: tuple[Any, ...], by_name: dict[str, Any], deadline: Deadline
    ) -> bytes:
        """Encode arguments of which some are by position and some by name, for which the names have to be known."""
        if remote.signature is None:
            described = (await self._describe(deadline)).methods.get(remote.name)
            if described is not None:
                remote = remote_of(described)
        return encode_arguments(remote, positional, by_name)

    async def _exchange(
        self,
        remote: RemoteMethod,
        encoded: bytes,
        deadline: Deadline,
        send: Callable[[Link, str, Payload, Deadline, Payload], Awaitable[Answered]],
    ) -> Answered:
        """Send a call or a notification, again where that does no harm.

        Args:
            send: `Link.call` or `Link.notify`.
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
                return await send(link, method, encoded, deadline, context)
            except (Unsent, OutcomeUnknown) as error:
                was_sent = was_sent or isinstance(error, OutcomeUnknown)
                tries += isinstance(error, OutcomeUnknown) or not link.is_greeted
                if self._is_closed or link.is_open or link.fault is not None or tries >= _TRIES_MAX:
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
        encoded = encode_arguments(_DESCRIBE, (), {})
        description: Description = _DESCRIBE.result(await self._exchange(_DESCRIBE, encoded, deadline, Link.call))
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
        self._link = Link(self.address, connection.peer, partial(SocketWire, loop, connection.socket))
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


class Connecting(Coroutine[Any, Any, T]):
    """A client on its way, from `connect`: `await` gives it connected, and `async with` closes it at the end too."""

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        self._client: T | None = None

    def __await__(self) -> Generator[Any, Any, T]:
        return self._coroutine.__await__()

    async def __aenter__(self) -> T:
        self._client = await self._coroutine
        return self._client

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._client is not None:
            self._client.close()

    def send(self, value: Any) -> Any:
        """For `asyncio.create_task`, as `throw` and `close`, which takes nothing but coroutines."""
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        """See `send`."""
        return self._coroutine.throw(*error)

    def close(self) -> None:
        """See `send`."""
        self._coroutine.close()


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
) -> Connecting[AnyClient]: ...


@overload
def connect(
    address: str | os.PathLike[str] | Address,
    interface: type[T],
    *,
    wait: float = 0.0,
    timeout: float | None = limits.CALL_SECONDS,
    trust: Policy | None = None,
) -> Connecting[T]: ...


def connect(
    address: str | os.PathLike[str] | Address,
    interface: type[Client] = AnyClient,
    *,
    wait: float = 0.0,
    timeout: float | None = limits.CALL_SECONDS,
    trust: Policy | None = None,
) -> Connecting[Any]:
    """Connect to a service as `samehost.connect` does; an `interface` is made from this module's `Client`.

    The client is connected, and its errors raised, by `await connect(…)` or `async with connect(…) as client`.
    """
    if not (isinstance(interface, type) and issubclass(interface, Client)):
        raise UsageError(f"{interface!r} is not a class made from samehost.aio.Client")
    return Connecting(_connected(partial(interface, parse(address), wait=wait, timeout=timeout, trust=trust)))
