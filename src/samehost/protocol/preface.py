"""The first bytes that each end of a binary connection sends, PROTOCOL.md section 3.

Sixteen bytes are the same in every version, so that ends which speak different ones can tell each other so.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from samehost import limits
from samehost.errors import RemoteProtocolError
from samehost.protocol import codes

MAGIC = b"\xf5SHP"
FIRST_BYTE = MAGIC[0]
VERSIONS = (1,)
"""What this implementation speaks, best first."""

# What an end takes, PROTOCOL.md section 3.3.
SEALED = 1
ARENAS = 2
FILES = 4

_VERSIONS_MAX = 8
_LAYOUT = struct.Struct("<4sBxH8sIII")
_LENGTH_END = 8
_NO_VERSION = 0
PREFACE_BYTES = _LAYOUT.size


class Preface(NamedTuple):
    """What an end says of itself.

    Attributes:
        version: of the frames that follow; 0 if none do.
        versions: those that it speaks, best first.
    """

    version: int
    versions: tuple[int, ...]
    features: int
    payload_bytes_max: int
    calls_max: int

    def encode(self) -> bytes:
        """The bytes to send."""
        spoken = bytes(self.versions).ljust(_VERSIONS_MAX, b"\0")
        return _LAYOUT.pack(
            MAGIC, self.version, PREFACE_BYTES, spoken, self.features, self.payload_bytes_max, self.calls_max
        )


def refusal(versions: tuple[int, ...]) -> bytes:
    """What a server answers that does not speak the client's version."""
    return Preface(_NO_VERSION, versions, 0, 0, 0).encode()


def decode(data: bytes) -> tuple[Preface, int] | None:
    """Read a preface at the beginning of the bytes.

    Returns:
        The preface and its length; None if more bytes are needed.

    Raises:
        RemoteProtocolError: this is none.
    """
    begin = data[: len(MAGIC)]
    if begin != MAGIC[: len(begin)]:
        raise RemoteProtocolError(f"the peer does not speak this protocol: it begins with {begin.hex(' ')}")
    if len(data) < _LENGTH_END:
        return None
    length = int.from_bytes(data[6:_LENGTH_END], "little")
    if not PREFACE_BYTES <= length <= limits.PREFACE_BYTES_MAX:
        raise RemoteProtocolError(
            f"a preface of {length} bytes, not from {PREFACE_BYTES} to {limits.PREFACE_BYTES_MAX}", codes.TOO_LARGE
        )
    if len(data) < length:
        return None
    _, version, _, spoken, features, payload_bytes_max, calls_max = _LAYOUT.unpack_from(data)
    versions = tuple(spoken.rstrip(b"\0"))
    return Preface(version, versions, features, payload_bytes_max, calls_max), length


def check(preface: Preface, versions: tuple[int, ...]) -> None:
    """Refuse a peer that we cannot talk to.

    Raises:
        RemoteProtocolError: it speaks another version, or takes less than the version wants.
    """
    if preface.version not in versions:
        theirs = ", ".join(map(str, preface.versions)) or "none"
        ours = ", ".join(map(str, versions))
        raise RemoteProtocolError(
            f"the peer speaks version {theirs} of the protocol, this end {ours}", codes.VERSION_REFUSED
        )
    if preface.payload_bytes_max < limits.PAYLOAD_BYTES_FLOOR:
        raise RemoteProtocolError(
            f"the peer takes payloads of {preface.payload_bytes_max} bytes, fewer than {limits.PAYLOAD_BYTES_FLOOR}"
        )
