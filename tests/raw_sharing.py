"""Ends of the binary protocol that write frames, files and memory by hand, so that they can do what no good end does.

`RawCaller` is a client, `RawServer` accepts clients; what they say is in PROTOCOL.md sections 4, 7 and 9.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import mmap
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec
from raw_clients import CALL, ERROR, GOAWAY, HEADER, PREFACE, REPLY
from support import DEADLINE

SEALED, ARENAS, FILES = 1, 2, 4
ALL = SEALED | ARENAS | FILES
STREAM, ITEM, END, CREDIT, CANCEL = 0x06, 0x07, 0x08, 0x09, 0x05
ARENA, RELEASE, RETIRE = 0x20, 0x21, 0x22
ITEMS_FOLLOW, ITEMS_WANTED = 0x01, 0x02

SHRINK, GROW, WRITE, SEAL = fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_WRITE, fcntl.F_SEAL_SEAL
FUTURE_WRITE = 0x10
AS_BYTES = 0x01


def greeting(features: int = ALL) -> bytes:
    return PREFACE.pack(b"\xf5SHP", 1, 28, b"\1".ljust(8, b"\0"), features, 4194304, 256)


def frame(kind: int, call_id: int, payload: bytes = b"", descriptors: int = 0, flags: int = 0) -> bytes:
    """A frame whose header announces so many descriptors, whatever travels."""
    return HEADER.pack(len(payload), kind, flags, descriptors, call_id) + payload


def call_frame(call_id: int, method: str, arguments: Any, descriptors: int = 0, flags: int = 0) -> bytes:
    name = method.encode()
    payload = struct.pack("<IB", 0, len(name)) + name + msgspec.msgpack.encode(arguments)
    return frame(CALL, call_id, payload, descriptors, flags)


def reply_frame(call_id: int, value: Any, descriptors: int = 0) -> bytes:
    return frame(REPLY, call_id, msgspec.msgpack.encode(value), descriptors)


def arena_frame(arena: int, byte_count: int, descriptors: int = 2) -> bytes:
    return frame(ARENA, 0, struct.pack("<IIQ", arena, 0, byte_count), descriptors)


def release_frame(*shares: int) -> bytes:
    return frame(RELEASE, 0, struct.pack(f"<{len(shares)}Q", *shares))


def retire_frame(arena: int) -> bytes:
    return frame(RETIRE, 0, struct.pack("<I", arena))


# Values.


def file_at(position: int) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(1, bytes([position]))


def sealed_at(position: int, offset: int, length: int, flags: int = 0) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(2, struct.pack("<BB6xQQ", position, flags, offset, length))


def share_at(arena: int, offset: int, length: int, share: int, flags: int = 0) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(3, struct.pack("<IB3xQQQ", arena, flags, offset, length, share))


# Memory.


def new_memory(content: bytes = b"", size: int | None = None, seals: int = 0) -> int:
    """A memfd with this content, so long, and sealed like this."""
    descriptor = os.memfd_create("attack", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(descriptor, content)
    if size is not None:
        os.ftruncate(descriptor, size)
    if seals:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


class Arena:
    """Memory that is shared and can still be written to, and its lease.

    Attributes:
        memory: a descriptor of it.
        lease: what the other end gets.
        kept: the other end of that.
        mapping: to write to it.
    """

    def __init__(self, size: int, seals: int = SHRINK | GROW | FUTURE_WRITE | SEAL) -> None:
        self.size = size
        self.memory = new_memory(size=size)
        self.mapping = mmap.mmap(self.memory, size)
        if seals:
            fcntl.fcntl(self.memory, fcntl.F_ADD_SEALS, seals)
        self.kept, self.lease = os.pipe2(os.O_CLOEXEC)

    def close_lease(self) -> None:
        if self.lease >= 0:
            os.close(self.lease)
            self.lease = -1

    def close(self) -> None:
        self.mapping.close()
        os.close(self.memory)
        os.close(self.kept)
        self.close_lease()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Frame(NamedTuple):
    """What has come.

    Attributes:
        files: descriptors that are ours to close, but those of an arena, which the connection keeps.
    """

    kind: int
    call_id: int
    payload: bytes
    files: list[int]

    @property
    def value(self) -> Any:
        return msgspec.msgpack.decode(self.payload)

    @property
    def code(self) -> str:
        """Of an error or a GOAWAY."""
        if self.kind == ERROR:
            return self.payload[4 : 4 + self.payload[0]].decode()
        assert self.kind == GOAWAY, self
        return self.payload[8 : 8 + self.payload[4]].decode()

    @property
    def message(self) -> str:
        if self.kind == ERROR:
            return self.payload[4 + self.payload[0] + self.payload[1] :].decode(errors="replace")
        return self.payload[8 + self.payload[4] :].decode()

    @property
    def shares(self) -> list[int]:
        """Of a RELEASE."""
        assert self.kind == RELEASE, self
        return list(struct.unpack(f"<{len(self.payload) // 8}Q", self.payload))


class RawEnd:
    """One end of a connection, which waits no longer than the deadline of all tests.

    Attributes:
        released: the shares that have come back.
        peer_features: what the other end takes, once its preface was read.
    """

    def __init__(self, connected: socket.socket, features: int = ALL) -> None:
        self.socket = connected
        self.socket.settimeout(DEADLINE)
        self._buffer = b""
        self._files: list[int] = []
        self._arenas: list[int] = []
        self.released: list[int] = []
        self.peer_features: int | None = None
        self.send(greeting(features))

    def send(self, data: bytes, files: Sequence[Any] = ()) -> None:
        """Send bytes, and files with the first of them."""
        numbers = [file if isinstance(file, int) else file.fileno() for file in files]
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", numbers))] if numbers else []
        sent = self.socket.sendmsg([data], control)
        if sent < len(data):
            self.socket.sendall(data[sent:])

    def _fill(self, count: int) -> bool:
        while len(self._buffer) < count:
            try:
                data, control, _, _ = self.socket.recvmsg(1 << 16, socket.CMSG_SPACE(64 * 4), socket.MSG_CMSG_CLOEXEC)
            except ConnectionResetError:
                return False
            for _, _, numbers in control:
                self._files += array.array("i", numbers)
            self._buffer += data
            if not data:
                return False
        return True

    def next_or_end(self) -> Frame | None:
        """The next frame, or None once the other end has closed the connection."""
        if self.peer_features is None:
            if not self._fill(28):
                return None
            self.peer_features = PREFACE.unpack(self._take(28))[4]
        if not self._fill(12):
            return None
        length, kind, _, count, call_id = HEADER.unpack_from(self._buffer)
        if not self._fill(12 + length):
            return None
        files, self._files = self._files[:count], self._files[count:]
        if kind == ARENA:
            self._arenas += files
        found = Frame(kind, call_id, self._take(12 + length)[12:], files)
        if kind == RELEASE:
            self.released += found.shares
        return found

    def next(self) -> Frame:
        found = self.next_or_end()
        assert found is not None, "the connection has ended"
        return found

    def expect(self, kind: int) -> Frame:
        found = self.next()
        assert found.kind == kind, (found, found.code if found.kind in (ERROR, GOAWAY) else "")
        return found

    def rest(self) -> list[Frame]:
        """All that comes until the other end closes the connection."""
        return list(iter(self.next_or_end, None))

    def expect_end(self, code: str = "") -> str:
        """The other end says why, unless nothing is expected, and closes the connection; what it says."""
        told = [found for found in self.rest() if found.kind == GOAWAY]
        assert [found.code for found in told] == [code] * bool(code)
        return told[0].message if told else ""

    def _take(self, count: int) -> bytes:
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def close(self) -> None:
        self.socket.close()
        for descriptor in (*self._files, *self._arenas):
            os.close(descriptor)
        self._files.clear()
        self._arenas.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RawCaller(RawEnd):
    """A client."""

    def __init__(self, path: Path | str, features: int = ALL) -> None:
        connected = socket.socket(socket.AF_UNIX)
        connected.settimeout(DEADLINE)
        connected.connect(str(path))
        self._last = -1
        super().__init__(connected, features)

    def next_id(self) -> int:
        self._last += 2
        return self._last

    def begin(self, method: str, arguments: Any, files: Sequence[Any] = (), flags: int = 0) -> int:
        call_id = self.next_id()
        self.send(call_frame(call_id, method, arguments, len(files), flags), files)
        return call_id

    def call(self, method: str, arguments: Any, files: Sequence[Any] = ()) -> Frame:
        """Call and wait for the answer; what else comes before it is not for this call."""
        call_id = self.begin(method, arguments, files)
        while True:
            found = self.next()
            if found.kind in (REPLY, ERROR):
                assert found.call_id == call_id
                return found
            assert found.kind in (ARENA, RELEASE, RETIRE), found

    def is_served(self) -> None:
        """See that the connection lives."""
        assert self.call("double", {"number": 41}).value == 82


@contextlib.contextmanager
def raw_server(path: Path | str) -> Iterator[socket.socket]:
    """A socket that listens."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(DEADLINE)
        yield listener


def accepted(listener: socket.socket, features: int = ALL) -> RawEnd:
    """The next client."""
    return RawEnd(listener.accept()[0], features)
