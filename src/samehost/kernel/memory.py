"""Memory that processes share, as files without a name: memfd_create(2), its seals, and mapping what others pass.

What comes from a peer is mapped only if it cannot shrink: reading memory beyond the end of its file is SIGBUS, and the
end of the process. So it has to be a memfd of ordinary pages, sealed, and as long as the peer says.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import sys

from samehost.errors import BadBlob

PAGE_BYTES = mmap.PAGESIZE

_FUTURE_WRITE = 0x10  # F_SEAL_FUTURE_WRITE of fcntl.h
_NO_EXEC = 0x08  # MFD_NOEXEC_SEAL of memfd.h, from Linux 6.3 on

_SEALED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_ARENA = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_SEAL_NAMES = {fcntl.F_SEAL_SHRINK: "SHRINK", fcntl.F_SEAL_GROW: "GROW", fcntl.F_SEAL_WRITE: "WRITE"}

# From Python 3.13 on, a mapping can do without a descriptor of its own.
_UNTRACKED = {"trackfd": False} if sys.version_info >= (3, 13) else {}


def rounded_up(byte_count: int) -> int:
    """The bytes of the pages that so many bytes need."""
    return -(-byte_count // PAGE_BYTES) * PAGE_BYTES


def _create(name: str) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | _NO_EXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create(name, flags)


def create_sealed(data: memoryview) -> int:
    """A descriptor of memory with these bytes, which nobody can change any more.

    Args:
        data: contiguous, of single bytes.

    Raises:
        OSError: memory or descriptors cannot be had.
    """
    descriptor = _create("samehost-blob")
    try:
        # write(2) and no mapping: a page that is mapped costs a fault to fill and another to take away.
        written = 0
        while written < len(data):
            written += os.write(descriptor, data[written:])
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALED | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def create_arena(byte_count: int) -> tuple[int, mmap.mmap]:
    """A descriptor of memory that only its mapping here can change, and that mapping.

    Args:
        byte_count: whole pages.

    Raises:
        OSError: memory or descriptors cannot be had.
    """
    descriptor = _create("samehost-arena")
    try:
        os.ftruncate(descriptor, byte_count)
        mapping = mmap.mmap(descriptor, byte_count, **_UNTRACKED)
        # Mapped first, as this mapping is to be the last that is writable.
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _ARENA | _FUTURE_WRITE | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, mapping


def map_sealed(descriptor: int, offset: int, length: int) -> memoryview:
    """A part of memory that a peer has passed and nobody can change.

    Args:
        length: at least 1.

    Raises:
        BadBlob: it is another kind of file, can be changed, or ends before that part does.
        OSError: it cannot be mapped.
    """
    byte_count = _checked(descriptor, _SEALED)
    if offset + length > byte_count:
        raise BadBlob(f"a blob from {offset} to {offset + length} in memory of {byte_count} bytes")
    start = offset // PAGE_BYTES * PAGE_BYTES
    # Private, as older kernels take a shared mapping for one that could be made writable.
    mapping = mmap.mmap(
        descriptor, offset + length - start, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ, offset=start, **_UNTRACKED
    )
    return memoryview(mapping)[offset - start :]


def map_arena(descriptor: int, byte_count: int) -> mmap.mmap:
    """All of the memory that a peer has passed and goes on writing to.

    Raises:
        BadBlob: it is another kind of file, could shrink, or is of another size.
        OSError: it cannot be mapped.
    """
    found = _checked(descriptor, _ARENA)
    if found != byte_count:
        raise BadBlob(f"an arena of {byte_count} bytes in memory of {found} bytes")
    return mmap.mmap(descriptor, byte_count, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, **_UNTRACKED)


def _checked(descriptor: int, wanted: int) -> int:
    """How large passed memory is, which holds as long as it lives.

    Raises:
        BadBlob: it is no memory, or some of these seals are missing.
    """
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        raise BadBlob(f"a blob in {_kind_of(mode)}, which is no shared memory")
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError as error:
        raise BadBlob("a blob in a file that can have no seals") from error
    missing = [name for seal, name in _SEAL_NAMES.items() if wanted & seal and not seals & seal]
    if missing:
        raise BadBlob(f"a blob in memory without the seals {', '.join(missing)}")
    if os.fstatvfs(descriptor).f_bsize != PAGE_BYTES:
        raise BadBlob("a blob in huge pages, which can run out under a reader")
    return os.fstat(descriptor).st_size  # only now, as until the seals were seen it could change


def _kind_of(mode: int) -> str:
    if stat.S_ISSOCK(mode):
        return "a socket"
    if stat.S_ISFIFO(mode):
        return "a pipe"
    if stat.S_ISDIR(mode):
        return "a directory"
    return "a device"
