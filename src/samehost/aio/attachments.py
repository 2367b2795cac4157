"""Files and blobs on an asyncio client's link: what goes beside the bytes, what comes so, and what is given back.

`kernel.sharing` keeps the books; here is what they mean for a connection in an event loop. Nothing here waits.
"""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from samehost import limits, protocol
from samehost.codec import MSGPACK
from samehost.extensions import features, is_large
from samehost.kernel.attaching import Encoded, decode_attached, encode_attached
from samehost.kernel.sharing import Sharing
from samehost.protocol import events

if TYPE_CHECKING:
    from collections.abc import Callable

    from samehost.aio.link import Link
    from samehost.protocol import Payload
    from samehost.service.remote import RemoteMethod

Written = TypeVar("Written")

_BYTES = frozenset((bytes, bytearray, memoryview))
_BLOB_BYTES_MIN = limits.BLOB_BYTES_MIN
_encode_raw = MSGPACK.encode_raw


def encode_plainly(value: Any) -> bytes | None:
    """The bytes of a value, if it needs nothing beside them, which is what nearly every value is; None otherwise.

    None as well if it cannot travel at all, or has large bytes in it that had better travel in memory.
    """
    if is_large(value):
        return None
    try:
        encoded = _encode_raw(value)
    except Exception:
        return None
    return encoded if len(encoded) < _BLOB_BYTES_MIN else None


def encode_arguments_plainly(
    remote: RemoteMethod, positional: tuple[Any, ...], by_name: dict[str, Any]
) -> bytes | None:
    """The same for the arguments of a call."""
    for value in positional or by_name.values():
        if type(value) in _BYTES and is_large(value):
            return None
    try:
        encoded = _encode_raw(remote.arguments(positional, by_name))
    except Exception:
        return None
    return encoded if len(encoded) < _BLOB_BYTES_MIN else None


class Attachments:
    """What one link shares with its server.

    Args:
        link: whose it is.
        kinds: what the values that are wanted may hold, as `extensions.kinds_in` says.

    Attributes:
        protocol: the connection, made to take just that.
        are_taken: whether the server may pass files, or memory.
        has_arenas: what comes may refer to memory that was passed before.
    """

    def __init__(self, link: Link, kinds: int) -> None:
        taken = features(kinds, link.peer.uid)
        self.protocol = protocol.connect(features=taken)
        self.are_taken = bool(taken)
        self.has_arenas = False
        self._link: Link = weakref.proxy(link)  # which refers to this, and is to be gone when it is forgotten
        self._sharing = Sharing(link.peer.uid, taken)
        self._sharing.on_release = self._release_soon

    def encode(self, value: Any) -> Encoded:
        """Encode a value for this server, as far as it has said yet what it takes.

        Raises:
            CannotEncode: it cannot travel.
            FilesNotTaken: not to this server.
        """
        offered = self.protocol.peer_features
        return encode_attached(MSGPACK, value, offered, arena_allowed=self._sharing.allows_arena(offered))

    def write(self, encoded: Encoded, write: Callable[..., Written]) -> Written:
        """Write a frame whose payload this is.

        Args:
            write: is called with the payload and the descriptors.

        Raises:
            OSError: no more descriptors can be had; nothing was written.
            Others: what `write` raises.
        """
        self._sharing.ship(self.protocol, encoded)
        try:
            return write(encoded.payload, encoded.descriptors)
        except BaseException:
            self._sharing.unship(encoded)
            raise

    def read(self, read: Callable[[Payload], Any], event: events.Reply | events.Item) -> Any:
        """Decode a result or an item; its files and blobs belong to the value, or are let go of.

        Raises:
            BadBlob: it refers to memory that is not what it should be.
            Others: what `read` raises.
        """
        payload = _payload_of(event)
        if not event.descriptors and not self.has_arenas:
            return read(payload)
        return decode_attached(read, payload, self._sharing.incoming(event.descriptors))

    def discard(self, event: events.Reply | events.Item) -> None:
        """Let go of what came with a result or an item that nobody will read."""
        if event.descriptors or self.has_arenas:
            self._sharing.discard(_payload_of(event), event.descriptors)

    def take(self, event: events.Event) -> None:
        """Take what the server says of memory.

        Raises:
            RemoteProtocolError: it may not.
        """
        if type(event) is events.Released:
            self._sharing.released(event.shares)
        elif type(event) is events.ArenaPassed:
            self._sharing.take_arena(event)
            self.has_arenas = True
        elif type(event) is events.ArenaRetired:
            self._sharing.retired(event.arena)
        elif type(event) is events.Discarded:
            self._sharing.discard(event.payload, event.descriptors)

    def _release_soon(self) -> None:
        with suppress(RuntimeError):  # the loop was closed
            self._link.loop.call_soon_threadsafe(self._release)

    def _release(self) -> None:
        shares = self._sharing.take_releases()
        if shares and self._link.is_alive:
            self.protocol.send_release(shares)
            self._link.flush()

    def close(self) -> None:
        """Let go of everything, as the connection has ended; what the server still looks at, once it does no more."""
        self._sharing.close()


def _payload_of(event: events.Reply | events.Item) -> Payload:
    return event.result if isinstance(event, events.Reply) else event.value
