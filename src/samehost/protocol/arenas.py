"""Memory that the two ends of a connection share: which arenas were passed, PROTOCOL.md section 9.3.

Only numbers are kept here, so that no end names an arena twice or too many of them. What is behind the numbers, and
which shares are out, is for those who map them: this side of them there are descriptors that are handed on, as with any
other frame.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from samehost import limits as bounds
from samehost.errors import LocalProtocolError, RemoteProtocolError
from samehost.protocol import frames
from samehost.protocol.connection import NO_ARENAS, Connection
from samehost.protocol.events import ArenaPassed, ArenaRetired, Released
from samehost.protocol.preface import ARENAS
from samehost.protocol.states import ARENA, FRAME, FRAME_NAMES, RELEASE, RETIRE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from samehost.protocol.events import Descriptors, Payload
    from samehost.protocol.settings import Limits

_NUMBER_BITS = 32
_SHARE_BITS = 64
_NONE: frozenset[int] = frozenset()
"""One empty set for all connections, as few have another."""


class SharingConnection(Connection):
    """The part of a connection that passes arenas and gives their shares back."""

    __slots__ = ("_arenas_passed", "_arenas_taken", "_features", "_has_passed_arena")

    def __init__(self, is_client: bool, limits: Limits, features: int) -> None:
        super().__init__(is_client, limits)
        self._features = features
        self._has_passed_arena = False
        self._arenas_passed = _NONE
        self._arenas_taken = _NONE

    def send_arena(self, arena: int, byte_count: int, descriptors: Descriptors) -> None:
        """See `Connection.send_arena`."""
        if not self.peer_features & ARENAS:
            raise LocalProtocolError(NO_ARENAS)
        if len(descriptors) != frames.ARENA_DESCRIPTORS or arena >> _NUMBER_BITS:
            raise LocalProtocolError(f"arena {arena} with {len(descriptors)} descriptors cannot be written")
        wrong = _cannot_pass(self._arenas_passed, arena, byte_count)
        if wrong:
            raise LocalProtocolError(wrong)
        self._we_step(FRAME)
        self._arenas_passed |= {arena}
        self._has_passed_arena = True
        payload = frames.ARENA_BODY.pack(arena, byte_count)
        head = frames.HEADER.pack(len(payload), ARENA, 0, len(descriptors), 0)
        self._output.write((head, payload), descriptors)

    def send_retire(self, arena: int) -> None:
        """See `Connection.send_retire`."""
        if arena not in self._arenas_passed:
            raise LocalProtocolError(f"RETIRE of arena {arena}, which was not passed")
        self._we_step(FRAME)
        self._arenas_passed -= {arena}
        self._write_sharing(RETIRE, frames.ARENA_NUMBER.pack(arena))

    def send_release(self, shares: Sequence[int]) -> None:
        """See `Connection.send_release`."""
        if not self._has_come_arena:
            raise LocalProtocolError(NO_ARENAS)
        if any(share >> _SHARE_BITS for share in shares):
            raise LocalProtocolError(f"shares {list(shares)} cannot be written: each has {_SHARE_BITS} bits")
        self._we_step(FRAME)
        for begin in range(0, len(shares), bounds.RELEASES_PER_FRAME_MAX):
            some = shares[begin : begin + bounds.RELEASES_PER_FRAME_MAX]
            self._write_sharing(RELEASE, struct.pack(f"<{len(some)}Q", *some))

    def _write_sharing(self, kind: int, payload: bytes) -> None:
        self._pieces += (frames.HEADER.pack(len(payload), kind, 0, 0, 0), payload)

    def _read_sharing(self, data: Payload, start: int, stop: int, kind: int) -> None:
        """Read a frame that has come whole, of one of the three types."""
        if not (self._has_passed_arena if kind == RELEASE else self._features & ARENAS):
            raise RemoteProtocolError(f"{FRAME_NAMES[kind]} to an end that has no part in arenas")
        if kind == RELEASE:
            count = (stop - start) // frames.SHARE_BYTES
            self._events.append(Released(struct.unpack_from(f"<{count}Q", data, start)))
        elif kind == ARENA:
            arena, byte_count = frames.ARENA_BODY.unpack_from(data, start)
            wrong = _cannot_pass(self._arenas_taken, arena, byte_count)
            if wrong:
                raise RemoteProtocolError(wrong)
            self._arenas_taken |= {arena}
            self._has_come_arena = True
            self._events.append(ArenaPassed(arena, byte_count, self._claimed))
        else:
            (arena,) = frames.ARENA_NUMBER.unpack_from(data, start)
            if arena not in self._arenas_taken:
                raise RemoteProtocolError(f"RETIRE of arena {arena}, which was not passed")
            self._arenas_taken -= {arena}
            self._events.append(ArenaRetired(arena))


def _cannot_pass(arenas: frozenset[int], arena: int, byte_count: int) -> str:
    """Why another arena may not follow these; empty if it may."""
    if arena in arenas:
        return f"ARENA with number {arena}, which another one has"
    if len(arenas) >= bounds.ARENAS_MAX:
        return f"ARENA beside {bounds.ARENAS_MAX} others, which is the limit"
    if not 0 < byte_count <= bounds.BLOB_BYTES_MAX:
        return f"ARENA of {byte_count} bytes, from 1 to {bounds.BLOB_BYTES_MAX} are taken"
    return ""
