"""The binary format: a preface, then frames of a 12-byte header and a payload, PROTOCOL.md sections 3 to 8.

The loop in `_receive` is where the time goes, so what nearly every frame is, a unary call or its answer, takes a few
lines there, and anything else a method. A frame that came whole is never copied as one: its parts are cut out of the
bytes that were read. Only one that did not is collected, once its header has been found good.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from samehost import limits as bounds
from samehost.errors import LocalProtocolError, MessageTooLarge, RemoteProtocolError
from samehost.protocol import codes, frames, preface
from samehost.protocol.connection import Connection, cut
from samehost.protocol.events import Call, Descriptors, Failure, Notification, Payload, Pong, Reply
from samehost.protocol.states import (
    BOTH_STREAMS,
    CALL,
    CANCEL,
    CANCELLED_FROM,
    CREDIT,
    END,
    ERROR,
    FIRST_STATES,
    GOAWAY,
    GREETING,
    HAS_CONTEXT,
    ITEM,
    NOTE,
    NOTIFY,
    OPEN,
    PING,
    PONG,
    PREFACE,
    REPLY,
    STREAM,
)

if TYPE_CHECKING:
    from samehost.protocol.settings import Limits

_TOKEN_MAX = 2**32 - 1
_NOTHING: Descriptors = ()


class BinaryConnection(Connection):
    """One end of a connection that speaks frames.

    Attributes:
        partial_frames: how many frames, the preface among them, have come in more than one piece so far. While
            `is_mid_frame` holds and this stays the same, it is still the same frame that the peer owes the rest of.
    """

    codec: ClassVar[str] = "msgpack"

    def __init__(
        self, is_client: bool, limits: Limits, *, features: int = 0, versions: tuple[int, ...] = preface.VERSIONS
    ) -> None:
        super().__init__(is_client, limits)
        self.partial_frames = 0
        self._versions = versions
        self._greeting = preface.Preface(versions[0], versions, features, limits.payload_bytes_max, limits.calls_max)
        self._lengths = frames.length_ranges(limits)
        self._method_bytes_max = limits.method_bytes_max
        self._names: dict[str, bytes] = {}
        self._send_bytes_max = min(limits.payload_bytes_max, self.peer_payload_bytes_max)
        # A frame that has not come whole yet: what there is of it, how long it will be once its header is there, its
        # header's type, flags and id.
        self._partial = bytearray()
        self._frame_bytes = 0
        self._frame = (0, 0, 0)
        if is_client:
            self._greet(self._greeting.version)

    @property
    def is_mid_frame(self) -> bool:
        """Whether the peer has sent a part of a frame, or of its preface, and owes the rest."""
        return bool(self._partial)

    @property
    def bytes_missing(self) -> int:
        """How many bytes the frame that is coming in still needs; 0 if none is, or its header is not there yet."""
        return max(self._frame_bytes - len(self._partial), 0)

    # Receiving.

    def _receive(self, data: bytes, descriptors: Descriptors) -> None:
        self._unclaimed = descriptors
        position = 0
        if self._partial or self._theirs == GREETING:
            data, position = self._resume(data)
        end = len(data)
        least, most, unpack = self._lengths.least, self._lengths.common, frames.HEADER.unpack_from
        while end - position >= frames.HEADER_BYTES:
            length, kind, flags, count, call_id = unpack(data, position)
            if (
                count
                or not call_id
                or length > most[kind]
                or length < least[kind]
                or (flags and (kind != CALL or flags > BOTH_STREAMS))
            ):
                self._check_header(length, kind, flags, count, call_id)
            start = position + frames.HEADER_BYTES
            stop = start + length
            if stop > end:
                self._frame = kind, flags, call_id
                self._frame_bytes = frames.HEADER_BYTES + length
                break
            position = stop
            if kind == CALL:
                self._read_call(data, start, stop, flags, call_id)
            elif kind == REPLY:
                state = self._made.get(call_id, CANCELLED_FROM)
                if state < CANCELLED_FROM and not count and not self._streams:
                    del self._made[call_id]
                    self._events.append(Reply(call_id, data[start:stop], _NOTHING))
                else:
                    self._read(data, start, stop, kind, flags, call_id)
            else:
                self._read(data, start, stop, kind, flags, call_id)
        if position < end:
            self._keep(data, position)
        elif self._unclaimed:
            raise _unannounced(self._unclaimed)

    def _check_header(self, length: int, kind: int, flags: int, count: int, call_id: int) -> None:
        """Look closer at a header that is not the commonest, and give its frame the descriptors that came with it."""
        frames.check_header(self.limits, length, kind, flags, count, call_id)
        if count:
            self._claim(count, self._unclaimed)
            self._unclaimed = _NOTHING

    def _claim(self, count: int, came: Descriptors) -> None:
        if len(came) != count:
            raise RemoteProtocolError(
                f"a frame that announces {count} descriptors came with {len(came)}", codes.UNEXPECTED_DESCRIPTORS
            )
        self._claimed = came

    def _keep(self, data: bytes, position: int) -> None:
        """Keep the beginning of a frame until the rest comes."""
        self._partial += memoryview(data)[position:]
        self.partial_frames += 1
        if self._unclaimed:
            # They came with the last frame that begins here, and it has yet to say whether it has any.
            if self._frame_bytes:
                raise _unannounced(self._unclaimed)
            self._waiting, self._unclaimed = self._unclaimed, _NOTHING

    def _resume(self, data: bytes) -> tuple[bytes, int]:
        """Go on with what was kept.

        Returns:
            The bytes to go on with, and the position of the first frame that begins in them.
        """
        if self._theirs == GREETING:
            return self._receive_preface(data)
        partial = self._partial
        used = 0
        if not self._frame_bytes:
            used = frames.HEADER_BYTES - len(partial)
            partial += data[:used]
            if len(partial) < frames.HEADER_BYTES:
                return data, len(data)
            self._read_kept_header()
        more = data[used : used + self._frame_bytes - len(partial)] if used or len(data) > self.bytes_missing else data
        partial += more
        used += len(more)
        if len(partial) < self._frame_bytes:
            return data, used
        self._partial = bytearray()
        self._frame_bytes = 0
        is_long = len(partial) > bounds.JOIN_BYTES_MAX
        whole = memoryview(partial).toreadonly() if is_long else bytes(partial)
        self._read(whole, frames.HEADER_BYTES, len(partial), *self._frame)
        return data, used

    def _read_kept_header(self) -> None:
        """Check the header of the frame that was kept, by the descriptors that came with its first byte."""
        length, kind, flags, count, call_id = frames.HEADER.unpack_from(self._partial)
        frames.check_header(self.limits, length, kind, flags, count, call_id)
        self._claim(count, self._waiting)
        self._waiting = _NOTHING
        self._frame = kind, flags, call_id
        self._frame_bytes = frames.HEADER_BYTES + length

    def _receive_preface(self, data: bytes) -> tuple[bytes, int]:
        if self._partial:
            data = bytes(self._partial) + data
        found = preface.decode(data)
        if found is None:
            self.partial_frames += not self._partial
            self._partial[:] = data
            return data, len(data)
        self._partial.clear()
        theirs, length = found
        preface.check(theirs, self._versions if self._ours == GREETING else self._versions[:1])
        self.peer_features = theirs.features
        self.peer_payload_bytes_max = theirs.payload_bytes_max
        self.peer_calls_max = theirs.calls_max
        self._send_bytes_max = min(self.limits.payload_bytes_max, theirs.payload_bytes_max)
        self._peer_steps(PREFACE)
        if self._ours == GREETING:
            self._greet(theirs.version)
        return data, length

    def _receive_rest(self) -> None:
        if self._partial:
            missing = f", {self.bytes_missing} bytes before its end" if self._frame_bytes else ""
            raise RemoteProtocolError(f"the peer's output ended in the middle of a frame{missing}")

    def _read(self, data: Payload, start: int, stop: int, kind: int, flags: int, call_id: int) -> None:
        """Read any frame that has come whole."""
        descriptors = self._claimed
        if kind == ITEM:
            self._received_item(call_id, data[start:stop], descriptors)
        elif kind == CALL:
            self._read_call(data, start, stop, flags, call_id)
        elif kind == REPLY:
            self._received_reply(call_id, data[start:stop], descriptors)
        elif kind == ERROR:
            code, message, error_id, value = frames.cut_error(data, start, stop)
            self._received_failure(Failure(call_id, code, message, error_id, value))
        elif kind == NOTIFY:
            method, milliseconds_left, context, begin = self._cut_call(data, start, stop, flags)
            self._received_notification(Notification(method, data[begin:stop], milliseconds_left, context, descriptors))
        elif kind < frames.MAY_IGNORE_FROM:
            self._read_control(data, start, stop, kind, call_id)
        self._claimed = _NOTHING

    def _read_control(self, data: Payload, start: int, stop: int, kind: int, call_id: int) -> None:
        if kind == CREDIT:
            items, byte_count = frames.CREDIT_BODY.unpack_from(data, start)
            self._received_credit(call_id, items, byte_count)
        elif kind == CANCEL:
            self._received_cancel(call_id)
        elif kind == STREAM:
            self._received_stream(call_id)
        elif kind == END:
            self._received_end(call_id)
        elif kind == NOTE:
            self._received_note(call_id, data[start:stop])
        elif kind == PING:
            self._write_ping(PONG, *frames.TOKEN.unpack_from(data, start))
        elif kind == PONG:
            self._events.append(Pong(*frames.TOKEN.unpack_from(data, start)))
        else:
            self._read_goaway(data, start, stop)

    def _read_call(self, data: Payload, start: int, stop: int, flags: int, call_id: int) -> None:
        milliseconds_left, name_bytes = frames.CALL_HEAD.unpack_from(data, start)
        name_at = start + 5
        begin = name_at + name_bytes
        context: Payload = b""
        if flags & HAS_CONTEXT or begin >= stop or not 0 < name_bytes <= self._method_bytes_max:
            method, milliseconds_left, context, begin = self._cut_call(data, start, stop, flags)
        else:
            try:
                method = str(data[name_at:begin], "utf-8")
            except UnicodeDecodeError as error:
                raise frames.not_utf8("a method's name", error) from error
        call = Call(call_id, method, data[begin:stop], milliseconds_left, context, flags & BOTH_STREAMS, self._claimed)
        if (
            call_id == self._last_taken + 2
            and self._theirs == self._ours == OPEN
            and len(self._taken) < self.limits.calls_max
            and call_id not in self._taken
        ):
            self._last_taken = call_id
            self._taken[call_id] = FIRST_STATES[flags & BOTH_STREAMS]
            self._events.append(call)
        else:
            self._check_new_id(call_id)
            self._received_call(call)
        self._claimed = _NOTHING

    def _cut_call(self, data: Payload, start: int, stop: int, flags: int) -> tuple[str, int, Payload, int]:
        """Method, milliseconds left, context and the position of the arguments, with all that may be wrong."""
        milliseconds_left, name_bytes = frames.CALL_HEAD.unpack_from(data, start)
        name_at = start + frames.CALL_HEAD.size
        begin = name_at + name_bytes
        if not 0 < name_bytes <= self._method_bytes_max:
            raise RemoteProtocolError(
                f"a method's name of {name_bytes} bytes, from 1 to {self._method_bytes_max} are taken"
            )
        if begin >= stop:
            raise RemoteProtocolError("CALL ends before its arguments")
        method = frames.text_of(data[name_at:begin], "a method's name")
        context: Payload = b""
        if flags & HAS_CONTEXT:
            context, begin = frames.cut_context(data, begin, stop, self.limits.context_bytes_max)
        return method, milliseconds_left, context, begin

    def _read_goaway(self, data: Payload, start: int, stop: int) -> None:
        last_call, code, message = frames.cut_goaway(data, start, stop)
        self._received_going_away(self._unsent_after(last_call), code, message)

    # Sending.

    def _write_call(
        self,
        call_id: int,
        method: str,
        arguments: Payload,
        milliseconds_left: int,
        context: Payload,
        flags: int,
        descriptors: Descriptors,
        kind: int = CALL,
    ) -> None:
        name = self._names.get(method) or self._name_field(method)
        if context:
            name += frames.context_field(context, self.limits.context_bytes_max)
            flags |= HAS_CONTEXT
        length = 4 + len(name) + len(arguments)
        head = frames.HEADER_AND_TIME.pack(length, kind, flags, len(descriptors), call_id, milliseconds_left)
        if descriptors or length > bounds.JOIN_BYTES_MAX or not arguments:
            self._check_payload(length, arguments, descriptors)
            self._output.write((head, name, arguments), descriptors)
        else:
            self._pieces += (head, name, arguments)

    def _write_notification(
        self, method: str, arguments: Payload, milliseconds_left: int, context: Payload, descriptors: Descriptors
    ) -> None:
        self._write_call(0, method, arguments, milliseconds_left, context, 0, descriptors, NOTIFY)

    def _write_reply(self, call_id: int, result: Payload, descriptors: Descriptors) -> None:
        length = len(result)
        if descriptors or length > bounds.JOIN_BYTES_MAX or not length:
            self._write_value(REPLY, call_id, result, descriptors)
        else:
            self._pieces += (frames.HEADER.pack(length, REPLY, 0, 0, call_id), result)

    def _write_value(self, kind: int, call_id: int, value: Payload, descriptors: Descriptors) -> None:
        length = len(value)
        head = frames.HEADER.pack(length, kind, 0, len(descriptors), call_id)
        self._check_payload(length, value, descriptors)
        self._output.write((head, value), descriptors)

    def _write_item(self, call_id: int, value: Payload, descriptors: Descriptors) -> None:
        self._write_value(ITEM, call_id, value, descriptors)

    def _write_note(self, call_id: int, value: Payload) -> None:
        self._write_value(NOTE, call_id, value, ())

    def _write_error(self, call_id: int, code: str, message: str, error_id: str, data: Payload) -> None:
        head = frames.error_head(code, message, error_id)
        length = len(head) + len(data)
        self._check_payload(length, head, ())
        self._output.write((frames.HEADER.pack(length, ERROR, 0, 0, call_id), head, data), ())

    def _write_bare(self, kind: int, call_id: int) -> None:
        self._pieces.append(frames.HEADER.pack(0, kind, 0, 0, call_id))

    def _write_credit(self, call_id: int, items: int, byte_count: int) -> None:
        self._write_control(CREDIT, call_id, frames.CREDIT_BODY.pack(items, byte_count))

    def _write_ping(self, kind: int, token: int) -> None:
        self._write_control(kind, 0, frames.TOKEN.pack(token))

    def _write_going_away(self, code: str, message: str) -> None:
        self._write_control(GOAWAY, 0, frames.goaway_payload(max(self._last_taken, 0), code, message))

    def _write_control(self, kind: int, call_id: int, payload: bytes) -> None:
        self._pieces += (frames.HEADER.pack(len(payload), kind, 0, 0, call_id), payload)

    def _write_failure(self, error: RemoteProtocolError) -> None:
        if self._theirs != GREETING:
            self._write_going_away(error.code, cut(str(error)))
        elif self._ours == GREETING and error.code == codes.VERSION_REFUSED:
            self._pieces.append(preface.refusal(self._versions))

    def _greet(self, version: int) -> None:
        self._we_step(PREFACE)
        self._pieces.append(self._greeting._replace(version=version).encode())

    def _name_field(self, method: str) -> bytes:
        """Encode a method's name, and keep it for the next call."""
        field = frames.method_field(method, self.limits.method_bytes_max)
        if len(self._names) >= bounds.METHOD_NAMES_KEPT:
            self._names.clear()
        self._names[method] = field
        return field

    def _check_payload(self, length: int, value: Payload, descriptors: Descriptors) -> None:
        """Raise if a frame cannot be sent like this."""
        if not value:
            raise LocalProtocolError("an encoded value has at least one byte")
        if length > self._send_bytes_max:
            raise MessageTooLarge(f"a payload of {length} bytes, at most {self._send_bytes_max} travel in one frame")
        if len(descriptors) > bounds.FILES_PER_MESSAGE_MAX:
            raise MessageTooLarge(
                f"{len(descriptors)} files in one frame, at most {bounds.FILES_PER_MESSAGE_MAX} travel"
            )


def _unannounced(descriptors: Descriptors) -> RemoteProtocolError:
    return RemoteProtocolError(
        f"{len(descriptors)} descriptors came that no frame announced", codes.UNEXPECTED_DESCRIPTORS
    )
