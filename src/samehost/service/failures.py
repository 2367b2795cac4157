"""Errors on their way: from what a method raises to a code and a message, and from those to what the caller raises.

PROTOCOL.md section 12. What a method did not mean to say never leaves the server: it is `internal`, with an id under
which the server has logged it.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from samehost.errors import (
    Busy,
    CallError,
    Cancelled,
    DeadlineExceeded,
    Error,
    InternalError,
    InvalidArguments,
    MessageTooLarge,
    MethodNotFound,
    NotPermitted,
    OutcomeUnknown,
    ServiceError,
    Unsent,
    UsageError,
    WrongShape,
    blank,
    check_code,
    service_errors,
)
from samehost.protocol import codes

if TYPE_CHECKING:
    from collections.abc import Mapping


class Failure(NamedTuple):
    """What an error says across.

    Attributes:
        data: more about it, not encoded yet; None for nothing.
        error_id: under which it has to be logged; empty if it is the caller's concern alone.
    """

    code: str
    message: str
    data: Any = None
    error_id: str = ""


def failure_of(error: BaseException, declared: Mapping[type[Exception], str]) -> Failure:
    """What to answer when a method raised this.

    Args:
        declared: exceptions that the method is known to raise, and their codes.
    """
    with contextlib.suppress(Exception):  # an error that cannot even say what it is
        is_own = _is_own(error)
        if isinstance(error, ServiceError) or (is_own and isinstance(error, _SAID)):
            check_code(error.code)
            return Failure(error.code, str(error.message), error.data)
        if is_own and type(error) is NotPermitted:
            return Failure(codes.NOT_PERMITTED, str(error))
        for kind in type(error).__mro__:
            if kind in declared and (is_own or issubclass(kind, Error)):
                return Failure(declared[kind], _text_of(error))
    return broken("the method failed")


def _is_own(error: BaseException) -> bool:
    """Whether a method may have meant its own caller with this, and not met it in a call or a connection of its own."""
    if not isinstance(error, CallError | NotPermitted):
        return True
    if error.method:
        return False  # another service has answered with it
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is None or not str(last.tb_frame.f_globals.get("__name__")).startswith("samehost.")


def broken(message: str) -> Failure:
    """A failure that is not the caller's, to be logged under its id."""
    return Failure(codes.INTERNAL, message, None, os.urandom(4).hex())


def _text_of(error: BaseException) -> str:
    """What an exception says; the text of a KeyError is its key's repr otherwise."""
    if isinstance(error, KeyError) and len(error.args) == 1:
        return str(error.args[0])
    return str(error)


_SAID = (InvalidArguments, Busy, Cancelled)
"""What a method may say no with, in samehost's own words."""

_RAISED: dict[str, type[CallError]] = {
    kind.code: kind for kind in (InvalidArguments, MethodNotFound, InternalError, Busy, Cancelled, WrongShape)
}
_OTHERS: dict[str, type[Error]] = {
    codes.DEADLINE_EXCEEDED: DeadlineExceeded,
    codes.NOT_PERMITTED: NotPermitted,
    codes.TOO_LARGE: MessageTooLarge,
    codes.UNAVAILABLE: OutcomeUnknown,
    codes.DRAINING: Unsent,
}


def error_of(method: str, failure: Failure) -> Error:
    """What a caller raises for an answer that is an error."""
    code, message, data, error_id = failure
    if code in _OTHERS:
        other = _OTHERS[code](f"{method}: {message or code}")
        if isinstance(other, NotPermitted):
            other.method = method
        return other
    if code in _RAISED:
        return _RAISED[code](message, code=code, data=data, error_id=error_id, method=method)
    error = blank(service_errors.get(code, ServiceError))
    try:
        check_code(code)
    except UsageError:  # as of a code that is not known, PROTOCOL.md section 12
        code = codes.FAILED
    ServiceError.__init__(error, message, code=code, data=data, error_id=error_id, method=method)
    return error
