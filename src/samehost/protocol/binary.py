"""The binary format: a preface, then frames of a 12-byte header and a payload, PROTOCOL.md sections 3 to 8.

Receiving is where the time goes, so what nearly every frame is, a unary call or its answer, is taken in a loop of its
own as long as there is nothing more to it, and anything else by a method. A frame that came whole is never copied as
one: its parts are cut out of the bytes that were read. Only one that did not is collected, once its header has been
found good.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from samehost import limits as bounds
from samehost.errors import LocalProtocolError, MessageTooLarge, RemoteProtocolError
from samehost.protocol import codes, frames, preface
from samehost.protocol.book import ID_MAX
from samehost.protocol.connection import MILLISECONDS_BITS, cut
from samehost.protocol.events import Call, Descriptors, Failure, Notification, Payload, Pong, Reply
from samehost.protocol.runs import StreamingConnection
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
    ITEMS_WANTED,
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
_HEADER_BYTES = frames.HEADER_BYTES
_TIME_BYTES = frames.TIME_BYTES
_CALL_FRAME_BYTES = frames.CALL_FRAME.size
_JOIN_BYTES_MAX = bounds.JOIN_BYTES_MAX
_WITHOUT_ITEMS = (FIRST_STATES[0], FIRST_STATES[ITEMS_WANTED])
_KIND_AT = 4  # in a header
_PLAIN_CALLS = {CALL | flags << 8: flags for flags in range(BOTH_STREAMS + 1)}
"""Type, flags and number of descriptors of a call as one number, where there is nothing more to it: its flags."""
_unpack_short, _unpack_short_call = frames.SHORT_HEADER.unpack_from, frames.SHORT_CALL.unpack_from
_pack_header, _unpack_header = frames.HEADER.pack, frames.HEADER.unpack_from
_pack_call, _unpack_call = frames.HEADER_AND_TIME.pack, frames.CALL_FRAME.unpack_from


class BinaryConnection(StreamingConnection):
    """One end of a connection that speaks frames."""

    __slots__ = (
        "_alone_bytes_max",
        "_called",
        "_frame",
        "_frame_bytes",
        "_lengths",
        "_method_bytes_max",
        "_names",
        "_send_bytes_max",
        "_versions",
    )

    codec: ClassVar[str] = "msgpack"

    def __init__(
        self, is_client: bool, limits: Limits, *, features: int = 0, versions: tuple[int, ...] = preface.VERSIONS
    ) -> None:
        super().__init__(is_client, limits, features)
        self._versions = versions
        self._lengths = frames.length_ranges(limits)
        self._method_bytes_max = limits.method_bytes_max
        self._names: dict[str, bytes] = {}
        self._called: dict[bytes, str] = {}
        self._send_bytes_max = min(limits.payload_bytes_max, self.peer_payload_bytes_max)
        self._alone_bytes_max = min(self._send_bytes_max, bounds.ALONE_BYTES_MAX)
        # A frame that has not come whole yet: how long it will be once its header is there, its header's type, flags
        # and id.
        self._frame_bytes = 0
        self._frame = (0, 0, 0)
        if is_client:
            self._greet(versions[0])

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
        least, most = self._lengths.least, self._lengths.common
        while end - position >= _HEADER_BYTES:
            if not self._unclaimed:
                simple = position
                kind = data[position + _KIND_AT]
                if kind == CALL and self._theirs == self._ours == OPEN:
                    position = self._take_calls(data, position, end)
                elif kind == REPLY and not self._streams:
                    position = self._take_replies(data, position, end)
                if position != simple:
                    continue
            length, kind, flags, count, call_id = _unpack_header(data, position)
            if count or flags or not call_id or not least[kind] <= length <= most[kind]:
                self._check_header(length, kind, flags, count, call_id)
            start = position + _HEADER_BYTES
            stop = start + length
            if stop > end:
                self._frame = kind, flags, call_id
                self._frame_bytes = _HEADER_BYTES + length
                break
            position = self._read(data, start, stop, kind, flags, call_id)
        if position < end:
            self._keep(data, position)
        elif self._unclaimed:
            raise _unannounced(self._unclaimed)

    def _take_calls(self, data: bytes, position: int, end: int) -> int:
        """Take the calls that come one after the other, as long as they are whole, and there is nothing more to them.

        Returns:
            Where the first frame begins that is something else, and was not looked at.
        """
        taken, called, add = self._taken, self._called, self._events.append
        longest, places = self.limits.payload_bytes_max, self.limits.calls_max - len(taken)
        next_id = self._last_taken + 2
        while end - position >= _CALL_FRAME_BYTES and places > 0:
            length, what, call_id, milliseconds_left, name_bytes = _unpack_short_call(data, position)
            name_at = position + _CALL_FRAME_BYTES
            begin, stop = name_at + name_bytes, position + _HEADER_BYTES + length
            flags, method = _PLAIN_CALLS.get(what), called.get(data[name_at:begin])
            if (
                flags is None
                or method is None
                or call_id != next_id
                or not begin < stop <= end
                or length > longest
                or call_id in taken
            ):
                break
            taken[call_id] = FIRST_STATES[flags]
            add(Call(call_id, method, data[begin:stop], milliseconds_left, b"", flags, _NOTHING))
            position = stop
            next_id += 2
            places -= 1
        self._last_taken = next_id - 2
        return position

    def _take_replies(self, data: bytes, position: int, end: int) -> int:
        """The same for replies to calls without streams."""
        made, add, longest = self._made, self._events.append, self.limits.payload_bytes_max
        while end - position > _HEADER_BYTES:
            length, what, call_id = _unpack_short(data, position)
            start = position + _HEADER_BYTES
            stop = start + length
            if (
                what != REPLY
                or not start < stop <= end
                or length > longest
                or made.get(call_id, CANCELLED_FROM) >= CANCELLED_FROM
            ):
                break
            del made[call_id]
            add(Reply(call_id, data[start:stop], _NOTHING))
            position = stop
        return position

    # One frame by itself, which is what a caller and a callee exchange who wait for each other. Each of these does in
    # one step what the general way does, or nothing, if it is not that simple.

    def receive_call_alone(self, data: bytes) -> Call | None:
        """See `Connection.receive_call_alone`."""
        end = len(data)
        if end < _CALL_FRAME_BYTES or self._partial or not self._theirs == self._ours == OPEN:
            return None
        length, kind, flags, count, call_id, milliseconds_left, name_bytes = _unpack_call(data)
        begin = _CALL_FRAME_BYTES + name_bytes
        method = self._called.get(data[_CALL_FRAME_BYTES:begin])
        if (
            method is None
            or kind != CALL
            or length != end - _HEADER_BYTES
            or length > self.limits.payload_bytes_max
            or flags > BOTH_STREAMS
            or count
            or begin >= end
            or call_id != self._last_taken + 2
            or call_id in self._taken
            or len(self._taken) >= self.limits.calls_max
        ):
            return None
        self._last_taken = call_id
        self._taken[call_id] = FIRST_STATES[flags]
        return Call(call_id, method, data[begin:], milliseconds_left, b"", flags, _NOTHING)

    def receive_reply_alone(self, data: bytes) -> bytes | None:
        """The result of our only call, if its reply is all that a read without descriptors has brought."""
        end, made = len(data), self._made
        if end <= _HEADER_BYTES or self._partial:
            return None
        length, kind, flags, count, call_id = _unpack_header(data)
        if (
            kind != REPLY
            or length != end - _HEADER_BYTES
            or length > self.limits.payload_bytes_max
            or flags
            or count
            or len(made) != 1
            or made.get(call_id) not in _WITHOUT_ITEMS
            or self._streams
            or self._theirs < OPEN
        ):
            return None
        del made[call_id]
        return data[_HEADER_BYTES:]

    def send_call_alone(self, method: str, arguments: bytes, milliseconds_left: int, flags: int = 0) -> bytes:
        """The bytes of a call, to be sent at once; empty if it has to be made by `send_call`."""
        name = self._names.get(method)
        call_id = self.last_call_made + 2
        if (
            name is None
            or self._pieces
            or self._chunks
            or self._made
            or self._ours != OPEN
            or self._theirs != OPEN
            or not self.peer_calls_max
            or call_id > ID_MAX
        ):
            return b""
        length = _TIME_BYTES + len(name) + len(arguments)
        if length > self._alone_bytes_max or not arguments or milliseconds_left >> MILLISECONDS_BITS:
            return b""
        self.last_call_made = call_id
        self._made[call_id] = FIRST_STATES[flags]
        head = _pack_call(length, CALL, flags, 0, call_id, milliseconds_left)
        return b"".join((head, name, arguments))

    def send_reply_alone(self, call_id: int, result: bytes) -> bytes:
        """See `Connection.send_reply_alone`."""
        length = len(result)
        if (
            self._pieces
            or self._chunks
            or self._streams
            or not 0 < length <= _JOIN_BYTES_MAX
            or call_id not in self._taken
        ):
            return b""
        del self._taken[call_id]
        return _pack_header(length, REPLY, 0, 0, call_id) + result

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
            used = _HEADER_BYTES - len(partial)
            partial += data[:used]
            if len(partial) < _HEADER_BYTES:
                return data, len(data)
            self._read_kept_header()
        more = data[used : used + self._frame_bytes - len(partial)] if used or len(data) > self.bytes_missing else data
        partial += more
        used += len(more)
        if len(partial) < self._frame_bytes:
            return data, used
        self._partial = bytearray()
        self._frame_bytes = 0
        is_long = len(partial) > _JOIN_BYTES_MAX
        whole = memoryview(partial).toreadonly() if is_long else bytes(partial)
        self._read(whole, _HEADER_BYTES, len(partial), *self._frame)
        return data, used

    def _read_kept_header(self) -> None:
        """Check the header of the frame that was kept, by the descriptors that came with its first byte."""
        length, kind, flags, count, call_id = _unpack_header(self._partial)
        frames.check_header(self.limits, length, kind, flags, count, call_id)
        self._claim(count, self._waiting)
        self._waiting = _NOTHING
        self._frame = kind, flags, call_id
        self._frame_bytes = _HEADER_BYTES + length

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
        self._alone_bytes_max = min(self._send_bytes_max, bounds.ALONE_BYTES_MAX)
        self._peer_steps(PREFACE)
        if self._ours == GREETING:
            self._greet(theirs.version)
        return data, length

    def _receive_rest(self) -> None:
        if self._partial:
            missing = f", {self.bytes_missing} bytes before its end" if self._frame_bytes else ""
            raise RemoteProtocolError(f"the peer's output ended in the middle of a frame{missing}")

    def _read(self, data: Payload, start: int, stop: int, kind: int, flags: int, call_id: int) -> int:
        """Read any frame that has come whole, and items together with those behind it; where what was read ends."""
        descriptors = self._claimed
        if kind == ITEM:
            stop = self._read_items(data, start, stop, call_id)
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
        return stop

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
        elif kind == GOAWAY:
            self._read_goaway(data, start, stop)
        else:
            self._read_sharing(data, start, stop, kind)

    def _read_call(self, data: Payload, start: int, stop: int, flags: int, call_id: int) -> None:
        method, milliseconds_left, context, begin = self._cut_call(data, start, stop, flags)
        call = Call(call_id, method, data[begin:stop], milliseconds_left, context, flags & BOTH_STREAMS, self._claimed)
        self._check_new_id(call_id)
        self._received_call(call)
        self._claimed = _NOTHING
        if len(self._called) < bounds.METHOD_NAMES_KEPT:
            self._called[method.encode()] = method

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

    def send_call(
        self,
        method: str,
        arguments: Payload,
        milliseconds_left: int = 0,
        *,
        context: Payload = b"",
        flags: int = 0,
        descriptors: Descriptors = (),
    ) -> int:
        """See `Connection.send_call`; the common one takes fewer steps."""
        name, made = self._names.get(method, b""), self._made
        call_id = self.last_call_made + 2
        length = _TIME_BYTES + len(name) + len(arguments)
        if (
            not name
            or not arguments
            or context
            or descriptors
            or length > _JOIN_BYTES_MAX
            or flags & ~BOTH_STREAMS
            or milliseconds_left >> MILLISECONDS_BITS
            or call_id > ID_MAX
            or call_id in made
            or not self._theirs <= self._ours == OPEN
            or len(made) >= self.peer_calls_max
        ):
            return super().send_call(
                method, arguments, milliseconds_left, context=context, flags=flags, descriptors=descriptors
            )
        self.last_call_made = call_id
        made[call_id] = FIRST_STATES[flags]
        self._pieces += (_pack_call(length, CALL, flags, 0, call_id, milliseconds_left), name, arguments)
        return call_id

    def send_reply(self, call_id: int, result: Payload, descriptors: Descriptors = ()) -> None:
        """See `Connection.send_reply`; the common one takes fewer steps."""
        length = len(result)
        if descriptors or self._streams or not 0 < length <= _JOIN_BYTES_MAX or call_id not in self._taken:
            super().send_reply(call_id, result, descriptors)
            return
        del self._taken[call_id]
        self._pieces += (_pack_header(length, REPLY, 0, 0, call_id), result)

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
        length = _TIME_BYTES + len(name) + len(arguments)
        head = _pack_call(length, kind, flags, len(descriptors), call_id, milliseconds_left)
        if descriptors or length > _JOIN_BYTES_MAX or not arguments:
            self._check_payload(length, arguments, descriptors)
            self._output.write((head, name, arguments), descriptors)
        else:
            self._pieces += (head, name, arguments)

    def _write_notification(
        self, method: str, arguments: Payload, milliseconds_left: int, context: Payload, descriptors: Descriptors
    ) -> None:
        self._write_call(0, method, arguments, milliseconds_left, context, 0, descriptors, NOTIFY)

    def _write_reply(self, call_id: int, result: Payload, descriptors: Descriptors) -> None:
        self._write_value(REPLY, call_id, result, descriptors)

    def _write_value(self, kind: int, call_id: int, value: Payload, descriptors: Descriptors) -> None:
        length = len(value)
        head = _pack_header(length, kind, 0, len(descriptors), call_id)
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
        self._output.write((_pack_header(length, ERROR, 0, 0, call_id), head, data), ())

    def _write_bare(self, kind: int, call_id: int) -> None:
        self._pieces.append(_pack_header(0, kind, 0, 0, call_id))

    def _write_credit(self, call_id: int, items: int, byte_count: int) -> None:
        self._write_control(CREDIT, call_id, frames.CREDIT_BODY.pack(items, byte_count))

    def _write_ping(self, kind: int, token: int) -> None:
        self._write_control(kind, 0, frames.TOKEN.pack(token))

    def _write_going_away(self, code: str, message: str) -> None:
        self._write_control(GOAWAY, 0, frames.goaway_payload(max(self._last_taken, 0), code, message))

    def _write_control(self, kind: int, call_id: int, payload: bytes) -> None:
        self._pieces += (_pack_header(len(payload), kind, 0, 0, call_id), payload)

    def _write_failure(self, error: RemoteProtocolError) -> None:
        if self._theirs != GREETING:
            self._write_going_away(error.code, cut(str(error)))
        elif self._ours == GREETING and error.code == codes.VERSION_REFUSED:
            self._pieces.append(preface.refusal(self._versions))

    def _greet(self, version: int) -> None:
        self._we_step(PREFACE)
        taken = self.limits.payload_bytes_max, self.limits.calls_max
        self._pieces.append(preface.Preface(version, self._versions, self._features, *taken).encode())

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
