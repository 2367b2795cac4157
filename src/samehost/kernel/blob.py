"""Blobs: bytes that lie in shared memory, in what was received or in any other, and all look alike.

Each part of the arena that somebody looks at has a root, an object that is never handed out itself. All that is made of
its view, slices, arrays of numpy, buffers of Arrow, refers to the root, whose end is that of the last of them.
"""

from __future__ import annotations

import array
import os
from functools import partial
from pickle import PickleBuffer
from typing import TYPE_CHECKING, Any

import msgspec

from samehost import limits
from samehost.errors import UsageError
from samehost.kernel.addresses import address_of, root_at, view_of
from samehost.kernel.arena import the_arena
from samehost.kernel.closing import Closable

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from samehost.kernel.arena import Block


class Blob(Closable):
    """Bytes that travel without a copy where they can, as an argument, a result or an item.

    Made over any bytes-like object, by `samehost.allocate`, or received. What is received can be read and not written,
    and the sender has its memory back when the blob, and all views, slices and arrays that were made of it, are gone:
    drop them, `release` the blob, or use it as a context manager.

    `len(blob)` is the number of bytes, and `bytes(blob)` a copy of them. From Python 3.12 on, `memoryview(blob)` and
    `numpy.frombuffer(blob)` work; `blob.view` is the same on any Python.
    """

    __slots__ = ("__weakref__", "_view")

    def __init__(self, data: Buffer) -> None:
        view = memoryview(data)
        if not view.c_contiguous:
            raise UsageError("a blob is of contiguous bytes; copy the data first")
        self._view: memoryview | None = view if view.format == "B" and view.ndim == 1 else PickleBuffer(data).raw()

    @property
    def view(self) -> memoryview:
        """The bytes.

        Raises:
            ValueError: the blob was released.
        """
        if self._view is None:
            raise ValueError("the blob was released already")
        return memoryview(self._view)  # another one each time, as it is the caller's to release

    def release(self) -> None:
        """Let go of the memory; a second time does nothing.

        Slices and arrays that were made of the blob stay good, and keep the memory in use.
        """
        self._view = None

    def close(self) -> None:
        """The same as `release`."""
        self.release()

    def __len__(self) -> int:
        return len(self.view)

    def __bytes__(self) -> bytes:
        return bytes(self.view)

    def __buffer__(self, flags: int) -> memoryview:
        return self.view

    def __repr__(self) -> str:
        if self._view is None:
            return "<Blob released>"
        return f"<Blob of {len(self._view)} bytes{', read-only' * self._view.readonly}>"


class Ending(msgspec.Struct, gc=False):
    """What tells of the end of the one object that refers to it, such as a root.

    A weak reference tells too soon: the garbage collector first clears those into a cycle, and then runs finalizers,
    which may still look at all that is in it, or keep it. Of this it does not know, so it is there until the very end.

    Attributes:
        ended: what to call then; within any line of any thread.
    """

    ended: Callable[[], object]

    def __del__(self) -> None:
        self.ended()


def allocate(size: int) -> Blob:
    """A blob of so many bytes to write into, through its `view`; when it is sent, nothing is copied.

    Its content is anything at first. What was sent is shared with the receiver until that has released it: do not write
    to it again, and allocate another, which costs microseconds.

    Raises:
        ArenaFull: too much memory is in use for blobs.
        UsageError: the size is negative, or more than a blob can have.
    """
    if not 0 <= size <= limits.BLOB_BYTES_MAX:
        raise UsageError(f"size={size!r}: a blob has from 0 to {limits.BLOB_BYTES_MAX} bytes")
    block = the_arena().allocate(size)
    root = root_at(block.segment.address + block.offset, size, block.segment.view)
    root.ending = Ending(partial(_roots.pop, id(root), None))
    _roots[id(root)] = block
    return Blob(view_of(root))


_roots: dict[int, Block] = {}
"""What roots of ours are over, by the id of the root, which is that of no other object for as long as it is here."""

os.register_at_fork(after_in_child=_roots.clear)


def block_behind(data: memoryview) -> tuple[Block, int] | None:
    """The block that these bytes lie in, and where in its segment they begin; None if they are in no block of ours."""
    if not _roots or data.nbytes == 0:
        return None
    if isinstance(data.obj, _OWNERS):
        return None
    owner: Any = data.obj
    block = _roots.get(id(owner))
    if block is not None and len(owner) == data.nbytes:
        return block, block.offset
    return _block_at(address_of(data), data.nbytes)


_OWNERS = (bytes, bytearray, array.array)
"""Whoever keeps bytes in these has them nowhere else."""


def _block_at(address: int, length: int) -> tuple[Block, int] | None:
    for block in _roots.copy().values():
        offset = address - block.segment.address
        if block.offset <= offset and offset + length <= block.offset + block.byte_count:
            return block, offset
    return None
