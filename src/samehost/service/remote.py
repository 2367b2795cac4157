"""A method as its callers know it: a function of a client's class, read as the server reads its own.

The body of such a function never runs: calling it makes a call. What this module does not know is how; the front ends
pass that in.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from samehost.codec import MSGPACK, CannotDecode, Decode
from samehost.errors import InvalidResult, SignatureError, UsageError
from samehost.service import signature

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
        decode: reads an encoded result, and raises CannotDecode if it is of another type.
    """

    __slots__ = ("decode", "is_idempotent", "name", "signature")

    def __init__(
        self,
        name: str,
        contract: Signature | None = None,
        decode: Decode | None = None,
        is_idempotent: bool | None = None,
    ) -> None:
        self.name = name
        self.signature = contract
        self.decode: Decode = decode or ANY_RESULT
        self.is_idempotent = is_idempotent

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
        except CannotDecode as error:
            raise InvalidResult(f"the result of {self.name} is not of its declared type: {error}") from error


ANY_RESULT = MSGPACK.decode_to(Any)


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
        is_async: whether they have to be `async def`.
        call: makes a call: `call(client, remote_method, positional, by_name)`.

    Raises:
        SignatureError: one of them cannot be called so.
    """
    methods: dict[str, RemoteMethod] = {}
    taken = set(reserved)
    for attribute, function in list(vars(owner).items()):
        if attribute.startswith("_") or not inspect.isfunction(function):
            continue
        where = f"{owner.__qualname__}.{attribute}"
        if attribute in taken:
            raise SignatureError(
                f"{where} would hide what every client has: call it otherwise, with @samehost.named({attribute!r})"
            )
        if inspect.iscoroutinefunction(function) != is_async:
            kind = ("a def", "an async def") if is_async else ("an async def", "a def")
            raise SignatureError(f"{where} is {kind[0]}: this class of client calls by {kind[1]}")
        contract = signature.read(function, is_bound=True)
        remote = RemoteMethod(
            getattr(function, _NAME, attribute),
            contract,
            MSGPACK.decode_to(contract.result),
            is_declared_idempotent(function),
        )
        methods[remote.name] = remote
        setattr(owner, attribute, _caller(function, remote, call))
    return methods


def _caller(function: Callable[..., Any], remote: RemoteMethod, call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def calling(self: Any, /, *positional: Any, **by_name: Any) -> Any:
        return call(self, remote, positional, by_name)

    return calling
