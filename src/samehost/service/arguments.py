"""The arguments of a call: from one encoded value, a map by names or an array by position, to a call of the function.

msgspec does the work, by a record made of the parameters once. What callers leave out is filled in by the very object
that the declaration has as its default, as Python does it.
"""

from __future__ import annotations

import re
from itertools import count
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from samehost.codec import CannotDecode, Codec, explained
from samehost.peer import Peer
from samehost.service.call import Call
from samehost.service.signature import MISSING, Items, Parameter, Signature

if TYPE_CHECKING:
    from collections.abc import Callable

    from samehost.protocol.events import Payload

Arguments: TypeAlias = msgspec.Struct
Read: TypeAlias = "Callable[[Payload], Arguments]"
Invoke: TypeAlias = "Callable[[Arguments, Call], Any]"

_FILLED_IN = (Peer, Call, Items)
_IS_MISSING = "$: object missing required field "
_ELEMENT = re.compile(r"\$\[(\d+)\]")

_IMMUTABLE = (type(None), bool, int, float, str, bytes)


def reader(signature: Signature, codec: Codec) -> Read:
    """A function that reads encoded arguments, and raises CannotDecode if they are not what the signature wants."""
    record = record_of(signature.parameters, array_like=False)
    by_name = codec.decode_raw_to(record)
    positional = tuple(parameter for parameter in signature.parameters if not parameter.is_keyword_only)
    by_position = codec.decode_raw_to(record_of(positional, array_like=True))
    first_of_map = codec.first_of_map
    named = [parameter for parameter in signature.parameters if parameter.is_keyword_only]
    wanted = [parameter.name for parameter in named if parameter.default is MISSING]

    def read(payload: Payload) -> Any:
        try:
            if payload[0] in first_of_map:
                return by_name(payload)
            arguments = by_position(payload)
        except Exception as error:
            raise CannotDecode(_told(explained(error), payload, positional, codec)) from error
        if wanted:
            raise CannotDecode(f"$: {wanted[0]} has to be given by its name")
        return record(**msgspec.structs.asdict(arguments)) if named else arguments

    return read


def _told(message: str, payload: Payload, positional: tuple[Parameter, ...], codec: Codec) -> str:
    """What is wrong with arguments, by their names.

    Args:
        message: the same in terms of the record, which is an array if they came by position.
    """
    if message.startswith(_IS_MISSING):
        return f"$: {message.removeprefix(_IS_MISSING)} is missing"
    if message.startswith("$: expected array of at "):
        given = len(codec.decode_to(list[msgspec.Raw])(payload))
        if given < len(positional):
            return f"$: {positional[given].name} is missing"
        return f"$: at most {len(positional)} argument{'s' * (len(positional) != 1)}, got {given}"
    element = _ELEMENT.match(message)
    return f"$.{positional[int(element[1])].name}{message[element.end() :]}" if element else message


def record_of(parameters: tuple[Parameter, ...], *, array_like: bool) -> type[Arguments]:
    """A record with a field for each parameter."""
    fields = [
        (parameter.name, parameter.kind)
        if parameter.default is MISSING
        else (parameter.name, parameter.kind, _default(parameter.default))
        for parameter in parameters
    ]
    # Not tracked by the garbage collector: it lives no longer than it takes to call the function.
    return msgspec.defstruct(
        "Arguments", fields, kw_only=not array_like, array_like=array_like, forbid_unknown_fields=True, gc=False
    )


def _default(value: Any) -> Any:
    return value if isinstance(value, _IMMUTABLE) else msgspec.field(default_factory=lambda: value)


def invoker(function: Callable[..., Any], signature: Signature) -> Invoke:
    """A function that calls the function with arguments that were read, and fills in what callers do not send."""
    astuple = msgspec.structs.astuple
    if not any(kind or is_keyword_only for _, kind, is_keyword_only in signature.layout):
        return lambda arguments, call: function(*astuple(arguments))
    sent = count(len(_FILLED_IN))
    places = [
        (name, _FILLED_IN.index(kind) if kind else next(sent), is_keyword_only)
        for name, kind, is_keyword_only in signature.layout
    ]
    positional = [place for _, place, is_keyword_only in places if not is_keyword_only]
    by_name = [(name, place) for name, place, is_keyword_only in places if is_keyword_only]

    def invoke(arguments: Arguments, call: Call) -> Any:
        known = (call.peer, call, call.items, *astuple(arguments))  # the first of them as in _FILLED_IN
        return function(*[known[place] for place in positional], **{name: known[place] for name, place in by_name})

    return invoke
