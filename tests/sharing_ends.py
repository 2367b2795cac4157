"""Both ends of what a connection shares, over the protocol itself, without a pump."""

from __future__ import annotations

import os
from typing import Any

from samehost.codec import MSGPACK
from samehost.extensions import BLOBS, FILES, features
from samehost.kernel.attaching import decode_attached, encode_attached
from samehost.kernel.files import File
from samehost.kernel.sharing import Sharing
from samehost.protocol.events import ArenaPassed

ALL = features(FILES | BLOBS, os.geteuid())


class Sent:
    """What a connection was asked to send."""

    def __init__(self) -> None:
        self.arenas: list[tuple[int, int, tuple[Any, ...]]] = []
        self.retired: list[int] = []

    def send_arena(self, arena: int, byte_count: int, descriptors: tuple[Any, ...]) -> None:
        self.arenas.append((arena, byte_count, descriptors))

    def send_retire(self, arena: int) -> None:
        self.retired.append(arena)


def passed_on(descriptors) -> tuple[File, ...]:
    """What arrives where these are sent."""
    return tuple(File(os.dup(descriptor.fileno())) for descriptor in descriptors)


class Ends:
    """A sender and a receiver within this process."""

    def __init__(self, features: int = ALL) -> None:
        self.features = features
        self.sent = Sent()
        self.sender = Sharing(os.geteuid(), features)
        self.receiver = Sharing(os.geteuid(), features)

    def ship(self, value: Any, **options: Any):
        """Encode a value, and have its arenas taken at the other end."""
        allowed = self.sender.allows_arena(self.features)
        encoded = encode_attached(MSGPACK, value, self.features, arena_allowed=allowed, **options)
        self.sender.ship(self.sent, encoded)
        for arena, byte_count, descriptors in self.sent.arenas:
            self.receiver.take_arena(ArenaPassed(arena, byte_count, passed_on(descriptors)))
        self.sent.arenas.clear()
        return encoded

    def read(self, encoded, kind: Any = Any) -> Any:
        incoming = self.receiver.incoming(passed_on(encoded.descriptors))
        return decode_attached(MSGPACK.decode_to(kind), encoded.payload, incoming)

    def trip(self, value: Any, kind: Any = Any) -> Any:
        return self.read(self.ship(value), kind)

    def release(self) -> list[int]:
        """Tell the sender what the receiver has released."""
        due = self.receiver.take_releases()
        self.sender.released(due)
        return due

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()
