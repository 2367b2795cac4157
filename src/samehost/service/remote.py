"""A method as its callers know it: a function of a client's class, read as the server reads its own.

The body of such a function never runs: calling it makes a call. What this module does not know is how; the front ends
pass that in.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from samehost.codec import MSGPACK, CannotDecode, Decode, explained
from samehost.errors import InvalidResult, SignatureError, UsageError
from samehost.extensions import BLOBS, FILES, holds_more, kinds_in
from samehost.protocol import ITEMS_FOLLOW, ITEMS_WANTED

if TYPE_CHECKING:
    from samehost.service.signature import Signature

Function = TypeVar("Function", bound=Callable[..., Any])

_IDEMPOTENT = "_samehost_is_idempotent"
_NAME = "_samehost_name"


class RemoteClient(Protocol):
    """A client, whose class declares methods."""

    remote_methods: ClassVar[dict[str, RemoteMethod]]


class RemoteMethod:
    """One method of a server, with what is known of it here.

    Attributes:
        name: what it is called by.
        signature: its contract.
        is_idempotent: it may be called again when an answer got lost; None if only the server knows.
        decode: reads an encoded result in the fewest steps; raises whatever it does if it is of another type.
        decode_item: reads an encoded item of the stream that it answers with; raises CannotDecode then.
        flags: those of its calls, as far as they do not depend on the arguments. ITEMS_WANTED is among them where only
            the server knows whether it answers with a stream.
        is_stream: whether it answers with a stream; None if only the server knows.
        kinds: what its results and items may hold, as `extensions.kinds_in` says.
        may_send_blobs: its arguments may hold blobs.
        is_plain: its arguments are no stream, and hold nothing that has to be a file or a blob, as far as is known.
    """

    __slots__ = (
        "decode",
        "decode_item",
        "flags",
        "is_idempotent",
        "is_plain",
        "is_stream",
        "kinds",
        "may_send_blobs",
        "name",
        "signature",
    )

    def __init__(
        self,
        name: str,
        contract: Signature | None = None,
        decode: Decode | None = None,
        is_idempotent: bool | None = None,
        decode_item: Decode | None = None,
    ) -> None:
        self.name = name
        self.signature = contract
        self.decode: Decode = decode or _ANY_RESULT_RAW
        self.is_idempotent = is_idempotent
        self.decode_item: Decode = decode_item or ANY_RESULT
        self.is_stream: bool | None = None
        self.flags: int = ITEMS_WANTED
        self.kinds = FILES | BLOBS
        self.may_send_blobs = self.is_plain = True
        if contract is not None:
            from samehost.service.signature import NoStream

            self.is_stream = contract.items_out is not NoStream
            self.flags = ITEMS_WANTED * self.is_stream | ITEMS_FOLLOW * (contract.items_in is not NoStream)
            self.may_send_blobs = any(kinds_in(parameter.kind) & BLOBS for parameter in contract.parameters)
            self.is_plain = not (self.flags & ITEMS_FOLLOW or any(holds_more(one.kind) for one in contract.parameters))
            self.kinds = kinds_in(contract.result) | (kinds_in(contract.items_out) if self.is_stream else 0)

    def take_items(
        self, positional: tuple[Any, ...], by_name: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        """Take the stream that the caller sends out of the arguments.

        Returns:
            The other arguments, by position and by name, and the stream; None without one.

        Raises:
            UsageError: there are two of them, or none where the method takes one.
        """
        if self.signature is None:
            places: list[Any] = [index for index, value in enumerate(positional) if _is_iterator(value)]
            places += [name for name, value in by_name.items() if _is_iterator(value)]
            if len(places) > 1:
                raise UsageError(f"{self.name}: {len(places)} arguments are iterators, and a call streams one at most")
        else:
            places = self._place_of_items(positional, by_name)
        if not places:
            return positional, by_name, None
        if isinstance(places[0], str):
            return positional, {name: value for name, value in by_name.items() if name != places[0]}, by_name[places[0]]
        index = places[0]
        return (*positional[:index], *positional[index + 1 :]), by_name, positional[index]

    def _place_of_items(self, positional: tuple[Any, ...], by_name: dict[str, Any]) -> list[Any]:
        """Where the declared stream is among the arguments: an index or a name."""
        from samehost.service.signature import Items

        assert self.signature is not None
        name = self.signature.stream_parameter
        if not name:
            return []
        if name in by_name:
            return [name]
        names = [
            name
            for name, filled_in, is_keyword_only in self.signature.layout
            if filled_in in (None, Items) and not is_keyword_only
        ]
        if name in names and names.index(name) < len(positional):
            return [names.index(name)]
        raise UsageError(f"{self.name}{self.signature.text}: {name} is missing, the items to send")

    def arguments(self, positional: tuple[Any, ...], by_name: dict[str, Any]) -> Any:
        """What to encode: a list by position, or a dict by name.

        Raises:
            UsageError: some are by position and some by name, and only the server knows which is which.
        """
        if not positional:
            return by_name
        if not by_name:
            return positional
        if self.signature is None:
            raise UsageError(f"{self.name}: give all arguments by position, or all by name")
        names = [parameter.name for parameter in self.signature.parameters if not parameter.is_keyword_only]
        given = dict(zip(names, positional, strict=False))
        if len(positional) > len(names) or given.keys() & by_name:
            raise UsageError(f"{self.name}{self.signature.text}: too many arguments, or one of them twice")
        return {**given, **by_name}

    def result(self, encoded: Any) -> Any:
        """The result that was answered.

        Raises:
            InvalidResult: it is not of the declared type.
        """
        try:
            return self.decode(encoded)
        except Exception as error:  # a type's own check, such as __post_init__, raises what it likes
            raise InvalidResult(f"the result of {self.name} is not of its declared type: {explained(error)}") from error

    def item(self, encoded: Any) -> Any:
        """An item that was streamed.

        Raises:
            InvalidResult: it is not of the declared type.
        """
        try:
            return self.decode_item(encoded)
        except CannotDecode as error:
            raise InvalidResult(f"an item of {self.name} is not of its declared type: {error}") from error


def kinds_wanted(methods: Mapping[str, RemoteMethod]) -> int:
    """What a client has to be able to take that declares these methods: files and blobs if any of them has some.

    One that declares none calls any.
    """
    return FILES | BLOBS if not methods or any(remote.kinds for remote in methods.values()) else 0


def _is_iterator(value: Any) -> bool:
    """Whether a value is a stream, where no type says so: an open file is none, although it can be iterated."""
    return isinstance(value, Iterator | AsyncIterator) and not hasattr(value, "fileno")


ANY_RESULT = MSGPACK.decode_to(Any)
_ANY_RESULT_RAW = MSGPACK.decode_raw_to(Any)


def idempotent(function: Function) -> Function:
    """Declare that a method may be called again when an answer got lost; a decorator.

    It is for the methods of a client's class. On a service's own method it means what `idempotent=True` means.
    """
    setattr(function, _IDEMPOTENT, True)
    return function


def is_declared_idempotent(function: Callable[..., Any]) -> bool | None:
    """Whether `idempotent` was said of a function; None if it was not."""
    return getattr(function, _IDEMPOTENT, None)


def named(name: str) -> Callable[[Function], Function]:
    """Declare, in a client's class, that a method is called by another name than the function's; a decorator."""
    if not isinstance(name, str):
        raise UsageError(f"{name!r} is no name: give it in parentheses, as in @samehost.named('kv.get')")

    def decorate(function: Function) -> Function:
        setattr(function, _NAME, name)
        return function

    return decorate


def declare_methods(
    owner: type, reserved: Iterable[str], *, is_async: bool, call: Callable[..., Any]
) -> dict[str, RemoteMethod]:
    """Turn the public functions in the body of a client's class into calls.

    Args:
        owner: the class.
        reserved: names that the class has from elsewhere, which a method would hide.
        is_async: whether they have to be `async def`, and what they stream an AsyncIterator.
        call: makes a call: `call(client, remote_method, positional, by_name)`.

    Raises:
        SignatureError: one of them cannot be called so.
    """
    methods: dict[str, RemoteMethod] = {}
    taken = set(reserved)
    for attribute, function in list(vars(owner).items()):
        if attribute.startswith("_") or not isinstance(function, FunctionType):
            continue
        from samehost.service import signature

        where = f"{owner.__qualname__}.{attribute}"
        if attribute in taken:
            raise SignatureError(
                f"{where} would hide what every client has: call it otherwise, with @samehost.named({attribute!r})"
            )
        contract = signature.read(function, is_bound=True)
        if contract.runs_on_loop != is_async:
            raise SignatureError(f"{where} {_how_to_declare(contract, is_async=is_async)}")
        remote = RemoteMethod(
            getattr(function, _NAME, attribute),
            contract,
            # An AsyncIterator has no way to declare the value at the end, which the server's generator may give.
            MSGPACK.decode_raw_to(_result_of(contract)),
            is_declared_idempotent(function),
            None if contract.items_out is signature.NoStream else MSGPACK.decode_to(contract.items_out),
        )
        methods[remote.name] = remote
        setattr(owner, attribute, _caller(function, remote, call))
    return methods


def _result_of(contract: Signature) -> Any:
    """The type of the result; anything at the end of a stream that does not say, as most iterators cannot."""
    from samehost.service.signature import NoStream

    is_untold = contract.items_out is not NoStream and contract.result is type(None)
    return Any if is_untold else contract.result


def _how_to_declare(contract: Signature, *, is_async: bool) -> str:
    from samehost.service.signature import NoStream

    if contract.items_out is not NoStream:
        kind = "an AsyncIterator" if is_async else "an Iterator"
        return f"gives a stream of the other kind: this class of client gets {kind}"
    kinds = ("a def", "an async def") if is_async else ("an async def", "a def")
    return f"is {kinds[0]}: this class of client calls by {kinds[1]}"


def _caller(function: Callable[..., Any], remote: RemoteMethod, call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def calling(self: Any, /, *positional: Any, **by_name: Any) -> Any:
        return call(self, remote, positional, by_name)

    return calling
