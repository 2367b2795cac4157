"""Values and their bytes: MessagePack for frames, JSON for lines, both by msgspec and by the same types.

PROTOCOL.md section 9. Pure. What msgspec raises is turned into the two errors below, and what it leaves to us is done
here: values nested too deep are refused before they can exhaust the stack of whoever walks them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from samehost import limits

if TYPE_CHECKING:
    from samehost.protocol.events import Payload

Encode: TypeAlias = Callable[[Any], bytes]
Decode: TypeAlias = "Callable[[Payload], Any]"

_UNKNOWN = (msgspec.inspect.AnyType, msgspec.inspect.RawType, msgspec.inspect.CustomType)
_CONTAINERS = (dict, list, tuple)  # as the key of a map, an array is a tuple
_PLACE = re.compile(r"(?P<what>.*?)(?: - at `(?P<place>.*)`)?", re.DOTALL)


class CannotEncode(Exception):
    """A value that has no bytes; the message says why."""


class CannotDecode(Exception):
    """Bytes that are not a value of the type wanted; the message says where and why."""


class Codec:
    """One way to write values.

    Attributes:
        name: "msgpack" or "json", as `protocol.Connection.codec` has it.
        encode_raw: `encode` in fewer steps, which raises whatever msgspec does.
        first_of_map: the bytes that an encoded map may begin with.
        read_context: decodes the context of a call, PROTOCOL.md section 5.2, and raises CannotDecode if it is none.
    """

    def __init__(self, name: str, encoder: type[Any], decoder: type[Any], first_of_map: bytes, openers: bytes) -> None:
        self.name = name
        self.first_of_map = frozenset(first_of_map)
        self.encode_raw: Encode = encoder().encode
        self._decoder = decoder
        self._plain = decoder().decode
        self._openers = openers
        self.read_context: Callable[[Payload], dict[str, Any]] = self.decode_to(dict[str, Any])

    def encode(self, value: Any) -> bytes:
        """The bytes of a value of builtin types, dataclasses, `msgspec.Struct` and whatever else msgspec encodes.

        Raises:
            CannotEncode: it is none.
        """
        try:
            return self.encode_raw(value)
        except Exception as error:
            raise CannotEncode(str(error) or type(error).__name__) from error

    def decode_to(self, kind: Any) -> Decode:
        """A function that decodes bytes to this type, made once and called often.

        It raises CannotDecode if they are something else, or are nested deeper than the limit.

        Raises:
            TypeError: this type cannot be decoded to.
        """
        decode = self.decode_raw_to(kind)

        def decode_or_say_why(data: Payload) -> Any:
            try:
                return decode(data)
            except Exception as error:  # a type's own check, such as __post_init__, raises what it likes
                raise CannotDecode(explained(error)) from error

        return decode_or_say_why

    def decode_raw_to(self, kind: Any) -> Decode:
        """The same in fewer steps: it raises whatever it does, which `explained` makes a message of."""
        decode: Decode = self._decoder(kind).decode
        info = msgspec.inspect.type_info(kind)
        if not _may_nest(info, frozenset(), set()):
            return decode

        def decode_shallow(data: Payload) -> Any:
            if len(data) > limits.NESTING_MAX:
                self._check_nesting(bytes(data))
            return decode(data)

        def decode_anything(data: Payload) -> Any:
            value = decode(data)
            if len(data) > limits.NESTING_MAX:
                _check_depth(value)
            return value

        return decode_anything if isinstance(info, msgspec.inspect.AnyType) else decode_shallow

    def _check_nesting(self, data: bytes) -> None:
        # Few bytes that could open a container make a shallow value; only many are worth a walk.
        if len(data) - len(data.translate(None, self._openers)) > limits.NESTING_MAX:
            _check_depth(self._plain(data))


def _check_depth(value: Any) -> None:
    """Raise RecursionError if a value of builtin types is nested too deep."""
    level = [value]
    for _ in range(limits.NESTING_MAX + 1):
        containers = [value for value in level if isinstance(value, _CONTAINERS)]
        if not containers:
            return
        maps = [value for value in containers if isinstance(value, dict)]
        level = [*chain.from_iterable(containers), *chain.from_iterable(map(dict.values, maps))]
    raise RecursionError


def _may_nest(info: Any, above: frozenset[int], seen: set[int]) -> bool:
    """Whether a type says nothing of how deep its values go, because something in it is Any, or is within itself."""
    if isinstance(info, _UNKNOWN) or id(info) in above:
        return True
    if id(info) in seen:
        return False
    seen.add(id(info))
    return any(_may_nest(part, above | {id(info)}, seen) for part in _parts_of(info))


def types_in(info: Any) -> list[Any]:
    """All types and fields that a type is made of, each once, and itself."""
    found = {id(info): info}
    waiting = [info]
    while waiting:
        new = {id(part): part for part in _parts_of(waiting.pop()) if id(part) not in found}
        found |= new
        waiting += new.values()
    return list(found.values())


def _parts_of(info: Any) -> list[Any]:
    """The types and fields that a type, or a field of one, is made of; what refers to itself is there once."""
    found = []
    for name in getattr(info, "__struct_fields__", ()):
        part = getattr(info, name)
        found += [
            inner
            for inner in (part if isinstance(part, tuple) else (part,))
            if isinstance(inner, msgspec.inspect.Type | msgspec.inspect.Field)
        ]
    return found


def explained(error: Exception) -> str:
    """The place first, then what is wrong: `$.zone: expected str, got int`."""
    if isinstance(error, RecursionError):
        return f"$: nested more than {limits.NESTING_MAX} deep"
    if not isinstance(error, msgspec.MsgspecError | ValueError | TypeError):
        return f"$: it does not pass its type's own check ({type(error).__name__})"
    found = _PLACE.fullmatch(str(error))
    assert found
    what = found["what"].replace("`", "") or type(error).__name__
    place = ", ".join(reversed((found["place"] or "$").split("` in `")))  # of a key: `key` in `$.zones`
    return f"{place}: {what[0].lower()}{what[1:]}"


MSGPACK = Codec(
    "msgpack",
    msgspec.msgpack.Encoder,
    msgspec.msgpack.Decoder,
    bytes((*range(0x80, 0x90), 0xDE, 0xDF)),
    bytes((*range(0x80, 0xA0), *range(0xDC, 0xE0))),
)
JSON = Codec("json", msgspec.json.Encoder, msgspec.json.Decoder, b"{", b"{[")

CODECS = {codec.name: codec for codec in (MSGPACK, JSON)}
"""By the name that a connection gives."""
