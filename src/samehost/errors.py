"""Every error that samehost raises on purpose, under one root.

The branches tell whose move is next. `UsageError` is the caller's own mistake, `ClaimError` an address that cannot be
taken, `Unavailable`, `NotPermitted` and `DeadlineExceeded` what a client meets, `CallError` what a called method
answers, `PeerError` a peer that broke the rules. Each is also the built-in exception that people already catch for it,
so `except TimeoutError` works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from samehost.limits import ERROR_CODE_BYTES_MAX

if TYPE_CHECKING:
    from samehost.peer import Peer


class Error(Exception):
    """The root: whatever samehost raises on purpose is one of these."""


class UsageError(Error, ValueError):
    """The caller asked for something that cannot be meant."""


class AddressError(UsageError):
    """The address is not one: the message says what is wrong with it."""


class PolicyError(UsageError):
    """A policy that cannot be: an unknown user or group, or no condition at all."""


class MessageTooLarge(UsageError):
    """A message, or its number of files, is over the limit; nothing was sent."""


class ClaimError(Error, OSError):
    """The address cannot be taken; nothing was left behind."""


class AddressInUse(ClaimError):
    """A living socket, or a server that is about to open one, has the address."""


class NotASocket(ClaimError):
    """Something that is not a socket is at the path; it was not touched."""


class Unavailable(Error, ConnectionError):
    """Nobody listens at the address."""


class ArenaFull(Error, MemoryError):
    """The memory for blobs is all in use, here or by those that were sent some; it comes back when they are done."""


class ConnectionClosed(Error, ConnectionError):
    """The connection has ended, here or at the other end, before the operation was done."""


class ListenerClosed(Error):
    """The listener was closed, before or during the call."""


class NotPermitted(Error, PermissionError):
    """The kernel or a policy says no.

    Attributes:
        method: the method that was called, if its service said so; empty otherwise.
    """

    method: str = ""


class UntrustedServer(NotPermitted):
    """Somebody else than expected answers at the address; nothing was sent to them.

    Attributes:
        peer: the server as the kernel reports it.
    """

    def __init__(self, message: str, peer: Peer) -> None:
        super().__init__(message)
        self.peer = peer


class DeadlineExceeded(Error, TimeoutError):
    """The time given for the operation is over."""


class ReceiverFull(Error):
    """The receiver does not read: its queue stayed full for as long as we were willing to try."""


class PeerError(Error):
    """The peer broke the rules; its connection is shut."""


class UnexpectedFiles(PeerError):
    """The peer passed more files than were asked for; all of them are closed."""


class ForbiddenMessage(PeerError):
    """A datagram or packet longer than the receiver's limit."""


class BadBlob(PeerError):
    """A blob of the peer's is in memory of the wrong kind or size, or memory that could shrink or change; not read.

    Attributes:
        code: as PROTOCOL.md section 12 has it.
    """

    code = "bad_blob"


class LocalProtocolError(UsageError):
    """This end asked its connection for a step that the protocol does not have there; nothing was sent."""


class RemoteProtocolError(PeerError):
    """The peer sent what the protocol does not have there; the connection is over.

    Attributes:
        code: one of the codes of PROTOCOL.md section 12.
    """

    def __init__(self, message: str, code: str = "protocol_error") -> None:
        super().__init__(message)
        self.code = code


class SignatureError(UsageError):
    """A function that cannot be served as it is declared: the message names the parameter."""


class Unsent(ConnectionClosed):
    """The call never reached the server, and nothing was done: it can be made again, whatever it does."""


class OutcomeUnknown(ConnectionClosed):
    """The call was sent and its answer never came: it may or may not have been done."""


class InvalidResult(PeerError):
    """The server's answer is not of the type that the client's class declares for it."""


