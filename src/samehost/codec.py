"""Values and their bytes: MessagePack for frames, JSON for lines, both by msgspec and by the same types.

PROTOCOL.md section 9. Pure. What msgspec raises is turned into the two errors below, and what it leaves to us is done
here: values nested too deep are refused before they can exhaust the stack of whoever walks them, and types that msgspec
does not know are handed to `extensions`, which costs other values nothing.
"""

from __future__ import annotations

import contextlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import datetime
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import msgspec

from samehost import extensions, limits
from samehost.extensions import parts_of, types_in

if TYPE_CHECKING:
    from samehost.extensions import Parcel
    from samehost.protocol.events import Payload

Encode: TypeAlias = Callable[[Any], bytes]
Decode: TypeAlias = "Callable[[Payload], Any]"
Read: TypeAlias = "Callable[[int, memoryview], Any]"

_UNKNOWN = (msgspec.inspect.AnyType, msgspec.inspect.RawType)
_CONTAINERS = (dict, list, tuple)  # as the key of a map, an array is a tuple
_PLACE = r"(?s)(?P<what>.*?)(?: - at `(?P<place>.*)`)?"


class CannotEncode(Exception):
    """A value that has no bytes; the message says why."""


class CannotDecode(Exception):
    """Bytes that are not a value of the type wanted; the message says where and why."""


