"""A client of a service, for threads: methods as attributes, over a connection that is made again when it is lost.

What may be done again is decided here: a call of which nothing went out always, one whose outcome is unknown only if
its method is idempotent. Sending and waiting are `link`'s.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
import warnings
import weakref
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

from samehost import limits
from samehost.address import Address, DescriptorAddress, parse
from samehost.blocking.dial import dial
from samehost.blocking.link import Link, Outcome, Waiting
from samehost.codec import MSGPACK, CannotDecode
from samehost.errors import Error, InvalidResult, Unavailable, UsageError
from samehost.kernel.closing import Closable
from samehost.kernel.deadline import Deadline
from samehost.protocol import codes
from samehost.protocol.events import Failure, Reply
from samehost.service.call import current_call
from samehost.service.calling import (
    CLIENTS_TIMEOUT,
    ClientTimeout,
    RemoteFunction,
    answered_error,
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
    from collections.abc import Iterable, Iterator

    from samehost.peer import Peer, Policy
    from samehost.protocol import Payload

_TRIES_MAX = 5
"""How often a call is sent whose outcome is unknown each time, or to servers that end before they say a word, as one
that is being killed does."""

_ASK_SECONDS = 1.0
"""How long `repr`, `dir` and `help` wait for what the server says of itself."""

_TOGETHER = 32
"""How many calls of `map` are sent at once: few enough that both ends are at work at the same time."""

_CLOSED = "the client was closed"

_encode = MSGPACK.encode_raw


class Client(Closable):
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
    ) -> None:
        self._address = parse(address)
        self._wait = wait
        self._timeout = timeout
        self._trust = trust
        self._names: dict[str, RemoteMethod] = {}
        self._description: tuple[Link, Description] | None = None
        self._dialling = threading.RLock()
        self._link: Link | None = Link(dial(self._address, wait=wait, timeout=timeout, trust=trust))
        self._links = [self._link]
        self._is_closed = False
        _clients.add(self)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        reserved = [name for name in dir(Client) if not name.startswith("_")]
        declared = declare_methods(cls, reserved, is_async=False, call=Client._call)
        cls.remote_methods = {**cls.remote_methods, **declared}

    # What users call.

    @property
    def address(self) -> str:
        """The address of the service."""
        return str(self._address)

    @property
    def peer(self) -> Peer | None:
        """The server as the kernel reports it; None while there is no connection."""
        link = self._link
        return link.peer if link is not None and link.takes_calls else None

    def call(
        self, method: str, /, *arguments: Any, timeout: float | ClientTimeout | None = CLIENTS_TIMEOUT, **named: Any
    ) -> Any:
        """Call a method and wait for its answer.

        Args:
            method: its name.
            arguments: by position.
            timeout: seconds that the call may take; None for as long as it takes. While another call is being served,
                it gets no more than that one has left.
            named: arguments by name.

        Raises:
            CallError: the method says no, or there is none of this name; `ServiceError` and others are kinds of it.
            DeadlineExceeded: the time is over; the method is cancelled.
            Unsent: the server cannot be reached, and nothing was done.
            OutcomeUnknown: the connection ended before the answer came.
            ConnectionClosed: the client was closed.
            NotPermitted: the policy of the method, or the socket's mode, says no.
            UntrustedServer: somebody else serves there now.
            MessageTooLarge: arguments or result are longer than a message may be.
            InvalidResult: the answer is not of the declared type.
            UsageError: an argument cannot travel, or is there twice.
        """
        return self._call(self._remote(method), arguments, named, timeout)

    def notify(
        self, method: str, /, *arguments: Any, timeout: float | ClientTimeout | None = CLIENTS_TIMEOUT, **named: Any
    ) -> None:
        """Call a method and want no answer; returns once the kernel has all of it. Otherwise as `call`.

        Whether the method did anything, or is there at all, will not be known.
        """
        remote = self._remote(method)
        waiting = self._waiting(remote, arguments, named, timeout)
        waiting.is_answered = False
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
                first = together[0]
                encoded = encode_arguments(remote, arguments, {})
                together.append(Waiting(first.method, encoded, first.context, first.deadline))
            else:
                together.append(self._waiting(remote, arguments, {}, timeout))
        return together

    def _finish(self, remote: RemoteMethod, link: Link, waiting: Waiting) -> Any:
        if waiting.answer is None:
            link.finish(waiting)
        answer = waiting.answer
        return remote.result(answer.result if type(answer) is Reply else self._exchange(remote, waiting, link))

    def describe(self) -> Description:
        """What the service tells of itself: its methods, their types and their documentation.

        It is asked once for each connection. Raises what `call` raises.
        """
        return self._describe(CLIENTS_TIMEOUT)

    def close(self) -> None:
        """End the connection, and wake every thread that waits for an answer; a second time does nothing.

        Those threads, and all calls from now on, get ConnectionClosed; OutcomeUnknown, which is one, if the call went
        out.
        """
        self._is_closed = True
        self._link = None
        links, self._links = self._links, []
        for link in links:
            link.close(_CLOSED)

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
        if link is None or not link.takes_calls:
            return remote.result(self._exchange(remote, waiting))
        link.make(waiting)
        answer = waiting.answer
        if type(answer) is not Reply:
            return remote.result(self._exchange(remote, waiting, link))
        try:
            return remote.decode(answer.result)
        except CannotDecode:
            return remote.result(answer.result)  # which says what it is the result of

    def _waiting(
        self,
        remote: RemoteMethod,
        positional: tuple[Any, ...],
        by_name: dict[str, Any],
        timeout: float | ClientTimeout | None,
    ) -> Waiting:
        """A call, ready to be sent."""
        seconds = self._timeout if timeout is CLIENTS_TIMEOUT else timeout
        context = b""
        if current_call.get() is not None:
            seconds = seconds_for(seconds)
            context = context_to_hand_on()
        deadline = Deadline(seconds)
        if positional and by_name:
            if remote.signature is None:
                described = self._describe(timeout).methods.get(remote.name)
                remote = remote_of(described) if described else remote
            encoded = encode_arguments(remote, positional, by_name)
        else:
            try:
                encoded = _encode(positional or by_name)
            except Exception:
                encoded = encode_arguments(remote, positional, by_name)  # which says what is wrong with them
        return Waiting(remote.name, encoded, context, deadline)

    def _exchange(self, remote: RemoteMethod, waiting: Waiting, link: Link | None = None) -> Payload:
        """Send a call, again where that does no harm, and give its encoded result; nothing, for a notification.

        Args:
            link: where it was made already, without a result.
        """
        was_sent = False
        tries = 0
        pause = 0.0
        while True:
            if waiting.answer is None:
                link = self._link
                if link is None or not link.takes_calls:
                    link = self._connect_again(waiting, was_sent=was_sent)
                link.make(waiting)
            assert link is not None
            answer = waiting.answer
            if type(answer) is Reply:
                return answer.result
            if answer is Outcome.SENT:
                return b""
            was_sent = was_sent or answer is Outcome.UNKNOWN
            tries += answer is Outcome.UNKNOWN or not link.is_greeted
            self._check_again(remote, waiting, link, was_sent=was_sent, is_last=tries >= _TRIES_MAX)
            time.sleep(min(pause, waiting.deadline.left()))
            pause = min(max(2 * pause, limits.DIAL_PAUSE_SECONDS_MIN), limits.DIAL_PAUSE_SECONDS_MAX)
            waiting = Waiting(waiting.method, waiting.arguments, waiting.context, waiting.deadline, waiting.is_answered)

    def _check_again(
        self, remote: RemoteMethod, waiting: Waiting, link: Link, *, was_sent: bool, is_last: bool
    ) -> None:
        """Raise unless a call that got no result may be made again.

        Args:
            was_sent: something of it went out, with this try or before.
            is_last: it was tried often enough.
        """
        answer = waiting.answer
        if isinstance(answer, Error):
            waiting.answer = None  # or it would keep the error alive, whose traceback keeps it alive
            raise answer
        if isinstance(answer, Failure) and (answer.code != codes.DRAINING or link.takes_calls):
            raise answered_error(waiting.method, answer)
        is_hopeless = self._is_closed or link.fault is not None or is_last
        if is_hopeless or (was_sent and not self._is_idempotent(remote, waiting.deadline)):
            raise lost(waiting.method, self.address, link.why, was_sent=was_sent) from link.fault

    def _is_idempotent(self, remote: RemoteMethod, deadline: Deadline) -> bool:
        """Whether a method may be called again: as the client's class says, or else the server that is there now."""
        if remote.is_idempotent is not None:
            return remote.is_idempotent
        try:
            described = self._describe(deadline.left()).methods.get(remote.name)
        except Error:
            return False
        return described is not None and described.idempotent

    def _connect_again(self, waiting: Waiting, *, was_sent: bool) -> Link:
        """A connection that takes calls; one thread makes it, and the others wait for that one.

        Args:
            was_sent: the call went out on a connection before.
        """
        left = waiting.deadline.left()
        try:
            if not self._dialling.acquire(timeout=-1 if left == math.inf else min(left, threading.TIMEOUT_MAX)):
                raise too_late(waiting.method, self.address, waiting.deadline.timeout or 0.0)
            link = self._link
            if link is not None and link.takes_calls:
                return link
            if self._is_closed:
                raise lost(waiting.method, self.address, _CLOSED, was_sent=was_sent)
            if isinstance(self._address, DescriptorAddress):
                raise lost(waiting.method, self.address, link.why if link else _CLOSED, was_sent=was_sent)
            link = self._dial(waiting.deadline)
            self._links = [*(known for known in self._links if not known.is_over), link]
            self._link = link
            if self._is_closed:  # meanwhile
                self.close()
            return link
        except Unavailable as error:
            raise lost(waiting.method, self.address, str(error), was_sent=was_sent) from error
        finally:
            with contextlib.suppress(RuntimeError):  # it is not ours, as the time was over, or we were interrupted
                self._dialling.release()

    def _dial(self, deadline: Deadline) -> Link:
        left = deadline.left()
        wait = min(self._wait, left)
        return Link(dial(self._address, wait=wait, timeout=left - wait, trust=self._trust))

    # What the service says of itself.

    def _describe(self, timeout: float | ClientTimeout | None) -> Description:
        link, known = self._link, self._description
        if known is not None and known[0] is link and link.takes_calls:
            return known[1]
        encoded = self._exchange(_DESCRIBE, self._waiting(_DESCRIBE, (), {}, timeout))
        try:
            description = read_description(encoded)
        except CannotDecode as error:
            raise InvalidResult(f"{self.address} does not describe itself as a service does: {error}") from error
        if link is not None and link is self._link:
            self._description = link, description
        return description

    def _described(self, method: str) -> MethodDescription | None:
        """What the service says of a method; None if it says nothing, or nothing soon."""
        try:
            return self._describe(_ASK_SECONDS).methods.get(method)
        except Error:
            return None

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"server {self.peer}" if self.peer else "not connected"
        return f"<{type(self).__name__} of {self.address}, {state}>"

    def _after_fork(self) -> None:
        """In a child, leave the connections and the threads to the parent."""
        self._dialling = threading.RLock()
        links, self._links, self._link = self._links, [], None
        for link in links:
            link.forget()

    def __del__(self) -> None:
        if not getattr(self, "_is_closed", True):
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)
            self.close()


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


