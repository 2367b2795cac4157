"""What travels beside the bytes of a value: files and blobs, and the extensions of MessagePack that stand for them.

PROTOCOL.md sections 9.2 and 9.3. Pure: a message that is being written or read is something with the methods of
`Parcel` or `Incoming` here, which the modules of `kernel` have. They also say how each of their types is written and
read, and are imported when the first such type is met, by its dotted name, so that nothing is imported for nothing.
"""

from __future__ import annotations

import os
from contextvars import ContextVar
from functools import lru_cache
from importlib import import_module
from struct import Struct
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from samehost import limits, protocol

if TYPE_CHECKING:
    from collections.abc import Callable

FILE, SEALED, ARENA, ARRAY = 1, 2, 3, 4
"""The types of extensions."""

AS_BYTES = 0x01
"""The flag of a blob that stands for bytes."""

FILE_BODY = Struct("<B")
SEALED_BODY = Struct("<BB6xQQ")
ARENA_BODY = Struct("<IB3xQQQ")

FILES, BLOBS = 1, 2
"""What values of a type can hold, as flags."""


class Parcel(Protocol):
    """A message that is being written: what is said here for a value is written in its place."""

    def file(self, value: Any) -> Any:
        """For something with a `fileno`."""

    def blob(self, value: Any, *, is_small_inline: bool) -> Any:
        """For something with a contiguous buffer."""

    def array(self, dtype: Any, shape: tuple[int, ...], data: Any) -> Any:
        """For an array, whose data are something with a contiguous buffer."""


class Incoming(Protocol):
    """A message that is being read. Each of these raises ValueError if that is not there, or was taken before."""

    def file(self, position: int) -> Any:
        """The file of this position."""

    def sealed(self, position: int, offset: int, length: int) -> Any:
        """A part of the sealed memory of this position."""

    def arena(self, arena: int, offset: int, length: int, share: int) -> Any:
        """A part of an arena."""

    def made(self, file: Any, value: Any) -> Any:
        """Note a file object or a socket that was made of a file, and stands for it from now on; give it back."""

    def restart(self) -> None:
        """Take it that nothing was taken yet, as the same message is read anew."""


class Way(msgspec.Struct, frozen=True):
    """How values of a type travel.

    Attributes:
        kinds: FILES, BLOBS, both or none.
        write: says what is encoded for a value.
        read: makes a value of a type of what was decoded, or raises ValueError.
        read_json: the same of what was decoded from JSON; None if there is no such thing.
    """

    kinds: int
    write: Callable[[Any, Parcel], Any]
    read: Callable[[Any, Any], Any]
    read_json: Callable[[Any, Any], Any] | None = None


class ArrayParts(msgspec.Struct, frozen=True):
    """An array that was read, before it is one.

    Attributes:
        dtype: as `numpy.lib.format.dtype_to_descr` gives it, with lists for tuples.
        data: bytes, a memoryview or a blob.
    """

    dtype: Any
    shape: tuple[int, ...]
    data: Any


incoming_message: ContextVar[Incoming | None] = ContextVar("incoming_message", default=None)
"""The message that is being decoded, as the hooks of a decoder are not told."""

ways: dict[str, Way] = {}
"""By the dotted name of a type; filled by the modules below."""

_HOMES = {
    "samehost.kernel.blob.Blob": "samehost.kernel.travelling",
    "samehost.kernel.files.File": "samehost.kernel.travelling",
    "socket.socket": "samehost.kernel.travelling",
    "typing.BinaryIO": "samehost.kernel.travelling",
    "typing.IO": "samehost.kernel.travelling",
    "numpy.generic": "samehost.kernel.arrays",
    "numpy.ma.MaskedArray": "samehost.kernel.arrays",
    "numpy.ma.core.MaskedArray": "samehost.kernel.arrays",
    "numpy.ndarray": "samehost.kernel.arrays",
    "pyarrow.lib.Buffer": "samehost.kernel.arrays",
}
"""Where it is said how a type travels."""

_NEVER_READ = {"numpy.generic", "numpy.ma.MaskedArray", "numpy.ma.core.MaskedArray"}
"""What is only ever sent, as something else, or refused."""

ARRAY_TYPE = "numpy.ndarray"


def way_named(name: str) -> Way | None:
    """How the type of this dotted name travels; None if it does not."""
    if name not in ways and name in _HOMES:
        import_module(_HOMES[name])
    return ways.get(name)


def _name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def travels_beside(cls: Any) -> bool:
    """Whether a type that msgspec does not know can be that of an argument or a result all the same."""
    return isinstance(cls, type) and _name_of(cls) in _HOMES and _name_of(cls) not in _NEVER_READ


def is_large(value: Any) -> bool:
    """Whether a value by itself is worth `kernel.attaching.encode_attached`."""
    cls = type(value)
    if cls is bytes or cls is bytearray:
        return len(value) >= limits.BLOB_BYTES_MIN
    return cls is memoryview and value.nbytes >= limits.BLOB_BYTES_MIN


