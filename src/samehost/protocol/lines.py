"""The format of JSON-RPC 2.0, a message a line, PROTOCOL.md section 10: the same calls and events for any language.

It is meant for hands, scripts and languages without MessagePack rather than for speed. A line that cannot be read is
answered, and the connection lives, since the next line feed is a fresh start; what breaks the life of a call ends it.
Only the client calls, so an id in a notification of ours is always one of the client's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from samehost.errors import LocalProtocolError, MessageTooLarge, RemoteProtocolError
from samehost.protocol import codes, envelopes
from samehost.protocol.batches import Batch
from samehost.protocol.book import ID_MAX
from samehost.protocol.connection import Connection, cut
from samehost.protocol.envelopes import ABSENT, JsonId, Message, Unreadable
from samehost.protocol.events import Call, Descriptors, Failure, Notification, Payload, Pong
from samehost.protocol.states import CANCEL, END, ITEMS_FOLLOW, ITEMS_WANTED, PING, PONG, PREFACE, STREAM

if TYPE_CHECKING:
    from collections.abc import Callable

    from msgspec import Raw

    from samehost.protocol.settings import Limits

FIRST_BYTES = frozenset(b"{[ \t\r\n")
_BARE = {CANCEL: b"$/cancelRequest", STREAM: b"$/stream", END: b"$/end"}
_NO_ARGUMENTS = b"{}"


class LinesConnection(Connection):
    """One end of a connection that speaks JSON-RPC, a message a line."""

    __slots__ = ("_batches", "_call_ids", "_is_client", "_json_ids", "_last_json_id")

    codec: ClassVar[str] = "json"

    def __init__(self, is_client: bool, limits: Limits) -> None:
        super().__init__(is_client, limits)
        self._is_client = is_client
        self._json_ids: dict[int, JsonId] = {}
        self._call_ids: dict[JsonId, int] = {}
        self._batches: dict[int, Batch] = {}
        self._last_json_id: JsonId | None = None
        self._we_step(PREFACE)
        self._peer_steps(PREFACE)

    # Receiving.

    def _receive(self, data: bytes, descriptors: Descriptors) -> None:
        if descriptors:
            self._unclaimed = descriptors
            raise RemoteProtocolError(
                f"{len(descriptors)} descriptors came, and JSON lines carry none", codes.UNEXPECTED_DESCRIPTORS
            )
        begin = 0
        while (end := data.find(b"\n", begin)) >= 0:
            self._keep(data, begin, end)
            line = bytes(self._partial)
            self._partial.clear()
            begin = end + 1
            self._read_line(line.strip())
        if begin < len(data):
            self.partial_frames += not self._partial
            self._keep(data, begin, len(data))

    def _keep(self, data: bytes, begin: int, end: int) -> None:
        length = len(self._partial) + end - begin
        if length > self.limits.payload_bytes_max:
            raise RemoteProtocolError(
                f"a line of {length} bytes or more, at most {self.limits.payload_bytes_max} are taken", codes.TOO_LARGE
            )
        self._partial += memoryview(data)[begin:end]

    def _receive_rest(self) -> None:
        """Take a last line that lacks its line feed, as `echo -n` sends it, if it is whole otherwise."""
        line = bytes(self._partial).strip()
        self._partial.clear()
        try:
            if line:
                envelopes.check_syntax(line)
        except Unreadable as error:
            raise RemoteProtocolError("the peer's output ended in the middle of a line") from error
        self._read_line(line)

    def _read_line(self, line: bytes) -> None:
        if line[:1] == b"[":
            self._read_batch(line)
        elif line:
            self._read_message(line, None)

    def _read_batch(self, line: bytes) -> None:
        try:
            messages = envelopes.read_batch(line)
        except Unreadable as error:
            self._answer(envelopes.error_response(None, error.code, cut(str(error))))
            return
        if not 0 < len(messages) <= self.limits.batch_calls_max:
            many = "none" if not messages else f"more than {self.limits.batch_calls_max}"
            why = f"a batch has from 1 to {self.limits.batch_calls_max} messages, not {many}"
            self._answer(envelopes.error_response(None, codes.INVALID_REQUEST, why))
            return
        batch = Batch(self.limits.payload_bytes_max)
        for message in messages:
            self._read_message(message, batch)
        self._answer(batch.arrived())

    def _read_message(self, text: bytes, batch: Batch | None) -> None:
        try:
            message = envelopes.read_message(text)
            if message.method is ABSENT:
                self._read_response(message)
            elif message.method.startswith("$/"):
                self._read_ours(message, message.method)
            else:
                self._read_request(message, message.method, batch)
        except Unreadable as error:
            response = envelopes.error_response(error.json_id, error.code, cut(str(error)))
            if batch is None:
                self._answer(response)
            else:
                batch.add(error.json_id, response)

    def _read_request(self, message: Message, method: str, batch: Batch | None) -> None:
        json_id = id_of(message)
        options = message.options if isinstance(message.options, envelopes.Options) else envelopes.Options()
        arguments = bytes(message.params) or _NO_ARGUMENTS
        context = bytes(options.context)
        for name, length, least, most in (
            ("the method's name", len(method.encode()), 1, self.limits.method_bytes_max),
            ("the context", len(context), 0, self.limits.context_bytes_max),
        ):
            if not least <= length <= most:
                raise Unreadable(
                    codes.INVALID_REQUEST, f"{name} has {length} bytes, from {least} to {most} are taken", json_id
                )
        if json_id is None:
            self._received_notification(Notification(method, arguments, options.timeout_ms, context, ()))
            return
        if json_id in self._call_ids:
            raise RemoteProtocolError(f"a request with id {json_id!r}, under which another one is open")
        call_id = self._free_id_after(self._last_taken, self._taken)
        self._json_ids[call_id] = self._last_json_id = json_id
        self._call_ids[json_id] = call_id
        if batch is not None:
            self._batches[call_id] = batch
            batch.expect()
        flags = ITEMS_FOLLOW * options.items_follow | ITEMS_WANTED * options.items_wanted
        self._received_call(Call(call_id, method, arguments, options.timeout_ms, context, flags, ()))

    def _read_response(self, message: Message) -> None:
        json_id = id_of(message)
        error = message.error
        if not isinstance(error, envelopes.ErrorObject):
            self._received_reply(self._call_of(json_id), bytes(message.result), ())
            return
        code, error_id, data = envelopes.read_error(error)
        if json_id is None:
            raise RemoteProtocolError(f"the peer could not read what we sent: {error.message}", code)
        self._received_failure(Failure(self._call_of(json_id), code, error.message, error_id, data))

    def _read_ours(self, message: Message, method: str) -> None:
        """Read one of our own notifications; one that we do not know is ignored."""
        if message.id is not ABSENT:
            raise Unreadable(codes.METHOD_NOT_FOUND, f"{method} is a notification, no method", id_of(message))
        read = self._READERS.get(method)
        if read is not None:
            read(self, message.params)

    def _read_cancel(self, params: Raw) -> None:
        self._received_cancel(self._call_of(envelopes.read_params(params, envelopes.OfCall).id))

    def _read_stream(self, params: Raw) -> None:
        self._received_stream(self._call_of(envelopes.read_params(params, envelopes.OfCall).id))

    def _read_end(self, params: Raw) -> None:
        self._received_end(self._call_of(envelopes.read_params(params, envelopes.OfCall).id))

    def _read_item(self, params: Raw) -> None:
        item = envelopes.read_params(params, envelopes.ItemParams)
        self._received_item(self._call_of(item.id), bytes(item.item), ())

    def _read_credit(self, params: Raw) -> None:
        credit = envelopes.read_params(params, envelopes.CreditParams)
        self._received_credit(self._call_of(credit.id), credit.items, credit.bytes)

    def _read_progress(self, params: Raw) -> None:
        progress = envelopes.read_params(params, envelopes.ProgressParams)
        value = bytes(progress.value)
        if len(value) > self.limits.note_bytes_max:
            raise RemoteProtocolError(
                f"progress of {len(value)} bytes, at most {self.limits.note_bytes_max} are taken", codes.TOO_LARGE
            )
        self._received_note(self._call_of(progress.id), value)

    def _read_ping(self, params: Raw) -> None:
        self._write_ping(PONG, envelopes.read_params(params, envelopes.TokenParams).token)

    def _read_pong(self, params: Raw) -> None:
        self._events.append(Pong(envelopes.read_params(params, envelopes.TokenParams).token))

    def _read_going_away(self, params: Raw) -> None:
        away = envelopes.read_params(params, envelopes.GoingAwayParams)
        last_call = 0 if away.last is None else self._call_of(away.last)
        self._received_going_away(self._unsent_after(last_call), away.code, away.message)

    _READERS: ClassVar[dict[str, Callable[[LinesConnection, Raw], None]]] = {
        "$/cancelRequest": _read_cancel,
        "$/stream": _read_stream,
        "$/end": _read_end,
        "$/item": _read_item,
        "$/credit": _read_credit,
        "$/progress": _read_progress,
        "$/ping": _read_ping,
        "$/pong": _read_pong,
        "$/goingAway": _read_going_away,
    }

    def _call_of(self, json_id: JsonId | None) -> int:
        """The call under this id; for a server 0, which counts as a call that has ended, if none is open."""
        if not self._is_client:
            return self._call_ids.get(json_id, 0) if json_id is not None else 0
        if isinstance(json_id, int) and 0 < json_id <= ID_MAX:
            return json_id
        raise RemoteProtocolError(f"an answer to call {json_id!r}, which was never made")

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
    ) -> None:
        self._write_request(call_id, method, arguments, milliseconds_left, context, flags, descriptors)

    def _write_notification(
        self, method: str, arguments: Payload, milliseconds_left: int, context: Payload, descriptors: Descriptors
    ) -> None:
        self._write_request(None, method, arguments, milliseconds_left, context, ITEMS_WANTED, descriptors)

    def _write_request(
        self,
        json_id: int | None,
        method: str,
        arguments: Payload,
        milliseconds_left: int,
        context: Payload,
        flags: int,
        descriptors: Descriptors,
    ) -> None:
        if not method or method.startswith("$/"):
            raise LocalProtocolError(f"{method!r} cannot be the name of a method")
        options = []
        if milliseconds_left:
            options.append(b'"timeout_ms":%d' % milliseconds_left)
        if flags & ITEMS_FOLLOW:
            options.append(b'"items_follow":true')
        if not flags & ITEMS_WANTED:
            options.append(b'"items_wanted":false')
        if context:
            options.append(b'"context":' + envelopes.value_text(context))
        line = envelopes.request(json_id, method, arguments, options)
        name_bytes = len(method.encode())
        if name_bytes > self.limits.method_bytes_max or len(context) > self.limits.context_bytes_max:
            raise MessageTooLarge(
                f"a method's name of {name_bytes} bytes and a context of {len(context)}, at most "
                f"{self.limits.method_bytes_max} and {self.limits.context_bytes_max} travel"
            )
        self._check_line(line, descriptors)
        self._answer(line)

    def _write_reply(self, call_id: int, result: Payload, descriptors: Descriptors) -> None:
        line = envelopes.response(self._json_ids[call_id], result)
        self._check_line(line, descriptors)
        self._answer_call(call_id, line)

    def _write_error(self, call_id: int, code: str, message: str, error_id: str, data: Payload) -> None:
        line = envelopes.error_response(self._json_ids[call_id], code, message, error_id, data)
        self._check_line(line, ())
        self._answer_call(call_id, line)

    def _answer_call(self, call_id: int, line: bytes) -> None:
        json_id = self._json_ids.pop(call_id)
        del self._call_ids[json_id]
        batch = self._batches.pop(call_id, None)
        if batch is not None:
            batch.add(json_id, line)
            line = batch.arrived()
        self._answer(line)

    def _write_item(self, call_id: int, value: Payload, descriptors: Descriptors) -> None:
        self._write_ours(b"$/item", descriptors, id=self._json_id_of(call_id), item=envelopes.value_text(value))

    def _write_note(self, call_id: int, value: Payload) -> None:
        self._write_ours(b"$/progress", id=self._json_id_of(call_id), value=envelopes.value_text(value))

    def _write_credit(self, call_id: int, items: int, byte_count: int) -> None:
        self._write_ours(b"$/credit", id=self._json_id_of(call_id), items=b"%d" % items, bytes=b"%d" % byte_count)

    def _write_bare(self, kind: int, call_id: int) -> None:
        self._write_ours(_BARE[kind], id=self._json_id_of(call_id))

    def _write_ping(self, kind: int, token: int) -> None:
        self._write_ours(b"$/ping" if kind == PING else b"$/pong", token=b"%d" % token)

    def _write_going_away(self, code: str, message: str) -> None:
        last = envelopes.text(self._last_json_id)
        self._write_ours(b"$/goingAway", code=envelopes.text(code), message=envelopes.text(message), last=last)

    def _write_failure(self, error: RemoteProtocolError) -> None:
        self._write_going_away(error.code, cut(str(error)))
        self._json_ids.clear()
        self._call_ids.clear()
        self._batches.clear()
        self._partial.clear()

    def _write_ours(self, method: bytes, descriptors: Descriptors = (), **members: bytes) -> None:
        line = envelopes.notification(method, **members)
        self._check_line(line, descriptors)
        self._answer(line)

    def _json_id_of(self, call_id: int) -> bytes:
        return envelopes.text(self._json_ids.get(call_id, call_id))

    def _check_line(self, line: bytes, descriptors: Descriptors) -> None:
        if descriptors:
            raise LocalProtocolError("files cannot travel as JSON lines")
        if len(line) > self.limits.payload_bytes_max:
            raise MessageTooLarge(f"a line of {len(line)} bytes, at most {self.limits.payload_bytes_max} travel")

    def _answer(self, line: bytes) -> None:
        if line:
            self._output.write((line + b"\n",), ())


def id_of(message: Message) -> JsonId | None:
    """The id of a message, if it has one that is not null."""
    return message.id if isinstance(message.id, int | str) else None
