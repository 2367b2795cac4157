"""The exchanges that PROTOCOL.md prints, replayed: each is who sent which bytes, in order."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from samehost import protocol
from samehost.protocol import ARENAS, FILES, ITEMS_FOLLOW, ITEMS_WANTED, SEALED, Connection, Limits
from samehost.protocol.binary import BinaryConnection
from samehost.protocol.lines import LinesConnection

Sent = tuple[str, bytes]
FILE = object()
ZONE = b"\x81\xa4zone\xa3UTC"


class Exchange:
    """Two joined ends. What either sends is noted, and read by the other without a fault."""

    def __init__(self, client: Connection, server_features: int = 0) -> None:
        self.client = client
        self.server_features = server_features
        self.server: Connection | None = None
        self.sent: list[Sent] = []

    def flow(self) -> None:
        for data, descriptors in self.client.data_to_send():
            self.sent.append(("C", bytes(data)))
            if self.server is None:
                self.server = protocol.accept(data[0], features=self.server_features)
            self.server.receive_data(bytes(data), descriptors)
        for data, descriptors in self.server.data_to_send():
            self.sent.append(("S", bytes(data)))
            self.client.receive_data(bytes(data), descriptors)


def binary() -> tuple[Exchange, Connection]:
    exchange = Exchange(protocol.connect())
    return exchange, exchange.client


def greeted(features: int = 0) -> tuple[Exchange, Connection, Connection]:
    """Past the prefaces, which are an example of their own."""
    exchange = Exchange(protocol.connect(), features)
    client = exchange.client
    exchange.flow()
    exchange.sent.clear()
    return exchange, client, exchange.server


def prefaces() -> list[Sent]:
    exchange, client = binary()
    client.send_call("now", ZONE, 30_000)
    exchange.flow()
    exchange.server.send_reply(1, b"\xd6\xff\x65\x00\x00\x00")
    exchange.flow()
    return exchange.sent


def version_refused() -> list[Sent]:
    client = BinaryConnection(True, Limits(calls_max=0), versions=(2, 1))
    server = BinaryConnection(False, Limits())
    (data, _), *_ = client.data_to_send()
    server.receive_data(data)
    (answer, _), *_ = server.data_to_send()
    return [("C", data), ("S", answer)]


def failed_call() -> list[Sent]:
    exchange, client, server = greeted()
    client.send_call("now", b"\x81\xa4zone\x05")
    exchange.flow()
    server.send_error(1, "invalid_arguments", "$.zone: expected str, got int", "e1f0")
    exchange.flow()
    return exchange.sent


def context() -> list[Sent]:
    exchange, client, server = greeted()
    client.send_call("now", b"\x80", context=b"\x81\xa5trace\xa200")
    exchange.flow()
    server.send_reply(1, b"\xc0")
    exchange.flow()
    return exchange.sent


def notification() -> list[Sent]:
    exchange, client, _ = greeted()
    client.send_notification("log", b"\x91\xa2hi")
    exchange.flow()
    return exchange.sent


def note() -> list[Sent]:
    exchange, client, server = greeted()
    client.send_call("pack", b"\x80")
    exchange.flow()
    server.send_note(1, b"\x82\xa4done\x01\xa5total\x04")
    server.send_reply(1, b"\xc0")
    exchange.flow()
    return exchange.sent


def cancel() -> list[Sent]:
    exchange, client, server = greeted()
    client.send_call("pack", b"\x80")
    exchange.flow()
    client.send_cancel(1)
    exchange.flow()
    server.send_error(1, "cancelled", "")
    exchange.flow()
    return exchange.sent


def server_stream() -> list[Sent]:
    exchange, client, server = greeted()
    client.send_call("ticks", b"\x81\xa5every\x01", flags=ITEMS_WANTED)
    exchange.flow()
    server.send_stream(1)
    server.send_item(1, b"\x0a")
    server.send_item(1, b"\x0b")
    exchange.flow()
    client.send_credit(1, 2, 2)
    exchange.flow()
    server.send_reply(1, b"\xc0")
    exchange.flow()
    return exchange.sent


def client_stream() -> list[Sent]:
    exchange, client, server = greeted()
    client.send_call("total", b"\x80", flags=ITEMS_FOLLOW)
    client.send_item(1, b"\x02")
    client.send_item(1, b"\x03")
    client.send_end(1)
    exchange.flow()
    server.send_reply(1, b"\x05")
    exchange.flow()
    return exchange.sent


def both_streams() -> list[Sent]:
    exchange, client, server = greeted()
    client.send_call("echo", b"\x80", flags=ITEMS_FOLLOW | ITEMS_WANTED)
    client.send_item(1, b"\x07")
    exchange.flow()
    server.send_stream(1)
    server.send_item(1, b"\x07")
    exchange.flow()
    client.send_end(1)
    exchange.flow()
    server.send_reply(1, b"\xc0")
    exchange.flow()
    return exchange.sent


def descriptors() -> list[Sent]:
    exchange, client, _ = greeted(FILES)
    client.send_call("log", b"\x80")
    client.send_call("size", b"\x81\xa4file\xd4\x01\x00", descriptors=(FILE,))
    client.send_call("log", b"\x80")
    exchange.flow()
    return exchange.sent


def arena() -> list[Sent]:
    exchange = Exchange(protocol.connect(features=SEALED | ARENAS), SEALED | ARENAS)
    exchange.client.send_call("look", b"\x80")
    exchange.flow()
    exchange.server.send_arena(1, 8 << 20, (FILE, FILE))
    exchange.server.send_reply(1, b"\xc7\x20\x03" + struct.pack("<IB3xQQQ", 1, 0, 4096, 1920 * 1080 * 3, 7))
    exchange.flow()
    exchange.client.send_release([7])
    exchange.flow()
    exchange.server.send_retire(1)
    exchange.flow()
    return exchange.sent


def sealed() -> list[Sent]:
    exchange, client, server = greeted(SEALED)
    blob = b"\xc7\x18\x02" + struct.pack("<BB6xQQ", 0, 1, 0, 1 << 20)
    client.send_call("put", b"\x81\xa4data" + blob, descriptors=(FILE,))
    exchange.flow()
    server.send_reply(1, b"\xc0")
    exchange.flow()
    return exchange.sent


def ping() -> list[Sent]:
    exchange, client, _ = greeted()
    client.send_ping(0x2A)
    exchange.flow()
    return exchange.sent


def going_away() -> list[Sent]:
    exchange, client, server = greeted()
    client.send_call("now", b"\x80")
    exchange.flow()
    server.send_going_away("draining", "restart")
    exchange.flow()
    server.send_reply(1, b"\xc0")
    exchange.flow()
    return exchange.sent


def failure() -> list[Sent]:
    exchange, _, server = greeted()
    exchange.sent.append(("C", bytes.fromhex("ffffffff 01000000 01000000")))
    server.receive_data(exchange.sent[-1][1])
    exchange.flow()
    return exchange.sent


def lines() -> tuple[Exchange, LinesConnection]:
    exchange = Exchange(protocol.connect_lines())
    return exchange, exchange.client


def lines_call() -> list[Sent]:
    exchange, client = lines()
    client.send_call("now", b'{"zone":"UTC"}', 500, flags=ITEMS_WANTED)
    exchange.flow()
    exchange.server.send_reply(1, b'"2023-09-12T06:06:56Z"')
    client.send_call("now", b'{"zone":5}', flags=ITEMS_WANTED)
    exchange.flow()
    exchange.server.send_error(3, "invalid_arguments", "$.zone: expected str, got int", "e1f0")
    exchange.flow()
    return exchange.sent


def lines_stream() -> list[Sent]:
    exchange, client = lines()
    client.send_call("ticks", b'{"every":1}', flags=ITEMS_WANTED)
    exchange.flow()
    exchange.server.send_stream(1)
    exchange.server.send_item(1, b"10")
    exchange.server.send_item(1, b"11")
    exchange.flow()
    client.send_credit(1, 2, 4)
    client.send_cancel(1)
    exchange.flow()
    exchange.server.send_error(1, "cancelled", "")
    exchange.flow()
    return exchange.sent


def lines_upload() -> list[Sent]:
    exchange, client = lines()
    client.send_call("total", b"{}", flags=ITEMS_FOLLOW | ITEMS_WANTED)
    client.send_item(1, b"2")
    client.send_end(1)
    exchange.flow()
    exchange.server.send_note(1, b'{"done":1,"total":1}')
    exchange.server.send_reply(1, b"2")
    client.send_notification("log", b'["hi"]')
    client.send_ping(42)
    exchange.flow()
    exchange.server.send_going_away("draining", "restart")
    exchange.flow()
    return exchange.sent


EXAMPLES: dict[str, Callable[[], list[Sent]]] = {
    "prefaces": prefaces,
    "version-refused": version_refused,
    "failed-call": failed_call,
    "context": context,
    "notification": notification,
    "note": note,
    "cancel": cancel,
    "server-stream": server_stream,
    "client-stream": client_stream,
    "both-streams": both_streams,
    "descriptors": descriptors,
    "arena": arena,
    "sealed": sealed,
    "ping": ping,
    "going-away": going_away,
    "failure": failure,
    "lines-call": lines_call,
    "lines-stream": lines_stream,
    "lines-upload": lines_upload,
}


def by_sender(sent: list[Sent]) -> Iterator[Sent]:
    """The same bytes, one entry for each run of one sender's: how they were cut between does not matter."""
    who, data = "", b""
    for sender, more in sent:
        if sender != who and data:
            yield who, data
            data = b""
        who, data = sender, data + more
    yield who, data