class CallError(Error):
    """The call was answered with an error.

    Attributes:
        code: what went wrong, for programs; PROTOCOL.md section 12, or a code of the service's own.
        message: the same, for people.
        data: more about it, as builtin types; None if there is nothing.
        error_id: under which the server has logged it; empty if it has not.
        method: the method that was called; empty where it is being raised.
    """

    code: str = "failed"
    message: str = ""  # these stand for what an __init__ leaves out that does not call the one below
    data: object = None
    error_id: str = ""
    method: str = ""

    def __init__(
        self, message: str = "", *, code: str = "", data: object = None, error_id: str = "", method: str = ""
    ) -> None:
        super().__init__(message)
        self.code = code or type(self).code
        self.message = str(message)  # of the exception that some people give
        self.data = data
        self.error_id = error_id
        self.method = method

    def __str__(self) -> str:
        parts = [f"{self.method}: " if self.method else "", self.message or self.code]
        if self.error_id:
            parts.append(f" (the server's log has it under {self.error_id})")
        return "".join(parts)

    def __reduce__(self) -> tuple[object, ...]:
        # As the keyword-only arguments of BaseException's own way would be lost, and with them a pickled error.
        return _revive, (type(self), self.args, vars(self))


def _revive(kind: type[CallError], args: tuple[object, ...], attributes: dict[str, object]) -> CallError:
    error = blank(kind)
    error.args = args
    vars(error).update(attributes)
    return error


CallErrorKind = TypeVar("CallErrorKind", bound=CallError)


def blank(kind: type[CallErrorKind]) -> CallErrorKind:
    """An error of this class, made without its own `__new__` and `__init__`, whose arguments only its author knows."""
    error: CallErrorKind = Exception.__new__(kind)
    return error


class ServiceError(CallError):
    """What a method says no with: raised in the handler, and again, with code, message and data, at the caller.

    A subclass with a `code` of its own is raised at callers as that subclass, wherever they have imported it::

        class NoSuchKey(samehost.ServiceError):
            code = "kv.no_such_key"

    Raises:
        UsageError: (when a subclass is made) the code is not one, or belongs to another class.
    """

    def __init__(self, message: str = "", *, code: str = "", data: object = None, **received: str) -> None:
        super().__init__(message, code=code, data=data, **received)
        check_code(self.code)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "code" in vars(cls):
            check_code(cls.code)
            if cls.code in _SAMEHOSTS_CODES:
                raise UsageError(f"{cls.__qualname__}: the code {cls.code!r} is samehost's own, and callers know it so")
            known = service_errors.setdefault(cls.code, cls)
            if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                raise UsageError(f"{cls.__qualname__}: the code {cls.code!r} is {known.__qualname__}'s")
            service_errors[cls.code] = cls  # a module that was loaded again


service_errors: dict[str, type[ServiceError]] = {}
"""The subclasses of ServiceError that have a code of their own, by that code."""


_SAMEHOSTS_CODES = frozenset(
    {
        "parse_error",
        "invalid_request",
        "method_not_found",
        "invalid_arguments",
        "internal",
        "failed",
        "busy",
        "cancelled",
        "deadline_exceeded",
        "not_permitted",
        "too_large",
        "unavailable",
        "draining",
        "wrong_shape",
        "protocol_error",
        "unexpected_descriptors",
        "bad_blob",
        "too_slow",
        "version_refused",
    }
)
"""PROTOCOL.md section 12."""


def check_code(code: object) -> None:
    """Raise UsageError if an error cannot have this code."""
    if not (isinstance(code, str) and code.isascii() and code.isprintable() and 0 < len(code) <= ERROR_CODE_BYTES_MAX):
        raise UsageError(f"code={code!r}: a code has from 1 to {ERROR_CODE_BYTES_MAX} printable ASCII characters")


class InvalidArguments(CallError, ValueError):
    """The arguments are not what the method takes; the message names the place, as in `$.zone: expected str`."""

    code = "invalid_arguments"


class MethodNotFound(CallError):
    """The service has no such method."""

    code = "method_not_found"


class InternalError(CallError):
    """The method broke; what happened is in the server's log, under the error's id."""

    code = "internal"


class Busy(CallError):
    """Too many calls at a time; this one was not begun."""

    code = "busy"


class Cancelled(CallError):
    """The method was cancelled at the server's end."""

    code = "cancelled"


class WrongShape(CallError):
    """A stream where the method takes or gives none, or none where it does."""

    code = "wrong_shape"
