"""Clients of a service that write their bytes by hand, from PROTOCOL.md, so that they can do what no good client does.

`Frames` and `Lines` say the same things in the two formats. Neither waits longer than the deadline of all tests.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec
from support import DEADLINE

PREFACE = struct.Struct("<4sBxH8sIII")
HEADER = struct.Struct("<IBBHI")
CALL, NOTIFY, REPLY, ERROR, CANCEL, PING, PONG, GOAWAY = 0x01, 0x02, 0x03, 0x04, 0x05, 0x10, 0x11, 0x12


def preface(version: int = 1) -> bytes:
    return PREFACE.pack(b"\xf5SHP", version, 28, bytes([version]).ljust(8, b"\0"), 0, 4194304, 0)


def frame(kind: int, call_id: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return HEADER.pack(len(payload), kind, flags, 0, call_id) + payload


class Answer(NamedTuple):
    """What the server has said: "reply" with a value, "error" or "goaway" with a code, or "pong" with its token."""

    kind: str
    call_id: Any = None
    value: Any = None
    code: str = ""
    message: str = ""
    error_id: str = ""


class RawClient:
    """One connection.

    Attributes:
        format: "frames" or "lines".
        bytes_read: what has come from the server so far.
    """

    format: str
    opening: bytes
    """What a client may send first, so that its calls are taken."""

    def __init__(self, path: Path | str, *, greet: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(DEADLINE)
        self.socket.connect(str(path))
        self.bytes_read = 0
        self._last = -1
        self._buffer = b""
        if greet and self.opening:
            self.send(self.opening)

    def send(self, *data: bytes) -> None:
        self.socket.sendall(b"".join(data))

    def next_id(self) -> int:
        self._last += 2
        return self._last

    def begin(self, method: str, arguments: object = None, milliseconds: int = 0) -> int:
        """Send a call; its id."""
        call_id = self.next_id()
        self.send(self.call_bytes(call_id, method, arguments, milliseconds))
        return call_id

    def call(self, method: str, arguments: object = None, milliseconds: int = 0) -> Answer:
        """Make a call and wait for its answer, which has to be the next thing that is said."""
        call_id = self.begin(method, arguments, milliseconds)
        answer = self.answer()
        assert answer.call_id == call_id, answer
        return answer

    def answer(self) -> Answer:
        """The next thing that the server says."""
        found = self.answer_or_end()
        assert found is not None, "the server has closed the connection"
        return found

    def answer_or_end(self) -> Answer | None:
        """The same, or None once the server has closed the connection."""
        raise NotImplementedError

    def rest(self) -> list[Answer]:
        """All that the server still says before it closes the connection."""
        return list(iter(self.answer_or_end, None))

    def flood(self, pieces: Iterable[bytes]) -> int:
        """Send one after the other until the server takes no more, or has hung up; how many bytes it has taken."""
        self.socket.settimeout(0.3)
        sent = 0
        with contextlib.suppress(TimeoutError, BrokenPipeError):
            for piece in pieces:
                self.socket.sendall(piece)
                sent += len(piece)
        self.socket.settimeout(DEADLINE)
        return sent

    def call_bytes(self, call_id: int, method: str, arguments: object = None, milliseconds: int = 0) -> bytes:
        return self.raw_call(call_id, method, self.encode({} if arguments is None else arguments), milliseconds)

    def raw_call(self, call_id: int, method: str, arguments: bytes, milliseconds: int = 0) -> bytes:
        raise NotImplementedError

    def notification(self, method: str, arguments: object = None) -> bytes:
        raise NotImplementedError

    def cancel(self, call_id: int) -> bytes:
        raise NotImplementedError

    def ping(self, token: int) -> bytes:
        raise NotImplementedError

    @staticmethod
    def encode(value: object) -> bytes:
        raise NotImplementedError

    @staticmethod
    def nested(depth: int) -> bytes:
        """Arrays within each other, the innermost empty."""
        raise NotImplementedError

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, count: int) -> bool:
        """Have so many bytes in the buffer; false if the connection ends before."""
        while len(self._buffer) < count:
            if not self._read_some():
                return False
        return True

    def _read_some(self) -> bool:
        try:
            piece = self.socket.recv(1 << 20)
        except ConnectionResetError:  # the server has left some of what we sent unread
            piece = b""
        self._buffer += piece
        self.bytes_read += len(piece)
        return bool(piece)

    def _take(self, count: int) -> bytes:
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken


class Frames(RawClient):
    """The binary format, PROTOCOL.md sections 3 to 8."""

    format = "frames"
    opening = preface()

    def __init__(self, path: Path | str, *, greet: bool = True) -> None:
        super().__init__(path, greet=greet)
        self._is_greeted = False

    def read_preface(self) -> tuple[Any, ...] | None:
        """The server's preface."""
        if not self._read(28):
            return None
        self._is_greeted = True
        return PREFACE.unpack(self._take(28))

    def answer_or_end(self) -> Answer | None:
        if not self._is_greeted:
            found = self.read_preface()
            if found is None:
                assert not self._buffer
                return None
            assert found[:2] == (b"\xf5SHP", 1)
        if not self._read(12):
            assert not self._buffer, "the server's output ended within a frame"
            return None
        length, kind, _, _, call_id = HEADER.unpack_from(self._buffer)
        assert self._read(12 + length), "the server's output ended within a frame"
        payload = self._take(12 + length)[12:]
        if kind == REPLY:
            return Answer("reply", call_id, msgspec.msgpack.decode(payload))
        if kind == ERROR:
            code, error_id, message = struct.unpack_from("<BBH", payload)
            texts = payload[4 : 4 + code + error_id + message].decode()
            return Answer("error", call_id, None, texts[:code], texts[code + error_id :], texts[code : code + error_id])
        if kind == GOAWAY:
            last, code, _, _ = struct.unpack_from("<IBBH", payload)
            return Answer("goaway", last, None, payload[8 : 8 + code].decode(), payload[8 + code :].decode())
        assert kind == PONG
        return Answer("pong", None, int.from_bytes(payload, "little"))

    def raw_call(self, call_id: int, method: str, arguments: bytes, milliseconds: int = 0) -> bytes:
        name = method.encode()
        return frame(CALL, call_id, struct.pack("<IB", milliseconds, len(name)) + name + arguments)

    def notification(self, method: str, arguments: object = None) -> bytes:
        name = method.encode()
        return frame(
            NOTIFY, 0, struct.pack("<IB", 0, len(name)) + name + self.encode({} if arguments is None else arguments)
        )

    def cancel(self, call_id: int) -> bytes:
        return frame(CANCEL, call_id)

    def ping(self, token: int) -> bytes:
        return frame(PING, 0, token.to_bytes(4, "little"))

    @staticmethod
    def encode(value: object) -> bytes:
        return msgspec.msgpack.encode(value)

    @staticmethod
    def nested(depth: int) -> bytes:
        return b"\x91" * (depth - 1) + b"\x90"


