"""One function for each parser, taking any bytes: for atheris, and for the few that `test_fuzz` tries each time.

The first byte of an input says how large the pieces are in which the rest comes. Whatever comes, nothing is raised,
what is kept has a bound, and every descriptor that went in comes out once.
"""

from __future__ import annotations

from collections.abc import Callable

from samehost import protocol
from samehost.protocol import BOTH_STREAMS, Connection, Limits, events
from samehost.protocol.binary import BinaryConnection
from samehost.protocol.lines import LinesConnection

LIMITS = Limits(payload_bytes_max=65536, calls_max=8)
"""Small enough that an input can reach them."""

KEPT_BYTES_MAX = LIMITS.payload_bytes_max + 12


def binary_server(data: bytes) -> None:
    """What a client may send behind its preface."""
    server = BinaryConnection(False, LIMITS)
    server.receive_data(written(protocol.connect()))
    feed(server, data)


def binary_client(data: bytes) -> None:
    """What a server may send behind its preface, to a client with calls of every shape."""
    client = BinaryConnection(True, Limits(payload_bytes_max=65536, calls_max=2))
    server = BinaryConnection(False, LIMITS)
    server.receive_data(written(client))
    client.receive_data(written(server))
    feed(with_calls(client, b"\x80"), data)


def preface(data: bytes) -> None:
    """What a client may begin with."""
    feed(BinaryConnection(False, LIMITS), data)


def lines_server(data: bytes) -> None:
    """Lines of a client."""
    feed(LinesConnection(False, LIMITS), data)


def lines_client(data: bytes) -> None:
    """Lines of a server, to a client with calls of every shape."""
    feed(with_calls(LinesConnection(True, Limits(payload_bytes_max=65536, calls_max=0)), b"{}"), data)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "binary_server": binary_server,
    "binary_client": binary_client,
    "preface": preface,
    "lines_server": lines_server,
    "lines_client": lines_client,
}


def with_calls(client: Connection, arguments: bytes) -> Connection:
    for flags in range(BOTH_STREAMS + 1):
        client.send_call("m", arguments, flags=flags)
    client.send_cancel(client.send_call("m", arguments, flags=BOTH_STREAMS))
    client.data_to_send()
    return client


def feed(connection: Connection, data: bytes) -> None:
    """Give the bytes to a connection, and check what it makes of them."""
    size = data[0] + 1 if data else 1
    came, went = 0, 0
    ended = False
    for begin in range(1, len(data), size):
        descriptors = tuple(range(data[begin] & 3)) if data[begin] & 0x30 == 0x30 else ()
        came += len(descriptors)
        for event in connection.receive_data(data[begin : begin + size], descriptors):
            assert not ended or isinstance(event, events.Discarded)
            ended = ended or isinstance(event, events.Failed)
            went += len(getattr(event, "descriptors", ()))
            if isinstance(event, events.Call) and data[0] & 1 and connection.is_open(event.call_id):
                connection.send_error(event.call_id, "failed", event.method)
        assert len(connection._partial) <= KEPT_BYTES_MAX
        assert connection.calls_taken <= LIMITS.calls_max
        assert len(connection._streams) <= connection.calls_taken + connection.calls_made
    for event in connection.receive_eof():
        went += len(getattr(event, "descriptors", ()))
    held = len(connection._claimed) + len(connection._waiting) + len(connection._unclaimed)
    assert came == went + held
    assert not held
    connection.data_to_send()


def written(connection: Connection) -> bytes:
    return b"".join(bytes(data) for data, _ in connection.data_to_send())
