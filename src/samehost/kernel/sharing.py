"""What one connection shares with its peer: which arenas each has passed, and whose turn it is to let go of what.

Used by every pump alike. The pump calls all of it from one thread at a time, but may read and discard values in any.
Views of what the peer has shared may be dropped anywhere, by the garbage collector within any line, and that does no
more than note what is to be released.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from samehost import limits
from samehost.errors import BadBlob, RemoteProtocolError
from samehost.kernel import memory
from samehost.kernel.addresses import address_of, root_at, view_of
from samehost.kernel.arena import the_arena
from samehost.kernel.attaching import Encoded, Incoming, shares_in
from samehost.kernel.blob import Blob, Ending
from samehost.kernel.files import Descriptor
from samehost.protocol import ARENAS

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable, Iterable, Sequence

    from samehost.kernel.arena import Block, Segment
    from samehost.kernel.files import File
    from samehost.protocol import Connection, Payload
    from samehost.protocol.events import ArenaPassed


class Sharing:
    """The arenas of a connection and the parts of them that are out.

    Attributes:
        on_release: called when a release becomes due and none was before; within any line of any thread.
    """

    def __init__(self, peer_uid: int, announced: int) -> None:
        self.on_release: Callable[[], None] | None = None
        self._is_same_user = peer_uid == os.geteuid()
        self._announced = announced
        # Ours that the peer has.
        self._passed: dict[int, tuple[Segment, Descriptor]] = {}
        self._out: dict[int, tuple[Block, int]] = {}
        self._shared_bytes = 0
        # The peer's that we have.
        self._mappings: dict[int, tuple[tuple[Ending, mmap.mmap], int]] = {}
        self._due: deque[int] = deque()
        self._is_told = False
        self._has_come_arena = False
        self._is_closed = False

    # Sending.

    @property
    def shared_bytes(self) -> int:
        """Memory of ours that the peer was sent and has not released."""
        return self._shared_bytes

    @property
    def shared_blobs(self) -> int:
        """How many parts of our arena the peer has not released."""
        return sum(times for _, times in self._out.values())

    def allows_arena(self, peer_features: int) -> bool:
        """Whether the peer may be sent another part of our arena; otherwise it gets copies that are its own."""
        return (
            self._is_same_user
            and peer_features & ARENAS != 0
            and self._shared_bytes < limits.BLOBS_OUT_BYTES_MAX
            and not self._is_closed
        )

    def ship(self, connection: Connection, encoded: Encoded) -> None:
        """Make the peer able to read a value: pass it the arenas that it has not got, and count what it is sent.

        To be called right before the value is sent; see `unship`. A value may be shipped any number of times.

        Raises:
            OSError: no more descriptors can be had.
            LocalProtocolError: the connection is over.
        """
        if not encoded.shares:
            return
        self.retire(connection)
        for block in encoded.shares.values():
            if block.segment.number not in self._passed:
                self._pass(connection, block.segment)
        for share, block in encoded.shares.items():
            self._out[share] = block, self._out.get(share, (block, 0))[1] + 1
            self._shared_bytes += block.byte_count

    def unship(self, encoded: Encoded) -> None:
        """Take it that a value which was shipped was not sent after all."""
        for share in encoded.shares:
            self._take_back(share)

    def retire(self, connection: Connection) -> None:
        """Tell the peer which arenas of ours are no more."""
        for number, (segment, _) in list(self._passed.items()):
            if segment.descriptor is None:
                connection.send_retire(number)
                del self._passed[number]

    def _pass(self, connection: Connection, segment: Segment) -> None:
        assert segment.descriptor
        kept, lease = map(Descriptor, os.pipe2(os.O_CLOEXEC))
        connection.send_arena(segment.number, segment.byte_count, (segment.descriptor, lease))
        self._passed[segment.number] = segment, kept

    def _take_back(self, share: int) -> bool:
        """Take note that a share is not out any more; False if it was not."""
        if share not in self._out:
            return False
        block, times = self._out.pop(share)
        self._shared_bytes -= block.byte_count
        if times > 1:
            self._out[share] = block, times - 1
        return True

    # Events.

    def released(self, shares: Iterable[int]) -> None:
        """The peer looks at these no more.

        Raises:
            RemoteProtocolError: one of them was not out.
        """
        for share in shares:
            if not self._take_back(share):
                raise RemoteProtocolError(f"RELEASE of share {share}, which the peer does not have")
        the_arena().settle()

    def take_arena(self, event: ArenaPassed) -> None:
        """The peer has passed an arena. Its descriptors are ours from now on.

        Raises:
            RemoteProtocolError: it is none, or the peer may not share memory with us.
        """
        file, lease = event.descriptors
        with file, lease:
            if not (self._announced & ARENAS and self._is_same_user):
                raise RemoteProtocolError("ARENA from a peer that may not share memory with us")
            try:
                mapping = memory.map_arena(file.fileno(), event.byte_count)
            except (BadBlob, OSError, OverflowError, ValueError) as error:
                raise RemoteProtocolError(f"ARENA {event.arena}: {error}", "bad_blob") from error
            # In this order, as that of its end is the other one: it is unmapped, and then the peer is told.
            descriptor = lease.detach()
            _leases.add(descriptor)
            found = Ending(partial(_hang_up, _leases, descriptor)), mapping
        self._mappings[event.arena] = found, address_of(mapping)
        self._has_come_arena = True

    def retired(self, arena: int) -> None:
        """The peer uses an arena no more."""
        self._mappings.pop(arena, None)

    # Receiving.

    @property
    def has_arenas(self) -> bool:
        """Whether the peer's values may refer to arenas, and so need `decode_attached` though no file came."""
        return self._has_come_arena

    def incoming(self, files: Sequence[File]) -> Incoming:
        """What `decode_attached` needs for a message that came with these."""
        return Incoming(files, self)

    def discard(self, payload: Payload, files: Iterable[File]) -> None:
        """Close and release what came with a message that nobody reads."""
        for file in files:
            file.close()
        if self._has_come_arena:
            for share in shares_in(payload):
                self.return_share(share)

    def take_share(self, arena: int, offset: int, length: int, share: int) -> Blob:
        """See `attaching.Shares`."""
        found = self._mappings.get(arena)
        if found is None:
            raise BadBlob(f"a blob in arena {arena}, which was not passed")
        mapped, address = found
        if offset + length > len(mapped[1]):
            raise BadBlob(f"a blob from {offset} to {offset + length} in an arena of {len(mapped[1])} bytes")
        root = root_at(address + offset, length, mapped)
        root.ending = Ending(partial(_end_share, weakref.ref(self), share))
        return Blob(view_of(root).toreadonly())

    def return_share(self, share: int) -> None:
        """See `attaching.Shares`."""
        if self._has_come_arena:
            self._now_due(share)

    def take_releases(self) -> list[int]:
        """What to send a RELEASE for: each is told once."""
        self._is_told = False
        due = self._due
        return [due.popleft() for _ in range(len(due))]

    def _now_due(self, share: int) -> None:
        if not self._is_closed:
            self._due.append(share)
            if not self._is_told:
                self._is_told = True
                if self.on_release is not None:
                    self.on_release()

    def close(self, *, keeps_arenas: bool = False) -> None:
        """The connection has ended. What the peer has not released is kept until it has unmapped it, or is dead.

        Args:
            keeps_arenas: what has come may still be read, for as long as this is referred to.
        """
        self._is_closed = True
        self.on_release = None
        if not keeps_arenas:
            self._mappings.clear()
        self._due.clear()
        arena = the_arena()
        blocks = [block for block, _ in self._out.values()]
        for segment, lease in self._passed.values():
            if kept := [block for block in blocks if block.segment is segment]:
                arena.adopt(lease, kept)
        self._passed.clear()
        self._out.clear()
        self._shared_bytes = 0
        del blocks
        arena.settle()


def _end_share(sharing: weakref.ref[Sharing], share: int) -> None:
    """Nobody looks at a share any more."""
    found = sharing()
    if found is not None:
        found.return_share(share)


_leases: set[int] = set()
"""The descriptors that are open as long as the arena that they came with is mapped."""


def _hang_up(leases: set[int], descriptor: int) -> None:
    """Tell a peer that its arena is not mapped any more, by closing the lease."""
    if descriptor in leases:
        leases.discard(descriptor)
        os.close(descriptor)


def _forget_leases() -> None:
    # The child has no part in its parent's connections, and may live longer than that. The numbers are its own to use.
    global _leases
    leases, _leases = _leases, set()
    while leases:
        os.close(leases.pop())


os.register_at_fork(after_in_child=_forget_leases)
