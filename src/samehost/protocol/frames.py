"""The layout of frames, PROTOCOL.md section 4 to 8: headers, and the parts of payloads that are not MessagePack.

Arguments, results, items, notes and data stay as they are: values of MessagePack that only their reader decodes. They
come last in their payload, so that cutting them out is a slice, and sending them needs no copy.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from samehost import limits as bounds
from samehost.errors import LocalProtocolError, MessageTooLarge, RemoteProtocolError
from samehost.protocol import codes
from samehost.protocol.states import (
    ARENA,
    CALL,
    CANCEL,
    CREDIT,
    END,
    ERROR,
    FRAME_NAMES,
    GOAWAY,
    HAS_CONTEXT,
    ITEM,
    ITEMS_FOLLOW,
    ITEMS_WANTED,
    NOTE,
    NOTIFY,
    PING,
    PONG,
    RELEASE,
    REPLY,
    RETIRE,
    STREAM,
)

if TYPE_CHECKING:
    from samehost.protocol.events import Payload
    from samehost.protocol.settings import Limits

HEADER = struct.Struct("<IBBHI")
"""Length of the payload, type, flags, number of descriptors, id of the call."""

HEADER_BYTES = HEADER.size

SHORT_HEADER = struct.Struct("<III")
"""The same with type, flags and number of descriptors as one number, which is the type where the others are 0."""

CALL_HEAD = struct.Struct("<IB")
"""Milliseconds left, length of the method's name."""

TIME_BYTES = 4
"""Of a call's milliseconds left; a method's name is written with its length before it."""

CALL_FRAME = struct.Struct("<IBBHIIB")
"""Header and head of a call at once, which is what nearly every frame to a server begins with."""

SHORT_CALL = struct.Struct("<IIIIB")
"""The short header and the head of a call at once."""

HEADER_AND_TIME = struct.Struct("<IBBHII")
"""The same, with a call's milliseconds left, as they are written together."""

CONTEXT_LENGTH = struct.Struct("<H")
ERROR_HEAD = struct.Struct("<BBH")
"""Lengths of the code, the id and the message."""

CREDIT_BODY = struct.Struct("<II")
TOKEN = struct.Struct("<I")
GOAWAY_HEAD = struct.Struct("<IBxH")
"""Last call that was accepted, lengths of the code and the message."""

ARENA_BODY = struct.Struct("<I4xQ")
"""Number and bytes of an arena."""

ARENA_NUMBER = struct.Struct("<I")
SHARE_BYTES = 8

MUST_KNOW_FLAGS = 0x0F
"""A receiver refuses these unless it knows them; it ignores the others, PROTOCOL.md section 4.3."""

MAY_IGNORE_FROM = 0x80
"""From here on a receiver ignores types that it does not know, PROTOCOL.md section 4.2."""

_KNOWN_FLAGS = {CALL: ITEMS_FOLLOW | ITEMS_WANTED | HAS_CONTEXT, NOTIFY: HAS_CONTEXT}
WITH_DESCRIPTORS = {CALL, NOTIFY, REPLY, ITEM, ARENA}
WITHOUT_CALL = {NOTIFY, PING, PONG, GOAWAY, ARENA, RELEASE, RETIRE}
ARENA_DESCRIPTORS = 2
"""The memory and the lease, PROTOCOL.md section 9.3; neither more nor fewer."""

_COMMON = {CALL, REPLY, ERROR, ITEM}
_NOT_A_TYPE = -1


class LengthRanges(NamedTuple):
    """Lengths of payloads for each of the 256 types.

    Attributes:
        least: the shortest.
        most: the longest; -1 where there is no such type.
        common: the same for the common types, -1 for all others.
    """

    least: tuple[int, ...]
    most: tuple[int, ...]
    common: tuple[int, ...]


