"""Two ends joined by pipes that cut and merge bytes as a UNIX socket may, with descriptors beside them."""

from __future__ import annotations

from collections import deque

from samehost import protocol
from samehost.protocol import Connection, Limits
from samehost.protocol.binary import BinaryConnection
from samehost.protocol.lines import LinesConnection

SOME = {"msgpack": b"\x01", "json": b"1"}
EMPTY = {"msgpack": b"\x80", "json": b"{}"}


class Pipe:
    """One direction of a stream socket. See unix_stream_read_generic in the kernel for its rules."""

    def __init__(self) -> None:
        self._messages: deque[tuple[bytes, tuple]] = deque()

    def send(self, data, descriptors=()) -> None:
        """One sendmsg that took all of its bytes."""
        if data:
            self._messages.append((bytes(data), tuple(descriptors)))

    def receive(self, size: int) -> tuple[bytes, tuple]:
        """One recvmsg: it merges what came without descriptors, and goes on to nothing behind a message with some."""
        taken = b""
        while self._messages and len(taken) < size:
            data, descriptors = self._messages.popleft()
            part, rest = data[: size - len(taken)], data[size - len(taken) :]
            taken += part
            if rest:
                self._messages.appendleft((rest, ()))
            if descriptors:
                return taken, descriptors
        return taken, ()

    def __len__(self) -> int:
        return sum(len(data) for data, _ in self._messages)

    @property
    def descriptors(self) -> list:
        return [descriptor for _, descriptors in self._messages for descriptor in descriptors]


def pair(
    codec: str, limits: Limits | None = None, client_limits: Limits | None = None, features: int = 0
) -> tuple[Connection, Connection]:
    """Two ends that have not said anything yet."""
    limits, client_limits = limits or Limits(), client_limits or Limits(calls_max=0)
    if codec == "json":
        return LinesConnection(True, client_limits), LinesConnection(False, limits)
    return BinaryConnection(True, client_limits, features=features), BinaryConnection(False, limits, features=features)


def flow(source: Connection, target: Connection) -> list[protocol.Event]:
    """Bring over what the source has written, as it was written."""
    events = []
    for data, descriptors in source.data_to_send():
        events += target.receive_data(bytes(data), descriptors)
    return events


def greeted(codec: str, limits: Limits | None = None, client_limits: Limits | None = None, features: int = 0):
    """Two ends that have greeted each other."""
    client, server = pair(codec, limits, client_limits, features)
    assert flow(client, server) == flow(server, client) == []
    return client, server


def written(connection: Connection) -> bytes:
    """What a connection has to send, as one."""
    return b"".join(bytes(data) for data, _ in connection.data_to_send())