class Codec(ABC):
    """One way to write values.

    Attributes:
        name: "msgpack" or "json", as `protocol.Connection.codec` has it.
        encode_raw: `encode` in fewer steps, which raises whatever msgspec does, also for what travels beside the bytes.
        first_of_map: the bytes that an encoded map may begin with.
        read_context: decodes the context of a call, PROTOCOL.md section 5.2, and raises CannotDecode if it is none.
    """

    name: str
    first_of_map: frozenset[int]
    encode_raw: Encode
    _openers: bytes
    _decode_plain: Callable[[bytes], Any]

    def __init__(self) -> None:
        self.read_context: Callable[[Payload], dict[str, Any]] = self.decode_to(dict[str, Any])

    def encode(self, value: Any) -> bytes:
        """The bytes of a value of builtin types, dataclasses, `msgspec.Struct` and whatever else msgspec encodes.

        Blobs and arrays are among the bytes.

        Raises:
            CannotEncode: it is none, or has files in it.
        """
        try:
            return self._encode_inline(value)
        except Exception as error:
            raise CannotEncode(str(error) or type(error).__name__) from error

    @abstractmethod
    def _encode_inline(self, value: Any) -> bytes:
        """The bytes, or whatever msgspec raises."""

    def decode_to(self, kind: Any) -> Decode:
        """A function that decodes bytes to this type, made once and called often.

        It raises CannotDecode if they are something else, or are nested deeper than the limit. Files and blobs are
        those of `extensions.incoming_message`.

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
        info = msgspec.inspect.type_info(kind)
        decode = self._decoder_to(kind, types_in(info))
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

    @abstractmethod
    def _decoder_to(self, kind: Any, parts: list[Any]) -> Decode:
        """A decoder to a type.

        Args:
            parts: `types_in` it.
        """

    def _check_nesting(self, data: bytes) -> None:
        # Few bytes that could open a container make a shallow value; only many are worth a walk.
        if len(data) - len(data.translate(None, self._openers)) > limits.NESTING_MAX:
            _check_depth(self._decode_plain(data))


# Writing what travels beside the bytes of other messages, where only bytes travel.


class _Inline:
    """A parcel of nothing: blobs and arrays are among the bytes of MessagePack."""

    def file(self, value: Any) -> Any:
        raise TypeError(f"Objects of type {type(value).__qualname__} are open files, which cannot be among bytes")

    def blob(self, value: Any, *, is_small_inline: bool) -> Any:
        return memoryview(value)

    def array(self, dtype: Any, shape: tuple[int, ...], data: Any) -> Any:
        return msgspec.msgpack.Ext(extensions.ARRAY, msgspec.msgpack.encode((dtype, shape, memoryview(data))))


class _InLines(_Inline):
    """The same for JSON."""

    def file(self, value: Any) -> Any:
        raise TypeError("Files cannot travel as JSON lines")

    def array(self, dtype: Any, shape: tuple[int, ...], data: Any) -> Any:
        return {"dtype": dtype, "shape": shape, "data": memoryview(data)}


_INLINE = _Inline()
_IN_LINES = _InLines()


class _MessagePack(Codec):
    name = "msgpack"
    first_of_map = frozenset((*range(0x80, 0x90), 0xDE, 0xDF))
    encode_raw: Encode = staticmethod(msgspec.msgpack.Encoder().encode)
    _openers = bytes((*range(0x80, 0xA0), *range(0xDC, 0xE0)))
    _decode_plain: Callable[[bytes], Any] = staticmethod(msgspec.msgpack.Decoder().decode)

    def encode_with(self, value: Any, parcel: Parcel) -> bytes:
        """The bytes of a value whose files and blobs go into a parcel; raises whatever that or msgspec does."""
        return msgspec.msgpack.Encoder(enc_hook=lambda unknown: extensions.write(unknown, parcel)).encode(value)

    def _encode_inline(self, value: Any) -> bytes:
        try:
            return self.encode_raw(value)
        except TypeError:
            return self.encode_with(value, _INLINE)

    def _decoder_to(self, kind: Any, parts: list[Any]) -> Decode:
        # What is Any is never shown to a hook that knows the type, so it has to be complete at once.
        is_any_in_it = any(isinstance(part, msgspec.inspect.AnyType) for part in parts)
        read = _read_complete if is_any_in_it else _read_parts
        decode: Decode = msgspec.msgpack.Decoder(kind, ext_hook=read, dec_hook=extensions.read).decode
        if not any(isinstance(part, extensions.BYTES_TYPES) for part in parts):
            return decode

        def decode_or_convert(data: Payload) -> Any:
            try:
                return decode(data)
            except msgspec.ValidationError as error:
                # Where bytes are wanted, msgspec takes no extension, and asks no hook.
                if extensions.incoming_message.get() is None or "got `ext`" not in str(error):
                    raise
                return _converted(data, kind, decode)

        return decode_or_convert


class _Json(Codec):
    name = "json"
    first_of_map = frozenset(b"{")
    encode_raw: Encode = staticmethod(
        msgspec.json.Encoder(enc_hook=lambda value: extensions.write(value, _IN_LINES)).encode
    )
    _openers = b"{["
    _decode_plain: Callable[[bytes], Any] = staticmethod(msgspec.json.Decoder().decode)

    def _encode_inline(self, value: Any) -> bytes:
        return self.encode_raw(value)

    def _decoder_to(self, kind: Any, parts: list[Any]) -> Decode:
        return msgspec.json.Decoder(kind, dec_hook=extensions.read_json).decode


# Reading extensions: hooks of decoders.


def _read_parts(code: int, data: memoryview) -> Any:
    """What `extensions.read` makes a value of, without a copy of anything large."""
    if code == extensions.ARRAY:
        return read_array(data)
    return extensions.read_extension(code, data)[0]


def _read_complete(code: int, data: memoryview) -> Any:
    """What an extension is to somebody who takes anything."""
    if code == extensions.ARRAY:
        way = extensions.way_named(extensions.ARRAY_TYPE)
        assert way
        return way.read(Any, read_array(data))
    value, is_bytes = extensions.read_extension(code, data)
    return bytes(value) if is_bytes else value


def _read_all_bytes(code: int, data: memoryview) -> Any:
    """The same, but each blob is bytes."""
    if code in (extensions.SEALED, extensions.ARENA):
        return bytes(extensions.read_extension(code, data)[0])
    return _read_complete(code, data)


def _read_in_array(code: int, data: memoryview) -> Any:
    if code == extensions.ARRAY:
        raise ValueError("Expected the data of an array, got another array")
    return extensions.read_extension(code, data)[0]


_decode_array = msgspec.msgpack.Decoder(
    tuple[Any, tuple[Annotated[int, msgspec.Meta(ge=0)], ...], Any], ext_hook=_read_in_array
).decode


def read_array(data: memoryview) -> extensions.ArrayParts:
    """The parts of an array, PROTOCOL.md section 9.3.

    Raises:
        ValueError: it is none.
    """
    dtype, shape, content = _decode_array(data)
    _check_depth(dtype)
    return extensions.ArrayParts(dtype, shape, content)


_BYTES = (bytes, bytearray, memoryview)


def _converted(data: Payload, kind: Any, decode: Decode) -> Any:
    """The value of a type some of whose bytes came as blobs.

    It is decoded to anything first, and then converted, which copies nothing large twice. Where that cannot be done, as
    with `msgspec.Raw` and with times that came as text, the bytes are put where they would be without blobs.
    """
    incoming = extensions.incoming_message.get()
    assert incoming
    said = ""  # the text alone, as an error would keep what is here for as long as it lives
    # A sender may mean a blob where bytes are wanted.
    for read, put_inline in ((_read_complete, _put_inline), (_read_all_bytes, _put_all_inline)):
        incoming.restart()
        value = msgspec.msgpack.Decoder(ext_hook=read).decode(data)
        with contextlib.suppress(msgspec.ValidationError):
            return msgspec.convert(value, kind, builtin_types=(*_BYTES, datetime), dec_hook=extensions.read)
        del value
        incoming.restart()
        try:
            return decode(msgspec.msgpack.encode(msgspec.msgpack.Decoder(ext_hook=put_inline).decode(data)))
        except msgspec.ValidationError as error:
            said = said or str(error)
    raise msgspec.ValidationError(said)


def _put_inline(code: int, data: memoryview) -> Any:
    """What stands for bytes as bytes, and all else as it came."""
    body = {extensions.SEALED: extensions.SEALED_BODY, extensions.ARENA: extensions.ARENA_BODY}.get(code)
    if body and extensions.unpack(body, data)[1] & extensions.AS_BYTES:
        return bytes(extensions.read_extension(code, data)[0])
    return msgspec.msgpack.Ext(code, bytes(data))


def _put_all_inline(code: int, data: memoryview) -> Any:
    """The same, but each blob is bytes."""
    if code in (extensions.SEALED, extensions.ARENA):
        return bytes(extensions.read_extension(code, data)[0])
    return msgspec.msgpack.Ext(code, bytes(data))


# How deep.


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
    if isinstance(info, msgspec.inspect.CustomType):
        return not extensions.travels_beside(info.cls)
    if isinstance(info, _UNKNOWN) or id(info) in above:
        return True
    if id(info) in seen:
        return False
    seen.add(id(info))
    return any(_may_nest(part, above | {id(info)}, seen) for part in parts_of(info))


def explained(error: Exception) -> str:
    """The place first, then what is wrong: `$.zone: expected str, got int`."""
    if isinstance(error, RecursionError):
        return f"$: nested more than {limits.NESTING_MAX} deep"
    if not isinstance(error, msgspec.MsgspecError | ValueError | TypeError):
        return f"$: it does not pass its type's own check ({type(error).__name__})"
    found = re.fullmatch(_PLACE, str(error))
    assert found
    what = found["what"].replace("`", "") or type(error).__name__
    place = ", ".join(reversed((found["place"] or "$").split("` in `")))  # of a key: `key` in `$.zones`
    return f"{place}: {what[0].lower()}{what[1:]}"


MSGPACK = _MessagePack()
JSON = _Json()

CODECS = {codec.name: codec for codec in (MSGPACK, JSON)}
"""By the name that a connection gives."""
