"""One method of a service: a function, the contract that its annotations are, and what was declared beside them."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from samehost.codec import CODECS
from samehost.errors import SignatureError, UsageError, check_code
from samehost.limits import METHOD_BYTES_MAX
from samehost.peer import Policy
from samehost.protocol import ITEMS_FOLLOW, ITEMS_WANTED
from samehost.service import arguments, signature
from samehost.service.remote import is_declared_idempotent
from samehost.service.signature import NoStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from samehost.service.signature import Signature


class Method:
    """A function that callers reach.

    Attributes:
        name: what it is called by.
        function: what was declared.
        signature: its contract.
        doc: its docstring, empty if it has none.
        allow: the policy on its callers; None for that of the service alone.
        is_async: it is an `async def`, or gives an asynchronous iterator, and runs on the loop.
        is_inline: it is a `def` that runs on the loop, and not in a thread.
        shape: the flags that a call of it must have: ITEMS_FOLLOW if it takes a stream, ITEMS_WANTED if it gives one.
        timeout: the most seconds that a call may take, whatever its caller says; None for what the caller says.
        errors: exceptions that cross under a code of their own.
        read: by the name of a codec, a function that reads encoded arguments.
        read_item: by the name of a codec, a function that reads an item of the stream that comes in; empty without one.
        invoke: calls the function with arguments that were read.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        *,
        allow: Policy | None = None,
        inline: bool = False,
        idempotent: bool = False,
        timeout: float | None = None,
        errors: Mapping[type[Exception], str] | None = None,
    ) -> None:
        self.name = name
        self.function = function
        self.signature: Signature = signature.read(function)
        body = signature.body_of(function)
        self.doc = inspect.getdoc(body) or ""
        self.allow = allow
        self.is_async = self.signature.runs_on_loop
        self.is_inline = inline
        self._is_idempotent = idempotent
        self.timeout = timeout
        self.errors = dict(errors or {})
        items_in, items_out = self.signature.items_in, self.signature.items_out
        self.shape = ITEMS_FOLLOW * (items_in is not NoStream) | ITEMS_WANTED * (items_out is not NoStream)
        self._check()
        self.read = {codec.name: arguments.reader(self.signature, codec) for codec in CODECS.values()}
        self.read_item = (
            {codec.name: codec.decode_to(items_in) for codec in CODECS.values()} if self.shape & ITEMS_FOLLOW else {}
        )
        self.invoke = arguments.invoker(function, self.signature)

    @property
    def is_idempotent(self) -> bool:
        """Whether a call may be made twice without harm."""
        # Looked up when it is asked for, as the decorator may stand above that of the service.
        return self._is_idempotent or bool(is_declared_idempotent(self.function))

    def _check(self) -> None:
        if self.allow is not None and not isinstance(self.allow, Policy):
            raise UsageError(f"{self.name}: allow={self.allow!r} is not a policy: make one with samehost.allow(user=…)")
        if self.is_inline and self.is_async:
            raise SignatureError(f"{self.name}: inline=True is for a def; an async def runs on the loop anyway")
        if self.is_inline and self.shape & ITEMS_FOLLOW:
            raise SignatureError(f"{self.name}: inline=True cannot wait for a stream on the loop: make it an async def")
        if self.timeout is not None and not (isinstance(self.timeout, int | float) and self.timeout > 0):
            raise UsageError(f"{self.name}: timeout={self.timeout!r} is not a number of seconds above 0")
        for kind, code in self.errors.items():
            if not (isinstance(kind, type) and issubclass(kind, Exception)):
                raise UsageError(
                    f"{self.name}: errors= is a dict from exceptions to codes, and {kind!r} is no exception"
                )
            try:
                check_code(code)
            except UsageError as error:
                raise UsageError(f"{self.name}: {error}") from error

    def __repr__(self) -> str:
        return f"<Method {self.name}{self.signature.text}>"


def check_name(name: str, others: Iterable[str]) -> None:
    """Raise UsageError if a method cannot be called so."""
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name.encode()) <= METHOD_BYTES_MAX:
        raise UsageError(f"{name!r} cannot be a method's name: 1 to {METHOD_BYTES_MAX} bytes of printable text")
    if name.startswith(("$/", "samehost.")):
        raise UsageError(f"{name!r} cannot be a method's name: what begins with $/ or samehost. is samehost's own")
    if name in others:
        raise UsageError(f"the service has a method {name!r} already")
