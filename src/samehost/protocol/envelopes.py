"""The messages of JSON-RPC 2.0, and ours among them, read and written one at a time: PROTOCOL.md section 10.

Arguments, results, items and the like are not decoded: msgspec checks their syntax, and hands them on as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

import msgspec

from samehost import limits as bounds
from samehost.errors import LocalProtocolError
from samehost.protocol import codes

if TYPE_CHECKING:
    from samehost.protocol.events import Payload

JsonId: TypeAlias = int | str
MaybeId: TypeAlias = JsonId | msgspec.UnsetType | None
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=bounds.CREDIT_MAX)]
_U32: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]

ABSENT = msgspec.UNSET
_NOTHING = msgspec.Raw()


class Options(msgspec.Struct):
    """What a request may add to JSON-RPC, PROTOCOL.md section 10.3."""

    timeout_ms: _U32 = 0
    items_follow: bool = False
    items_wanted: bool = True
    context: msgspec.Raw = _NOTHING


class ErrorObject(msgspec.Struct):
    """The member `error` of a response."""

    code: int
    message: str
    data: msgspec.Raw = _NOTHING


class Message(msgspec.Struct):
    """A request, a notification or a response, depending on what there is."""

    jsonrpc: str = ""
    id: MaybeId = ABSENT
    method: str | msgspec.UnsetType = ABSENT
    params: msgspec.Raw = _NOTHING
    options: Options | msgspec.UnsetType = ABSENT
    result: msgspec.Raw = _NOTHING
    error: ErrorObject | msgspec.UnsetType = ABSENT


class ErrorData(msgspec.Struct):
    """What we put in the member `data` of an error."""

    code: str
    id: str = ""
    data: msgspec.Raw = _NOTHING


class OfCall(msgspec.Struct):
    """The params of `$/cancelRequest`, `$/stream` and `$/end`."""

    id: JsonId


class ItemParams(msgspec.Struct):
    """The params of `$/item`."""

    id: JsonId
    item: msgspec.Raw


class CreditParams(msgspec.Struct):
    """The params of `$/credit`."""

    id: JsonId
    items: Count = 0
    bytes: Count = 0


class ProgressParams(msgspec.Struct):
    """The params of `$/progress`."""

    id: JsonId
    value: msgspec.Raw


class TokenParams(msgspec.Struct):
    """The params of `$/ping` and `$/pong`."""

    token: _U32


class GoingAwayParams(msgspec.Struct):
    """The params of `$/goingAway`."""

    code: str
    message: str = ""
    last: JsonId | None = None


class Unreadable(Exception):
    """A message that is not one: which of JSON-RPC's errors that is, why, and the id if there is one."""

    def __init__(self, code: str, why: str, json_id: JsonId | None = None) -> None:
        super().__init__(why)
        self.code = code
        self.json_id = json_id


class _OnlyId(msgspec.Struct):
    id: MaybeId = ABSENT


_message = msgspec.json.Decoder(Message)
_only_id = msgspec.json.Decoder(_OnlyId)
_syntax = msgspec.json.Decoder(msgspec.Raw)
_batch = msgspec.json.Decoder(
    # An array read into the fields of a record: what is beyond the last of them is skipped, and makes no objects.
    msgspec.defstruct(
        "_Batch",
        [(f"message_{number}", msgspec.Raw, _NOTHING) for number in range(bounds.BATCH_CALLS_MAX + 1)],
        array_like=True,
    )
)
_error_data = msgspec.json.Decoder(ErrorData)
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_Params = TypeVar("_Params", bound=msgspec.Struct)


def check_syntax(line: bytes) -> None:
    """Raise Unreadable if this is not JSON in UTF-8."""
    try:
        if not line.isascii():
            line.decode()
        _syntax.decode(line)
    except _NOT_JSON as error:
        raise Unreadable(codes.PARSE_ERROR, f"not JSON: {error}") from error


def read_message(text: bytes) -> Message:
    """Read one message whose syntax has been checked, or is checked now.

    Raises:
        Unreadable: it is not one.
    """
    try:
        message = _message.decode(text)
    except _NOT_JSON as error:
        check_syntax(text)
        raise Unreadable(codes.INVALID_REQUEST, str(error), _find_id(text)) from error
    if not text.isascii():
        check_syntax(text)
    why = _why_invalid(message)
    if why:
        raise Unreadable(codes.INVALID_REQUEST, why, message.id if isinstance(message.id, int | str) else None)
    return message


