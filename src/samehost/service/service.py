"""A service: a named set of methods, declared once and served any number of times."""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from samehost import limits
from samehost.errors import SignatureError, UsageError
from samehost.peer import Policy
from samehost.service.method import Method, check_name
from samehost.service.topic import DROP, Topic

if TYPE_CHECKING:
    from samehost.service.remote import RemoteClient
    from samehost.service.signature import Signature

Function = TypeVar("Function", bound=Callable[..., Any])
Lifespan = Callable[[], "AbstractAsyncContextManager[Any] | AsyncIterator[Any]"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class Service:
    """A named set of typed functions that other processes on this host can call.

    Args:
        name: letters, digits, `-` and `_`. It stands for the address as well, unless another one is given to `serve`.
        interface: a class made from `samehost.Client` or `samehost.aio.Client` that says what the methods look like;
            each method declared under a name that it has must match, and all of them must be there to be served.
        allow: who may connect. Without it the socket's mode decides; an abstract address admits this user and root.

    Raises:
        UsageError: a name that cannot be one.

    ::

        clock = samehost.Service("clock")

        @clock.method
        async def now(zone: str = "UTC") -> datetime: ...
    """

    def __init__(self, name: str, interface: type[RemoteClient] | None = None, *, allow: Policy | None = None) -> None:
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            raise UsageError(f"{name!r} cannot be a service's name: letters, digits, - and _, a letter or digit first")
        if allow is not None and not isinstance(allow, Policy):
            raise UsageError(f"allow={allow!r} is not a policy: make one with samehost.allow(user=…)")
        if interface is not None and not hasattr(interface, "remote_methods"):
            raise UsageError(f"interface={interface!r} is not a class made from samehost.Client or samehost.aio.Client")
        self.name = name
        self.allow = allow
        self._interface = interface
        self._methods: dict[str, Method] = {}
        self._topics: dict[str, Topic] = {}
        self._lifespan: Lifespan | None = None

    @property
    def methods(self) -> Mapping[str, Method]:
        """The methods declared so far, by name."""
        return MappingProxyType(self._methods)

    @property
    def topics(self) -> Mapping[str, Topic]:
        """The topics declared so far, by name."""
        return MappingProxyType(self._topics)

    @overload
    def method(self, function: Function, /) -> Function: ...

    @overload
    def method(
        self,
        /,
        *,
        name: str | None = None,
        allow: Policy | None = None,
        inline: bool = False,
        idempotent: bool = False,
        timeout: float | None = None,
        errors: Mapping[type[Exception], str] | None = None,
    ) -> Callable[[Function], Function]: ...

    def method(self, function: Function | None = None, /, *, name: str | None = None, **options: Any) -> Any:
        """Declare a function as a method; a decorator, with options or without.

        Annotations are the contract: arguments are checked against them before the function is called. A parameter
        annotated with `samehost.Peer` or `samehost.Call` is filled in and not sent. An `async def` runs on the loop, a
        `def` in a thread of a bounded pool. A generator streams what it yields; a parameter annotated as an iterator
        takes what the caller streams. Both are `AsyncIterator[…]` for an `async def`, and `Iterator[…]` for a `def`.

        Args:
            name: what it is called by; its own name if none is given.
            allow: who may call it, of those who may connect.
            inline: run this `def` on the loop, because it is done within microseconds and waits for nothing.
            idempotent: it may be called twice without harm, so that a client may do so when an answer got lost. The
                decorator `samehost.idempotent` says the same.
            timeout: the most seconds that a call may take, however long its caller would wait.
            errors: exceptions of any class and the codes under which they cross, with their text as the message, as in
                `errors={KeyError: "kv.no_such_key"}`. `ServiceError` crosses anyway, and so do `InvalidArguments`,
                `Busy`, `Cancelled` and `NotPermitted` that the method raises itself; all others are `internal`.

        Returns:
            The function, as it was.

        Raises:
            SignatureError: it cannot be served like this; the message names the parameter.
            UsageError: an option or a name that cannot be.
        """
        if function is None:
            return lambda function: self._declare(function, name, options)
        return self._declare(function, name, options)

    def _declare(self, function: Function, name: str | None, options: dict[str, Any]) -> Function:
        if not callable(function):
            raise UsageError(f"{function!r} is not a function: the options of method() are given by their names")
        called = getattr(function, "__name__", None) if name is None else name
        if called is None:
            raise UsageError(f"{function!r} has no name of its own: say what it is called by, with name=")
        check_name(called, (*self._methods, *self._topics))
        method = Method(function, called, **options)
        if self._interface is not None and called in self._interface.remote_methods:
            _check_against(method, self._interface)
        self._methods[called] = method
        return function

    def topic(
        self,
        name: str,
        kind: Any = Any,
        *,
        queue: int = limits.TOPIC_ITEMS,
        slow: str = DROP,
        allow: Policy | None = None,
        doc: str = "",
    ) -> Topic:
        """Declare a topic, whose `publish` hands a value to all who subscribe, and waits for none of them.

        Clients subscribe with `client.subscribe(name)`, or call it as a method that streams.

        Args:
            name: as a method's.
            kind: the type of its items.
            queue: how many items are kept for a subscriber who does not read.
            slow: what becomes of one whose queue is full: "drop", the oldest item goes, and is counted; "disconnect",
                the subscription ends with the error `too_slow`.
            allow: who may subscribe, of those who may connect.
            doc: what `samehost describe` says of it.

        Raises:
            SignatureError: values of this type cannot travel.
            UsageError: an option or a name that cannot be.
        """
        check_name(name, (*self._methods, *self._topics))
        topic = Topic(name, kind, queue=queue, slow=slow, allow=allow, doc=inspect.cleandoc(doc))
        if self._interface is not None and name in self._interface.remote_methods:
            _check_against(topic, self._interface)
        self._topics[name] = topic
        return topic

    def lifespan(self, function: Lifespan) -> Lifespan:
        """Declare what to do before the first call and after the last; a decorator.

        Args:
            function: takes nothing, and is an async generator that yields once, or returns an async context manager.
                What it yields is `Call.state` in every method.

        Raises:
            UsageError: there is one already, or it is none.
        """
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise UsageError(f"{function!r} is no lifespan: write an async def that yields once")
        if self._lifespan is not None:
            raise UsageError(f"the service {self.name} has a lifespan already")
        self._lifespan = function
        return function

    @asynccontextmanager
    async def new_lifespan(self) -> AsyncIterator[Any]:
        """What one run of the service happens in. What the lifespan itself raises gets `lifespan_note`."""
        other: BaseException | None = None
        try:
            async with self._lifespan_context() as state:
                try:
                    yield state
                except BaseException as error:
                    other = error  # of the run, and not of the lifespan
                    raise
        except Exception as error:
            if error is not other:
                error.add_note(self.lifespan_note)
            raise
        finally:
            other = None  # it leads to this frame, and the two would keep each other

    @property
    def lifespan_note(self) -> str:
        """The note that is added to an exception of the lifespan."""
        return f"raised by the lifespan of the service {self.name}"

    def _lifespan_context(self) -> AbstractAsyncContextManager[Any]:
        if self._lifespan is None:
            return nullcontext()
        if inspect.isasyncgenfunction(self._lifespan):
            return asynccontextmanager(self._lifespan)()
        return cast("AbstractAsyncContextManager[Any]", self._lifespan())

    def check_complete(self) -> None:
        """Raise UsageError if a method of the interface has not been declared."""
        if self._interface is None:
            return
        missing = [name for name in self._interface.remote_methods if name not in {**self._methods, **self._topics}]
        if missing:
            raise UsageError(
                f"the service {self.name} lacks {', '.join(missing)}, which {self._interface.__qualname__} has"
            )

    def __repr__(self) -> str:
        return f"<Service {self.name}: {', '.join((*self._methods, *self._topics)) or 'no methods yet'}>"


def _check_against(method: Method | Topic, interface: type[RemoteClient]) -> None:
    """Raise SignatureError unless a method is what the interface says of it."""
    wanted = interface.remote_methods[method.name].signature
    assert wanted is not None  # as the class has read it
    found = method.signature
    where = f"{method.name} is not as {interface.__qualname__} declares it"
    difference = f"{found.text}, not {wanted.text}" if found.text != wanted.text else "not with these limits"
    for theirs, ours in zip(wanted.parameters, found.parameters, strict=False):
        if theirs != ours:
            raise SignatureError(f"{where}: parameter {theirs.name!r}: {difference}")
    if len(wanted.parameters) != len(found.parameters) or _rest_of(wanted) != _rest_of(found):
        raise SignatureError(f"{where}: {difference}")


def _rest_of(contract: Signature) -> tuple[Any, ...]:
    """What two contracts have to agree in beside their parameters."""
    return contract.result, contract.items_out, contract.items_in, contract.stream_parameter