_DESCRIBE = RemoteMethod(DESCRIBE, is_idempotent=True)

AClient = TypeVar("AClient", bound=Client)


@overload
def connect(
    address: str | os.PathLike[str] | Address,
    *,
    wait: float = ...,
    timeout: float | None = ...,
    trust: Policy | None = ...,
) -> AnyClient: ...


@overload
def connect(
    address: str | os.PathLike[str] | Address,
    interface: type[AClient],
    *,
    wait: float = ...,
    timeout: float | None = ...,
    trust: Policy | None = ...,
) -> AClient: ...


def connect(
    address: str | os.PathLike[str] | Address,
    interface: type[Client] = AnyClient,
    *,
    wait: float = 0.0,
    timeout: float | None = limits.CALL_SECONDS,
    trust: Policy | None = None,
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

    Raises:
        AddressError: the address is none, or leads to something that is not such a socket.
        Unavailable: nobody listens there.
        NotPermitted: the modes on the path keep this user out.
        UntrustedServer: somebody else serves there.
        DeadlineExceeded: the backlog stayed full.
        UsageError: the interface is no such class.
    """
    if not (isinstance(interface, type) and issubclass(interface, Client)):
        raise UsageError(f"{interface!r} is not a class made from samehost.Client")
    return interface(address, wait=wait, timeout=timeout, trust=trust)


_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def _after_fork() -> None:
    for client in list(_clients):
        client._after_fork()  # noqa: SLF001 - of this module


os.register_at_fork(after_in_child=_after_fork)
