"""What both clients do alike around a call: time into milliseconds, notes into progress, answers into errors.

Pure: waiting, sending and reconnecting are the clients' own. A call that is made while another one is being served gets
no more time than that one has left, and hands on its context.
"""

from __future__ import annotations

import enum
import functools
import math
import os
from typing import TYPE_CHECKING, Any, Final

from samehost.codec import MSGPACK, CannotDecode
from samehost.errors import DeadlineExceeded, Error, OutcomeUnknown, Unsent, WrongShape
from samehost.protocol import codes
from samehost.service.call import Progress, current_call
from samehost.service.description import limits_of
from samehost.service.failures import Failure, error_of
from samehost.service.remote import ANY_RESULT, RemoteMethod

if TYPE_CHECKING:
    from collections.abc import Callable

    from samehost.protocol import Payload, events
    from samehost.service.description import MethodDescription

_MILLISECONDS_MAX = 2**32 - 1


class ClientTimeout(enum.Enum):
    """What stands for the timeout that the client was made with."""

    CLIENTS = "the client's"

    def __repr__(self) -> str:
        return "the client's"


CLIENTS_TIMEOUT: Final = ClientTimeout.CLIENTS


def seconds_for(timeout: float | None) -> float:
    """How long a call may take, infinite for as long as it takes; no longer than the call that is being served."""
    serving = current_call.get()
    seconds = math.inf if timeout is None else timeout
    return seconds if serving is None else min(seconds, serving.deadline.left())


def context_to_hand_on() -> bytes:
    """The encoded context of the call that is being served; empty if there is none."""
    serving = current_call.get()
    return MSGPACK.encode(serving.context) if serving is not None and serving.context else b""


def milliseconds_of(seconds: float) -> int:
    """Time left as it travels, PROTOCOL.md section 5.2: rounded up, and 0 for no end."""
    return 0 if seconds == math.inf else min(math.ceil(seconds * 1000), _MILLISECONDS_MAX)


def answered_error(method: str, answer: events.Failure) -> Error:
    """What to raise for an answer that is an error. One whose data cannot be read is raised without them."""
    try:
        data = ANY_RESULT(answer.data) if answer.data else None
    except CannotDecode:
        data = None
    message = answer.message
    if answer.code == codes.INVALID_ARGUMENTS and message.endswith("unknown field timeout"):
        message += f" (for the time that it may take: client.call({method!r}, …, timeout=…))"
    return error_of(method, Failure(answer.code, message, data, answer.error_id))


def too_late(method: str, address: str, seconds: float, what: str = "no answer") -> DeadlineExceeded:
    """What to raise when the time for a call is over.

    Args:
        seconds: how long the call had.
        what: was to come by then, as in "no end" of a stream.
    """
    return DeadlineExceeded(f"{method} on {address}: {what} within {seconds:g} s")


def no_stream(method: str) -> WrongShape:
    """What to raise when a stream was wanted, and one value was answered."""
    return WrongShape("it answers with a value, and not with a stream", method=method)


@functools.cache
def _progress_decoder() -> Callable[[Payload], Progress]:
    return MSGPACK.decode_to(Progress)


def read_progress(note: Payload) -> Progress | None:
    """What a note says of how far a call has come; None if it is none that is known here."""
    try:
        return _progress_decoder()(note)
    except CannotDecode:
        return None


def lost(method: str, address: str, why: str, *, was_sent: bool) -> Unsent | OutcomeUnknown:
    """What to raise when a connection ended under a call.

    Args:
        why: what ended it.
        was_sent: a part of the call went out, and the server did not say that it has not looked at it.
    """
    if was_sent:
        return OutcomeUnknown(
            f"{method} on {address}: {why} before the answer came, so it may or may not have been done"
        )
    return Unsent(f"{method} on {address} was not sent: {why}")


def closed_by_server(is_greeted: bool) -> str:
    """Why a connection ended that the server has closed, for `lost`.

    Args:
        is_greeted: the server's preface had come.
    """
    if is_greeted:
        return "the server closed the connection"
    return (
        f"the server closed the connection without a word (it may not admit uid {os.geteuid()}, or have too many "
        "connections of it)"
    )


def remote_of(described: MethodDescription) -> RemoteMethod:
    """A method as its server describes it: with its parameters and whether it is idempotent, and any result."""
    from samehost.service.signature import MISSING, Parameter, Signature

    parameters = tuple(
        Parameter(parameter.name, Any, MISSING if parameter.required else parameter.default, parameter.keyword_only)
        for parameter in described.parameters
    )
    contract = Signature(parameters, (), Any, described.signature)
    return RemoteMethod(described.name, contract, is_idempotent=described.idempotent)


def documentation_of(described: MethodDescription) -> str:
    """A method's documentation: its signature, its docstring, and what else its callers should know."""
    rules = []
    if described.allow:
        rules.append(f"May be called by: {described.allow}.")
    if described.timeout:
        rules.append(f"Takes {described.timeout:g} s at most.")
    if limits := limits_of(described):
        rules.append(f"Limits: {'; '.join(limits)}.")
    if described.errors:
        rules.append(f"Errors: {', '.join(described.errors)}.")
    if described.idempotent:
        rules.append("Idempotent: made again by itself when an answer got lost.")
    return "\n\n".join(filter(None, (described.name + described.signature, described.doc, "\n".join(rules))))


class RemoteFunction:  # noqa: D101 - its __doc__ is the method's, so that help() tells what the server says of it
    # A method of the server's, as an attribute of a client that does not declare it. Calling it makes the call.

    __slots__ = ("_call", "_describe", "_remote")

    def __init__(
        self,
        remote: RemoteMethod,
        call: Callable[[RemoteMethod, tuple[Any, ...], dict[str, Any]], Any],
        describe: Callable[[str], MethodDescription | None],
    ) -> None:
        self._remote = remote
        self._call = call
        self._describe = describe

    def __call__(self, /, *arguments: Any, **named: Any) -> Any:
        """Call the method; the time that it may take is the client's."""
        return self._call(self._remote, arguments, named)

    @property
    def __name__(self) -> str:
        return self._remote.name

    @property
    def __doc__(self) -> str:  # type: ignore[override]  # object has a variable here
        described = self._describe(self._remote.name)
        return (
            documentation_of(described)
            if described
            else f"{self._remote.name}: what the server says of it is not known"
        )

    def __repr__(self) -> str:
        described = self._describe(self._remote.name)
        return f"<remote function {self._remote.name}{described.signature if described else ''}>"
