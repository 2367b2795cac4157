"""The arena: memory for blobs that a process takes from the kernel once and uses again, for all of its connections.

It consists of segments, each a memfd that is mapped here for good. A block is a run of pages of one, and is free again
when its last reference is gone: those who look at it, those who were sent a share of it, and messages that wait to be
sent each hold one. Free pages at low addresses are used first, as theirs are the page tables and caches that are warm.

The garbage collector may drop a block within any line of any thread. So dropping one only notes it; memory is taken
back when some is wanted or somebody says that some came back.
"""

from __future__ import annotations

import bisect
import os
import select
import threading
from collections import deque
from itertools import count
from typing import TYPE_CHECKING, TypeAlias

from samehost import limits
from samehost.errors import ArenaFull
from samehost.kernel import memory
from samehost.kernel.addresses import address_of
from samehost.kernel.files import Descriptor

if TYPE_CHECKING:
    from collections.abc import Iterable

_Dropped: TypeAlias = "deque[tuple[Segment, int, int]]"

_HUNG_UP = select.POLLHUP | select.POLLERR


class Segment:
    """Memory that was taken from the kernel at one time.

    Attributes:
        number: by which peers know it; never used twice in a process.
        byte_count: its size.
        descriptor: to pass it to peers; None once it was given back.
        view: all of it, to write to; empty once it was given back.
        used_bytes: what its blocks take.
    """

    __slots__ = ("_address", "_free", "byte_count", "descriptor", "number", "used_bytes", "view")

    def __init__(self, number: int, byte_count: int) -> None:
        self.number = number
        self.byte_count = byte_count
        descriptor, mapping = memory.create_arena(byte_count)
        self.descriptor: Descriptor | None = Descriptor(descriptor)
        self.view = memoryview(mapping)
        self.used_bytes = 0
        self._address = 0
        self._free = [(0, byte_count)]  # offsets and sizes in order, no two of them adjacent

    @property
    def address(self) -> int:
        """Where it is mapped."""
        if not self._address:
            self._address = address_of(self.view)
        return self._address

    def take(self, byte_count: int) -> int:
        """The offset of so many bytes that are taken from now on; -1 if there is no room."""
        free = self._free
        for position, (offset, size) in enumerate(free):
            if size >= byte_count:
                if size == byte_count:
                    del free[position]
                else:
                    free[position] = (offset + byte_count, size - byte_count)
                self.used_bytes += byte_count
                return offset
        return -1

    def give(self, offset: int, byte_count: int) -> None:
        """Take it that these bytes are free again."""
        free = self._free
        self.used_bytes -= byte_count
        position = bisect.bisect(free, (offset, 0))
        end = offset + byte_count
        if position < len(free) and free[position][0] == end:
            end += free.pop(position)[1]
        if position and sum(free[position - 1]) == offset:
            position -= 1
            offset = free.pop(position)[0]
        free.insert(position, (offset, end - offset))

    def close(self) -> None:
        """Give the memory back to the kernel, as soon as nobody looks at it."""
        self.descriptor = None
        self.view = memoryview(b"")


class Block:
    """A run of pages that is in use for as long as this is referred to.

    Attributes:
        byte_count: whole pages.
    """

    __slots__ = ("_dropped", "byte_count", "offset", "segment")

    def __init__(self, segment: Segment, offset: int, byte_count: int, dropped: _Dropped) -> None:
        self.segment = segment
        self.offset = offset
        self.byte_count = byte_count
        self._dropped = dropped

    def __del__(self) -> None:
        self._dropped.append((self.segment, self.offset, self.byte_count))