def _why_invalid(message: Message) -> str:
    if message.jsonrpc != "2.0":
        return 'the member "jsonrpc" has to be "2.0"'
    if isinstance(message.id, str) and len(message.id.encode()) > bounds.JSON_ID_BYTES_MAX:
        return f"an id of more than {bounds.JSON_ID_BYTES_MAX} bytes"
    if isinstance(message.id, int) and message.id.bit_length() > 64:
        return "an id of more than 64 bits"
    if message.method is ABSENT:
        if bool(message.result) == (message.error is not ABSENT):
            return 'neither a request, which has a "method", nor a response, which has a "result" or an "error"'
        return "" if message.id is not ABSENT else "a response without an id"
    if message.id is None:
        return "the id of a request cannot be null"
    if message.params and bytes(message.params)[:1] not in (b"{", b"["):
        return 'the member "params" has to be an object or an array'
    return ""


def _find_id(text: bytes) -> JsonId | None:
    try:
        found = _only_id.decode(text).id
    except _NOT_JSON:
        return None
    return found if isinstance(found, int | str) else None


def read_batch(line: bytes) -> list[bytes]:
    """The elements of an array, of which one more than the limit stands for any number more.

    Raises:
        Unreadable: it is not JSON.
    """
    check_syntax(line)
    return [bytes(element) for element in msgspec.structs.astuple(_batch.decode(line)) if element]


def read_params(params: msgspec.Raw, kind: type[_Params]) -> _Params:
    """The params of one of our notifications.

    Raises:
        Unreadable: they are not what it wants.
    """
    try:
        return msgspec.json.decode(params or b"{}", type=kind)
    except _NOT_JSON as error:
        raise Unreadable(codes.INVALID_ARGUMENTS, str(error)) from error


def read_error(error: ErrorObject) -> tuple[str, str, Payload]:
    """Code, id and data of an error, which are ours only if the peer is."""
    try:
        ours = _error_data.decode(error.data)
    except _NOT_JSON:
        return codes.name_of(error.code), "", bytes(error.data)
    return ours.code, ours.id, bytes(ours.data)


def text(value: Any) -> bytes:
    """JSON of a string, number or None.

    Raises:
        LocalProtocolError: a string that cannot be written in UTF-8.
    """
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError as error:
        raise LocalProtocolError(f"{value!r} cannot be written in UTF-8") from error


def value_text(value: Payload) -> bytes:
    """JSON that was encoded already, fit for a line.

    Raises:
        LocalProtocolError: it is empty, or would end the line.
    """
    encoded = bytes(value)
    if not encoded or b"\n" in encoded:
        raise LocalProtocolError("an encoded value has at least one byte, and no line feed in JSON lines")
    return encoded


def response(json_id: JsonId | None, result: Payload) -> bytes:
    """A response, without its line feed."""
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (text(json_id), value_text(result))


def error_response(json_id: JsonId | None, code: str, message: str, error_id: str = "", data: Payload = b"") -> bytes:
    """A response that says what went wrong, without its line feed."""
    members = [b'"code":' + text(code)]
    if error_id:
        members.append(b'"id":' + text(error_id))
    if data:
        members.append(b'"data":' + value_text(data))
    return b'{"jsonrpc":"2.0","id":%b,"error":{"code":%d,"message":%b,"data":{%b}}}' % (
        text(json_id),
        codes.number_of(code),
        text(message),
        b",".join(members),
    )


def request(
    json_id: JsonId | None,
    method: str,
    arguments: Payload,
    options: list[bytes],
) -> bytes:
    """A request, or a notification if there is no id, without its line feed."""
    number = b'"id":%b,' % text(json_id) if json_id is not None else b""
    more = b',"options":{%b}' % b",".join(options) if options else b""
    return b'{"jsonrpc":"2.0",%b"method":%b,"params":%b%b}' % (number, text(method), value_text(arguments), more)


def notification(method: bytes, **members: bytes) -> bytes:
    """One of our notifications, its members encoded already, without its line feed."""
    body = b",".join(b'"%b":%b' % (name.encode(), value) for name, value in members.items())
    return b'{"jsonrpc":"2.0","method":"%b","params":{%b}}' % (method, body)
