"""Messages whose values hold files and blobs: what is put beside the bytes when one is written, and found when read.

PROTOCOL.md sections 9.2 and 9.3. Neither end of it knows a connection: what was written can go to any number of peers
that take the same, which `sharing` keeps count of, and what is read finds its arenas through that.
"""

from __future__ import annotations

import contextlib
import io
import re
import typing
from datetime import datetime
from itertools import count, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from samehost import extensions, limits
from samehost.codec import MSGPACK, CannotEncode, Codec
from samehost.errors import ArenaFull, BadBlob, UsageError
from samehost.extensions import AS_BYTES, is_large
from samehost.kernel import memory
from samehost.kernel.arena import Block, the_arena
from samehost.kernel.blob import Blob, block_behind
from samehost.kernel.files import Descriptor, File
from samehost.protocol import ARENAS, FILES, SEALED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from samehost.protocol import Payload

_Ext = msgspec.msgpack.Ext
_BYTES = (bytes, bytearray, memoryview)
_shares = count(1)


class FilesNotTaken(CannotEncode):
    """The value holds files, and the peer takes none, or has not said yet that it does."""


class Encoded(NamedTuple):
    """A value that is ready to be sent, to any peer with these features.

    Attributes:
        descriptors: what its frame carries.
        shares: the parts of the arena that it refers to, by the numbers that peers release them under.
        missing: features that would have been used if they had been offered.
        sealed_bytes: the memory of the copies that are among the descriptors.
    """

    payload: bytes
    descriptors: tuple[Descriptor, ...]
    shares: dict[int, Block]
    missing: int
    sealed_bytes: int = 0


def encode_attached(
    codec: Codec, value: Any, offered: int, *, arena_allowed: bool = False, gives_away: bool = False
) -> Encoded:
    """Encode a value, its files and blobs beside its bytes.

    Large bytes that it holds become blobs, wherever they are. What the peer does not take is among the bytes.

    Args:
        offered: the features in the peer's preface.
        arena_allowed: whether the peer may be sent parts of the arena.
        gives_away: close the files that were found in the value, also if it cannot be encoded.

    Raises:
        CannotEncode: it cannot travel.
        FilesNotTaken: not to this peer.
    """
    parcel = _Parcel(offered, arena_allowed and offered & ARENAS != 0)
    try:
        payload = _encode(value, parcel) if codec is MSGPACK else codec.encode(value)
    except Exception as error:
        if gives_away:
            give_away(value)
        if isinstance(error, CannotEncode):
            raise
        raise CannotEncode(str(error) or type(error).__name__) from error
    if gives_away:
        _close_all(parcel.files)
    return Encoded(payload, tuple(parcel.descriptors), parcel.shares, parcel.missing, parcel.sealed_bytes)


def give_away(value: Any) -> None:
    """Close the files in a value that will not be encoded."""
    collector = _Collector()

    def collect(unknown: Any) -> None:
        with contextlib.suppress(Exception):  # what cannot travel may be in front of files
            extensions.write(unknown, collector)

    with contextlib.suppress(Exception):
        msgspec.msgpack.Encoder(enc_hook=collect).encode(value)
    _close_all(collector.files)


def _close_all(files: list[Any]) -> None:
    for file in files:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            file.close()


class _Collector:
    """A parcel that only notes which files there are."""

    def __init__(self) -> None:
        self.files: list[Any] = []

    def file(self, value: Any) -> Any:
        """See `Parcel`."""
        self.files.append(value)

    def blob(self, value: Any, *, is_small_inline: bool) -> Any:
        """See `Parcel`."""

    def array(self, dtype: Any, shape: tuple[int, ...], data: Any) -> Any:
        """See `Parcel`."""