class Lines(RawClient):
    """JSON-RPC, PROTOCOL.md section 10."""

    format = "lines"
    opening = b""

    def answer_or_end(self) -> Answer | None:
        while b"\n" not in self._buffer:
            if not self._read_some():
                assert not self._buffer, "the server's output ended within a line"
                return None
        line, self._buffer = self._buffer.split(b"\n", 1)
        message = json.loads(line)
        if "result" in message:
            return Answer("reply", message["id"], message["result"])
        if "error" in message:
            error = message["error"]
            data = error["data"]
            return Answer("error", message["id"], None, data["code"], error["message"], data.get("id", ""))
        params = message["params"]
        if message["method"] == "$/goingAway":
            return Answer("goaway", params["last"], None, params["code"], params["message"])
        assert message["method"] == "$/pong"
        return Answer("pong", None, params["token"])

    def raw_call(self, call_id: int, method: str, arguments: bytes, milliseconds: int = 0) -> bytes:
        options = b',"options":{"timeout_ms":%d}' % milliseconds if milliseconds else b""
        name = json.dumps(method).encode()
        return b'{"jsonrpc":"2.0","id":%d,"method":%b,"params":%b%b}\n' % (call_id, name, arguments, options)

    def notification(self, method: str, arguments: object = None) -> bytes:
        return self._line(method=method, params={} if arguments is None else arguments)

    def cancel(self, call_id: int) -> bytes:
        return self._line(method="$/cancelRequest", params={"id": call_id})

    def ping(self, token: int) -> bytes:
        return self._line(method="$/ping", params={"token": token})

    @staticmethod
    def _line(**members: object) -> bytes:
        return json.dumps({"jsonrpc": "2.0", **members}).encode() + b"\n"

    @staticmethod
    def encode(value: object) -> bytes:
        return msgspec.json.encode(value)

    @staticmethod
    def nested(depth: int) -> bytes:
        return b"[" * depth + b"]" * depth


FORMATS = (Frames, Lines)