def kinds_in(kind: Any) -> int:
    """What values of a type can hold: FILES, BLOBS, both or none. Bytes, and whatever is Any, can be blobs."""
    found = 0
    for part in types_in(msgspec.inspect.type_info(kind)):
        if isinstance(part, _MAYBE_BLOBS):
            found |= BLOBS
        elif isinstance(part, msgspec.inspect.CustomType) and (way := way_named(_name_of(part.cls))):
            found |= way.kinds
    return found


def holds_more(kind: Any) -> bool:
    """Whether values of a type hold what msgspec does not know: files, blobs or arrays, beside mere bytes."""
    return any(isinstance(part, msgspec.inspect.CustomType) for part in types_in(msgspec.inspect.type_info(kind)))


def features(kinds: int, peer_uid: int) -> int:
    """What to announce in the preface where types hold files or blobs, as `kinds_in` says.

    Arenas are for peers of our own user alone, as their owner can still write to what is being read.
    """
    found = protocol.FILES if kinds & FILES else 0
    if kinds & BLOBS:
        found |= protocol.SEALED | (protocol.ARENAS if peer_uid == os.geteuid() else 0)
    return found


BYTES_TYPES = (msgspec.inspect.BytesType, msgspec.inspect.ByteArrayType, msgspec.inspect.MemoryViewType)
_MAYBE_BLOBS = (*BYTES_TYPES, msgspec.inspect.AnyType, msgspec.inspect.RawType)


def types_in(info: Any) -> list[Any]:
    """All types and fields that a type is made of, each once, and itself.

    Args:
        info: as `msgspec.inspect.type_info` gives it.
    """
    found = {id(info): info}
    waiting = [info]
    while waiting:
        new = {id(part): part for part in parts_of(waiting.pop()) if id(part) not in found}
        found |= new
        waiting += new.values()
    return list(found.values())


def parts_of(info: Any) -> list[Any]:
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


def write(value: Any, parcel: Parcel) -> Any:
    """What to encode for a value that msgspec does not know.

    Raises:
        TypeError: it cannot travel.
    """
    way = _way_of(type(value))  # type: ignore[arg-type]  # any class can be hashed
    if way is not None:
        return way.write(value, parcel)
    if hasattr(value, "fileno"):
        return parcel.file(value)
    try:
        memoryview(value).release()
    except TypeError:
        raise TypeError(f"Encoding objects of type {type(value).__qualname__} is unsupported") from None
    return parcel.blob(value, is_small_inline=True)


@lru_cache(maxsize=256)
def _way_of(cls: type) -> Way | None:
    """How values of a class travel, or of one that it is made from."""
    return next(filter(None, (way_named(_name_of(base)) for base in cls.__mro__)), None)


def read(kind: Any, value: Any) -> Any:
    """The value of a type that msgspec does not know, from what was decoded.

    Raises:
        ValueError: it is something else.
    """
    way = _way_to(kind)
    return way.read(kind, value)


def read_json(kind: Any, value: Any) -> Any:
    """The same from JSON."""
    way = _way_to(kind)
    if way.read_json is None:
        raise ValueError("Files cannot travel as JSON lines")
    return way.read_json(kind, value)


@lru_cache(maxsize=256)
def _way_to(kind: Any) -> Way:
    cls = getattr(kind, "__origin__", kind)
    way = way_named(_name_of(cls)) if travels_beside(cls) else None
    if way is None:
        raise TypeError(f"Type {cls.__qualname__} is unsupported")
    return way


def mismatch(wanted: str, value: Any) -> ValueError:
    """What to raise where something else came than was wanted."""
    return ValueError(f"Expected {wanted}, got {_SHORT_NAMES.get(type(value), type(value).__name__)}")


_SHORT_NAMES: dict[type, str] = {type(None): "null", dict: "object", list: "array", ArrayParts: "array of numbers"}


def unpack(body: Struct, data: memoryview) -> tuple[Any, ...]:
    """The fields of an extension.

    Raises:
        ValueError: it is of another length.
    """
    if len(data) != body.size:
        raise ValueError(f"Expected extension of {body.size} bytes, got {len(data)}")
    return body.unpack(data)


def read_extension(code: int, data: memoryview) -> tuple[Any, bool]:
    """The file or blob that an extension stands for, and whether it stands for bytes.

    Raises:
        ValueError: it is not known, or what it stands for did not come.
    """
    incoming = incoming_message.get()
    if code not in (FILE, SEALED, ARENA):
        raise ValueError(f"Expected a value, got extension {code}, which is not known")
    if incoming is None:
        raise ValueError(f"Expected a value, got a {'file' if code == FILE else 'blob'} that did not come")
    if code == FILE:
        return incoming.file(*unpack(FILE_BODY, data)), False
    if code == SEALED:
        position, flags, offset, length = unpack(SEALED_BODY, data)
        return incoming.sealed(position, offset, length), flags & AS_BYTES != 0
    arena, flags, offset, length, share = unpack(ARENA_BODY, data)
    return incoming.arena(arena, offset, length, share), flags & AS_BYTES != 0