class Arena:
    """All segments of a process."""

    def __init__(self) -> None:
        self._segments: list[Segment] = []
        self._dropped: _Dropped = deque()
        self._orphans: list[tuple[Descriptor, Iterable[Block]]] = []
        self._numbers = count(1)
        self._lock = threading.RLock()  # as a finalizer may allocate where the lock is held
        self._is_busy = False

    @property
    def byte_count(self) -> int:
        """How much memory it has."""
        return sum(segment.byte_count for segment in self._segments)

    @property
    def used_bytes(self) -> int:
        """How much of it is in use."""
        self.settle()
        return sum(segment.used_bytes for segment in self._segments)

    def allocate(self, byte_count: int) -> Block:
        """A block of at least so many bytes, whose content is anything.

        Raises:
            ArenaFull: too much is in use, or the kernel has no more.
        """
        byte_count = memory.rounded_up(max(byte_count, 1))
        with self._lock:
            if self._is_busy:
                raise ArenaFull("the memory for blobs is being allocated further up this very stack")
            self._is_busy = True
            try:
                self._take_back()
                for segment in self._segments:
                    offset = segment.take(byte_count)
                    if offset >= 0:
                        break
                else:
                    segment = self._grow(byte_count)
                    offset = segment.take(byte_count)
                return Block(segment, offset, byte_count, self._dropped)
            finally:
                self._is_busy = False

    def settle(self) -> None:
        """Take back what was dropped, and give to the kernel what is too much to keep."""
        if not self._dropped and not self._orphans:
            return
        with self._lock:
            if not self._is_busy:
                self._is_busy = True
                try:
                    self._take_back()
                    self._trim(limits.ARENA_IDLE_BYTES)
                finally:
                    self._is_busy = False

    def give_back(self) -> None:
        """Give all that is not in use to the kernel."""
        self.settle()
        with self._lock:
            self._trim(0)

    def adopt(self, lease: Descriptor, blocks: Iterable[Block]) -> None:
        """Keep blocks in use until the other end of a lease is closed, as their peer will not release them."""
        with self._lock:
            self._orphans.append((lease, blocks))
        self.settle()

    def close_descriptors(self) -> None:
        """Let go of everything but the mappings, in a child that was forked."""
        for segment in self._segments:
            segment.descriptor = None
        self._orphans.clear()

    def _take_back(self) -> None:
        if self._orphans:
            self._look_after_orphans()
        dropped = self._dropped
        while dropped:
            segment, offset, byte_count = dropped.popleft()
            segment.give(offset, byte_count)

    def _look_after_orphans(self) -> None:
        poll = select.poll()
        for lease, _ in self._orphans:
            poll.register(lease.fileno(), 0)
        gone = {descriptor for descriptor, events in poll.poll(0) if events & _HUNG_UP}
        if gone:
            self._orphans = [orphan for orphan in self._orphans if orphan[0].fileno() not in gone]

    def _grow(self, byte_count: int) -> Segment:
        size = max(byte_count, memory.rounded_up(limits.ARENA_SEGMENT_BYTES))
        if self.byte_count + size > limits.ARENA_BYTES_MAX:
            size = byte_count
            self._trim(max(limits.ARENA_BYTES_MAX - size - self._kept_bytes(), 0))
        if len(self._segments) >= limits.ARENAS_MAX:  # which is as many as a peer takes
            self._trim(0)
        if len(self._segments) >= limits.ARENAS_MAX or self.byte_count + size > limits.ARENA_BYTES_MAX:
            raise ArenaFull(
                f"{byte_count} bytes more than the {self._kept_bytes()} in use for blobs are over the limit of "
                f"{limits.ARENA_BYTES_MAX}: release some, or wait for those who were sent them"
            )
        try:
            segment = Segment(next(self._numbers), size)
        except OSError as error:
            raise ArenaFull(f"{size} bytes for blobs cannot be had: {error}") from error
        self._segments.append(segment)
        return segment

    def _kept_bytes(self) -> int:
        return sum(segment.byte_count for segment in self._segments if segment.used_bytes)

    def _trim(self, idle_bytes_max: int) -> None:
        """Give back segments that are not in use, the latest first, until no more than this is idle."""
        idle = [segment for segment in self._segments if not segment.used_bytes]
        idle_bytes = sum(segment.byte_count for segment in idle)
        while idle_bytes > idle_bytes_max:
            segment = idle.pop()
            idle_bytes -= segment.byte_count
            self._segments.remove(segment)
            segment.close()


_arena = Arena()


def the_arena() -> Arena:
    """That of this process; a child that was forked begins a new one."""
    return _arena


def _forget() -> None:
    # What the parent shares with its peers is not ours to use, and its numbers are not ours to give back.
    global _arena  # noqa: PLW0603
    _arena.close_descriptors()
    _arena = Arena()


os.register_at_fork(after_in_child=_forget)
