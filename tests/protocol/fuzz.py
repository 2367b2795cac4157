"""One function for each parser, taking any bytes: for `run_fuzz`, and for the few that `test_fuzz` tries each time.

The first byte of an input says how large the pieces are in which the rest comes, and the second, by its bits, which
pieces bring descriptors and what is done about the events. Whatever comes, nothing is raised, what is kept has a bound,
every descriptor that went in comes out once, and frames mean the same however they are cut. What comes without
descriptors is taken alone if it is one call or one reply, as those do who pump a connection; the general way would have
made the same of it.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

from protocol.joined import SOME

from samehost.errors import LocalProtocolError
from samehost.protocol import ARENAS, BOTH_STREAMS, Connection, Limits, events
from samehost.protocol.binary import BinaryConnection
from samehost.protocol.lines import LinesConnection

LIMITS = Limits(payload_bytes_max=65536, calls_max=8)
"""Small enough that an input can reach them."""

HEAD_BYTES = 2
ARENA_PASSED = 1
ARENA_BYTES = 4096
DESCRIPTORS_AT = 6
"""Where the header of a frame announces them."""

Receive: TypeAlias = Callable[[Connection, bytes], list[events.Event]]

KEPT_BYTES_MAX = LIMITS.payload_bytes_max + 12


def binary_server(data: bytes) -> None:
    """What a client may send behind its preface, with arenas passed in either direction."""
    feed(greeted_server(), data)


def binary_client(data: bytes) -> None:
    """What a server may send behind its preface, to a client with calls of every shape, and to one with one call."""
    feed(with_calls(greeted_client(), b"\x80"), data)
    feed(with_one_call(greeted_client()), data)


def binary_cut(data: bytes) -> None:
    """The same to either, but only how the bytes are cut is looked at: as one they are read by other lines."""
    size, _ = head(data)
    data = data[HEAD_BYTES:]
    pieces = [data[begin : begin + size] for begin in range(0, len(data), size)]
    for greeted in (greeted_server, lambda: with_one_call(greeted_client())):
        assert heard(greeted(), pieces, received) == heard(greeted(), [data], BinaryConnection.receive_data)


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
    "binary_cut": binary_cut,
    "binary_client": binary_client,
    "preface": preface,
    "lines_server": lines_server,
    "lines_client": lines_client,
}


def corpus_file(target: str) -> Path:
    """Where the inputs are kept that reach something in a target which no other does: one a line, in base64."""
    return Path(__file__).parent / "corpus" / f"{target}.txt"


def corpus(target: str) -> list[bytes]:
    return [base64.b64decode(line) for line in corpus_file(target).read_text().splitlines()]


def greeted_server() -> BinaryConnection:
    return both_ends()[1]


def greeted_client() -> BinaryConnection:
    return both_ends()[0]


def both_ends() -> tuple[BinaryConnection, BinaryConnection]:
    """Two ends that take arenas, and have passed one each."""
    client = BinaryConnection(True, Limits(payload_bytes_max=65536, calls_max=2), features=ARENAS)
    server = BinaryConnection(False, LIMITS, features=ARENAS)
    server.receive_data(written(client))
    client.receive_data(written(server))
    for one, other in ((client, server), (server, client)):
        one.send_arena(ARENA_PASSED, ARENA_BYTES, (0, 0))
        ((data, descriptors),) = one.data_to_send()
        other.receive_data(bytes(data), descriptors)
    return client, server


def with_calls(client: Connection, arguments: bytes) -> Connection:
    for flags in range(BOTH_STREAMS + 1):
        client.send_call("m", arguments, flags=flags)
    client.send_cancel(client.send_call("m", arguments, flags=BOTH_STREAMS))
    client.data_to_send()
    return client


def with_one_call(client: Connection) -> Connection:
    client.send_call("m", b"\x80")
    client.data_to_send()
    return client


def feed(connection: Connection, data: bytes) -> None:
    """Give the bytes to a connection, and check what it makes of them."""
    size, how = head(data)
    came, went = 0, 0
    ended = False
    for begin in range(HEAD_BYTES, len(data), size):
        piece = data[begin : begin + size]
        descriptors = coming_with(piece, how)
        came += len(descriptors)
        for event in connection.receive_data(piece, descriptors) if descriptors else received(connection, piece):
            assert not ended or isinstance(event, events.Discarded)
            ended = ended or isinstance(event, events.Failed)
            went += len(getattr(event, "descriptors", ()))
            with contextlib.suppress(LocalProtocolError):
                answer(connection, event, how)
        assert len(connection._partial) <= KEPT_BYTES_MAX
        assert connection.calls_taken <= LIMITS.calls_max
        assert len(connection._streams) <= connection.calls_taken + connection.calls_made
    for event in connection.receive_eof():
        went += len(getattr(event, "descriptors", ()))
    held = len(connection._claimed) + len(connection._waiting) + len(connection._unclaimed)
    assert came == went + held
    assert not held
    connection.data_to_send()


def head(data: bytes) -> tuple[int, int]:
    """How large the pieces are, and what is done."""
    return (data[0] + 1, data[1]) if len(data) >= HEAD_BYTES else (1, 0)


def coming_with(piece: bytes, how: int) -> tuple[int, ...]:
    """The descriptors that come with a piece: any few, or as many as it announces if it begins with a frame."""
    if how & 16 and piece[0] & 4:
        return tuple(range(piece[0] & 3))
    if how & 32:
        return tuple(range(sum(piece[DESCRIPTORS_AT : DESCRIPTORS_AT + 1]) & 31))
    return ()


def answer(connection: Connection, event: events.Event, how: int) -> None:
    """Do about an event what a program may: the bits say what. A step that may not be asked for any more is refused."""
    match event:
        case events.Call() if how & 1:
            connection.send_error(event.call_id, "failed", event.method)
        case events.Call() if how & 128:
            reply(connection, event.call_id)
        case events.Call() if how & 2:
            connection.send_stream(event.call_id)
            connection.send_item(event.call_id, SOME[connection.codec])
        case events.Credit() if how & 2:
            connection.send_item(event.call_id, SOME[connection.codec])
        case events.Item() if how & 4:
            connection.took_item(event.call_id, len(event.value))
        case events.End() if how & 8:
            reply(connection, event.call_id)
        case events.Notification() if how & 64:
            connection.send_going_away()
        case events.ArenaPassed() if how & 4:
            connection.send_release([event.arena, event.byte_count])
        case events.ArenaRetired() if how & 8:
            connection.send_retire(ARENA_PASSED)


def reply(connection: Connection, call_id: int) -> None:
    """Answer alone if that is possible, which it is not if something waits to be sent or the call is not open."""
    was_open = connection.is_open(call_id)
    if connection.send_reply_alone(call_id, SOME[connection.codec]):
        assert was_open
        assert not connection.data_to_send()
    else:
        connection.send_reply(call_id, SOME[connection.codec])
    assert not connection.is_open(call_id)


def received(connection: Connection, piece: bytes) -> list[events.Event]:
    """What a piece without descriptors brings, alone if it is one call or one reply."""
    if (call := connection.receive_call_alone(piece)) is not None:
        return [call]
    if isinstance(connection, BinaryConnection) and (result := connection.receive_reply_alone(piece)) is not None:
        return [events.Reply(int.from_bytes(piece[8:12], "little"), result, ())]
    return connection.receive_data(piece)


def heard(connection: Connection, pieces: Iterable[bytes], receive: Receive) -> tuple[list, bytes]:
    """What a connection makes of what comes in these pieces, and what it writes about them."""
    found = [event for piece in pieces for event in receive(connection, piece)]
    found += connection.receive_eof()
    told = [
        (event.error.code, str(event.error), event.lost, event.abandoned) if isinstance(event, events.Failed) else event
        for event in found
    ]
    return told, written(connection)


def written(connection: Connection) -> bytes:
    return b"".join(bytes(data) for data, _ in connection.data_to_send())
