"""Files and blobs on a session: what comes with arguments and items, and what goes with results and items.

`kernel.sharing` keeps the books of the memory. Here files are counted for their user, and kept with the call that they
came for, which closes those that its method has not taken over. Nothing here waits.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from samehost import limits
from samehost.kernel.attaching import Encoded, encode_attached
from samehost.kernel.sharing import Sharing
from samehost.protocol import codes, events
from samehost.service.failures import Failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from samehost import protocol
    from samehost.aio.answering import Answering
    from samehost.aio.runner import Account
    from samehost.codec import Codec
    from samehost.kernel.attaching import Incoming
    from samehost.protocol import Descriptors, Payload


class Enclosures:
    """What one session shares with its client.

    Args:
        session: whose it is.
        found: its end of the protocol.
        codec: how values are written.
        announced: the features in its preface.

    Attributes:
        has_arenas: what comes may refer to memory that was passed before.
    """

    def __init__(self, session: Answering, found: protocol.Connection, codec: Codec, announced: int) -> None:
        self.has_arenas = False
        self._session = session
        self._protocol = found
        self._codec = codec
        self._sharing = Sharing(session.peer.uid, announced)
        self._sharing.on_release = self._release_soon

    # What comes.

    def take(self, event: events.Event) -> None:
        """Take what the client says of memory, or what came with a frame that nobody gets.

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
        else:
            self.discard(event)

    def discard(self, event: Any) -> None:
        """Let go of what came with an event that nobody looks at."""
        descriptors = getattr(event, "descriptors", ())
        if descriptors or self.has_arenas:
            self._sharing.discard(_payload_of(event), descriptors)

    def incoming(self, descriptors: Descriptors) -> Incoming:
        """What `decode_attached` needs for a message that came with these."""
        return self._sharing.incoming(descriptors)

    # What goes.

    @property
    def shared_blobs(self) -> int:
        """How many parts of memory the client was sent and has not released."""
        return self._sharing.shared_blobs

    @property
    def offered(self) -> tuple[int, bool]:
        """What the client takes, and whether it may be sent parts of the arena now."""
        return self._protocol.peer_features, self._sharing.allows_arena(self._protocol.peer_features)

    def encode(self, value: Any) -> Encoded:
        """Encode a result or an item, whose files are given away; in any thread.

        Raises:
            CannotEncode: it cannot travel.
        """
        offered, is_arena_allowed = self.offered
        return encode_attached(self._codec, value, offered, arena_allowed=is_arena_allowed, gives_away=True)

    def write(self, encoded: Encoded, write: Callable[..., None], call_id: int) -> None:
        """Write a frame whose payload this is.

        Args:
            write: is called with the id, the payload and the descriptors.

        Raises:
            OSError: no more descriptors can be had; nothing was written.
            Others: what `write` raises.
        """
        self._sharing.ship(self._protocol, encoded)
        try:
            write(call_id, encoded.payload, encoded.descriptors)
        except BaseException:
            self._sharing.unship(encoded)
            raise

    def write_releases(self) -> None:
        """Say which parts of the client's memory are not looked at any more."""
        shares = self._sharing.take_releases()
        if shares and not self._protocol.is_finished:
            self._protocol.send_release(shares)

    def _release_soon(self) -> None:
        if self._session.runner.is_here:
            self._session.flush_soon()
            return
        with contextlib.suppress(RuntimeError):  # the loop was closed
            self._session.runner.loop.call_soon_threadsafe(self._session.flush_soon)

    def close(self) -> None:
        """Let go of everything, as the connection has ended; what the client still looks at, once it does no more."""
        self._sharing.close()


class Kept:
    """The files and the sealed memory that came for one call.

    Args:
        account: where they are counted.
    """

    __slots__ = ("_account", "_blob_bytes", "_count", "_incoming")

    def __init__(self, account: Account) -> None:
        self._account = account
        self._count = self._blob_bytes = 0
        self._incoming: list[Incoming] = []

    def add(self, incoming: Incoming) -> bool:
        """Keep the files of a message; false, and they are closed, if their user has too much in use already."""
        account = self._account
        too_many = account.files + len(incoming.files) > limits.FILES_PER_UID_MAX
        if too_many or account.blob_bytes > limits.BLOB_BYTES_MAX:
            incoming.close()
            return False
        self._incoming.append(incoming)
        self.recount()
        return True

    def count_blobs(self, incoming: Incoming) -> None:
        """Count the sealed memory of a message that was read, until the end of the call."""
        self._blob_bytes += incoming.sealed_bytes
        self._account.blob_bytes += incoming.sealed_bytes

    def recount(self) -> None:
        """Forget what the method has closed or taken over."""
        self._incoming = [incoming for incoming in self._incoming if not incoming.is_spent]
        self._count_files(sum(len(incoming.files) for incoming in self._incoming))

    def _count_files(self, count: int) -> None:
        self._account.files += count - self._count
        self._count = count

    def close(self) -> None:
        """Close what the method has left open and not taken over."""
        self._count_files(0)
        self._account.blob_bytes -= self._blob_bytes
        self._blob_bytes = 0
        for incoming in self._incoming:
            incoming.close()
        self._incoming.clear()


def too_many_files(account: Account) -> Failure:
    """What to answer a call for which `Kept.add` has no room."""
    return Failure(
        codes.BUSY,
        f"uid {account.uid} has {account.files} files open and blobs of {account.blob_bytes} bytes in calls, at most "
        f"{limits.FILES_PER_UID_MAX} and {limits.BLOB_BYTES_MAX} may be",
    )


def _payload_of(event: Any) -> Payload:
    payload: Payload
    if isinstance(event, events.Call | events.Notification):
        payload = event.arguments
    elif isinstance(event, events.Item):
        payload = event.value
    else:
        payload = getattr(event, "payload", b"")
    return payload