class _Parcel(_Collector):
    """The files and blobs of a message.

    Attributes:
        takes_blobs: whether bytes could be put beside the others so far.
    """

    def __init__(self, offered: int, is_arena_allowed: bool) -> None:
        super().__init__()
        self.descriptors: list[Descriptor] = []
        self.shares: dict[int, Block] = {}
        self.missing = self.sealed_bytes = 0
        self._offered = offered
        self._is_arena_allowed = is_arena_allowed
        self.takes_blobs = is_arena_allowed or offered & SEALED != 0

    def restart(self) -> None:
        """Forget what was put in, as the same value is written anew."""
        self.files.clear()
        self.descriptors.clear()
        self.shares.clear()
        self.sealed_bytes = 0

    def file(self, value: Any) -> Any:
        """See `Parcel`."""
        if not any(value is other for other in self.files):
            self.files.append(value)
        if not self._offered & FILES:
            self.missing |= FILES
            raise FilesNotTaken("Files do not travel to this peer, which takes none here")
        position = len(self.descriptors)
        if position == limits.FILES_PER_MESSAGE_MAX:
            raise UsageError(f"More than {limits.FILES_PER_MESSAGE_MAX} files in one message")
        if isinstance(value, io.IOBase) and value.writable():
            value.flush()
        self.descriptors.append(Descriptor.of(value))
        return _Ext(extensions.FILE, extensions.FILE_BODY.pack(position))

    def blob(self, value: Any, *, is_small_inline: bool) -> Any:
        """See `Parcel`."""
        is_view = type(value) is memoryview and value.format == "B" and value.ndim == 1 and value.c_contiguous
        return self.put(value if is_view else Blob(value).view, 0, is_small_inline=is_small_inline)

    def array(self, dtype: Any, shape: tuple[int, ...], data: Any) -> Any:
        """See `Parcel`."""
        return _Ext(extensions.ARRAY, MSGPACK.encode_raw((dtype, shape, self.blob(data, is_small_inline=True))))

    def put(self, view: memoryview, flags: int, *, is_small_inline: bool) -> Any:
        """What stands for these bytes: a part of the arena, a sealed copy, or they themselves."""
        length = view.nbytes
        if length > limits.BLOB_BYTES_MAX:
            raise UsageError(f"A blob of {length} bytes: at most {limits.BLOB_BYTES_MAX} travel")
        is_small = length < limits.BLOB_BYTES_MIN
        behind = block_behind(view) if self._is_arena_allowed else None
        if self._is_arena_allowed and (behind or not (is_small and is_small_inline)):
            try:
                block, offset = behind or _copied(view)
            except ArenaFull:
                pass
            else:
                share = next(_shares)
                self.shares[share] = block
                body = extensions.ARENA_BODY.pack(block.segment.number, flags, offset, length, share)
                return _Ext(extensions.ARENA, body)
        if not is_small:
            self.missing |= (ARENAS | SEALED) & ~self._offered
            if self._offered & SEALED and len(self.descriptors) < limits.FILES_PER_MESSAGE_MAX:
                with contextlib.suppress(OSError):
                    self.descriptors.append(Descriptor(memory.create_sealed(view)))
                    self.sealed_bytes += length
                    body = extensions.SEALED_BODY.pack(len(self.descriptors) - 1, flags, 0, length)
                    return _Ext(extensions.SEALED, body)
            self.takes_blobs = False
        return view


def _copied(view: memoryview) -> tuple[Block, int]:
    block = the_arena().allocate(view.nbytes)
    block.segment.view[block.offset : block.offset + view.nbytes] = view
    return block, block.offset


def _encode(value: Any, parcel: _Parcel) -> bytes:
    payload = MSGPACK.encode_with(_shallow(value, parcel), parcel)
    if not (parcel.takes_blobs and _holds_large_bytes(payload)):
        return payload
    parcel.restart()
    builtin = msgspec.to_builtins(
        value,
        builtin_types=(*_BYTES, datetime, _Ext, msgspec.Raw),
        enc_hook=lambda unknown: extensions.write(unknown, parcel),
    )
    return MSGPACK.encode_raw(_deep(builtin, parcel))


def _shallow(value: Any, parcel: _Parcel) -> Any:
    """The value with large bytes replaced if it is some, or holds some at its top, as arguments do."""
    cls = type(value)
    if cls is dict and any(map(is_large, value.values())):
        return {key: _replaced(inner, parcel) for key, inner in value.items()}
    if (cls is list or cls is tuple) and any(map(is_large, value)):
        return [_replaced(inner, parcel) for inner in value]
    return _replaced(value, parcel)


def _deep(value: Any, parcel: _Parcel) -> Any:
    """The same for a value of builtin types, however deep."""
    if isinstance(value, dict):
        return {key: _deep(inner, parcel) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_deep(inner, parcel) for inner in value]
    return _replaced(value, parcel)


def _replaced(value: Any, parcel: _Parcel) -> Any:
    if not is_large(value):
        return value
    return parcel.put(Blob(value).view, AS_BYTES, is_small_inline=True)


_LARGE_BYTES = re.compile(rb"\xc6(?=(.{4}))", re.DOTALL)
_CANDIDATES_MAX = 1000
"""With so many of them, to look at the value costs less than to look at them, as there may be a million."""


def _holds_large_bytes(payload: bytes) -> bool:
    """Whether MessagePack may have bytes in it that should be a blob."""
    if len(payload) < limits.BLOB_BYTES_MIN:
        return False
    candidates = list(islice(_LARGE_BYTES.finditer(payload), _CANDIDATES_MAX))
    return len(candidates) == _CANDIDATES_MAX or any(
        limits.BLOB_BYTES_MIN <= int.from_bytes(found[1], "big") <= len(payload) for found in candidates
    )


# Reading.


class Shares(typing.Protocol):
    """What knows the arenas that a peer has passed."""

    def take_share(self, arena: int, offset: int, length: int, share: int) -> Blob:
        """The part of an arena; raises BadBlob if there is none."""

    def return_share(self, share: int) -> None:
        """Have a share released that nobody has looked at."""


