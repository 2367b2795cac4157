"""The protocol of samehost, with no socket, clock or thread: bytes and descriptors in, events out, and back.

PROTOCOL.md is the specification; comments here cite its sections. `accept` and `connect` make the two ends of a
connection, `Connection` is what a pump talks to, whatever the format, and `events` is what it hears.
"""

from samehost.errors import LocalProtocolError, RemoteProtocolError
from samehost.protocol import codes, events
from samehost.protocol.connection import Connection
from samehost.protocol.doors import accept, connect, connect_lines
from samehost.protocol.events import Descriptors, Event, Payload
from samehost.protocol.output import Chunk
from samehost.protocol.preface import ARENAS, FILES, SEALED
from samehost.protocol.settings import Limits
from samehost.protocol.states import BOTH_STREAMS, ITEMS_FOLLOW, ITEMS_WANTED

__all__ = [
    "ARENAS",
    "BOTH_STREAMS",
    "FILES",
    "ITEMS_FOLLOW",
    "ITEMS_WANTED",
    "SEALED",
    "Chunk",
    "Connection",
    "Descriptors",
    "Event",
    "Limits",
    "LocalProtocolError",
    "Payload",
    "RemoteProtocolError",
    "accept",
    "codes",
    "connect",
    "connect_lines",
    "events",
]