@lru_cache(maxsize=64)
def length_ranges(limits: Limits) -> LengthRanges:
    """How long payloads may be that come in under these limits."""
    longest = limits.payload_bytes_max
    code_and_message = bounds.ERROR_CODE_BYTES_MAX + bounds.ERROR_MESSAGE_BYTES_MAX
    ranges = {
        CALL: (CALL_HEAD.size + 2, longest),
        NOTIFY: (CALL_HEAD.size + 2, longest),
        REPLY: (1, longest),
        ERROR: (ERROR_HEAD.size + 1, longest),
        CANCEL: (0, 0),
        STREAM: (0, 0),
        ITEM: (1, longest),
        END: (0, 0),
        CREDIT: (CREDIT_BODY.size, CREDIT_BODY.size),
        NOTE: (1, limits.note_bytes_max),
        PING: (TOKEN.size, TOKEN.size),
        PONG: (TOKEN.size, TOKEN.size),
        GOAWAY: (GOAWAY_HEAD.size + 1, GOAWAY_HEAD.size + code_and_message),
        ARENA: (ARENA_BODY.size, ARENA_BODY.size),
        RELEASE: (SHARE_BYTES, SHARE_BYTES * bounds.RELEASES_PER_FRAME_MAX),
        RETIRE: (ARENA_NUMBER.size, ARENA_NUMBER.size),
    }
    for kind in range(MAY_IGNORE_FROM, 256):
        ranges[kind] = (0, bounds.NOTE_BYTES_MAX)
    pairs = [ranges.get(kind, (0, _NOT_A_TYPE)) for kind in range(256)]
    return LengthRanges(
        tuple(least for least, _ in pairs),
        tuple(most for _, most in pairs),
        tuple(most if kind in _COMMON else _NOT_A_TYPE for kind, (_, most) in enumerate(pairs)),
    )


def check_header(limits: Limits, length: int, kind: int, flags: int, count: int, call_id: int) -> None:
    """Refuse a header that no frame may have, before anything of its payload is kept.

    Raises:
        RemoteProtocolError: the header says what is wrong with it.
    """
    ranges = length_ranges(limits)
    least, most = ranges.least[kind], ranges.most[kind]
    if most == _NOT_A_TYPE:
        raise RemoteProtocolError(f"a frame of type 0x{kind:02x}, which this version does not have")
    name = FRAME_NAMES.get(kind, f"frame of type 0x{kind:02x}")
    if length > most:
        raise RemoteProtocolError(f"{name} with a payload of {length} bytes, at most {most} are taken", codes.TOO_LARGE)
    if length < least:
        raise RemoteProtocolError(f"{name} with a payload of {length} bytes, at least {least} are needed")
    if kind == RELEASE and length % SHARE_BYTES:
        raise RemoteProtocolError(f"RELEASE with a payload of {length} bytes, which is no number of whole shares")
    if kind >= MAY_IGNORE_FROM:
        flags = 0
    if flags & MUST_KNOW_FLAGS & ~_KNOWN_FLAGS.get(kind, 0):
        raise RemoteProtocolError(f"{name} with flags 0x{flags:02x}, some of which this version does not have")
    if _is_wrong_count(limits, kind, count):
        raise RemoteProtocolError(f"{name} with {count} descriptors", codes.UNEXPECTED_DESCRIPTORS)
    if kind < MAY_IGNORE_FROM and (call_id == 0) != (kind in WITHOUT_CALL):
        raise RemoteProtocolError(f"{name} with call id {call_id}")


def _is_wrong_count(limits: Limits, kind: int, count: int) -> bool:
    if kind == ARENA:
        return count != ARENA_DESCRIPTORS
    return count > (limits.descriptors_per_frame_max if kind in WITH_DESCRIPTORS else 0)


def text_of(data: Payload, what: str) -> str:
    """UTF-8, as text.

    Raises:
        RemoteProtocolError: it is not.
    """
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(what, error) from error


def not_utf8(what: str, error: UnicodeDecodeError) -> RemoteProtocolError:
    """What to raise for bytes that should have been text."""
    return RemoteProtocolError(f"{what} is not UTF-8: {error}")


def cut_context(data: Payload, position: int, stop: int, bytes_max: int) -> tuple[Payload, int]:
    """The context that begins here, and where it ends.

    Raises:
        RemoteProtocolError: it is too long, or leaves no room for arguments.
    """
    begin = position + CONTEXT_LENGTH.size
    if begin > stop:
        raise RemoteProtocolError("CALL ends before its context")
    (length,) = CONTEXT_LENGTH.unpack_from(data, position)
    if length > bytes_max:
        raise RemoteProtocolError(
            f"CALL with a context of {length} bytes, at most {bytes_max} are taken", codes.TOO_LARGE
        )
    if begin + length >= stop:
        raise RemoteProtocolError("CALL ends before its arguments")
    return data[begin : begin + length], begin + length