class Incoming:
    """The files and blobs of a message that is being read.

    Attributes:
        files: those that came with the message.
        sealed_bytes: of the sealed memory that was looked at.
        bad_blob: what is wrong with the memory that a blob should be in; empty if nothing is so far.
    """

    def __init__(self, files: Sequence[File], shares: Shares) -> None:
        self.files = tuple(files)
        self.sealed_bytes = 0
        self.bad_blob = ""
        self._shares = shares
        self._blobs: dict[tuple[int, int], Blob] = {}
        self._referred: set[tuple[int, int]] = set()
        self._made: list[Any] = []
        self._used_up: list[File] = []

    # What the decoder asks for.

    def file(self, position: int) -> File:
        """See `extensions.Incoming`."""
        self._refer(extensions.FILE, position)
        return self._file_at(position)

    def sealed(self, position: int, offset: int, length: int) -> Blob:
        """See `extensions.Incoming`."""
        self._refer(extensions.FILE, position)
        key = extensions.SEALED, position
        if key not in self._blobs:
            with self._file_at(position) as file:
                try:
                    self.sealed_bytes += length
                    _check_length(self.sealed_bytes)
                    self._blobs[key] = Blob(memory.map_sealed(file.fileno(), offset, length) if length else b"")
                except (BadBlob, OSError) as error:
                    self.bad_blob = str(error)
                    raise
        return self._blobs[key]

    def arena(self, arena: int, offset: int, length: int, share: int) -> Blob:
        """See `extensions.Incoming`."""
        self._refer(extensions.ARENA, share)
        key = extensions.ARENA, share
        if key not in self._blobs:
            try:
                self._blobs[key] = self._shares.take_share(arena, offset, length, share)
            except BadBlob as error:
                self.bad_blob = str(error)
                raise
        return self._blobs[key]

    def restart(self) -> None:
        """See `extensions.Incoming`."""
        self._referred.clear()
        _close_all(self._made)
        self._made.clear()
        self._used_up.clear()

    def made(self, file: File, value: Any) -> Any:
        """See `extensions.Incoming`."""
        self._made.append(value)
        self._used_up.append(file)
        return value

    def _refer(self, kind: int, number: int) -> None:
        if (kind, number) in self._referred:
            raise ValueError("Expected a value, got a file or blob that another value is already")
        self._referred.add((kind, number))

    def _file_at(self, position: int) -> File:
        if position >= len(self.files):
            raise ValueError(f"Expected a file, got number {position} of {len(self.files)} that came")
        return self.files[position]

    # What whoever decodes does.

    def settle(self, payload: Payload) -> None:
        """Once the value is there: close and release what it does not refer to."""
        for position, file in enumerate(self.files):
            if (extensions.FILE, position) not in self._referred:
                file.close()
        _close_all(self._used_up)
        self._return_others(payload)
        self._blobs.clear()

    def abandon(self, payload: Payload) -> None:
        """When there will be no value: close and release everything."""
        self.close()
        self._return_others(payload)
        self._blobs.clear()

    @property
    def is_spent(self) -> bool:
        """Whether there is nothing left for `close`, as far as it is known here."""
        return not self._made and all(file.closed for file in self.files)

    def close(self) -> None:
        """Close the files that are still ours, and what was made of them; a second time does nothing."""
        _close_all(self._made)
        for file in self.files:
            file.close()

    def _return_others(self, payload: Payload) -> None:
        """Release the shares that were not looked at, as in fields that the type wanted does not have."""
        taken = {number for kind, number in self._blobs if kind == extensions.ARENA}
        if len(_SHARE.findall(payload)) > len(taken):
            for share in shares_in(payload) - taken:
                self._shares.return_share(share)


_SHARE = re.compile(rb"\xc7\x20\x03")
"""What an extension that refers to an arena begins with."""


_BLOB = re.compile(rb"\xc7(?:\x20\x03|\x18\x02)")


def may_refer(payload: Payload) -> bool:
    """Whether a payload may refer to a blob; not if it does so in a longer way than it needs to."""
    return _BLOB.search(payload) is not None


def shares_in(payload: Payload) -> set[int]:
    """The shares that a payload refers to, as far as it can be read."""
    found: set[int] = set()

    def note(code: int, data: memoryview) -> None:
        if code == extensions.ARRAY:
            decode(data)
        elif code == extensions.ARENA:
            found.add(extensions.unpack(extensions.ARENA_BODY, data)[-1])

    decode = msgspec.msgpack.Decoder(ext_hook=note).decode
    with contextlib.suppress(msgspec.MsgspecError, ValueError, RecursionError, TypeError):
        decode(payload)
    return found


def _check_length(length: int) -> None:
    if length > limits.BLOB_BYTES_MAX:
        raise BadBlob(f"blobs of {length} bytes in one message, at most {limits.BLOB_BYTES_MAX} are taken")


def decode_attached(decode: Callable[[Payload], Any], payload: Payload, incoming: Incoming) -> Any:
    """Decode a value with its files and blobs.

    What it does not refer to is closed or released, and everything is if this raises.

    Args:
        decode: any function that decodes by a `Codec`.

    Raises:
        BadBlob: memory that does not hold what it should.
        Exception: whatever `decode` raises.
    """
    before = extensions.incoming_message.set(incoming)
    try:
        value = decode(payload)
    except BaseException:
        incoming.abandon(payload)
        if not incoming.bad_blob:
            raise
    else:
        incoming.settle(payload)
        return value
    finally:
        extensions.incoming_message.reset(before)
    raise BadBlob(incoming.bad_blob)
