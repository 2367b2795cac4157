"""Files and blobs on a client's connection, for threads: what goes beside the bytes, and what comes so.

`kernel.sharing` keeps the books of it, with the connection's lock held, from the first file or blob on: a program that
never meets one does not import what it takes. Values are encoded and decoded without the lock, as that may take its
time, and run code of the program's.
"""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

from samehost import limits, protocol
from samehost.codec import MSGPACK
from samehost.errors import UnexpectedFiles
from samehost.extensions import features, is_large
from samehost.kernel.messages import take_control
from samehost.protocol import events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from samehost.kernel.attaching import Encoded
    from samehost.kernel.files import File
    from samehost.kernel.sharing import Sharing
    from samehost.protocol import Payload

    Received = bytes | tuple[bytes, list[Any], int, Any]

FILES_ROOM = socket.CMSG_LEN(limits.FILES_PER_MESSAGE_MAX * 4)
"""What recvmsg(2) needs for as many descriptors as may come at a time."""


def holds_large(values: Iterable[Any]) -> bool:
    """Whether some of these are bytes that had better travel in memory, which is to be seen before they are copied."""
    for value in values:  # looked at for every call: `any` would take three times as long
        cls = type(value)
        if (cls is bytes or cls is memoryview or cls is bytearray) and is_large(value):
            return True
    return False


class Attachments:
    """What one connection shares with its server.

    Args:
        peer_uid: of the server.
        kinds: what the values that are wanted may hold, as `extensions.kinds_in` says.
        on_release: called when there is something to send, from within any line of any thread.

    Attributes:
        protocol: the connection, made to take just that.
        are_taken: whether the server may pass files, or memory.
        has_arenas: what comes may refer to memory that was passed before.
    """

    def __init__(self, peer_uid: int, kinds: int, on_release: Callable[[], None]) -> None:
        taken = features(kinds, peer_uid)
        self.protocol = protocol.connect(features=taken)
        self.are_taken = bool(taken)
        self.has_arenas = False
        self._peer_uid = peer_uid
        self._taken = taken
        self._on_release = on_release
        self._sharing: Sharing | None = None
        self._making = threading.Lock()

    def encode(self, value: Any, parts: Iterable[Any]) -> bytes | Encoded:
        """Encode a value for this server, as far as it has said yet what it takes.

        Args:
            parts: itself, or what it holds, that may be large.

        Raises:
            CannotEncode: it cannot travel.
            FilesNotTaken: not to this server.
        """
        if not holds_large(parts):
            try:
                encoded = MSGPACK.encode_raw(value)
            except Exception:
                encoded = b""  # there is more to it than bytes, or it cannot travel at all
            if 0 < len(encoded) < limits.BLOB_BYTES_MIN:
                return encoded
        from samehost.kernel.attaching import encode_attached

        offered = self.protocol.peer_features
        return encode_attached(MSGPACK, value, offered, arena_allowed=self._shared().allows_arena(offered))

    def ship(self, encoded: Encoded) -> None:
        """Make the server able to read what is sent next; raises OSError if no more descriptors can be had."""
        self._shared().ship(self.protocol, encoded)

    def unship(self, encoded: Encoded) -> None:
        """It was not sent after all."""
        self._shared().unship(encoded)

    def received(self, arrived: Received) -> tuple[bytes, tuple[File, ...]]:
        """What a read has brought: its bytes, and the files that came with them.

        Raises:
            UnexpectedFiles: more came than there may be; all of them are closed.
        """
        if isinstance(arrived, bytes):
            return arrived, ()
        data, control, found, _ = arrived
        files_max = limits.FILES_PER_MESSAGE_MAX if self.are_taken else 0
        files, _ = take_control(control, found, len(data), files_max)
        return data, tuple(files)

    def drop(self, arrived: Received) -> None:
        """Close the files that a read has brought when nobody takes them."""
        try:
            _, files = self.received(arrived)
        except UnexpectedFiles:
            return
        for file in files:
            file.close()

    def read(self, read: Callable[[Payload], Any], payload: Payload, files: tuple[File, ...]) -> Any:
        """Decode what has come; its files and blobs belong to the value, or are let go of.

        Raises:
            BadBlob: it refers to memory that is not what it should be.
            Others: what `read` raises.
        """
        if not files and not self.has_arenas:
            return read(payload)
        from samehost.kernel.attaching import decode_attached

        return decode_attached(read, payload, self._shared().incoming(files))

    def discard(self, event: events.Reply | events.Item | events.Discarded) -> None:
        """Let go of what came with something that nobody will read."""
        if event.descriptors or self.has_arenas:
            if isinstance(event, events.Discarded):
                payload = event.payload
            else:
                payload = event.result if isinstance(event, events.Reply) else event.value
            self._shared().discard(payload, event.descriptors)

    def take(self, event: events.Event) -> None:
        """Take what the server says of memory.

        Raises:
            RemoteProtocolError: it may not.
        """
        if isinstance(event, events.Released):
            self._shared().released(event.shares)
        elif isinstance(event, events.ArenaPassed):
            self._shared().take_arena(event)
            self.has_arenas = True
        elif isinstance(event, events.ArenaRetired):
            self._shared().retired(event.arena)
        elif isinstance(event, events.Discarded):
            self.discard(event)

    def write_releases(self) -> None:
        """Write what the server is to be told of its memory."""
        shares = self._shared().take_releases()
        if shares:
            self.protocol.send_release(shares)

    def close(self) -> None:
        """Let go of what was sent, as the connection has ended: at once, or when the server looks at it no more.

        What has come can be read for as long as this is referred to, as by streams with items that nobody has taken.
        """
        if self._sharing is not None:
            self._sharing.close(keeps_arenas=True)

    def forget(self) -> None:
        """In a child made by fork, leave the connection's memory to the parent."""
        if self._sharing is not None:
            self._sharing.on_release = None

    def _shared(self) -> Sharing:
        """What is shared, from now on if nothing was so far."""
        if self._sharing is None:
            from samehost.kernel.sharing import Sharing

            with self._making:  # by one of the threads that encode their first blobs
                if self._sharing is None:
                    sharing = Sharing(self._peer_uid, self._taken)
                    sharing.on_release = self._on_release
                    self._sharing = sharing
        return self._sharing