def method_field(method: str, bytes_max: int) -> bytes:
    """A method's name with its length before it.

    Raises:
        LocalProtocolError: the name is empty or has no UTF-8.
        MessageTooLarge: it is too long.
    """
    try:
        name = method.encode()
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"the method's name {method!r} cannot be written in UTF-8") from error
    if not name:
        raise LocalProtocolError("a method's name cannot be empty")
    if len(name) > bytes_max:
        raise MessageTooLarge(f"a method's name of {len(name)} bytes, at most {bytes_max} travel")
    return bytes((len(name),)) + name


def context_field(context: Payload, bytes_max: int) -> bytes:
    """A context with its length before it.

    Raises:
        MessageTooLarge: it is too long.
    """
    if len(context) > bytes_max:
        raise MessageTooLarge(f"a context of {len(context)} bytes, at most {bytes_max} travel")
    return CONTEXT_LENGTH.pack(len(context)) + context


def error_head(code: str, message: str, error_id: str) -> bytes:
    """The payload of ERROR up to its data."""
    code_field, id_field, message_field = code.encode(), error_id.encode(), message.encode()
    head = ERROR_HEAD.pack(len(code_field), len(id_field), len(message_field))
    return head + code_field + id_field + message_field


def cut_error(data: Payload, start: int, stop: int) -> tuple[str, str, str, Payload]:
    """Code, message, id and data of an ERROR.

    Raises:
        RemoteProtocolError: its lengths do not fit.
    """
    code_bytes, id_bytes, message_bytes = ERROR_HEAD.unpack_from(data, start)
    code_at = start + ERROR_HEAD.size
    id_at = code_at + code_bytes
    message_at = id_at + id_bytes
    data_at = message_at + message_bytes
    _check_lengths("ERROR", code_bytes, id_bytes, message_bytes)
    if data_at > stop:
        raise RemoteProtocolError("ERROR ends before its data")
    return (
        text_of(data[code_at:id_at], "an error's code"),
        text_of(data[message_at:data_at], "an error's message"),
        text_of(data[id_at:message_at], "an error's id"),
        data[data_at:stop],
    )


def goaway_payload(last_call: int, code: str, message: str) -> bytes:
    """The payload of GOAWAY."""
    code_field, message_field = code.encode(), message.encode()
    return GOAWAY_HEAD.pack(last_call, len(code_field), len(message_field)) + code_field + message_field


def cut_goaway(data: Payload, start: int, stop: int) -> tuple[int, str, str]:
    """Last call, code and message of a GOAWAY.

    Raises:
        RemoteProtocolError: its lengths do not fit.
    """
    last_call, code_bytes, message_bytes = GOAWAY_HEAD.unpack_from(data, start)
    code_at = start + GOAWAY_HEAD.size
    message_at = code_at + code_bytes
    _check_lengths("GOAWAY", code_bytes, 0, message_bytes)
    if message_at + message_bytes != stop:
        raise RemoteProtocolError("GOAWAY is not as long as its parts")
    return (
        last_call,
        text_of(data[code_at:message_at], "the code of GOAWAY"),
        text_of(data[message_at:stop], "the message of GOAWAY"),
    )


def _check_lengths(name: str, code: int, error_id: int, message: int) -> None:
    if (
        not 0 < code <= bounds.ERROR_CODE_BYTES_MAX
        or error_id > bounds.ERROR_ID_BYTES_MAX
        or message > bounds.ERROR_MESSAGE_BYTES_MAX
    ):
        raise RemoteProtocolError(
            f"{name} with a code of {code} bytes, an id of {error_id} and a message of {message}: "
            f"at most {bounds.ERROR_CODE_BYTES_MAX}, {bounds.ERROR_ID_BYTES_MAX} and {bounds.ERROR_MESSAGE_BYTES_MAX}"
        )
