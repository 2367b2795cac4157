"""The formats that one socket serves, told apart by the first byte of a connection: PROTOCOL.md section 2."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samehost.errors import RemoteProtocolError
from samehost.protocol import preface
from samehost.protocol.binary import BinaryConnection
from samehost.protocol.settings import Limits

if TYPE_CHECKING:
    from samehost.protocol.connection import Connection
    from samehost.protocol.lines import LinesConnection

_DEFAULTS = Limits()
_NO_CALLS = Limits(calls_max=0)


def accept(first_byte: int, limits: Limits | None = None, features: int = 0) -> Connection:
    """The server's end of a connection whose client begins with this byte, which is then received like all others.

    Args:
        first_byte: the number from 0 to 255.
        limits: what this end takes; the defaults if None.
        features: SEALED, ARENAS and FILES, as this end takes them; JSON lines have none.

    Raises:
        RemoteProtocolError: no format begins like this; nothing can be answered.
    """
    limits = limits or _DEFAULTS
    if first_byte == preface.FIRST_BYTE:
        return BinaryConnection(False, limits, features=features)
    from samehost.protocol.lines import FIRST_BYTES, LinesConnection

    if first_byte in FIRST_BYTES:
        return LinesConnection(False, limits)
    raise RemoteProtocolError(f"the client begins with byte 0x{first_byte:02x}, and no format does")


def connect(limits: Limits | None = None, features: int = 0) -> BinaryConnection:
    """The client's end of a binary connection, which takes no calls unless its limits say so; otherwise as `accept`."""
    return BinaryConnection(True, limits or _NO_CALLS, features=features)


def connect_lines(limits: Limits | None = None) -> LinesConnection:
    """The client's end of a connection of JSON lines."""
    from samehost.protocol.lines import LinesConnection

    return LinesConnection(True, limits or _NO_CALLS)
